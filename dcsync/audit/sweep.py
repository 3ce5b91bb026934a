"""Which audits are due now? Finds them from rows alone, takes back what was abandoned, and sends hints.

As `initial_sync.sweep`, and like it harmless when it runs twice or dies half-way: the next one finds the same rows.
Source: spec/generic-sync-and-audit.md section 5; unlike upstream, each subcloud has its own due time.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from dcsync.errors import BrokerUnreachable
from dcsync.lifecycle import is_abandoned
from dcsync.messages import AuditHint
from dcsync.ports import AuditStore, Locks, Messenger
from dcsync.subcloud import SYNCED_ENDPOINT_TYPES


@dataclass(frozen=True)
class AuditSweepLimits:
    """`max_in_flight`: audits sent or in progress at once. `lock_ttl`: a lock's life without renewal. `patience`: how
    long a hint may be on its way before the queue is asked whether it still waits. `quarantine`: hold-off of a
    subcloud whose audits keep dying with their workers."""

    max_in_flight: int
    lock_ttl: timedelta
    patience: timedelta
    quarantine: timedelta


@dataclass(frozen=True)
class AuditSweepReport:
    """What one sweep found and did: requests of the state service taken, and numbers of subclouds."""

    follow_ups: int
    taken_back: int
    lost: int
    sent: int

    @property
    def is_idle(self) -> bool:
        return not (self.follow_ups or self.taken_back or self.lost or self.sent)


@dataclass(frozen=True)
class AuditSweep:
    """The periodic search for audits that are due."""

    store: AuditStore
    locks: Locks
    messenger: Messenger
    limits: AuditSweepLimits

    def run(self, *, now: datetime) -> AuditSweepReport:
        """One sweep. Raises BrokerUnreachable or DatabaseUnreachable; then the next sweep starts over."""
        follow_ups = self.store.take_follow_ups(now=now)
        taken_back = self._take_back_abandoned(now)
        on_their_way, lost = self._hints_on_their_way(now)
        room = self.limits.max_in_flight - self.store.in_progress_count() - on_their_way
        hints = self.store.dispatch(room=room, lost=lost, now=now) if room > 0 else []
        self._send(hints)
        return AuditSweepReport(follow_ups=follow_ups, taken_back=taken_back, lost=len(lost), sent=len(hints))

    def send_now(self, region_name: str, *, now: datetime) -> int:
        """A hint for what is due of this one subcloud, without waiting for a sweep; how many were sent, 0 or 1."""
        hints = self.store.dispatch(room=len(SYNCED_ENDPOINT_TYPES), lost=[], now=now, region_name=region_name)
        self._send(hints)
        return len(hints)

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

    def _hints_on_their_way(self, now: datetime) -> tuple[int, list[AuditHint]]:
        """How many hints are still good, and which are lost: sent a while ago, not begun, and not in the queue."""
        unstarted = self.store.unstarted_hints()
        late = [hint for hint, sent_at in unstarted if now - sent_at > self.limits.patience]
        waiting = self.messenger.waiting_audit_ids() if late else set()
        lost = [hint for hint in late if hint.task_id not in waiting]
        return len(unstarted) - len(lost), lost

    def _send(self, hints: list[AuditHint]) -> None:
        if not hints:
            return
        try:
            self.messenger.send_audits(hints)
        except BrokerUnreachable:
            self.store.undo_dispatch(hints)
            raise
