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
from dcsync.runs.abandoned import QUARANTINED, RunInProgress, is_abandoned
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

    def take_back(self, abandoned: Collection[RunInProgress], *, now: datetime) -> list[str]:
        """Makes their rows due again where run id and `deaths` are unchanged; returns the region names. Like all that
        concerns many rows, it skips those that another session has locked."""

    def quarantine(
        self, abandoned: Collection[RunInProgress], failure: Failure, *, now: datetime, retry_at: datetime
    ) -> list[str]:
        """Marks them failed until `retry_at` with this failure, and resets `deaths`; returns the region names."""

    def unstarted_hints(self) -> list[tuple[Hint, datetime]]:
        """Returns hints sent (and when) whose rows have not been claimed since."""

    def in_progress_count(self) -> int:
        """Returns the number of subclouds with a run in progress."""

    def dispatch(self, *, room: int, lost: Collection[Hint], now: datetime) -> list[Hint]:
        """Marks up to `room` due rows as dispatched, longest due first: those never sent, and those whose hint is
        `lost`. Skips rows locked by another sweep."""

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
        """Makes runs of dead workers due again, or quarantines them after repeated deaths; returns the number of
        subclouds."""
        abandoned = self._abandoned(now)
        phases = Phases()
        again = phases.run(
            lambda: self.rows.take_back([run for run in abandoned if not run.reaches_limit], now=now),
            otherwise=list[str](),
        )
        quarantined = self.rows.quarantine(
            [run for run in abandoned if run.reaches_limit],
            QUARANTINED,
            now=now,
            retry_at=now + self.limits.quarantine,
        )
        phases.end()
        return len(set(again) | set(quarantined))

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
        hints = self.rows.dispatch(room=room, lost=lost, now=now) if room > 0 else []
        self._send_marked(hints)
        return len(lost), len(hints)

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
