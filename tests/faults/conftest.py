"""Fixtures of this tier: every test breaks a dcsync of its own.

broken_system   `broken_system(subclouds=3, DCSYNC_LOCK_TTL="3")`: servers and fake cloud up, no process of dcsync yet
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.system import FAST, System, open_system

BrokenSystem = Callable[..., System]


@pytest.fixture
def broken_system(tmp_path: Path) -> Iterator[BrokenSystem]:
    with ExitStack() as opened:

        def make(*, subclouds: int, fast: bool = True, **settings: str) -> System:
            chosen = (FAST if fast else {}) | settings
            return opened.enter_context(open_system(tmp_path, subclouds=subclouds, settings=chosen))

        yield make
