"""Start and stop of a worker process: checks settings, configures logging, watches for late tasks, gives back runs.
Importing it connects the functions to Celery's signals (see `app.make_app`)."""

from __future__ import annotations

import logging
import resource
import sys
import threading
from typing import Any

import structlog
from celery.apps.worker import REMAP_SIGTERM, install_worker_term_handler
from celery.signals import celeryd_after_setup, setup_logging, worker_ready, worker_shutdown, worker_shutting_down
from celery.worker.consumer.consumer import (
    INVALID_TASK_ERROR,
    MESSAGE_DECODE_ERROR,
    UNKNOWN_FORMAT,
    UNKNOWN_TASK_ERROR,
)

from dcsync import logs
from dcsync.adapters.broker import broker_guard
from dcsync.model.errors import MisconfiguredError
from dcsync.model.messages import Queue
from dcsync.settings import load
from dcsync.tasks.base import WorkerProcess, process_of
from dcsync.tasks.periodic import watch_in_threads

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(__name__)

LAST_REPORTS_SECONDS = 5.0

_stopping = threading.Event()
_stopped = threading.Event()
"""No run is at work any more: nothing is stamped after that."""

_workers: list[Any] = []
"""Celery's worker of this process, once it is set up."""

_this: list[WorkerProcess] = []
"""The worker of this process, once it is set up: the shutdown signals do not pass the app."""


@setup_logging.connect
def _set_up_logging(**_: Any) -> None:
    """Configures dcsync's log format, whatever Celery's options are."""
    logs.configure(load().log_level)
    logging.getLogger("celery.worker.consumer.consumer").addFilter(in_one_line)


LONGEST_COMPLAINT = 300
_OF_MESSAGES = (MESSAGE_DECODE_ERROR, UNKNOWN_FORMAT, UNKNOWN_TASK_ERROR, INVALID_TASK_ERROR)


def in_one_line(record: logging.LogRecord) -> bool:
    """Shortens what Celery logs about a message it cannot use: anybody may send thousands, each with a traceback and
    its whole body."""
    if record.msg in _OF_MESSAGES:
        record.msg = " ".join(record.getMessage().split())[:LONGEST_COMPLAINT]
        record.args, record.exc_info, record.exc_text = (), None, None
    return True


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
    _workers[:] = [instance]


def _consumes(app: Any, queue: Queue) -> bool:
    return queue.value in app.amqp.queues.consume_from


def _raise_open_files_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@worker_ready.connect
def _start_watching(sender: Any, **_: Any) -> None:
    """Celery says so after each new connection to the broker; threads are started once."""
    process = process_of(sender.app)
    for worker in _workers:
        _replace_cold_shutdown(worker)
    is_first = process.consumer is None
    process.consumer = sender
    if is_first:
        reaches_clouds = any(_consumes(sender.app, queue) for queue in Queue if queue is not Queue.STATE)
        watch_in_threads(process, reaches_clouds=reaches_clouds, stopping=_stopping)


def _replace_cold_shutdown(worker: Any) -> None:
    """Makes SIGQUIT end the worker as SIGTERM does, but without the grace.

    Celery's own answer ends the interpreter below the runs: each would fail with internal-error. Remapped signals
    (REMAP_SIGTERM) and the second Ctrl-C lead there as well.
    """
    for name in ("SIGQUIT", *(["SIGTERM"] if REMAP_SIGTERM == "SIGQUIT" else [])):
        install_worker_term_handler(worker, sig=name, how="Warm", callback=None, exitcode=0)


@worker_shutting_down.connect
def _give_back_runs(sig: str = "SIGTERM", **_: Any) -> None:
    """Lets runs end for DCSYNC_STOP_GRACE, then cancels the rest, so that another worker takes them immediately. With
    SIGQUIT, or when asked again, nothing is waited for."""
    is_urgent = sig == "SIGQUIT" or _stopping.is_set()
    _stopping.set()
    if sig == "SIGINT":
        for worker in _workers:
            install_worker_term_handler(worker, sig="SIGINT", how="Warm", callback=None, exitcode=0)
    for process in _this:
        services = process.sync_if_created
        if services is not None:
            timer = threading.Timer(0 if is_urgent else services.settings.stop_grace, services.loop.cancel_all)
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
