"""Which subclouds are due now? Finds them from rows alone, takes back what was abandoned, and sends hints.

Two sweeps at once are harmless, and so is one that dies half-way: the next one finds the same rows.
Source: docs/upstream/initial-sync.md section 5; unlike upstream, messages in flight are bounded and none is sent twice
while it waits.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from dcsync.initial_sync.ports import DueSyncs, SyncMessenger
from dcsync.model.messages import SyncHint
from dcsync.runs.dispatch import Dispatcher, SweepLimits
from dcsync.runs.ports import Locks


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

    store: DueSyncs
    locks: Locks
    messenger: SyncMessenger
    limits: SweepLimits

    def run(self, *, now: datetime) -> SweepReport:
        """One sweep. Raises BrokerUnreachable or DatabaseUnreachable; then the next sweep starts over."""
        retried = self.store.requeue_due(now=now)
        taken_back = self._dispatcher.take_back_abandoned(now)
        self._end_overtaken(now)
        lost, sent = self._dispatcher.send_due(now)
        return SweepReport(retried=retried, taken_back=taken_back, lost=lost, sent=sent)

    @property
    def _dispatcher(self) -> Dispatcher[SyncHint]:
        return Dispatcher(
            self.store, self.locks, self.limits, self.messenger.send_sync, self.messenger.waiting_sync_ids
        )

    def _end_overtaken(self, now: datetime) -> None:
        """An attempt whose row moved on writes its own end; where its worker died before it could, nobody else does."""
        unended = self.store.overtaken_attempts(started_before=now - self.limits.lock_ttl)
        dead = self._dispatcher.without_lock(unended)
        if dead:
            self.store.end_overtaken(sorted(dead), now=now)
