"""Dispatches due rows to workers and requeues those of dead workers; shared by the sweeps of both services.

Rows alone determine what is due. A hint is not sent again while it is queued, and the number of hints is limited. Each
service's store decides which rows are due.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Generic, Protocol, TypeVar

from dcsync.model.ending import Failure
from dcsync.model.errors import BrokerUnreachable, TemporaryError
from dcsync.model.marks import is_void
from dcsync.model.messages import AuditHint, SyncHint
from dcsync.runs.abandoned import (
    ALONE,
    ANY_DEATHS,
    QUARANTINED,
    SUSPECTED,
    UNSUSPECTED,
    RunInProgress,
    Suspects,
    died_with_a_server,
    is_abandoned,
    suspects_room,
)
from dcsync.runs.ports import Locks

Hint = TypeVar("Hint", SyncHint, AuditHint)
T = TypeVar("T")


class Phases:
    """The phases of one sweep: each is carried out, whatever became of those before it."""

    def __init__(self) -> None:
        self._error: TemporaryError | None = None

    def run(self, phase: Callable[[], T], *, otherwise: T) -> T:
        """Returns the phase's result, or `otherwise` when PostgreSQL or Redis did not let it end."""
        try:
            return phase()
        except TemporaryError as error:
            self._error = self._error or error
            return otherwise

    def end(self) -> None:
        """Raises the first error; what the other phases did stays done."""
        if self._error is not None:
            raise self._error


class DueRows(Protocol[Hint]):
    """The rows of one service, as used by a sweep."""

    def in_progress_since_before(self, moment: datetime, *, now: datetime) -> list[RunInProgress]:
        """Returns runs still in progress that were claimed before `moment`, or in the future."""

    def take_back(self, abandoned: Collection[RunInProgress], *, now: datetime, counted: bool = True) -> list[str]:
        """Makes their rows due again where run id and `deaths` are unchanged; returns the region names. `counted`:
        with one death more. Like all that concerns many rows, it skips those that another session has locked."""

    def quarantine(
        self, abandoned: Collection[RunInProgress], failure: Failure, *, now: datetime, retry_at: datetime
    ) -> list[str]:
        """Marks them failed until `retry_at` with this failure, and resets `deaths`; returns the region names."""

    def server_started_at(self) -> datetime:
        """Returns when the database server was started."""

    def suspects(self, *, lost: Collection[Hint]) -> Suspects:
        """Returns the numbers of rows with deaths that wait to be run or are in flight; those whose hint is `lost` are
        not in flight."""

    def unstarted_hints(self) -> list[tuple[Hint, datetime]]:
        """Returns hints sent (and when) whose rows have not been claimed since."""

    def in_progress_count(self) -> int:
        """Returns the number of subclouds with a run in progress."""

    def dispatch(self, *, room: int, lost: Collection[Hint], now: datetime, deaths: range = ANY_DEATHS) -> list[Hint]:
        """Marks up to `room` due rows with so many `deaths` as dispatched, longest due first: those never sent, and
        those whose hint is `lost`. Skips rows locked by another sweep."""

    def undo_dispatch(self, hints: Collection[Hint]) -> None:
        """Unmarks the rows of hints that could not be sent."""


@dataclass(frozen=True)
class SweepLimits:
    """`max_in_flight`: runs dispatched or in progress at once. `lock_ttl`: lifetime of a lock without renewal.
    `patience`: age of a hint from which the queue is checked for it. `quarantine`: hold-off of a subcloud whose workers
    died repeatedly."""

    max_in_flight: int
    lock_ttl: timedelta
    patience: timedelta
    quarantine: timedelta


@dataclass(frozen=True)
class Dispatcher(Generic[Hint]):
    """Sends hints for due rows; `send` and `waiting_ids` are the messenger's methods for this kind of hint."""

    rows: DueRows[Hint]
    locks: Locks
    limits: SweepLimits
    send: Callable[[Sequence[Hint]], None]
    waiting_ids: Callable[[], set[str]]

    def take_back_abandoned(self, now: datetime) -> int:
        """Makes runs of dead workers due again, or quarantines the one that died once too often, if it was the only
        such one; returns the number of subclouds."""
        abandoned = self._abandoned(now)
        if not abandoned:
            return 0
        started_at = self._servers_started_at(now)
        innocent = [run for run in abandoned if died_with_a_server(run, servers_started_at=started_at)]
        counted = [run for run in abandoned if run not in innocent and not run.reaches_limit]
        last = [run for run in abandoned if run not in innocent and run.reaches_limit]
        if len({run.region_name for run in last}) > 1:
            innocent, last = innocent + last, []  # none of them was alone
        retry_at = now + self.limits.quarantine
        phases = Phases()
        writes: tuple[Callable[[], list[str]], ...] = (
            lambda: self.rows.take_back(innocent, now=now, counted=False),
            lambda: self.rows.take_back(counted, now=now),
            lambda: self.rows.quarantine(last, QUARANTINED, now=now, retry_at=retry_at),
        )
        changed = [phases.run(write, otherwise=list[str]()) for write in writes]
        phases.end()
        return len({region_name for some in changed for region_name in some})

    def _servers_started_at(self, now: datetime) -> datetime:
        """Returns when the later of PostgreSQL and Redis was started."""
        uptime = self.locks.server_uptime()
        started_at = self.rows.server_started_at()
        return started_at if uptime is None else max(started_at, now - uptime)

    def _abandoned(self, now: datetime) -> list[RunInProgress]:
        lock_ttl = self.limits.lock_ttl
        old = self.rows.in_progress_since_before(now - lock_ttl, now=now)
        gone = self.without_lock([(run.region_name, run.run_id) for run in old])
        return [
            run
            for run in old
            if is_abandoned(claimed_at=run.claimed_at, lock_is_missing=run.run_id in gone, now=now, lock_ttl=lock_ttl)
        ]

    def without_lock(self, runs: Sequence[tuple[str, str]]) -> set[str]:
        """Returns the ids of those (region name, run id) that do not hold their subcloud's lock."""
        owners = self.locks.owners([region_name for region_name, _ in runs])
        return {run_id for region_name, run_id in runs if owners[region_name] != run_id}

    def send_due(self, now: datetime) -> tuple[int, int]:
        """Sends hints up to the limit, longest due first; returns (hints found lost, hints sent).

        Raises BrokerUnreachable; the rows are due again then.
        """
        on_their_way, lost = self._on_their_way(now)
        room = self.limits.max_in_flight - self.rows.in_progress_count() - on_their_way
        hints = self._mark(room, lost, now) if room > 0 else []
        self._send_marked(hints)
        return len(lost), len(hints)

    def _mark(self, room: int, lost: Collection[Hint], now: datetime) -> list[Hint]:
        """Marks suspects first, for they are few, then all others that there is room for."""
        suspects = self.rows.suspects(lost=lost)
        hints: list[Hint] = []
        for deaths in (ALONE, SUSPECTED) if suspects else ():
            few = min(room - len(hints), suspects_room(suspects, deaths))
            hints += self.rows.dispatch(room=few, lost=lost, now=now, deaths=deaths) if few > 0 else []
        others = room - len(hints)
        return hints + (self.rows.dispatch(room=others, lost=lost, now=now, deaths=UNSUSPECTED) if others > 0 else [])

    def _send_marked(self, hints: list[Hint]) -> None:
        """Sends hints whose rows are marked as dispatched, or unmarks them and raises BrokerUnreachable."""
        if not hints:
            return
        try:
            self.send(hints)
        except BrokerUnreachable:
            self.rows.undo_dispatch(hints)
            raise

    def _on_their_way(self, now: datetime) -> tuple[int, list[Hint]]:
        """Returns how many hints are pending, and which are lost: sent a while ago, not started, and not queued."""
        unstarted = self.rows.unstarted_hints()
        patience = self.limits.patience
        late = [hint for hint, sent_at in unstarted if now - sent_at > patience or is_void(sent_at, now=now)]
        waiting = self.waiting_ids() if late else set()
        lost = [hint for hint in late if hint.task_id not in waiting]
        return len(unstarted) - len(lost), lost
