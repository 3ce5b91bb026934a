"""What a report means for one subcloud: pure, (facts, report) -> new facts, alarms, lifecycle event, follow-ups.

Reports come late, twice and in any order, so nothing here depends on the order in which they are taken: what a
subcloud shows is a function of the *set* of reports known.

- It is online from the oldest "online" that no "offline" is newer than, and offline when there is none.
- An endpoint shows its newest report if that was observed while the subcloud was online as far as is known now, and
  `unknown` otherwise. An older report of it, and any report older than the newest "offline", is worth nothing any more.
- Management is no observation: a report that an unmanaged subcloud may not show is forgotten at once.

So an outage that becomes known late is made good: endpoints back to `unknown`, an alarm raised and
cleared, a sync asked for.

Source: docs/upstream/state-service.md sections 3 to 6. Different on purpose: `out-of-sync` has the precondition of
`in-sync` (docs/upstream/lessons.md R15), and one function of (old, new) makes all alarms (R18, R19). How it is stored
is not here.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum

from dcsync.model.errors import BadReport
from dcsync.model.pair import Pair, pair_change
from dcsync.model.reports import AvailabilityReport, BulkReport, EndpointReport, EndpointTypesReport, Mark, Report
from dcsync.model.states.initial_sync import InitialSyncEvent
from dcsync.model.subcloud import AvailabilityStatus, EndpointType, ManagementState, SyncStatus

ONLINE_MARKS_KEPT = 8
"""How many "online" reports are remembered for telling when the subcloud came back from an outage known late."""

MAX_CLOCK_LEAD = timedelta(minutes=5)
"""A report from further in the future is rejected: accepted, it would outrank every true one until then."""

_WEIGHT = {SyncStatus.UNKNOWN: 0, SyncStatus.IN_SYNC: 1, SyncStatus.OUT_OF_SYNC: 2}


# --- what is known of one subcloud -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EndpointFact:
    """The newest report of one endpoint; `mark` None: none yet."""

    sync_status: SyncStatus = SyncStatus.UNKNOWN
    alarmable: bool = True
    mark: Mark | None = None

    def is_newer_than(self, other: EndpointFact) -> bool:
        """Later, or of the same instant and graver, so that the answer does not depend on which came first."""
        if self.mark == other.mark:
            return (_WEIGHT[self.sync_status], self.alarmable) > (_WEIGHT[other.sync_status], other.alarmable)
        return other.mark is None or (self.mark is not None and self.mark > other.mark)


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """One subcloud as the reports tell it.

    `offline_mark` is the newest "offline", `online_marks` are the "online" ones newer than it, oldest first.
    `has_been_online` tells a subcloud that went away from one that was never there.
    """

    management_state: ManagementState
    offline_mark: Mark | None = None
    online_marks: tuple[Mark, ...] = ()
    has_been_online: bool = False
    fail_count: int = 0
    fail_mark: Mark | None = None
    unmanaged_at: datetime | None = None
    """When it was last unmanaged: what was observed of its endpoints before, dc-cert apart, counts for nothing."""
    endpoints: Mapping[EndpointType, EndpointFact] = field(default_factory=dict)
    type_marks: Mapping[EndpointType, tuple[Mark, bool]] = field(default_factory=dict)
    """When each endpoint type was last said to be there (True) or not, where that was reported."""

    @property
    def availability_status(self) -> AvailabilityStatus:
        return AvailabilityStatus.ONLINE if self.online_marks else AvailabilityStatus.OFFLINE

    @property
    def since(self) -> Mark | None:
        """The report that made the availability what it is."""
        return self.online_marks[0] if self.online_marks else self.offline_mark

    @property
    def pair(self) -> Pair:
        return Pair(self.management_state, self.availability_status)

    def shown(self, endpoint_type: EndpointType) -> EndpointFact:
        """What the endpoint's row says: its newest report, if it was online then, else `unknown`."""
        fact = self.endpoints[endpoint_type]
        if fact.mark is None or (self.online_marks and fact.mark >= self.online_marks[0]):
            return fact
        return EndpointFact(SyncStatus.UNKNOWN, True, fact.mark)


# --- what follows ------------------------------------------------------------------------------------------------


class AlarmId(StrEnum):
    """Source: docs/upstream/state-service.md section 4."""

    OFFLINE = "280.001"
    OUT_OF_SYNC = "280.002"


@dataclass(frozen=True, slots=True)
class Alarm:
    """An alarm that should be active: which, and of which endpoint of the subcloud (None: of the subcloud itself)."""

    alarm_id: AlarmId
    endpoint_type: EndpointType | None = None

    @property
    def severity(self) -> str:
        return "critical" if self.alarm_id is AlarmId.OFFLINE else "major"

    def entity(self, name: str) -> str:
        resource = f".resource={self.endpoint_type}" if self.endpoint_type else ""
        return f"subcloud={name}{resource}"

    def reason_text(self, name: str) -> str:
        if self.alarm_id is AlarmId.OFFLINE:
            return f"{name} is offline"
        return f"{name} {self.endpoint_type} sync_status is out-of-sync"


@dataclass(frozen=True, slots=True)
class AlarmChange:
    alarm: Alarm
    raised: bool
    at: datetime


class Verdict(StrEnum):
    """What became of a report. All of these are good endings; BadReport is the other one."""

    APPLIED = "applied"
    UNCHANGED = "unchanged"
    LATE = "late"
    NOT_ONLINE = "not online"
    NOT_MANAGED = "not managed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The new facts and everything that follows from a report; alarm changes in the order they happened."""

    facts: Facts
    verdict: Verdict
    alarms: tuple[AlarmChange, ...] = ()
    event: InitialSyncEvent | None = None
    audits: frozenset[EndpointType] = frozenset()
    realign_alarms: bool = False


REMAINING_AUDITS = frozenset(
    {EndpointType.FIRMWARE, EndpointType.KUBERNETES, EndpointType.KUBE_ROOTCA, EndpointType.SOFTWARE}
)
"""What is left to others once identity is aligned. Source: docs/upstream/state-service.md sections 2 and 3.5."""

ONLINE_AUDITS = REMAINING_AUDITS | {EndpointType.DC_CERT}
"""What is asked for when a subcloud comes online. Source: docs/upstream/state-service.md section 5 step 4."""

FLEET_AUDITS = frozenset({EndpointType.SOFTWARE, EndpointType.FIRMWARE, EndpointType.KUBERNETES})
"""Endpoint types whose audit is asked for when all subclouds are set `unknown`. Source: section 3.6."""


def fleet_audit(report: EndpointReport) -> EndpointType | None:
    """The audit, of the whole system, that a report on every subcloud asks for."""
    asked = report.region_name is None and report.sync_status is SyncStatus.UNKNOWN
    return report.endpoint_type if asked and report.endpoint_type in FLEET_AUDITS else None


# --- reports -----------------------------------------------------------------------------------------------------


def touched(report: Report) -> frozenset[EndpointType] | None:
    """The endpoint types that `apply` must find among the facts to judge this report; None: all of them."""
    match report:
        case AvailabilityReport():
            return None if report.availability_status is not None and not report.state_only else frozenset()
        case EndpointReport():
            return frozenset({report.endpoint_type}) if report.endpoint_type is not None else None
        case BulkReport():
            if report.availability is not None and touched(report.availability) is None:
                return None
            return frozenset(each.endpoint_type for each in report.endpoints if each.endpoint_type is not None)
        case EndpointTypesReport():
            return None


def refuse_future(report: Report, *, now: datetime) -> None:
    """Raises BadReport for a report that `apply` would refuse whatever subcloud it is about."""
    if report.mark.observed_at - now > MAX_CLOCK_LEAD:
        raise BadReport("observed in the future: check the observer's clock")


def concerns(facts: Facts, report: Report) -> bool:
    """Has the subcloud what a report on every subcloud is about? One that is on it alone must fit it."""
    if not isinstance(report, EndpointReport) or report.region_name is not None or report.endpoint_type is None:
        return True
    return report.endpoint_type in facts.endpoints


def apply(facts: Facts, report: Report, *, now: datetime) -> Outcome:
    """What this report makes of the facts. Raises BadReport where it cannot be meant for this subcloud."""
    refuse_future(report, now=now)
    match report:
        case AvailabilityReport():
            return _apply_availability(facts, report)
        case EndpointReport():
            return _apply_endpoint(facts, report)
        case BulkReport():
            return _apply_bulk(facts, report)
        case EndpointTypesReport():
            return _apply_types(facts, report)


def _apply_availability(facts: Facts, report: AvailabilityReport) -> Outcome:
    if report.state_only:
        return Outcome(facts=facts, verdict=Verdict.UNCHANGED, realign_alarms=True)
    counted = _with_fail_count(facts, report)
    if report.availability_status is None:
        verdict = Verdict.APPLIED if counted.fail_count != facts.fail_count else _quiet(facts, counted)
        return Outcome(facts=counted, verdict=verdict)
    new = _with_availability(counted, report.availability_status, report.mark)
    return _outcome_of_availability(facts, new, report.mark)


def _with_fail_count(facts: Facts, report: AvailabilityReport) -> Facts:
    """Online without a count means none failed; offline without one leaves the count as it is."""
    count = report.fail_count
    if count is None and report.availability_status is AvailabilityStatus.ONLINE:
        count = 0
    if count is None or (facts.fail_mark is not None and report.mark < facts.fail_mark):
        return facts
    if report.mark == facts.fail_mark:
        count = max(count, facts.fail_count)
    return replace(facts, fail_count=count, fail_mark=report.mark)


def _with_availability(facts: Facts, status: AvailabilityStatus, mark: Mark) -> Facts:
    if status is AvailabilityStatus.ONLINE:
        if _is_before(mark, facts.offline_mark):
            return replace(facts, has_been_online=True)
        return replace(facts, online_marks=_with_mark(facts.online_marks, mark), has_been_online=True)
    if _is_before(mark, facts.offline_mark):
        return facts
    later = tuple(online for online in facts.online_marks if online > mark)
    endpoints = {
        endpoint_type: EndpointFact(mark=mark) if fact.mark is None or fact.mark <= mark else fact
        for endpoint_type, fact in facts.endpoints.items()
    }
    return replace(facts, offline_mark=mark, online_marks=later, endpoints=endpoints)


def _is_before(mark: Mark, offline_mark: Mark | None) -> bool:
    return offline_mark is not None and mark <= offline_mark


def _with_mark(marks: tuple[Mark, ...], mark: Mark) -> tuple[Mark, ...]:
    """The oldest always stays, for it says since when; of the others the newest."""
    if mark in marks:
        return marks
    kept = list(marks)
    insort(kept, mark)
    return tuple(kept if len(kept) <= ONLINE_MARKS_KEPT else [kept[0], *kept[-ONLINE_MARKS_KEPT + 1 :]])


def _outcome_of_availability(old: Facts, new: Facts, mark: Mark) -> Outcome:
    """Also where the status is the same: an outage, or an earlier return, may have become known late."""
    changes, audits = _endpoint_changes(old, new, new.endpoints, at=mark.observed_at)
    changes = _offline_changes(old, new) + changes
    event = _event(old, new)
    came = bool(new.online_marks) and (not old.online_marks or _knows_a_new_outage(old, new))
    if came:
        audits |= ONLINE_AUDITS
    applied = changes or came or new.pair != old.pair or new.fail_count != old.fail_count
    return Outcome(
        facts=new,
        verdict=Verdict.APPLIED if applied else _quiet(old, new),
        alarms=changes,
        event=event,
        audits=audits,
    )


def _knows_a_new_outage(old: Facts, new: Facts) -> bool:
    """It was online, and is known now to have gone after that, whether or not it is back."""
    return bool(old.online_marks) and new.offline_mark is not None and new.offline_mark >= old.online_marks[0]


def _event(old: Facts, new: Facts) -> InitialSyncEvent | None:
    if new.pair == old.pair:
        return InitialSyncEvent.BECAME_ELIGIBLE if new.pair.is_eligible and _knows_a_new_outage(old, new) else None
    change = pair_change(old=old.pair, new=new.pair)
    return change.event if change else None


def _apply_endpoint(facts: Facts, report: EndpointReport) -> Outcome:
    if report.endpoint_type is not None:
        _refuse_removed(facts, report.endpoint_type)
        types: Iterable[EndpointType] = (report.endpoint_type,)
    elif _may_show(facts, None, report.sync_status):
        types = [type_ for type_ in facts.endpoints if type_ not in report.ignored]
    else:
        types = ()
    return _apply_statuses(facts, dict.fromkeys(types, report.sync_status), report.mark, alarmable=report.alarmable)


def _apply_statuses(
    facts: Facts, statuses: Mapping[EndpointType, SyncStatus], mark: Mark, *, alarmable: bool
) -> Outcome:
    """Several endpoints at one instant. `unknown` is always accepted, so that a fact can always be taken back."""
    allowed = {type_: status for type_, status in statuses.items() if _may_show(facts, type_, status)}
    if not allowed:
        return Outcome(facts=facts, verdict=Verdict.NOT_MANAGED)
    old = _with_endpoints(facts, allowed)
    newer: dict[EndpointType, EndpointFact] = {}
    for type_, status in allowed.items():
        fact = EndpointFact(status, alarmable or status is not SyncStatus.OUT_OF_SYNC, mark)
        if fact.is_newer_than(old.endpoints[type_]) and not _is_before(mark, facts.offline_mark):
            newer[type_] = fact
    if not newer:
        return Outcome(facts=old, verdict=Verdict.LATE)
    new = replace(old, endpoints={**old.endpoints, **newer})
    changes, audits = _endpoint_changes(old, new, newer, at=mark.observed_at)
    verdict = _endpoints_verdict(old, new, newer) if old is facts else Verdict.APPLIED
    return Outcome(facts=new, verdict=verdict, alarms=changes, audits=audits)


def _refuse_removed(facts: Facts, endpoint_type: EndpointType) -> None:
    """A type that was reported as removed comes back only when it is reported as present."""
    _, is_present = facts.type_marks.get(endpoint_type, (None, True))
    if endpoint_type not in facts.endpoints and not is_present:
        raise BadReport(f"the subcloud has no endpoint {endpoint_type}")


def _with_endpoints(facts: Facts, types: Iterable[EndpointType]) -> Facts:
    """The facts with each of these endpoints; one that is first reported now starts as `unknown`."""
    missing = {type_: _before_reports(facts, type_) for type_ in types if type_ not in facts.endpoints}
    return replace(facts, endpoints={**facts.endpoints, **missing}) if missing else facts


def _before_reports(facts: Facts, endpoint_type: EndpointType, *, removed: Mark | None = None) -> EndpointFact:
    """An endpoint without any report: only what is observed after it was last removed, or unmanaged, counts."""
    marks = [removed] if removed else []
    if facts.unmanaged_at is not None and endpoint_type is not EndpointType.DC_CERT:
        marks.append(Mark(facts.unmanaged_at, 0))
    return EndpointFact(mark=max(marks, default=None))


def _may_show(facts: Facts, endpoint_type: EndpointType | None, status: SyncStatus) -> bool:
    """The acceptance rule's part about management; its part about availability is `Facts.shown`.

    Source: docs/upstream/state-service.md section 3.3, without deploy status, which dcsync does not keep.
    """
    return (
        status is SyncStatus.UNKNOWN
        or facts.management_state is ManagementState.MANAGED
        or endpoint_type is EndpointType.DC_CERT
    )


def _endpoints_verdict(old: Facts, new: Facts, types: Iterable[EndpointType]) -> Verdict:
    if any(_looks_different(old.shown(type_), new.shown(type_)) for type_ in types):
        return Verdict.APPLIED
    if any(new.shown(type_).sync_status is not new.endpoints[type_].sync_status for type_ in types):
        return Verdict.NOT_ONLINE
    return Verdict.UNCHANGED


def _apply_bulk(facts: Facts, report: BulkReport) -> Outcome:
    """Availability first, then the endpoints against what it has become. Source: docs/upstream/state-service.md section
    6."""
    total = Outcome(facts=facts, verdict=Verdict.UNCHANGED)
    parts: list[AvailabilityReport | EndpointReport] = [*([report.availability] if report.availability else [])]
    parts += report.endpoints
    for part in parts:
        if isinstance(part, EndpointReport) and part.endpoint_type is not None:
            _refuse_removed(facts, part.endpoint_type)
    for part in parts:
        following = (
            _apply_availability(total.facts, part)
            if isinstance(part, AvailabilityReport)
            else _apply_endpoint(total.facts, part)
        )
        total = followed_by(total, following)
    return total


def followed_by(first: Outcome, second: Outcome) -> Outcome:
    """Both outcomes as one, `second` having been made from the facts of `first`."""
    return Outcome(
        facts=second.facts,
        verdict=second.verdict if first.verdict is not Verdict.APPLIED else first.verdict,
        alarms=first.alarms + second.alarms,
        event=second.event or first.event,
        audits=first.audits | second.audits,
        realign_alarms=first.realign_alarms or second.realign_alarms,
    )


def _apply_types(facts: Facts, report: EndpointTypesReport) -> Outcome:
    """Source: docs/upstream/state-service.md section 7."""
    endpoints, marks = dict(facts.endpoints), dict(facts.type_marks)
    for endpoint_type in report.endpoint_types:
        said, present = marks.get(endpoint_type, (None, False))
        if said is not None and (report.mark, report.present) <= (said, present):
            continue
        marks[endpoint_type] = (report.mark, report.present)
        if report.present:
            endpoints.setdefault(endpoint_type, _before_reports(facts, endpoint_type, removed=said))
        else:
            endpoints.pop(endpoint_type, None)
    new = replace(facts, endpoints=endpoints, type_marks=marks)
    gone = [
        AlarmChange(alarm, raised=False, at=report.mark.observed_at)
        for alarm in sorted(_out_of_sync_alarms(facts, facts.endpoints.keys() - endpoints.keys()), key=_alarm_order)
    ]
    applied = endpoints.keys() != facts.endpoints.keys()
    return Outcome(
        facts=new,
        verdict=Verdict.APPLIED if applied else _quiet(facts, new),
        alarms=tuple(gone),
    )


def _quiet(old: Facts, new: Facts) -> Verdict:
    """Nothing to be seen changed: was the report worth remembering, or too old even for that?"""
    return Verdict.LATE if new == old else Verdict.UNCHANGED


# --- alarms and follow-ups, one function of (old, new) each ------------------------------------------------------


def expected_alarms(facts: Facts) -> frozenset[Alarm]:
    """The alarms that should be active."""
    offline = {Alarm(AlarmId.OFFLINE)} if _is_missed(facts) else set()
    return frozenset(offline | _out_of_sync_alarms(facts, facts.endpoints))


def _out_of_sync_alarms(facts: Facts, types: Iterable[EndpointType]) -> set[Alarm]:
    return {Alarm(AlarmId.OUT_OF_SYNC, type_) for type_ in types if _is_alarming(facts.shown(type_))}


def _is_alarming(fact: EndpointFact) -> bool:
    return fact.sync_status is SyncStatus.OUT_OF_SYNC and fact.alarmable


def _offline_changes(old: Facts, new: Facts) -> tuple[AlarmChange, ...]:
    """Raised when it went, cleared when it came back; both at once for an outage that became known late."""
    alarm = Alarm(AlarmId.OFFLINE)
    went = _knows_a_new_outage(old, new) or (_is_missed(new) and not _is_missed(old))
    changes = []
    if went and new.offline_mark:
        changes.append(AlarmChange(alarm, raised=True, at=new.offline_mark.observed_at))
    if new.online_marks and (went or _is_missed(old)):
        changes.append(AlarmChange(alarm, raised=False, at=new.online_marks[0].observed_at))
    return tuple(changes)


def _is_missed(facts: Facts) -> bool:
    """A subcloud that was never online is not missed yet."""
    return facts.has_been_online and not facts.online_marks


def _endpoint_changes(
    old: Facts, new: Facts, types: Iterable[EndpointType], *, at: datetime
) -> tuple[tuple[AlarmChange, ...], frozenset[EndpointType]]:
    """Alarms of the endpoints that now show something else, and the audits that identity leaving `unknown` asks for."""
    changes = []
    audits: frozenset[EndpointType] = frozenset()
    for endpoint_type in types:
        before, after = old.shown(endpoint_type), new.shown(endpoint_type)
        if not _looks_different(before, after):
            continue
        if _is_alarming(before) != _is_alarming(after):
            alarm = Alarm(AlarmId.OUT_OF_SYNC, endpoint_type)
            changes.append(AlarmChange(alarm, raised=_is_alarming(after), at=at))
        if endpoint_type is EndpointType.IDENTITY and before.sync_status is SyncStatus.UNKNOWN:
            audits = REMAINING_AUDITS
    return tuple(changes), audits


def _looks_different(before: EndpointFact, after: EndpointFact) -> bool:
    return before.sync_status is not after.sync_status or before.alarmable is not after.alarmable


def _alarm_order(alarm: Alarm) -> tuple[str, str]:
    return alarm.alarm_id, alarm.endpoint_type or ""
