"""The base class of all tasks: gives access to the services of the process and logs temporary errors."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, TypeVar

import structlog
from celery import Celery, Task

from dcsync import bootstrap
from dcsync.adapters.broker.ticks import Ticks
from dcsync.adapters.postgres.clock import DatabaseClock
from dcsync.initial_sync.ports import Run
from dcsync.model.errors import DamagedMessage, TemporaryError
from dcsync.model.messages import TaskName
from dcsync.model.subcloud import Step
from dcsync.runs.outcome import Outcome
from dcsync.runs.runner import OnEnd
from dcsync.settings import Settings

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(__name__)

T = TypeVar("T")

UNSCHEDULED_SECONDS = 1.0
"""The tick of a task that beat of this configuration does not send, and somebody else's does."""


task_at_work: ContextVar[str] = ContextVar("task_at_work", default="")
"""Celery's id of the task whose run this is; what a task's thread sets is seen by the coroutines it submits."""

TAKEN = "this tick was taken already"


class DcsyncTask(Task):
    """Services are created at first use, once per process. A TemporaryError is logged without a traceback, because the
    next sweep retries."""

    abstract = True
    throws = (TemporaryError, DamagedMessage)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the task; raises DamagedMessage for arguments it cannot take, before anything is done with them."""
        require_arguments(inspect.signature(self.run), args, kwargs)
        return self.run(*args, **kwargs)

    def on_failure(self, exc: BaseException, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        """Logs a TemporaryError; Celery logs errors in `throws` below the configured level, and others in full."""
        if isinstance(exc, TemporaryError):
            log.warning("task failed, the next one retries", task=self.name, error=str(exc))
        if isinstance(exc, DamagedMessage):
            log.warning("dropped a damaged message", task=self.name, error=str(exc))

    def tick(self, run: Callable[[WorkerProcess], T], *, hinted: bool) -> T | str:
        """Runs periodic work and notes that it ended well; of many messages that come at once or late, one does so.

        A hint (somebody changed a row just now) is always followed.
        """
        process = process_of(self.app)
        if hinted:
            process.ticks.hint_taken(self.name)
        elif not process.ticks.take(
            self.name, interval=process.intervals.get(TaskName(self.name), UNSCHEDULED_SECONDS)
        ):
            return TAKEN
        result = run(process)
        process.ticks.ended_well(self.name)
        return result

    @property
    def clock(self) -> DatabaseClock:
        return process_of(self.app).clock

    @property
    def sync(self) -> bootstrap.SyncServices:
        return process_of(self.app).sync

    @property
    def state(self) -> bootstrap.StateServices:
        return process_of(self.app).state


LARGEST_NUMBER = 2**63 - 1
"""Of a column of numbers."""

_IS_SENT: Mapping[str, Callable[[object], bool]] = {
    "region_name": lambda value: isinstance(value, str) and "\0" not in value,
    "generation": lambda value: type(value) is int and 0 <= value <= LARGEST_NUMBER,
    "hinted": lambda value: isinstance(value, bool),
}
"""What dcsync sends as these arguments."""


def require_arguments(signature: inspect.Signature, args: Sequence[object], kwargs: Mapping[str, object]) -> None:
    """Raises DamagedMessage, which names arguments and never their values, unless the task can take them."""
    try:
        given = signature.bind(*args, **kwargs).arguments
    except TypeError:
        raise DamagedMessage(f"takes {', '.join(signature.parameters)}") from None
    for name, is_sent in _IS_SENT.items():
        if name in given and not is_sent(given[name]):
            raise DamagedMessage(f"{name} is a {type(given[name]).__name__} that is never sent")


def log_outcomes(task_id: str) -> OnEnd:
    """Returns a function that logs the outcomes of a task's runs."""

    def log_outcome(noun: str, outcome: Outcome) -> None:
        write = log.warning if outcome.is_failure else log.info
        write(noun, task_id=task_id, **outcome.as_dict())

    return log_outcome


class WorkerProcess:
    """The state a worker process keeps between tasks."""

    def __init__(self, app: Celery, settings: Settings) -> None:
        self.app = app
        self.settings = settings
        self._guard = threading.Lock()
        self._clock: DatabaseClock | None = None
        self._ticks: Ticks | None = None
        self._sync: bootstrap.SyncServices | None = None
        self._state: bootstrap.StateServices | None = None
        self.consumer: Any = None
        """Celery's consumer once it is up; used to send events to Flower."""
        self.name = "worker"

    @property
    def clock(self) -> DatabaseClock:
        with self._guard:
            if self._clock is None:
                self._clock = bootstrap.database_clock(self.settings, application_name=f"dcsync {self.name}")
            return self._clock

    @property
    def ticks(self) -> Ticks:
        with self._guard:
            if self._ticks is None:
                self._ticks = bootstrap.ticks(self.settings)
            return self._ticks

    @property
    def intervals(self) -> Mapping[TaskName, float]:
        """The tasks beat sends, and the seconds between two messages of each."""
        entries = self.app.conf.beat_schedule.values()
        return {TaskName(entry["task"]): float(entry["schedule"]) for entry in entries}

    @property
    def clock_if_made(self) -> DatabaseClock | None:
        return self._clock

    @property
    def sync(self) -> bootstrap.SyncServices:
        clock = self.clock
        with self._guard:
            if self._sync is None:
                self._sync = bootstrap.sync_services(
                    self.settings, self.app, clock=clock, progress=self.show_step, worker=self.name
                )
            return self._sync

    @property
    def state(self) -> bootstrap.StateServices:
        clock = self.clock
        with self._guard:
            if self._state is None:
                self._state = bootstrap.state_services(self.settings, self.app, clock=clock, worker=self.name)
            return self._state

    @property
    def sync_if_created(self) -> bootstrap.SyncServices | None:
        return self._sync

    def show_step(self, run: Run, step: Step) -> None:
        """Sends an event to Flower that sets the task's state to the step's name. Errors are ignored."""
        dispatcher = getattr(self.consumer, "event_dispatcher", None)
        if dispatcher is None or not dispatcher.enabled or not task_at_work.get():
            return
        try:
            dispatcher.send(f"task-{step.value}", uuid=task_at_work.get(), retry=False)
        except Exception as exc:  # noqa: BLE001 - an event for a dashboard must not end a run
            log.debug("step not shown", error=type(exc).__name__)


def process_of(app: Celery) -> WorkerProcess:
    """Returns the WorkerProcess that `make_app` attached to the app."""
    process: WorkerProcess = app.dcsync
    return process
