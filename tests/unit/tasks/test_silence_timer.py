"""The thread that checks for silence in every worker process."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

from dcsync.model.errors import DatabaseUnreachable
from dcsync.state.silence_check import SilenceResult
from dcsync.tasks import silence
from tests.processes import wait_until


class Process:
    """Its first checks fail; later ones find something, then nothing."""

    def __init__(self) -> None:
        self.checks = 0
        self.delivered: list[int] = []
        self.state: Any = SimpleNamespace(silence=self, alarm_feed=self)

    def run(self) -> SilenceResult | None:
        self.checks += 1
        if self.checks == 1:
            raise DatabaseUnreachable("away")
        if self.checks == 2:
            raise ValueError("a fault")
        return {3: SilenceResult(1, 0), 4: SilenceResult(0, 0), 5: None, 6: SilenceResult(0, 1)}.get(self.checks)

    def deliver(self) -> None:
        self.delivered.append(self.checks)


def test_no_fault_ends_the_checks_and_each_delivers() -> None:
    process: Any = Process()
    stopping = threading.Event()
    thread = threading.Thread(target=silence.check_until, args=(process, stopping), kwargs={"seconds": 0.001})
    thread.start()
    try:
        wait_until(lambda: process.checks > 6, seconds=60, what="it goes on checking")
    finally:
        stopping.set()
        thread.join(60)
    assert process.delivered == [3, 4, 6]
