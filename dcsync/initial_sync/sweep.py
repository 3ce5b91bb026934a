"""Which subclouds are due now? Finds them from rows alone, takes back what was abandoned, and sends hints.

Two sweeps at once are harmless, and so is one that dies half-way: the next one finds the same rows.
Source: spec/initial-sync.md section 5; unlike upstream, messages in flight are bounded and none is sent twice while it
waits.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from dcsync.errors import BrokerUnreachable
from dcsync.lifecycle import is_abandoned
from dcsync.messages import SyncHint
from dcsync.ports import Locks, Messenger, RunStore


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
class SweepReport:
    """What one sweep found and did, in numbers of subclouds."""

    retried: int
    taken_back: int
    lost: int
    sent: int

    @property
    def is_idle(self) -> bool:
        return not (self.retried or self.taken_back or self.lost or self.sent)


@dataclass(frozen=True)
class Sweep:
    """The periodic search for what is due."""

    store: RunStore
    locks: Locks
    messenger: Messenger
    limits: SweepLimits

    def run(self, *, now: datetime) -> SweepReport:
        """One sweep. Raises BrokerUnreachable or DatabaseUnreachable; then the next sweep starts over."""
        retried = self.store.requeue_due(now=now)
        taken_back = self._take_back_abandoned(now)
        self._end_overtaken(now)
        on_their_way, lost = self._hints_on_their_way(now)
        room = self.limits.max_in_flight - self.store.in_progress_count() - on_their_way
        hints = self.store.dispatch(room=room, lost=lost, now=now) if room > 0 else []
        self._send(hints)
        return SweepReport(retried=retried, taken_back=taken_back, lost=len(lost), sent=len(hints))

    def _take_back_abandoned(self, now: datetime) -> int:
        old = self.store.in_progress_since_before(now - self.limits.lock_ttl)
        if not old:
            return 0
        owners = self.locks.owners([region_name for region_name, _, _ in old])
        abandoned = [
            (region_name, run_id)
            for region_name, run_id, claimed_at in old
            if is_abandoned(
                claimed_at=claimed_at,
                lock_is_gone=owners[region_name] != run_id,
                now=now,
                lock_ttl=self.limits.lock_ttl,
            )
        ]
        return len(self.store.take_back(abandoned, now=now, hold_off_until=now + self.limits.quarantine))

    def _end_overtaken(self, now: datetime) -> None:
        """An attempt whose row moved on writes its own end; where its worker died before it could, nobody else does."""
        unended = self.store.overtaken_attempts(started_before=now - self.limits.lock_ttl)
        if not unended:
            return
        owners = self.locks.owners([region_name for region_name, _ in unended])
        dead = [run_id for region_name, run_id in unended if owners[region_name] != run_id]
        if dead:
            self.store.end_overtaken(dead, now=now)

    def _hints_on_their_way(self, now: datetime) -> tuple[int, list[SyncHint]]:
        """How many hints are still good, and which are lost: sent a while ago, not begun, and not in the queue."""
        unstarted = self.store.unstarted_hints()
        late = [hint for hint, sent_at in unstarted if now - sent_at > self.limits.patience]
        waiting = self.messenger.waiting_sync_ids() if late else set()
        lost = [hint for hint in late if hint.task_id not in waiting]
        return len(unstarted) - len(lost), lost

    def _send(self, hints: list[SyncHint]) -> None:
        if not hints:
            return
        try:
            self.messenger.send_sync(hints)
        except BrokerUnreachable:
            self.store.undo_dispatch(hints)
            raise
