"""Fixtures of the real clouds, imported by the conftest of whoever uses them; one set of clouds per test module.

In CI the clouds must come up; elsewhere, where Keystone cannot be installed, the tests are skipped with the reason.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import NoReturn

import pytest

from tests.real_cloud.clouds import RealClouds
from tests.real_cloud.environment import EnvironmentUnavailableError, ensure


@pytest.fixture(scope="module")
def real_cloud() -> Iterator[RealClouds]:
    """The central cloud, `subcloud1` and `subcloud2`, fresh; what a test does to them the tests after it find."""
    try:
        ensure()
    except EnvironmentUnavailableError as exc:
        skip_or_fail(exc, environ=os.environ)
    with RealClouds() as clouds:
        yield clouds


def skip_or_fail(unavailable: EnvironmentUnavailableError, *, environ: Mapping[str, str]) -> NoReturn:
    if environ.get("CI", "").lower() in {"1", "true"}:
        raise unavailable
    pytest.skip(f"no real Keystone here: {unavailable}")
