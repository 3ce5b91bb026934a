"""Finds the audits that are due, from rows alone, takes back abandoned ones, and sends hints.

Like `initial_sync.sweep`, it may run twice at once or stop midway: the next sweep finds the same rows.
Source: docs/upstream/generic-sync-and-audit.md section 5; unlike upstream, each subcloud has its own due time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from dcsync.audit.endpoints import endpoint_of
from dcsync.audit.ports import AuditMessenger, AuditReports, DueAudits
from dcsync.model.messages import AuditHint
from dcsync.runs.dispatch import Dispatcher, Phases, SweepLimits
from dcsync.runs.ports import Locks

REPORT_PATIENCE = timedelta(seconds=5)
"""A report takes this long to its row where nothing is wrong: younger ones may be on their way."""

SEARCH_BACK = timedelta(minutes=4)
"""From when runs read what they reported; a run takes up to two minutes by default."""

SEARCH_ALL_EVERY = timedelta(minutes=5)
"""Comparing all rows of 20,000 subclouds costs PostgreSQL some 50 ms; those of a few minutes, less than ten."""


@dataclass(frozen=True)
class AuditSweepReport:
    """Counts of one sweep: follow-ups of the state service taken, and subclouds."""

    follow_ups: int
    taken_back: int
    lost: int
    sent: int
    reported_again: int

    @property
    def is_idle(self) -> bool:
        return not (self.follow_ups or self.taken_back or self.lost or self.sent or self.reported_again)


@dataclass
class AuditSweep:
    """The periodic search for audits that are due, and for reports of audits that were lost."""

    store: DueAudits
    locks: Locks
    messenger: AuditMessenger
    limits: SweepLimits
    reports: AuditReports
    longest: timedelta
    """The longest time between two audits of a subcloud, hold-offs included."""
    searched_all_at: datetime | None = field(default=None, init=False)

    def run(self, *, now: datetime) -> AuditSweepReport:
        """Sweeps once. Raises BrokerUnreachable or DatabaseUnreachable of the first phase that failed, after all others
        were carried out; the next sweep starts over."""
        phases = Phases()
        phases.run(lambda: self.store.void_deadlines(now=now, longest=self.longest), otherwise=0)
        reported_again = phases.run(lambda: self._report_again(now), otherwise=0)
        follow_ups = phases.run(lambda: self.store.take_follow_ups(now=now), otherwise=0)
        taken_back = phases.run(lambda: self._dispatcher.take_back_abandoned(now), otherwise=0)
        lost, sent = phases.run(lambda: self._dispatcher.send_due(now), otherwise=(0, 0))
        phases.end()
        return AuditSweepReport(
            follow_ups=follow_ups, taken_back=taken_back, lost=lost, sent=sent, reported_again=reported_again
        )

    def _report_again(self, now: datetime) -> int:
        """Repeats what audits reported and no state worker has applied; returns the number of reports.

        Recent ones are searched in each sweep, all of them at this process's first sweep and now and then."""
        searches_all = self.searched_all_at is None or not timedelta() <= now - self.searched_all_at < SEARCH_ALL_EVERY
        since = None if searches_all else now - SEARCH_BACK
        found = self.store.lost_reports(since=since, before=now - REPORT_PATIENCE, now=now)
        for lost in found:
            is_planned = endpoint_of(lost.endpoint_type).is_planned(lost.keys_planned_until, now=now)
            self.reports(
                lost.region_name,
                lost.endpoint_type,
                lost.sync_status,
                alarmable=not is_planned,
                reason=lost.reason,
                observed_at=lost.reported_at,
            )
        if searches_all:
            self.searched_all_at = now
        return len(found)

    @property
    def _dispatcher(self) -> Dispatcher[AuditHint]:
        return Dispatcher(
            self.store, self.locks, self.limits, self.messenger.send_audits, self.messenger.waiting_audit_ids
        )
