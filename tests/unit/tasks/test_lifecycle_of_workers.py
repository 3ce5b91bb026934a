"""What a worker does at its start, and for a beat that is dead."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from dcsync.model.messages import Queue
from dcsync.settings import load
from dcsync.tasks import lifecycle
from tests.builders import NOON
from tests.processes import wait_until


class Ticks:
    """The first look fails as nothing should; later ones find when the last sweep was."""

    def __init__(self, seconds_since_sweep: float) -> None:
        self.looks = 0
        self._since = seconds_since_sweep

    def seconds_since_sweep(self, _: object) -> float:
        self.looks += 1
        if self.looks == 1:
            raise ValueError("could not convert string to float")
        return self._since

    def take(self) -> bool:
        return True


@pytest.mark.parametrize("since", [1000.0, -1000.0])
def test_no_fault_keeps_a_worker_from_standing_in_for_a_dead_beat(
    monkeypatch: pytest.MonkeyPatch, since: float
) -> None:
    """Nor does a clock that was set back."""
    swept: list[object] = []
    stopping = threading.Event()
    monkeypatch.setattr(lifecycle, "_stopping", stopping)
    monkeypatch.setattr(lifecycle, "sweep_now", swept.append)
    services = SimpleNamespace(ticks=Ticks(since), settings=SimpleNamespace(sweep_interval=0.01))
    app = SimpleNamespace(conf=SimpleNamespace(beat_schedule={}))
    process: Any = SimpleNamespace(sync=services, app=app, clock=SimpleNamespace(now=lambda: NOON))
    thread = threading.Thread(target=lifecycle._sweep_when_late, args=(process,), daemon=True)
    thread.start()
    try:
        wait_until(lambda: swept, seconds=60, what="it sweeps in beat's place")
    finally:
        stopping.set()
        thread.join(timeout=60)


@pytest.mark.parametrize("queue", [Queue.CONTROL, Queue.SYNC, Queue.AUDIT])
def test_a_worker_that_lacks_the_central_cloud_does_not_start(queue: Queue) -> None:
    with pytest.raises(SystemExit, match="not set: DCSYNC_CENTRAL_AUTH_URL, DCSYNC_PASSWORD"):
        lifecycle._prepare("worker", instance=a_worker(queue))


def test_a_state_worker_needs_no_centre(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "_this", [])
    measured = threading.Event()
    clock = SimpleNamespace(keep_measured=lambda stopping: measured.set())
    lifecycle._prepare("worker", instance=a_worker(Queue.STATE, clock=clock))
    assert lifecycle._this
    assert measured.wait(60), "nobody measures the database's time"


def a_worker(queue: Queue, *, clock: object = None) -> Any:
    settings = load({"DCSYNC_DATABASE_URL": "postgresql://db.invalid/d", "DCSYNC_REDIS_URL": "redis://r.invalid"})
    amqp = SimpleNamespace(queues=SimpleNamespace(consume_from={queue.value: None}))
    return SimpleNamespace(
        app=SimpleNamespace(amqp=amqp, dcsync=SimpleNamespace(settings=settings, name="", clock=clock))
    )
