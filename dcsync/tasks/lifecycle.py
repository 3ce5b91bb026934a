"""What a worker process does at its start and its end: settings checked, logs set up, a late sweep noticed, runs given
back. Connected to Celery's signals by being imported (see `app.make_app`)."""

from __future__ import annotations

import resource
import sys
import threading
from typing import Any

import structlog
from celery.signals import celeryd_after_setup, setup_logging, worker_ready, worker_shutdown, worker_shutting_down
from kombu.exceptions import OperationalError

from dcsync import logs
from dcsync.adapters.broker import broker_guard
from dcsync.adapters.host.clock import utc_now
from dcsync.model.errors import DcsyncError, MisconfiguredError
from dcsync.model.messages import Queue, TaskName
from dcsync.settings import load
from dcsync.tasks.base import WorkerProcess, process_of
from dcsync.tasks.control import sweep_now

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(__name__)

LATE_AFTER_INTERVALS = 2.5
"""A sweep is late when none has ended for this many intervals; then workers sweep themselves."""

LAST_REPORTS_SECONDS = 5.0

_stopping = threading.Event()
_this: list[WorkerProcess] = []
"""The worker of this process, once it is set up: the signal of its end names no app."""


@setup_logging.connect
def _set_up_logging(**_: Any) -> None:
    """Our own format, whatever Celery's options say."""
    logs.configure(load().log_level)


@celeryd_after_setup.connect
def _prepare(sender: str, instance: Any, **_: Any) -> None:
    """Refuse to start with settings that cannot work, and raise the limit of open files as far as allowed."""
    process = process_of(instance.app)
    process.name = sender
    needed = ["database_url", "redis_url"]
    if any(_consumes(instance.app, queue) for queue in Queue if queue is not Queue.STATE):
        needed += ["central_auth_url", "password"]
    try:
        process.settings.required(*needed)
    except MisconfiguredError as exc:
        sys.exit(f"dcsync: {exc}")
    _raise_open_files_limit()
    broker_guard.try_heartbeats_once()
    _this[:] = [process]


def _consumes(app: Any, queue: Queue) -> bool:
    return queue.value in app.amqp.queues.consume_from


def _raise_open_files_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@worker_ready.connect
def _start_watching(sender: Any, **_: Any) -> None:
    process = process_of(sender.app)
    process.consumer = sender
    if _consumes(sender.app, Queue.CONTROL):
        threading.Thread(target=_sweep_when_late, args=(process,), name="late-sweep", daemon=True).start()


def _sweep_when_late(process: WorkerProcess) -> None:
    """Beat may be dead, or its message may wait behind long runs: a late sweep is run here, in a thread of its own."""
    services = process.sync
    interval = services.settings.sweep_interval
    while not _stopping.wait(interval):
        try:
            since = services.ticks.seconds_since_sweep(utc_now())
            # A sweep that seems to come is one of a clock that was set back since: it tells nothing.
            if (since is None or abs(since) > interval * LATE_AFTER_INTERVALS) and services.ticks.take():
                log.warning("the sweep is late, sweeping here", seconds_since_sweep=since)
                sweep_now(services)
                _send_what_else_beat_sends(process.app)
        except (DcsyncError, OperationalError) as exc:
            log.warning("late sweep not possible", error=str(exc))
        except Exception:  # the boundary of this thread: without it nobody would stand in for a dead beat
            log.exception("late sweep failed")


def _send_what_else_beat_sends(app: Any) -> None:
    """Audits, probes, alarms and the rest, each once: twice is harmless, and unread they expire as beat's own do."""
    for entry in app.conf.beat_schedule.values():
        if entry["task"] != TaskName.SWEEP.value:
            app.send_task(entry["task"], retry=False, **entry["options"])


@worker_shutting_down.connect
def _give_back_in_time(**_: Any) -> None:
    """Let runs end for a while, then give back what is left, so that another worker takes it at once."""
    _stopping.set()
    for process in _this:
        services = process.sync_if_made
        if services is not None:
            timer = threading.Timer(services.settings.stop_grace, services.loop.cancel_all)
            timer.daemon = True
            timer.start()


@worker_shutdown.connect
def _send_last_reports(**_: Any) -> None:
    """What the last runs found out would otherwise wait for their next ones."""
    for process in _this:
        services = process.sync_if_made
        if services is not None:
            services.reporter.close(timeout_seconds=LAST_REPORTS_SECONDS)
