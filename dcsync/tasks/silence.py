"""The timer of the check for silence: a thread in every worker process, whatever queues it consumes.

It is no task: a task would need beat, Redis and a free worker, which may be what is silent.
"""

from __future__ import annotations

import threading
from typing import Any

import structlog
from celery.signals import celeryd_after_setup, worker_shutting_down

from dcsync.model.errors import DcsyncError
from dcsync.state.silence_check import CHECK_INTERVAL
from dcsync.tasks.base import WorkerProcess, process_of

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(__name__)

_stopping = threading.Event()


@celeryd_after_setup.connect
def _start(sender: str, instance: Any, **_: Any) -> None:
    """Also when Redis cannot be reached: the worker waits for it, and the alarms do not."""
    process = process_of(instance.app)
    threading.Thread(target=check_until, args=(process, _stopping), name="silence", daemon=True).start()


@worker_shutting_down.connect
def _stop(**_: Any) -> None:
    _stopping.set()


def check_until(process: WorkerProcess, stopping: threading.Event, *, seconds: float | None = None) -> None:
    """Checks for the first time after one interval: workers that were started with this one are given time to begin."""
    while not stopping.wait(CHECK_INTERVAL.total_seconds() if seconds is None else seconds):
        try:
            check(process)
        except DcsyncError as exc:
            log.warning("check for silence not possible", error=str(exc))
        except Exception:  # the boundary of this thread: without it this process would not check again
            log.exception("check for silence failed")


def check(process: WorkerProcess) -> None:
    """Checks once, and delivers alarms, which otherwise depends on a task of the sync workers."""
    services = process.state
    result = services.silence.run()
    if result is None:
        return
    if not result.is_idle:
        log.warning("alarms for silence", raised=result.raised, cleared=result.cleared)
    services.alarm_feed.deliver()
