"""The status record that each worker and beat writes, for `dcsync service status` and `monitor`."""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections.abc import Callable
from typing import Any

from celery.signals import celeryd_after_setup, worker_shutdown, worker_shutting_down
from celery.worker import state as tasks_of_this_worker

from dcsync.adapters.host.process_records import Phase, ProcessRecord, RecordFile, Role, start_of, system_of
from dcsync.model.messages import Queue
from dcsync.settings import Settings
from dcsync.tasks.base import WorkerProcess, process_of

RECORD_SECONDS = 1.0
_ROLE_OF = {Queue.SYNC: Role.SYNC, Queue.STATE: Role.STATE}


def _file(settings: Settings) -> RecordFile:
    """Returns the record file of this process, which is removed when it ends."""
    file = RecordFile(settings.run_folder)
    atexit.register(file.remove)
    return file


def _system(settings: Settings) -> str:
    return system_of(settings.redis_url.get_secret_value()) if settings.redis_url else ""


class WorkerRecord:
    """The record of a worker, written by its own thread, so that a busy worker updates it as well."""

    def __init__(self, worker: Any, process: WorkerProcess) -> None:
        settings = process.settings
        self._process = process
        self._worker = worker
        self._system = _system(settings)
        self._file = _file(settings)
        self._queues = tuple(sorted(str(name) for name in worker.app.amqp.queues.consume_from))
        self._ended = 0
        self._ended_at = time.monotonic()
        self.phase = Phase.STARTING
        self.consumer: Any = None
        self.last_turn: Callable[[], float] = time.monotonic

    def keep(self) -> None:
        """Writes the record until the process ends."""
        forever = threading.Event()
        while True:
            self._file.write(self._now())
            forever.wait(RECORD_SECONDS)

    def remove(self) -> None:
        self._file.remove()

    def _now(self) -> ProcessRecord:
        taken, active = sum(list(tasks_of_this_worker.total_count.values())), len(tasks_of_this_worker.active_requests)
        now = time.monotonic()
        if taken - active != self._ended:
            self._ended, self._ended_at = taken - active, now
        return ProcessRecord(
            pid=os.getpid(),
            started=start_of(os.getpid()) or 0,
            system=self._system,
            roles=tuple(role for queue, role in _ROLE_OF.items() if queue in self._queues),
            name=str(self._worker.hostname),
            phase=self.phase,
            shown_at=now,
            turned_at=self.last_turn(),
            is_connected=self.consumer is not None and self.consumer.connection is not None,
            queues=self._queues,
            consumed=self._consumed(),
            threads=int(self._worker.concurrency or 0),
            active=active,
            taken=taken,
            progressed_at=self._ended_at,
            clock_ahead=self._clock_ahead(),
        )

    def _clock_ahead(self) -> float | None:
        clock = self._process.clock_if_made
        return None if clock is None else clock.seconds_ahead()

    def _consumed(self) -> tuple[str, ...]:
        consumer = getattr(self.consumer, "task_consumer", None)
        return tuple(sorted(str(queue.name) for queue in consumer.queues)) if consumer is not None else ()


_worker: list[WorkerRecord] = []
"""The record of this process: the shutdown signals do not pass it."""


@celeryd_after_setup.connect
def _keep_record(instance: Any, **_: Any) -> None:
    record = WorkerRecord(instance, process_of(instance.app))
    _worker[:] = [record]
    threading.Thread(target=record.keep, name="record", daemon=True).start()


def note_consumer(consumer: Any, *, last_turn: Callable[[], float]) -> None:
    """Records that the worker is up; `last_turn` returns when its loop last turned, by the monotonic clock."""
    for record in _worker:
        record.consumer, record.last_turn, record.phase = consumer, last_turn, Phase.RUNNING


@worker_shutting_down.connect
def _note_stopping(**_: Any) -> None:
    for record in _worker:
        record.phase = Phase.STOPPING


@worker_shutdown.connect
def _remove_record(**_: Any) -> None:
    for record in _worker:
        record.remove()


class BeatRecord:
    """The record of beat, written at its ticks."""

    def __init__(self, settings: Settings) -> None:
        self._system = _system(settings)
        self._file = _file(settings)
        self._sent = 0
        self._sent_at = time.monotonic()
        self._shown_at = 0.0

    def sent(self) -> None:
        """Records that the broker accepted a message."""
        self._sent += 1
        self._sent_at = time.monotonic()

    def ticked(self) -> None:
        now = time.monotonic()
        if now - self._shown_at < RECORD_SECONDS:
            return
        self._shown_at = now
        self._file.write(
            ProcessRecord(
                pid=os.getpid(),
                started=start_of(os.getpid()) or 0,
                system=self._system,
                roles=(Role.BEAT,),
                name="beat",
                phase=Phase.RUNNING,
                shown_at=now,
                turned_at=now,
                is_connected=True,
                taken=self._sent,
                progressed_at=self._sent_at,
            )
        )
