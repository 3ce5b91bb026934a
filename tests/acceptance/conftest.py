"""Fixtures of this tier that not everybody needs.

system     dcsync as a whole, one for all tests of a module, each of which takes subclouds of its own from it
subclouds  `subclouds(3)`: three of them, added and online; unmanaged and healthy again after the test
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dcsync.adapters.host.clock import utc_now
from dcsync.model.subcloud import ManagementState
from tests.real_cloud.fixtures import real_cloud as real_cloud
from tests.system import System, open_system

Subclouds = Callable[[int], list[str]]
ONLINE = 60
NOT_ADDED = 5


@contextmanager
def a_whole_system(folder: Path, *, online: int = ONLINE) -> Iterator[System]:
    """With a sync worker, a state worker, a beat, and so many online subclouds that wait to be managed."""
    with open_system(folder, subclouds=online + NOT_ADDED) as system:
        system.start_dcsync()
        system.add_online(count=online)
        yield system


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with a_whole_system(tmp_path_factory.mktemp("system")) as system:
        yield system


@pytest.fixture
def subclouds(system: System) -> Iterator[Subclouds]:
    taken: list[str] = []

    def take(count: int) -> list[str]:
        names = system.take(count)
        taken.extend(names)
        return names

    yield take
    for name in taken:
        system.cloud.set_fault(name, None)
    still_there = {row.name for row in system.inventory.all()}
    left = [name for name in taken if name in still_there]
    system.inventory.set_management(left, ManagementState.UNMANAGED, now=utc_now(), by="end of test")
