"""What this tier has beside its suites: fixtures that not everybody needs, and which tests run on a real adapter."""

from __future__ import annotations

import pytest

from tests.real_cloud.fixtures import real_cloud as real_cloud

SERVERS = frozenset({"postgresql", "redis", "celery", "http", "fake_backend", "real_backend"})
"""Parameters that stand for an adapter with its server."""
SERVER_FIXTURES = frozenset({"_postgres", "_redis", "fake_backend", "real_cloud"})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks as `servers` what starts one, so that `make check` can leave it out."""
    for item in items:
        parameters = (
            item.callspec.params.values() if isinstance(item, pytest.Function) and hasattr(item, "callspec") else ()
        )
        if SERVERS.intersection(map(str, parameters)) or SERVER_FIXTURES.intersection(
            getattr(item, "fixturenames", ())
        ):
            item.add_marker("servers")
