"""Fixtures of this tier that not everybody needs."""

from tests.real_cloud.fixtures import real_cloud as real_cloud
