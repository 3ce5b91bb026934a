"""What a worker does at its start."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from dcsync.model.messages import Queue
from dcsync.settings import load
from dcsync.tasks import lifecycle


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
