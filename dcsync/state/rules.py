"""Applies a report to one subcloud: (facts, report) -> new facts, alarms, lifecycle event, follow-ups. Pure.

Reports arrive late, twice and in any order, so the result does not depend on the order of processing: what is shown
of a subcloud is a function of the *set* of reports known.

- It is online since the oldest "online" that is newer than every "offline", and offline if there is none.
- An endpoint shows its newest report if the subcloud was online when it was observed, and `unknown` otherwise. Older
  reports of the endpoint, and reports older than the newest "offline", are ignored.
- The management state is not observed: a report that is not accepted from an unmanaged subcloud is dropped at once.

So an outage that is reported late has its full effect: endpoints return to `unknown`, an alarm is raised and cleared,
a sync is requested.

Source: docs/upstream/state-service.md sections 3 to 6. Deliberate differences: `out-of-sync` has the
precondition of `in-sync` (docs/upstream/lessons.md R15), and one function of (old, new) makes all alarms (R18, R19).
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum

from dcsync.model.errors import BadReport
from dcsync.model.marks import is_void
from dcsync.model.pair import Pair, pair_change
from dcsync.model.reasons import Unproven
from dcsync.model.reports import AvailabilityReport, BulkReport, EndpointReport, EndpointTypesReport, Mark, Report
from dcsync.model.states.initial_sync import INITIAL_SYNC, InitialSyncEvent, InitialSyncState
from dcsync.model.subcloud import AvailabilityStatus, EndpointType, ManagementState, SyncStatus

ONLINE_MARKS_KEPT = 8
"""How many "online" reports are kept to find when the subcloud returned from an outage that is reported late."""

LONG_AGO = Mark(datetime.min.replace(tzinfo=UTC), 0)
"""Replaces a mark in the future: any true report is newer."""

_WEIGHT = {SyncStatus.UNKNOWN: 0, SyncStatus.IN_SYNC: 1, SyncStatus.OUT_OF_SYNC: 2}


# --- what is known of one subcloud -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EndpointFact:
    """The newest report of one endpoint; `mark` is None when there is none yet.

    `verified_at` and `last_good_at` are the newest reports, whatever came later, that reported a status other than
    `unknown`, and `in-sync`.
    """

    sync_status: SyncStatus = SyncStatus.UNKNOWN
    alarmable: bool = True
    mark: Mark | None = None
    reason: str | None = None
    verified_at: datetime | None = None
    last_good_at: datetime | None = None

    def is_newer_than(self, other: EndpointFact) -> bool:
        """Returns whether it is later, or as late and more severe: the order of arrival does not matter."""
        if self.mark == other.mark:
            return self._severity > other._severity
        return other.mark is None or (self.mark is not None and self.mark > other.mark)

    @property
    def _severity(self) -> tuple[int, bool, str]:
        return _WEIGHT[self.sync_status], self.alarmable, self.reason or ""

    def unknown(self, mark: Mark | None, *, reason: str | None = None) -> EndpointFact:
        """Returns it as `unknown` since `mark`; its proofs remain."""
        return replace(self, sync_status=SyncStatus.UNKNOWN, alarmable=True, mark=mark, reason=reason)

    def verified(self, sync_status: SyncStatus, at: datetime) -> EndpointFact:
        """Returns it with the proof of a report of this status, which may be older than the newest report."""
        if sync_status is SyncStatus.UNKNOWN:
            return self
        is_good = sync_status is SyncStatus.IN_SYNC
        return replace(
            self,
            verified_at=max(at, self.verified_at or at),
            last_good_at=max(at, self.last_good_at or at) if is_good else self.last_good_at,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the reports say of one subcloud.

    `offline_mark` is the newest "offline", `online_marks` are the "online" ones newer than it, oldest first.
    `has_been_online` distinguishes a subcloud that went offline from one that was never online.
    """

    management_state: ManagementState
    initial_sync_state: InitialSyncState = InitialSyncState.COMPLETED
    audited: frozenset[EndpointType] = frozenset()
    """The endpoint types that are `unknown` until the initial sync is completed."""
    offline_mark: Mark | None = None
    online_marks: tuple[Mark, ...] = ()
    has_been_online: bool = False
    fail_count: int = 0
    fail_mark: Mark | None = None
    unmanaged_at: datetime | None = None
    """When it was last unmanaged: earlier reports of its endpoints, except dc-cert, are ignored."""
    added_at: datetime | None = None
    """When it was added: earlier reports are about another subcloud that had its region name."""
    endpoints: Mapping[EndpointType, EndpointFact] = field(default_factory=dict)
    type_marks: Mapping[EndpointType, tuple[Mark, bool]] = field(default_factory=dict)
    """The last report that each endpoint type is present (True) or removed (False), where there is one."""

    @property
    def availability_status(self) -> AvailabilityStatus:
        return AvailabilityStatus.ONLINE if self.online_marks else AvailabilityStatus.OFFLINE

    @property
    def since(self) -> Mark | None:
        """Returns the mark of the report that set the current availability."""
        return self.online_marks[0] if self.online_marks else self.offline_mark

    @property
    def pair(self) -> Pair:
        return Pair(self.management_state, self.availability_status)

    def needs_initial_sync(self, endpoint_types: Iterable[EndpointType]) -> bool:
        """Returns whether one of these stays `unknown` until the initial sync is completed."""
        is_completed = self.initial_sync_state is InitialSyncState.COMPLETED
        return not is_completed and not self.audited.isdisjoint(endpoint_types)

    def shown(self, endpoint_type: EndpointType) -> EndpointFact:
        """Returns what the endpoint's row shows: its newest report if the subcloud was online then and its initial
        sync, where that matters, is completed; else `unknown`."""
        fact = self.endpoints[endpoint_type]
        if self.needs_initial_sync([endpoint_type]):
            return fact.unknown(fact.mark, reason=Unproven.ASKED)
        if fact.mark is None or (self.online_marks and fact.mark >= self.online_marks[0]):
            return fact
        return fact.unknown(fact.mark)


# --- outcomes ----------------------------------------------------------------------------------------------------


class AlarmId(StrEnum):
    """Source: docs/upstream/state-service.md section 4."""

    OFFLINE = "280.001"
    OUT_OF_SYNC = "280.002"


@dataclass(frozen=True, slots=True)
class Alarm:
    """An alarm that should be active, for an endpoint of the subcloud or (None) for the subcloud itself."""

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
    """The result of a valid report; an invalid one raises BadReport."""

    APPLIED = "applied"
    UNCHANGED = "unchanged"
    LATE = "late"
    NOT_ONLINE = "not online"
    NOT_MANAGED = "not managed"
    NOT_COMPLETED = "not completed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The new facts and the consequences of a report; alarm changes are in the order they happened."""

    facts: Facts
    verdict: Verdict
    alarms: tuple[AlarmChange, ...] = ()
    event: InitialSyncEvent | None = None
    audits: frozenset[EndpointType] = frozenset()
    realign_alarms: bool = False


REMAINING_AUDITS = frozenset(
    {EndpointType.FIRMWARE, EndpointType.KUBERNETES, EndpointType.KUBE_ROOTCA, EndpointType.SOFTWARE}
)
"""Audits requested once identity is aligned. Source: docs/upstream/state-service.md sections 2 and 3.5."""

ONLINE_AUDITS = REMAINING_AUDITS | {EndpointType.DC_CERT}
"""Audits requested when a subcloud comes online. Source: docs/upstream/state-service.md section 5 step 4."""

FLEET_AUDITS = frozenset({EndpointType.SOFTWARE, EndpointType.FIRMWARE, EndpointType.KUBERNETES})
"""Endpoint types whose audit is requested when all subclouds are set `unknown`. Source: section 3.6."""


def fleet_audit(report: EndpointReport) -> EndpointType | None:
    """Returns the audit of all subclouds that this report requests, None if none."""
    is_reset = report.region_name is None and report.sync_status is SyncStatus.UNKNOWN
    return report.endpoint_type if is_reset and report.endpoint_type in FLEET_AUDITS else None


# --- reports -----------------------------------------------------------------------------------------------------


def touched(report: Report) -> frozenset[EndpointType] | None:
    """Returns the endpoint types that `apply` needs in the facts for this report; None: all of them."""
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


def reject_future(report: Report, *, now: datetime) -> None:
    """Raises BadReport for a report observed in the future, which `apply` rejects for every subcloud: it would override
    all correct reports until then."""
    if is_void(report.mark.observed_at, now=now):
        ahead = (report.mark.observed_at - now).total_seconds()
        raise BadReport(f"observed {ahead:.0f} s in the future: the observer's clock is ahead of the database's")


def concerns(facts: Facts, report: Report) -> bool:
    """Returns whether a report on every subcloud applies to this one; a report on this subcloud alone always does."""
    if not isinstance(report, EndpointReport) or report.region_name is not None:
        return True
    if _is_older_than(facts, report):
        return False
    return report.endpoint_type is None or report.endpoint_type in facts.endpoints


def _is_older_than(facts: Facts, report: Report) -> bool:
    """Returns whether the report was observed before this subcloud was added."""
    return facts.added_at is not None and report.mark.observed_at < facts.added_at


def apply(facts: Facts, report: Report, *, now: datetime) -> Outcome:
    """Returns the outcome of applying this report. Raises BadReport when it does not fit this subcloud."""
    reject_future(report, now=now)
    if facts.added_at is not None and _is_older_than(facts, report):
        before = (facts.added_at - report.mark.observed_at).total_seconds()
        raise BadReport(f"observed {before:.0f} s before the subcloud was added: it is about an earlier one")
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
        verdict = Verdict.APPLIED if counted.fail_count != facts.fail_count else _unchanged_or_late(facts, counted)
        return Outcome(facts=counted, verdict=verdict)
    new = _with_availability(counted, report.availability_status, report.mark)
    return _outcome_of_availability(facts, new, report.mark)


def _with_fail_count(facts: Facts, report: AvailabilityReport) -> Facts:
    """Sets the fail count: online without a count sets it to 0, offline without one leaves it unchanged."""
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
        endpoint_type: fact.unknown(mark) if fact.mark is None or fact.mark <= mark else fact
        for endpoint_type, fact in facts.endpoints.items()
    }
    return replace(facts, offline_mark=mark, online_marks=later, endpoints=endpoints)


def _is_before(mark: Mark, offline_mark: Mark | None) -> bool:
    return offline_mark is not None and mark <= offline_mark


def _with_mark(marks: tuple[Mark, ...], mark: Mark) -> tuple[Mark, ...]:
    """Adds the mark; keeps the oldest, which is the start of being online, and the newest of the others."""
    if mark in marks:
        return marks
    kept = list(marks)
    insort(kept, mark)
    return tuple(kept if len(kept) <= ONLINE_MARKS_KEPT else [kept[0], *kept[-ONLINE_MARKS_KEPT + 1 :]])


def _outcome_of_availability(old: Facts, new: Facts, mark: Mark) -> Outcome:
    """Compares facts even if the status is the same: an outage or an earlier return may be reported late."""
    event = _event(old, new)
    if event is not None:
        after = INITIAL_SYNC.next_state(old.initial_sync_state, event)
        new = replace(new, initial_sync_state=after or old.initial_sync_state)
    changes, audits = _endpoint_changes(old, new, new.endpoints, at=mark.observed_at)
    changes = _offline_changes(old, new) + changes
    came_online = bool(new.online_marks) and (not old.online_marks or _has_new_outage(old, new))
    if came_online:
        audits |= ONLINE_AUDITS
    applied = changes or came_online or new.pair != old.pair or new.fail_count != old.fail_count
    return Outcome(
        facts=new,
        verdict=Verdict.APPLIED if applied else _unchanged_or_late(old, new),
        alarms=changes,
        event=event,
        audits=audits,
    )


def _has_new_outage(old: Facts, new: Facts) -> bool:
    """Returns whether an online subcloud is now known to have been offline after that, even if it is online again."""
    return bool(old.online_marks) and new.offline_mark is not None and new.offline_mark >= old.online_marks[0]


def _event(old: Facts, new: Facts) -> InitialSyncEvent | None:
    if new.pair == old.pair:
        return InitialSyncEvent.BECAME_ELIGIBLE if new.pair.is_eligible and _has_new_outage(old, new) else None
    change = pair_change(old=old.pair, new=new.pair)
    return change.event if change else None


def _apply_endpoint(facts: Facts, report: EndpointReport) -> Outcome:
    if report.endpoint_type is not None:
        _reject_removed(facts, report.endpoint_type)
        types: Iterable[EndpointType] = (report.endpoint_type,)
    elif _is_accepted(facts, None, report.sync_status):
        types = [endpoint_type for endpoint_type in facts.endpoints if endpoint_type not in report.ignored]
    else:
        types = ()
    return _apply_status(facts, types, report)


def _apply_status(facts: Facts, types: Iterable[EndpointType], report: EndpointReport) -> Outcome:
    """Applies the status of a report to several endpoints. `unknown` is always accepted."""
    status, mark = report.sync_status, report.mark
    allowed = [each for each in types if _is_accepted(facts, each, status)]
    if not allowed:
        return Outcome(facts=facts, verdict=Verdict.NOT_MANAGED)
    old = _with_proof(_with_endpoints(facts, allowed), allowed, status, mark)
    reason = report.reason if status is SyncStatus.UNKNOWN else None
    newer: dict[EndpointType, EndpointFact] = {}
    for endpoint_type in allowed:
        before = old.endpoints[endpoint_type]
        alarmable = report.alarmable or status is not SyncStatus.OUT_OF_SYNC
        fact = replace(before, sync_status=status, alarmable=alarmable, mark=mark, reason=reason)
        if fact.is_newer_than(before) and not _is_before(mark, facts.offline_mark):
            newer[endpoint_type] = fact
    if not newer:
        return Outcome(facts=old, verdict=Verdict.LATE)
    new = replace(old, endpoints={**old.endpoints, **newer})
    changes, audits = _endpoint_changes(old, new, newer, at=mark.observed_at)
    is_added = old.endpoints.keys() != facts.endpoints.keys()
    verdict = Verdict.APPLIED if is_added else _endpoints_verdict(old, new, newer)
    return Outcome(facts=new, verdict=verdict, alarms=changes, audits=audits)


def _reject_removed(facts: Facts, endpoint_type: EndpointType) -> None:
    """Raises BadReport for a type that was reported as removed and not yet as present again."""
    _, is_present = facts.type_marks.get(endpoint_type, (None, True))
    if endpoint_type not in facts.endpoints and not is_present:
        raise BadReport(f"the subcloud has no endpoint {endpoint_type}")


def _with_endpoints(facts: Facts, types: Iterable[EndpointType]) -> Facts:
    """Returns the facts with these endpoints; an endpoint that is reported for the first time starts as `unknown`."""
    missing = {each: _before_reports(facts, each) for each in types if each not in facts.endpoints}
    return replace(facts, endpoints={**facts.endpoints, **missing}) if missing else facts


def _with_proof(facts: Facts, types: Iterable[EndpointType], status: SyncStatus, mark: Mark) -> Facts:
    proven = {each: facts.endpoints[each].verified(status, mark.observed_at) for each in types}
    return replace(facts, endpoints={**facts.endpoints, **proven})


def _before_reports(facts: Facts, endpoint_type: EndpointType, *, removed: Mark | None = None) -> EndpointFact:
    """Returns an endpoint without reports; ones from before it was removed or unmanaged will be ignored."""
    marks = [removed] if removed else []
    if facts.unmanaged_at is not None and endpoint_type is not EndpointType.DC_CERT:
        marks.append(Mark(facts.unmanaged_at, 0))
    return EndpointFact(mark=max(marks, default=None))


def _is_accepted(facts: Facts, endpoint_type: EndpointType | None, status: SyncStatus) -> bool:
    """Returns whether the management state accepts this status; `Facts.shown` applies the rule for availability.

    Source: docs/upstream/state-service.md section 3.3, without deploy status, which dcsync does not keep.
    """
    return (
        status is SyncStatus.UNKNOWN
        or facts.management_state is ManagementState.MANAGED
        or endpoint_type is EndpointType.DC_CERT
    )


def _endpoints_verdict(old: Facts, new: Facts, types: Iterable[EndpointType]) -> Verdict:
    if any(_is_shown_differently(old.shown(each), new.shown(each)) for each in types):
        return Verdict.APPLIED
    if any(new.shown(each).sync_status is not new.endpoints[each].sync_status for each in types):
        return Verdict.NOT_ONLINE if not new.needs_initial_sync(types) else Verdict.NOT_COMPLETED
    return Verdict.UNCHANGED


def _apply_bulk(facts: Facts, report: BulkReport) -> Outcome:
    """Applies the availability first, then the endpoints. Source: docs/upstream/state-service.md section 6."""
    total = Outcome(facts=facts, verdict=Verdict.UNCHANGED)
    parts: list[AvailabilityReport | EndpointReport] = [*([report.availability] if report.availability else [])]
    parts += report.endpoints
    for part in parts:
        if isinstance(part, EndpointReport) and part.endpoint_type is not None:
            _reject_removed(facts, part.endpoint_type)
    for part in parts:
        following = (
            _apply_availability(total.facts, part)
            if isinstance(part, AvailabilityReport)
            else _apply_endpoint(total.facts, part)
        )
        total = followed_by(total, following)
    return total


def followed_by(first: Outcome, second: Outcome) -> Outcome:
    """Returns both outcomes combined; `second` was made from the facts of `first`."""
    return Outcome(
        facts=second.facts,
        verdict=second.verdict if first.verdict is not Verdict.APPLIED else first.verdict,
        alarms=first.alarms + second.alarms,
        event=second.event or first.event,
        audits=first.audits | second.audits,
        realign_alarms=first.realign_alarms or second.realign_alarms,
    )


def _apply_types(facts: Facts, report: EndpointTypesReport) -> Outcome:
    """Adds or removes endpoint types. Source: docs/upstream/state-service.md section 7."""
    endpoints, marks = dict(facts.endpoints), dict(facts.type_marks)
    for endpoint_type in report.endpoint_types:
        last, present = marks.get(endpoint_type, (None, False))
        if last is not None and (report.mark, report.present) <= (last, present):
            continue
        marks[endpoint_type] = (report.mark, report.present)
        if report.present:
            endpoints.setdefault(endpoint_type, _before_reports(facts, endpoint_type, removed=last))
        else:
            endpoints.pop(endpoint_type, None)
    new = replace(facts, endpoints=endpoints, type_marks=marks)
    cleared = [
        AlarmChange(alarm, raised=False, at=report.mark.observed_at)
        for alarm in sorted(_out_of_sync_alarms(facts, facts.endpoints.keys() - endpoints.keys()), key=_alarm_order)
    ]
    applied = endpoints.keys() != facts.endpoints.keys()
    return Outcome(
        facts=new,
        verdict=Verdict.APPLIED if applied else _unchanged_or_late(facts, new),
        alarms=tuple(cleared),
    )


def _unchanged_or_late(old: Facts, new: Facts) -> Verdict:
    """Returns the verdict when nothing shown changed: LATE if the report did not change the memory either."""
    return Verdict.LATE if new == old else Verdict.UNCHANGED


# --- alarms and follow-ups, one function of (old, new) each ------------------------------------------------------


def expected_alarms(facts: Facts) -> frozenset[Alarm]:
    """Returns the alarms that should be active."""
    offline = {Alarm(AlarmId.OFFLINE)} if _has_offline_alarm(facts) else set()
    return frozenset(offline | _out_of_sync_alarms(facts, facts.endpoints))


def _out_of_sync_alarms(facts: Facts, types: Iterable[EndpointType]) -> set[Alarm]:
    return {Alarm(AlarmId.OUT_OF_SYNC, each) for each in types if _has_out_of_sync_alarm(facts.shown(each))}


def _has_out_of_sync_alarm(fact: EndpointFact) -> bool:
    return fact.sync_status is SyncStatus.OUT_OF_SYNC and fact.alarmable


def _offline_changes(old: Facts, new: Facts) -> tuple[AlarmChange, ...]:
    """Raises the alarm when it goes offline and clears it when it returns; does both for an outage reported late."""
    alarm = Alarm(AlarmId.OFFLINE)
    went_offline = _has_new_outage(old, new) or (_has_offline_alarm(new) and not _has_offline_alarm(old))
    changes = []
    if went_offline and new.offline_mark:
        changes.append(AlarmChange(alarm, raised=True, at=new.offline_mark.observed_at))
    if new.online_marks and (went_offline or _has_offline_alarm(old)):
        changes.append(AlarmChange(alarm, raised=False, at=new.online_marks[0].observed_at))
    return tuple(changes)


def _has_offline_alarm(facts: Facts) -> bool:
    """Returns whether the offline alarm is active; a subcloud that was never online has none."""
    return facts.has_been_online and not facts.online_marks


def _endpoint_changes(
    old: Facts, new: Facts, types: Iterable[EndpointType], *, at: datetime
) -> tuple[tuple[AlarmChange, ...], frozenset[EndpointType]]:
    """Returns alarm changes of endpoints shown differently, and the audits requested when identity leaves `unknown`."""
    changes = []
    audits: frozenset[EndpointType] = frozenset()
    for endpoint_type in types:
        before, after = old.shown(endpoint_type), new.shown(endpoint_type)
        if not _is_shown_differently(before, after):
            continue
        if _has_out_of_sync_alarm(before) != _has_out_of_sync_alarm(after):
            alarm = Alarm(AlarmId.OUT_OF_SYNC, endpoint_type)
            changes.append(AlarmChange(alarm, raised=_has_out_of_sync_alarm(after), at=at))
        if endpoint_type is EndpointType.IDENTITY and before.sync_status is SyncStatus.UNKNOWN:
            audits = REMAINING_AUDITS
    return tuple(changes), audits


def _is_shown_differently(before: EndpointFact, after: EndpointFact) -> bool:
    return before.sync_status is not after.sync_status or before.alarmable is not after.alarmable


def _alarm_order(alarm: Alarm) -> tuple[str, str]:
    return alarm.alarm_id, alarm.endpoint_type or ""
