"""The base of every task: how it reaches the services of its process, and what its log lines carry."""

from __future__ import annotations

import threading
from typing import Any

import structlog
from celery import Celery, Task

from dcsync import bootstrap
from dcsync.initial_sync.ports import Run
from dcsync.model.errors import TemporaryError
from dcsync.model.messages import SyncHint
from dcsync.model.subcloud import Step
from dcsync.settings import Settings

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(__name__)


class DcsyncTask(Task):
    """Its services are made on first use, once per process. A TemporaryError ends a task without a traceback, for the
    next sweep makes it good."""

    abstract = True
    throws = (TemporaryError,)

    def on_failure(self, exc: BaseException, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        """Celery tells of what `throws` names on a level that nobody sees; of anything else with its traceback."""
        if isinstance(exc, TemporaryError):
            log.warning("not done now, the next one makes it good", task=self.name, error=str(exc))

    @property
    def sync(self) -> bootstrap.SyncServices:
        return process_of(self.app).sync

    @property
    def state(self) -> bootstrap.StateServices:
        return process_of(self.app).state


class WorkerProcess:
    """What one worker process keeps between tasks."""

    def __init__(self, app: Celery, settings: Settings) -> None:
        self.app = app
        self.settings = settings
        self._guard = threading.Lock()
        self._sync: bootstrap.SyncServices | None = None
        self._state: bootstrap.StateServices | None = None
        self.consumer: Any = None
        """Celery's consumer once it is up: the way to Flower's events."""
        self.name = "worker"

    @property
    def sync(self) -> bootstrap.SyncServices:
        with self._guard:
            if self._sync is None:
                self._sync = bootstrap.sync_services(self.settings, self.app, progress=self.show_step, worker=self.name)
            return self._sync

    @property
    def state(self) -> bootstrap.StateServices:
        with self._guard:
            if self._state is None:
                self._state = bootstrap.state_services(self.settings, self.app, worker=self.name)
            return self._state

    @property
    def sync_if_made(self) -> bootstrap.SyncServices | None:
        return self._sync

    def show_step(self, run: Run, step: Step) -> None:
        """Tell Flower: the task's state becomes the step's name. Nothing depends on it, so nothing may come of it."""
        dispatcher = getattr(self.consumer, "event_dispatcher", None)
        if dispatcher is None or not dispatcher.enabled:
            return
        try:
            dispatcher.send(f"task-{step.value}", uuid=_task_id(run), retry=False)
        except Exception as exc:  # noqa: BLE001 - a picture in a dashboard must never end a run
            log.debug("step not shown", error=type(exc).__name__)


def _task_id(run: Run) -> str:
    subcloud = run.subcloud
    return SyncHint(subcloud.region_name, subcloud.generation, subcloud.attempt).task_id


def process_of(app: Celery) -> WorkerProcess:
    """The WorkerProcess that `make_app` gave this app."""
    process: WorkerProcess = app.dcsync
    return process
