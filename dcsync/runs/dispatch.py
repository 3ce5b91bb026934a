"""How what is due gets to the workers and comes back from workers that died; shared by the sweeps of both services.

Rows alone say what is due; a hint in the queue is never sent twice while it waits, and never more of them than there is
room for. What makes a row due is each service's own store.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Generic, Protocol, TypeVar

from dcsync.model.ending import Failure
from dcsync.model.errors import BrokerUnreachable
from dcsync.model.messages import AuditHint, SyncHint
from dcsync.runs.abandoned import QUARANTINED, RunInProgress, is_abandoned
from dcsync.runs.ports import Locks

Hint = TypeVar("Hint", SyncHint, AuditHint)


class DueRows(Protocol[Hint]):
    """Rows of one kind of run, as a sweep sees them."""

    def in_progress_since_before(self, moment: datetime) -> list[RunInProgress]:
        """Runs claimed before `moment` and still in progress."""

    def take_back(self, abandoned: Collection[RunInProgress], *, now: datetime) -> list[str]:
        """Their rows may be dispatched again at once, where run id and `deaths` still stand; the region names
        changed."""

    def quarantine(
        self, abandoned: Collection[RunInProgress], failure: Failure, *, now: datetime, retry_at: datetime
    ) -> list[str]:
        """The same, but failed until `retry_at`, with this failure and their deaths forgotten."""

    def unstarted_hints(self) -> list[tuple[Hint, datetime]]:
        """Hints sent (and when) whose rows nobody has claimed since."""

    def in_progress_count(self) -> int:
        """How many subclouds are being worked on."""

    def dispatch(self, *, room: int, lost: Collection[Hint], now: datetime) -> list[Hint]:
        """Mark up to `room` due rows as dispatched, longest due first: those never sent, and those whose hint is
        `lost`. Rows another sweep is marking at this moment are passed over."""

    def undo_dispatch(self, hints: Collection[Hint]) -> None:
        """The hints could not be sent: mark the rows unsent again."""


@dataclass(frozen=True)
class SweepLimits:
    """`max_in_flight`: runs sent or in progress at once. `lock_ttl`: a lock's life without renewal. `patience`: how
    long a hint may be on its way before the queue is asked whether it still waits. `quarantine`: hold-off of a
    subcloud whose runs keep dying with their workers."""

    max_in_flight: int
    lock_ttl: timedelta
    patience: timedelta
    quarantine: timedelta


@dataclass(frozen=True)
class Dispatcher(Generic[Hint]):
    """Sends what is due in `rows`; `send` and `waiting_ids` are those of the messenger for this kind of hint."""

    rows: DueRows[Hint]
    locks: Locks
    limits: SweepLimits
    send: Callable[[Sequence[Hint]], None]
    waiting_ids: Callable[[], set[str]]

    def take_back_abandoned(self, now: datetime) -> int:
        """Runs whose worker died become due again, or are quarantined when that came too often; of how many
        subclouds."""
        abandoned = self._abandoned(now)
        again = self.rows.take_back([run for run in abandoned if not run.is_last_straw], now=now)
        quarantined = self.rows.quarantine(
            [run for run in abandoned if run.is_last_straw],
            QUARANTINED,
            now=now,
            retry_at=now + self.limits.quarantine,
        )
        return len(set(again) | set(quarantined))

    def _abandoned(self, now: datetime) -> list[RunInProgress]:
        lock_ttl = self.limits.lock_ttl
        old = self.rows.in_progress_since_before(now - lock_ttl)
        gone = self.without_lock([(run.region_name, run.run_id) for run in old])
        return [
            run
            for run in old
            if is_abandoned(claimed_at=run.claimed_at, lock_is_missing=run.run_id in gone, now=now, lock_ttl=lock_ttl)
        ]

    def without_lock(self, runs: Sequence[tuple[str, str]]) -> set[str]:
        """Which of these (region name, run id) do not hold their subcloud's lock: the run ids."""
        owners = self.locks.owners([region_name for region_name, _ in runs])
        return {run_id for region_name, run_id in runs if owners[region_name] != run_id}

    def send_due(self, now: datetime) -> tuple[int, int]:
        """(hints found lost, hints sent): fills the room there is, longest due first.

        Raises BrokerUnreachable; what was to be sent is due again then.
        """
        on_their_way, lost = self._on_their_way(now)
        room = self.limits.max_in_flight - self.rows.in_progress_count() - on_their_way
        hints = self.rows.dispatch(room=room, lost=lost, now=now) if room > 0 else []
        self.send_marked(hints)
        return len(lost), len(hints)

    def send_marked(self, hints: list[Hint]) -> None:
        """Send hints whose rows are marked as dispatched, or take the marks back and raise BrokerUnreachable."""
        if not hints:
            return
        try:
            self.send(hints)
        except BrokerUnreachable:
            self.rows.undo_dispatch(hints)
            raise

    def _on_their_way(self, now: datetime) -> tuple[int, list[Hint]]:
        """How many hints are still good, and which are lost: sent a while ago, not begun, and not in the queue."""
        unstarted = self.rows.unstarted_hints()
        late = [hint for hint, sent_at in unstarted if now - sent_at > self.limits.patience]
        waiting = self.waiting_ids() if late else set()
        lost = [hint for hint in late if hint.task_id not in waiting]
        return len(unstarted) - len(lost), lost
