"""Probes the availability of subclouds: finds which are due, evaluates each probe and reports it.

The rows are the queue: a sweep takes some of the due subclouds and probes them itself. No message carries a subcloud,
so none is probed twice because an older message is still queued, and none is lost with a message.

The state service applies the reports. A probe is evaluated against the row as it is when the probe starts, so the next
probe repeats a lost report. An adapter sends the HTTP requests.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from dcsync.model.errors import BrokerUnreachable
from dcsync.model.reports import MAX_FAIL_COUNT, AvailabilityReport, Mark
from dcsync.model.subcloud import AvailabilityStatus
from dcsync.probe.ports import ProbeMessenger, Prober, ProbeStore, ProbeTarget
from dcsync.runs.ports import Loop

OFFLINE_AFTER = 2
"""Failed probes in a row that make an online subcloud offline. Source: docs/upstream/state-service.md section 8.2."""

REPORT_EVERY = 20
"""Every probe of this number is reported even if nothing changed, so that the marks of reports stay recent."""

MAX_AT_ONCE = 500
"""Subclouds taken at once: a query costs more than a probe, and an unresponsive subcloud occupies a thread until its
timeout."""


@dataclass(frozen=True, slots=True)
class Observed:
    """What is reported of one probe: the failed probes in a row, and the status that follows, if any."""

    fail_count: int
    availability_status: AvailabilityStatus | None = None


def observe(*, is_good: bool, availability_status: AvailabilityStatus, fail_count: int, probes: int) -> Observed | None:
    """Returns what to report of a probe, given the subcloud's row; None if the row already says it.

    Online at the first good probe, offline after OFFLINE_AFTER failed ones in a row; other failed ones are counted.
    `probes` is the number of this probe. Source: docs/upstream/state-service.md section 8.2.
    """
    if is_good:
        is_known = availability_status is AvailabilityStatus.ONLINE and fail_count == 0
        return None if is_known and probes % REPORT_EVERY else Observed(0, AvailabilityStatus.ONLINE)
    failed = min(fail_count + 1, MAX_FAIL_COUNT)
    if availability_status is AvailabilityStatus.ONLINE:
        return Observed(failed, AvailabilityStatus.OFFLINE if failed >= OFFLINE_AFTER else None)
    return Observed(failed, None if probes % REPORT_EVERY else AvailabilityStatus.OFFLINE)


@dataclass
class Tally:
    """Results of the probes of one take, in numbers of subclouds."""

    taken: int = 0
    good: int = 0
    bad: int = 0
    reported: int = 0
    seen: list[str] = field(default_factory=list)
    """Region names of those that answered."""
    changed: list[tuple[str, AvailabilityStatus, str]] = field(default_factory=list)
    """(region name, new status, why) of those whose availability changes."""


@dataclass(frozen=True)
class AvailabilityProbe:
    """Probes many subclouds concurrently; reports each result at once, so an unresponsive one delays no other.

    Two sweeps may run at once: a subcloud taken by one is not due for the other. One that is taken and not probed,
    because the process died, is due again after one interval.
    """

    store: ProbeStore
    messenger: ProbeMessenger
    prober: Prober
    loop: Loop
    mark: Callable[[], Mark]
    report: Callable[[AvailabilityReport], None]
    interval: timedelta

    def run(self, *, now: datetime, most: int = MAX_AT_ONCE) -> Tally:
        """Probes up to `most` due subclouds, managed or not; returns when all have answered or timed out.

        Where more may be due, others are asked to help. Raises DatabaseUnreachable.
        """
        due = self.store.take_due(now=now, interval=self.interval, most=most)
        tally = Tally(taken=len(due))
        if tally.taken == most:
            with suppress(BrokerUnreachable):  # the next sweep takes them
                self.messenger.send_availability_sweep()
        targets = self.store.targets(due) if due else []
        if targets:
            self.loop.run(
                self.prober.probe(targets, on_result=lambda target, problem: self._record(target, problem, tally=tally))
            )
        if tally.seen:
            self.store.note_seen(tally.seen, now=now)
        return tally

    def _record(self, target: ProbeTarget, problem: str | None, *, tally: Tally) -> None:
        tally.good += problem is None
        tally.bad += problem is not None
        if problem is None:
            tally.seen.append(target.region_name)
        found = observe(
            is_good=problem is None,
            availability_status=target.availability_status,
            fail_count=target.fail_count,
            probes=target.probes,
        )
        if found is None:
            return
        tally.reported += 1
        if found.availability_status not in (None, target.availability_status):
            assert found.availability_status is not None
            tally.changed.append((target.region_name, found.availability_status, problem or "answers"))
        self.report(
            AvailabilityReport(
                region_name=target.region_name,
                mark=self.mark(),
                availability_status=found.availability_status,
                fail_count=found.fail_count,
            )
        )
