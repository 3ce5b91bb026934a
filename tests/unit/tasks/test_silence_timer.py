"""The thread that looks for silence in every worker process."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

from dcsync.model.errors import DatabaseUnreachable
from dcsync.state.silence_check import SilenceLook
from dcsync.tasks import silence
from tests.processes import wait_until


class Process:
    """Its first looks fail; later ones find something, then nothing."""

    def __init__(self) -> None:
        self.looks = 0
        self.delivered: list[int] = []
        self.state: Any = SimpleNamespace(silence=self, alarm_feed=self)

    def look(self) -> SilenceLook | None:
        self.looks += 1
        if self.looks == 1:
            raise DatabaseUnreachable("away")
        if self.looks == 2:
            raise ValueError("a fault")
        return {3: SilenceLook(1, 0), 4: SilenceLook(0, 0), 5: None, 6: SilenceLook(0, 1)}.get(self.looks)

    def deliver(self) -> None:
        self.delivered.append(self.looks)


def test_no_fault_ends_the_looks_and_whoever_looks_delivers() -> None:
    process: Any = Process()
    stopping = threading.Event()
    thread = threading.Thread(target=silence.look_until, args=(process, stopping), kwargs={"seconds": 0.001})
    thread.start()
    try:
        wait_until(lambda: process.looks > 6, seconds=60, what="it goes on looking")
    finally:
        stopping.set()
        thread.join(60)
    assert process.delivered == [3, 4, 6]
