"""One fake cloud for all tests of this folder, a fresh subcloud of it for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from dcsync.fake_cloud.control import FakeCloud
from tests.integration.fake_cloud.client import Run

_SUBCLOUDS = 200


@pytest.fixture(scope="session")
def fake() -> Iterator[FakeCloud]:
    """Its centre is never changed; tests that change the central cloud start a cloud of their own."""
    with FakeCloud.start(subclouds=_SUBCLOUDS, unaligned=[f"subcloud{_SUBCLOUDS}"]) as cloud:
        yield cloud


@pytest.fixture(scope="session")
def numbers() -> Iterator[int]:
    return iter(range(1, _SUBCLOUDS))


@pytest.fixture
def region(numbers: Iterator[int]) -> str:
    """A subcloud nobody has touched."""
    return f"subcloud{next(numbers)}"


@pytest.fixture
def begin(fake: FakeCloud) -> Iterator[Callable[[str], Run]]:
    """Begins runs, and closes their connections in the end."""
    begun: list[Run] = []

    def at(region_name: str) -> Run:
        begun.append(Run.at(fake, region_name))
        return begun[-1]

    yield at
    for run in begun:
        run.close()


@pytest.fixture
def run(begin: Callable[[str], Run], region: str) -> Run:
    return begin(region)
