"""Finds the subclouds that are due, from rows alone, takes back abandoned runs, and sends hints.

Two sweeps may run at once, and one may stop midway: the next sweep finds the same rows.
Source: docs/upstream/initial-sync.md section 5; unlike upstream, messages in flight are limited and none is sent twice
while it waits.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from dcsync.initial_sync.ports import DueSyncs, SyncMessenger
from dcsync.model.messages import SyncHint
from dcsync.runs.dispatch import Dispatcher, Phases, SweepLimits
from dcsync.runs.ports import Locks


@dataclass(frozen=True)
class SweepReport:
    """Counts of one sweep, in numbers of subclouds."""

    retried: int
    taken_back: int
    lost: int
    sent: int

    @property
    def is_idle(self) -> bool:
        return not (self.retried or self.taken_back or self.lost or self.sent)


@dataclass(frozen=True)
class Sweep:
    """The periodic search for due initial syncs."""

    store: DueSyncs
    locks: Locks
    messenger: SyncMessenger
    limits: SweepLimits

    def run(self, *, now: datetime) -> SweepReport:
        """Sweeps once. Raises BrokerUnreachable or DatabaseUnreachable of the first phase that failed, after all others
        were carried out; the next sweep starts over."""
        phases = Phases()
        retried = phases.run(lambda: self.store.requeue_due(now=now, longest=self.limits.quarantine), otherwise=0)
        taken_back = phases.run(lambda: self._dispatcher.take_back_abandoned(now), otherwise=0)
        phases.run(lambda: self._end_unowned(now), otherwise=None)
        lost, sent = phases.run(lambda: self._dispatcher.send_due(now), otherwise=(0, 0))
        phases.end()
        return SweepReport(retried=retried, taken_back=taken_back, lost=lost, sent=sent)

    @property
    def _dispatcher(self) -> Dispatcher[SyncHint]:
        return Dispatcher(
            self.store, self.locks, self.limits, self.messenger.send_sync, self.messenger.waiting_sync_ids
        )

    def _end_unowned(self, now: datetime) -> None:
        """Ends attempts that lost their row and whose worker died before it recorded the end."""
        unended = self.store.unowned_attempts(started_before=now - self.limits.lock_ttl, now=now)
        unlocked = self._dispatcher.without_lock(unended)
        if unlocked:
            self.store.end_unowned(sorted(unlocked), now=now)
