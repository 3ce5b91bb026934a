"""Finds the audits that are due, from rows alone, takes back abandoned ones, and sends hints.

Like `initial_sync.sweep`, it may run twice at once or stop midway: the next sweep finds the same rows.
Source: docs/upstream/generic-sync-and-audit.md section 5; unlike upstream, each subcloud has its own due time.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from dcsync.audit.endpoints import audited_types
from dcsync.audit.ports import AuditMessenger, DueAudits
from dcsync.model.messages import AuditHint
from dcsync.runs.dispatch import Dispatcher, SweepLimits
from dcsync.runs.ports import Locks


@dataclass(frozen=True)
class AuditSweepReport:
    """Counts of one sweep: follow-ups of the state service taken, and subclouds."""

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

    store: DueAudits
    locks: Locks
    messenger: AuditMessenger
    limits: SweepLimits

    def run(self, *, now: datetime) -> AuditSweepReport:
        """Sweeps once. Raises BrokerUnreachable or DatabaseUnreachable; the next sweep then starts over."""
        follow_ups = self.store.take_follow_ups(now=now)
        taken_back = self._dispatcher.take_back_abandoned(now)
        lost, sent = self._dispatcher.send_due(now)
        return AuditSweepReport(follow_ups=follow_ups, taken_back=taken_back, lost=lost, sent=sent)

    def send_now(self, region_name: str, *, now: datetime) -> int:
        """Sends a hint for what is due of this subcloud without waiting for a sweep; returns 1 if sent, else 0."""
        hints = self.store.dispatch(room=len(audited_types()), lost=[], now=now, region_name=region_name)
        self._dispatcher.send_marked(hints)
        return len(hints)

    @property
    def _dispatcher(self) -> Dispatcher[AuditHint]:
        return Dispatcher(
            self.store, self.locks, self.limits, self.messenger.send_audits, self.messenger.waiting_audit_ids
        )
