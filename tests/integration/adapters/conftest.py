"""Fixtures for tests of the HTTP adapters. Every test below here is a canary test as well."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import ipaddress
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from dcsync.adapters.cloud.clouds import HttpClouds
from dcsync.adapters.cloud.endpoints import CentralEndpoints
from dcsync.adapters.host.own_servers import OwnServers
from tests.integration.adapters.scripted_site import ADDRESS, CREDENTIALS, LIMITS, Clock, Site, assert_no_secret_in


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    found = Site()
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with contextlib.suppress(asyncio.CancelledError):  # The end of the test.
            await found.serve(reader, writer)

    server = await asyncio.start_server(serve, ADDRESS, 0, limit=2**22)
    found.port = server.sockets[0].getsockname()[1]
    yield found
    server.close()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make_clouds(site: Site, clock: Clock) -> Callable[..., HttpClouds]:
    def make(*, ca_file: Path | None = None, own_servers: OwnServers | None = None, **central: str) -> HttpClouds:
        return HttpClouds(
            credentials=CREDENTIALS,
            central=CentralEndpoints(auth=site.urls(ADDRESS).auth, region="RegionOne", **central),
            subcloud_templates=site.urls(),
            allowed_networks=[ipaddress.ip_network("127.0.0.0/8")],
            ca_file=ca_file,
            own_servers=own_servers,
            limits=LIMITS,
            max_age=5,
            monotonic=clock,
        )

    return make


@pytest.fixture
def clouds(make_clouds: Callable[..., HttpClouds]) -> HttpClouds:
    return make_clouds()


@pytest.fixture(autouse=True)
def no_secret_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Every test here is a canary test: nothing any logger says, at any level, holds a secret."""
    caplog.set_level(logging.DEBUG)
    yield
    gc.collect()
    for record in caplog.get_records("call"):
        assert_no_secret_in(record.getMessage(), repr(vars(record)), caplog.text)
