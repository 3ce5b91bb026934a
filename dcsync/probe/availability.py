"""Is a subcloud there? Who is due for a probe, what an answer means, and who is told.

The probe observes and reports; what becomes of a report is the state service's. It decides from the rows as they are
when the probe begins, so a report that was lost is simply made again by the next probe.
How a probe is made over HTTP is an adapter's business.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from dcsync.model.reports import MAX_FAIL_COUNT, AvailabilityReport, Mark
from dcsync.model.subcloud import AvailabilityStatus
from dcsync.probe.ports import ProbeMessenger, Prober, ProbeStore, ProbeTarget
from dcsync.runs.ports import Loop

OFFLINE_AFTER = 2
"""Bad probes in a row that make an online subcloud offline. Source: docs/upstream/state-service.md section 8.2."""

REPORT_EVERY = 20
"""Each subcloud's probe of this number is reported whatever it found, so that what observers' marks say stays young."""

CHUNK = 500
"""Subclouds in one message: a message costs more than a probe, and one with a silent subcloud among them holds a thread
until that subcloud's time is up."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What is reported of one probe: how many probes failed in a row, and with it a status where one follows."""

    fail_count: int
    availability_status: AvailabilityStatus | None = None


def finding(*, is_good: bool, availability_status: AvailabilityStatus, fail_count: int, probes: int) -> Finding | None:
    """What to report of a probe of a subcloud whose row says this; None: nothing that the row does not say already.

    Online at the first good probe, offline after OFFLINE_AFTER bad ones in a row; a bad one that decides nothing is
    counted. `probes` numbers this probe among the subcloud's. Source: docs/upstream/state-service.md section 8.2.
    """
    if is_good:
        is_known = availability_status is AvailabilityStatus.ONLINE and fail_count == 0
        return None if is_known and probes % REPORT_EVERY else Finding(0, AvailabilityStatus.ONLINE)
    failed = min(fail_count + 1, MAX_FAIL_COUNT)
    if availability_status is AvailabilityStatus.ONLINE:
        return Finding(failed, AvailabilityStatus.OFFLINE if failed >= OFFLINE_AFTER else None)
    return Finding(failed, None if probes % REPORT_EVERY else AvailabilityStatus.OFFLINE)


@dataclass(frozen=True)
class AvailabilitySweep:
    """Finds from rows who is due, and sends messages that carry many subclouds each.

    Two sweeps at once are harmless: who was taken by one is not due for the other. So is a message that is lost: it
    costs its subclouds one round.
    """

    store: ProbeStore
    messenger: ProbeMessenger
    interval: timedelta

    def run(self, *, now: datetime) -> int:
        """How many subclouds were due. Raises BrokerUnreachable or DatabaseUnreachable."""
        due = self.store.take_due(now=now, interval=self.interval)
        chunks = [due[start : start + CHUNK] for start in range(0, len(due), CHUNK)]
        if chunks:
            self.messenger.send_probes(chunks, expires_seconds=self.interval.total_seconds())
        return len(due)


@dataclass
class Tally:
    """What one message's probes found, in numbers of subclouds."""

    good: int = 0
    bad: int = 0
    reported: int = 0
    seen: list[str] = field(default_factory=list)
    """Region names of those that answered."""
    changed: list[tuple[str, AvailabilityStatus, str]] = field(default_factory=list)
    """(region name, new status, why) of those whose availability changes."""


@dataclass(frozen=True)
class AvailabilityProbe:
    """Probes many subclouds at once; each result is reported when it is there, so a dead one delays nobody."""

    store: ProbeStore
    prober: Prober
    loop: Loop
    mark: Callable[[], Mark]
    report: Callable[[AvailabilityReport], None]

    def run(self, region_names: Sequence[str]) -> Tally:
        """Probe those of them that still exist, managed or not; ends when the slowest has answered or timed out."""
        targets = self.store.targets(region_names)
        tally = Tally()
        began_at = self.mark().observed_at
        if targets:
            self.loop.run(
                self.prober.probe(targets, tell=lambda target, problem: self._take(target, problem, tally=tally))
            )
        if tally.seen:
            self.store.note_seen(tally.seen, now=began_at)
        return tally

    def _take(self, target: ProbeTarget, problem: str | None, *, tally: Tally) -> None:
        tally.good += problem is None
        tally.bad += problem is not None
        if problem is None:
            tally.seen.append(target.region_name)
        found = finding(
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
