"""Carries reports out: one transaction per batch, in which rows, alarms, follow-ups and lifecycle change together.

What a report means is `rules`; how facts and rows relate is `memory`. A report that cannot be used is rejected with
its reason and stops nothing else. Nothing is remembered between two calls: any number of workers may do this at once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime

from dcsync.model.errors import BadReport, BrokerUnreachable
from dcsync.model.report_payloads import readable, report_from_payload, report_payload
from dcsync.model.reports import EndpointReport, Report
from dcsync.model.states.initial_sync import INITIAL_SYNC, InitialSyncEvent, InitialSyncState
from dcsync.model.subcloud import DEFAULT_ENDPOINT_TYPES, EndpointType
from dcsync.state import memory, rules
from dcsync.state.ports import AlarmRow, RejectedReport, StateChanges, StateRow, StateStore, SweepTrigger
from dcsync.state.rules import Outcome, Verdict

BATCH_SUBCLOUDS = 500
"""How many subclouds one transaction holds locked."""

KEPT_TEXT = 2_000
"""Characters kept of a report that is rejected."""


@dataclass
class Tally:
    """What became of a batch: reports by verdict, those rejected, and the initial syncs asked for."""

    verdicts: dict[str, int] = field(default_factory=dict)
    rejected: int = 0
    requested: int = 0

    def as_dict(self) -> dict[str, int]:
        return {**self.verdicts, "rejected": self.rejected, "requested": self.requested}

    def count(self, verdict: Verdict) -> None:
        self.verdicts[verdict.value] = self.verdicts.get(verdict.value, 0) + 1

    def add(self, other: Tally) -> None:
        for verdict, count in other.verdicts.items():
            self.verdicts[verdict] = self.verdicts.get(verdict, 0) + count
        self.rejected += other.rejected
        self.requested += other.requested


@dataclass(frozen=True)
class StateService:
    """The one writer of availability and endpoint statuses."""

    store: StateStore
    messenger: SweepTrigger
    now: Callable[[], datetime]
    endpoint_types: Collection[EndpointType] = DEFAULT_ENDPOINT_TYPES
    """Those every subcloud has a status for."""
    follow_ups: frozenset[EndpointType] = frozenset()
    """The endpoint types whose follow-up audits somebody carries out; a follow-up of any other is not stored."""
    batch_subclouds: int = BATCH_SUBCLOUDS

    def apply_payloads(self, payloads: Iterable[object]) -> Tally:
        """Apply what one message carries; payloads that are no report are rejected."""
        reports: list[Report] = []
        rejected: list[RejectedReport] = []
        for payload in payloads:
            try:
                reports.append(report_from_payload(payload))
            except BadReport as error:
                rejected.append(_rejected(payload, error))
        return self.apply(reports, rejected=rejected)

    def apply(self, reports: Sequence[Report], *, rejected: Sequence[RejectedReport] = ()) -> Tally:
        """Apply reports in any order; committed when this returns. A second call with the same changes nothing.

        Raises DatabaseUnreachable; then some of them may have been committed, and all may be given again.
        """
        tally = Tally(rejected=len(rejected))
        if rejected:
            self._put_aside(rejected)
        named: dict[str, list[Report]] = {}
        fleet: list[EndpointReport] = []
        for report in reports:
            if report.region_name is not None:
                named.setdefault(report.region_name, []).append(report)
            elif isinstance(report, EndpointReport):
                fleet.append(report)
        for batch in _slices(named, self.batch_subclouds):
            tally.add(self._apply_batch(batch))
        if fleet:
            tally.add(self._apply_to_all(fleet))
        if tally.requested:
            self._hint_sweep()
        return tally

    def add_missing_endpoints(self) -> int:
        """Give subclouds that were added before an endpoint type was configured their rows; how many."""
        return self.store.add_missing_endpoints(self.endpoint_types)

    def _apply_to_all(self, reports: Sequence[EndpointReport]) -> Tally:
        """To every subcloud, some at a time; then the audits that such a report asks for."""
        tally = Tally()
        reports = self._without_future(reports, tally)
        after = ""
        while reports and (region_names := self.store.region_names(after=after, limit=self.batch_subclouds)):
            tally.add(self._apply_batch(dict.fromkeys(region_names, reports)))
            after = region_names[-1]
        if audits := self.follow_ups & {rules.fleet_audit(report) for report in reports}:
            cause = "all subclouds set unknown"
            self._write(StateChanges(audits=[(None, type_, cause) for type_ in sorted(audits)]))
        return tally

    def _without_future(self, reports: Sequence[EndpointReport], tally: Tally) -> list[EndpointReport]:
        """One that is refused is rejected once, not once for each subcloud."""
        usable = []
        for report in reports:
            try:
                rules.refuse_future(report, now=self.now())
            except BadReport as error:
                self._put_aside([_rejected(report_payload(report), error)])
                tally.rejected += 1
            else:
                usable.append(report)
        return usable

    def _apply_batch(self, batch: Mapping[str, Sequence[Report]]) -> Tally:
        """In one transaction. Where a report makes it fail, the batch is halved until that report is found."""
        try:
            return self._apply_in_one_transaction(batch)
        except (BadReport, ArithmeticError, LookupError, TypeError, ValueError) as error:
            if len(batch) > 1:
                tally = Tally()
                for half in _slices(batch, -(-len(batch) // 2)):
                    tally.add(self._apply_batch(half))
                return tally
            reports = [report for each in batch.values() for report in each]
            self._put_aside([_rejected(report_payload(report), error) for report in reports])
            return Tally(rejected=len(reports))

    def _apply_in_one_transaction(self, batch: Mapping[str, Sequence[Report]]) -> Tally:
        tally, changes, now = Tally(), StateChanges(), self.now()
        with self.store.transaction() as transaction:
            touched = _touched(report for reports in batch.values() for report in reports)
            rows = transaction.lock(batch.keys(), endpoint_types=touched)
            for row in rows:
                self._change_one(row, batch[row.region_name], changes, tally, now=now)
            for region_name in batch.keys() - {row.region_name for row in rows}:
                _refuse_unknown(batch[region_name], changes)
            tally.rejected += len(changes.rejected)
            transaction.write(changes, now=now)
        return tally

    def _change_one(
        self, row: StateRow, reports: Sequence[Report], changes: StateChanges, tally: Tally, *, now: datetime
    ) -> None:
        """Take the reports as they were observed, and gather what follows from all of them together."""
        facts = memory.facts_of(row)
        total = Outcome(facts=facts, verdict=Verdict.UNCHANGED)
        for report in sorted(reports, key=lambda report: report.mark):
            if not rules.concerns(total.facts, report):
                continue
            try:
                outcome = rules.apply(total.facts, report, now=now)
            except BadReport as error:
                changes.rejected.append(_rejected(report_payload(report), error))
                continue
            tally.count(outcome.verdict)
            total = rules.followed_by(total, outcome)
        memory.write_changes(changes, row, total.facts)
        _gather_alarms(changes, row, total.alarms)
        if total.event is not None and _matters(row, total.event):
            changes.events.setdefault(total.event, []).append(row.subcloud_id)
            tally.requested += INITIAL_SYNC.state_after(total.event) is InitialSyncState.REQUESTED
        changes.audits += [(row.subcloud_id, type_, _cause(total)) for type_ in total.audits & self.follow_ups]
        if total.realign_alarms:
            changes.realigned.append(row.subcloud_id)

    def _put_aside(self, rejected: Sequence[RejectedReport]) -> None:
        self._write(StateChanges(rejected=list(rejected)))

    def _write(self, changes: StateChanges) -> None:
        with self.store.transaction() as transaction:
            transaction.write(changes, now=self.now())

    def _hint_sweep(self) -> None:
        """So that nobody waits for beat; where it cannot be sent, beat's next sweep finds the rows."""
        with suppress(BrokerUnreachable):
            self.messenger.send_sweep()


def _touched(reports: Iterable[Report]) -> frozenset[EndpointType] | None:
    """The endpoint types these reports can change; None where it may be any."""
    types: set[EndpointType] = set()
    for report in reports:
        touched = rules.touched(report)
        if touched is None:
            return None
        types |= touched
    return frozenset(types)


def _matters(row: StateRow, event: InitialSyncEvent) -> bool:
    """A subcloud without initial sync has nothing to leave."""
    return (row.initial_sync_state, event) != (InitialSyncState.NONE, InitialSyncEvent.LEFT)


def _cause(outcome: Outcome) -> str:
    return "came online" if EndpointType.DC_CERT in outcome.audits else "identity left unknown"


def _gather_alarms(changes: StateChanges, row: StateRow, alarms: Sequence[rules.AlarmChange]) -> None:
    """An alarm that comes and goes within the batch is stored as history at once."""
    raised: dict[rules.Alarm, AlarmRow] = {}
    for change in alarms:
        alarm = change.alarm
        if change.raised:
            raised.setdefault(alarm, _alarm_row(row, change))
        elif alarm in raised:
            came = raised.pop(alarm)
            changes.raised_alarms.append(_gone(came, max(change.at, came.raised_at)))
        else:
            changes.cleared_alarms.append((alarm.alarm_id.value, alarm.entity(row.name), change.at))
    changes.raised_alarms += raised.values()


def _alarm_row(row: StateRow, change: rules.AlarmChange) -> AlarmRow:
    alarm = change.alarm
    return AlarmRow(
        alarm_id=alarm.alarm_id.value,
        entity=alarm.entity(row.name),
        subcloud_id=row.subcloud_id,
        endpoint_type=alarm.endpoint_type,
        severity=alarm.severity,
        reason_text=alarm.reason_text(row.name),
        raised_at=change.at,
    )


def _gone(came: AlarmRow, at: datetime) -> AlarmRow:
    return AlarmRow(
        alarm_id=came.alarm_id,
        entity=came.entity,
        subcloud_id=came.subcloud_id,
        endpoint_type=came.endpoint_type,
        severity=came.severity,
        reason_text=came.reason_text,
        raised_at=came.raised_at,
        cleared_at=at,
    )


def _refuse_unknown(reports: Sequence[Report], changes: StateChanges) -> None:
    error = BadReport("there is no subcloud with this region name")
    changes.rejected += [_rejected(report_payload(report), error) for report in reports]


def _rejected(payload: object, error: Exception) -> RejectedReport:
    """Escaped to plain ASCII, and without what is no report's, so that it can be stored and shown whatever it holds."""
    reason = str(error) if isinstance(error, BadReport) else f"a fault in dcsync: {type(error).__name__}"
    region_name = payload.get("region_name") if isinstance(payload, dict) else None
    usable = isinstance(region_name, str) and region_name.isprintable()
    text = json.dumps(readable(payload))[:KEPT_TEXT]
    return RejectedReport(region_name[:255] if usable and region_name else None, reason, text)


def _slices(batch: Mapping[str, Sequence[Report]], size: int) -> list[dict[str, Sequence[Report]]]:
    names = list(batch)
    return [{name: batch[name] for name in names[start : start + size]} for start in range(0, len(names), size)]
