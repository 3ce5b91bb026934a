"""What has to happen again and again, and who sees to it when beat does not.

Beat sends a message for each of these tasks, and a worker runs it when it takes the message. Beat may be dead, its
clock may be wrong, its messages may wait behind others or be lost: each worker process therefore watches when each of
them last ended well, and runs what is late itself, in a thread that waits for no queue. Ticks in Redis see to it that
this is done once, not once in every process.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import structlog
from kombu.exceptions import OperationalError

from dcsync.adapters.broker.ticks import Ticks
from dcsync.adapters.host.clock import elapsed_seconds
from dcsync.model.errors import BrokerUnreachable, DcsyncError
from dcsync.model.messages import TaskName
from dcsync.tasks.alarms import deliver_now, reconcile_now
from dcsync.tasks.audit import audit_sweep_now, watch_central_now
from dcsync.tasks.availability import probe_all_due_now
from dcsync.tasks.base import WorkerProcess
from dcsync.tasks.control import remove_history_now, sweep_now
from dcsync.tasks.key_rotation import rotate_keys_now

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(__name__)

LATE_AFTER_INTERVALS = 2.5
"""A task is late when it has not ended well for so many of its intervals."""

LONGEST_PAUSE_SECONDS = 5.0
"""Between two looks whether a task is late; one with a shorter interval is looked at twice in each."""


@dataclass(frozen=True)
class Periodic:
    """A task that has to end well about once in each interval, in seconds.

    One that does not need the broker is also run while Redis does not answer, by each process that watches it.
    """

    name: str
    interval: float
    run: Callable[[], object]
    needs_broker: bool = True


WORK: Mapping[TaskName, Callable[[WorkerProcess], object]] = {
    TaskName.SWEEP: sweep_now,
    TaskName.AUDIT_SWEEP: audit_sweep_now,
    TaskName.AVAILABILITY_SWEEP: probe_all_due_now,
    TaskName.WATCH_CENTRAL: watch_central_now,
    TaskName.ROTATE_KEYS: rotate_keys_now,
    TaskName.HOUSEKEEPING: remove_history_now,
    TaskName.DELIVER_ALARMS: deliver_now,
    TaskName.RECONCILE_ALARMS: reconcile_now,
}
"""What is run for each task of beat's schedule."""

OF_ROWS = frozenset({TaskName.DELIVER_ALARMS, TaskName.RECONCILE_ALARMS})
"""Needs the database only, no cloud and no broker: state workers watch these as well."""


def periodics(process: WorkerProcess, *, reaches_clouds: bool) -> list[Periodic]:
    """Returns what a process watches: everything beat sends, or, where it does not reach the clouds, what concerns rows
    only."""
    return [
        Periodic(task.value, interval, partial(WORK[task], process), needs_broker=task not in OF_ROWS)
        for task, interval in process.intervals.items()
        if reaches_clouds or task in OF_ROWS
    ]


class LateWatch:
    """Watches one task in one process."""

    def __init__(self, periodic: Periodic, ticks: Ticks, *, elapsed: Callable[[], float] = elapsed_seconds) -> None:
        self._periodic = periodic
        self._ticks = ticks
        self._elapsed = elapsed
        self._fine_at = elapsed()
        """When the task last ended well, as far as this process knows; until then it gives others the time to."""

    def keep_watching(self, *, stopping: threading.Event) -> None:
        """Looks for as long as the process works."""
        while not stopping.wait(min(LONGEST_PAUSE_SECONDS, self._periodic.interval / 2)):
            self.look()

    def look(self) -> None:
        """Runs the task if it is late. Nothing that goes wrong ends the watch."""
        try:
            if self._is_late() and self._is_ours():
                self._run()
        except (DcsyncError, OperationalError) as exc:
            log.warning("late, and not possible here", task=self._periodic.name, error=str(exc))
        except Exception:  # the boundary of this thread: without it nobody would stand in for a dead beat
            log.exception("late, and failed here", task=self._periodic.name)

    def _is_late(self) -> bool:
        now = self._elapsed()
        try:
            since = self._ticks.seconds_since(self._periodic.name)
        except BrokerUnreachable:
            since = None
        if since is not None:
            self._fine_at = max(self._fine_at, now - since)
        return now - self._fine_at > self._periodic.interval * LATE_AFTER_INTERVALS

    def _is_ours(self) -> bool:
        try:
            return self._ticks.take(self._periodic.name, interval=self._periodic.interval)
        except BrokerUnreachable:
            if self._periodic.needs_broker:
                self._fine_at = self._elapsed()  # asked again after as long a time: not with every look
                raise
            return True

    def _run(self) -> None:
        late_by = self._elapsed() - self._fine_at
        self._fine_at = self._elapsed()
        times = self._counted()
        log.warning("late, run here", task=self._periodic.name, seconds_since=round(late_by, 1), times=times)
        self._periodic.run()
        self._fine_at = self._elapsed()
        try:
            self._ticks.ended_well(self._periodic.name)
        except BrokerUnreachable:
            if self._periodic.needs_broker:
                raise

    def _counted(self) -> int | None:
        try:
            return self._ticks.count_late(self._periodic.name)
        except BrokerUnreachable:
            return None


def watch_in_threads(process: WorkerProcess, *, reaches_clouds: bool, stopping: threading.Event) -> None:
    """A thread for each task: one that hangs keeps no other from being noticed."""
    for periodic in periodics(process, reaches_clouds=reaches_clouds):
        watch = LateWatch(periodic, process.ticks)
        threading.Thread(
            target=watch.keep_watching, kwargs={"stopping": stopping}, name=f"late {periodic.name}", daemon=True
        ).start()
