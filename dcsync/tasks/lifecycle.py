"""Start and stop of a worker process: checks settings, configures logging, sweeps when beat is late, gives back runs.
Importing it connects the functions to Celery's signals (see `app.make_app`)."""

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
from dcsync.model.errors import DcsyncError, MisconfiguredError
from dcsync.model.messages import Queue, TaskName
from dcsync.settings import load
from dcsync.tasks.base import WorkerProcess, process_of
from dcsync.tasks.control import sweep_now

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(__name__)

LATE_AFTER_INTERVALS = 2.5
"""A sweep is late when none has ended for this many intervals; workers then sweep themselves."""

LAST_REPORTS_SECONDS = 5.0

_stopping = threading.Event()
_stopped = threading.Event()
"""No run is at work any more: nothing is stamped after that."""

_this: list[WorkerProcess] = []
"""The worker of this process, once it is set up: the shutdown signals do not pass the app."""


@setup_logging.connect
def _set_up_logging(**_: Any) -> None:
    """Configures dcsync's log format, whatever Celery's options are."""
    logs.configure(load().log_level)


@celeryd_after_setup.connect
def _prepare(sender: str, instance: Any, **_: Any) -> None:
    """Exits when required settings are missing, and raises the limit of open files to the hard limit."""
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
    threading.Thread(
        target=process.clock.keep_measured, kwargs={"stopping": _stopped}, name="clock", daemon=True
    ).start()
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
    """Sweeps in this thread when a sweep is late: beat may have died, or its message may be queued behind long runs."""
    services = process.sync
    interval = services.settings.sweep_interval
    while not _stopping.wait(interval):
        try:
            since = services.ticks.seconds_since_sweep(process.clock.now())
            # A last sweep in the future means that the clock was set back; it does not count.
            if (since is None or abs(since) > interval * LATE_AFTER_INTERVALS) and services.ticks.take():
                log.warning("the sweep is late, sweeping in this worker", seconds_since_sweep=since)
                sweep_now(services)
                _send_other_scheduled_tasks(process.app)
        except (DcsyncError, OperationalError) as exc:
            log.warning("late sweep not possible", error=str(exc))
        except Exception:  # the boundary of this thread, which must go on while beat is down
            log.exception("late sweep failed")


def _send_other_scheduled_tasks(app: Any) -> None:
    """Sends every other scheduled task once; a duplicate is harmless, and messages expire like those of beat."""
    for entry in app.conf.beat_schedule.values():
        if entry["task"] != TaskName.SWEEP.value:
            app.send_task(entry["task"], retry=False, **entry["options"])


@worker_shutting_down.connect
def _give_back_runs(**_: Any) -> None:
    """Lets runs end for DCSYNC_STOP_GRACE, then cancels the rest, so that another worker takes them immediately."""
    _stopping.set()
    for process in _this:
        services = process.sync_if_created
        if services is not None:
            timer = threading.Timer(services.settings.stop_grace, services.loop.cancel_all)
            timer.daemon = True
            timer.start()


@worker_shutdown.connect
def _send_last_reports(**_: Any) -> None:
    """Sends the reports of the last runs, which would otherwise be sent again only by later runs."""
    for process in _this:
        services = process.sync_if_created
        if services is not None:
            services.reporter.close(timeout_seconds=LAST_REPORTS_SECONDS)
    _stopped.set()
