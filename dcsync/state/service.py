"""Applies reports: one transaction per batch changes rows, alarms, follow-ups and lifecycle together.

`rules` decides what a report changes; `memory` converts rows to facts and back. An invalid report is rejected with its
reason and does not affect others. No state is kept between calls: any number of workers may run this concurrently.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime

from dcsync.model.errors import BadReport, BrokerUnreachable, RowLocked
from dcsync.model.report_payloads import readable, report_from_payload, report_payload, signature_problem
from dcsync.model.reports import EndpointReport, Report
from dcsync.model.states.initial_sync import INITIAL_SYNC, InitialSyncEvent, InitialSyncState
from dcsync.model.subcloud import DEFAULT_ENDPOINT_TYPES, EndpointType
from dcsync.state import memory, rules
from dcsync.state.ports import AlarmRow, RejectedReport, StateChanges, StateRow, StateStore, SweepTrigger
from dcsync.state.rules import Outcome, Verdict

BATCH_SUBCLOUDS = 500
"""How many subclouds one transaction locks."""

KEPT_TEXT = 2_000
"""Characters stored of a rejected report."""

KEPT_REPORTS = 5
"""Reports shown of a rejected message."""


@dataclass
class Tally:
    """Counts of a batch: reports by verdict, rejected reports, requested initial syncs, subclouds whose rows another
    session holds."""

    verdicts: dict[str, int] = field(default_factory=dict)
    rejected: int = 0
    requested: int = 0
    locked: int = 0

    def as_dict(self) -> dict[str, int]:
        return {**self.verdicts, "rejected": self.rejected, "requested": self.requested}

    def count(self, verdict: Verdict) -> None:
        self.verdicts[verdict.value] = self.verdicts.get(verdict.value, 0) + 1

    def add(self, other: Tally) -> None:
        for verdict, count in other.verdicts.items():
            self.verdicts[verdict] = self.verdicts.get(verdict, 0) + count
        self.rejected += other.rejected
        self.requested += other.requested
        self.locked += other.locked


@dataclass(frozen=True)
class StateService:
    """The only writer of availability and endpoint statuses."""

    store: StateStore
    messenger: SweepTrigger
    now: Callable[[], datetime]
    endpoint_types: Collection[EndpointType] = DEFAULT_ENDPOINT_TYPES
    """The types every subcloud has a status for."""
    follow_ups: frozenset[EndpointType] = frozenset()
    """The endpoint types whose follow-up audits have a consumer; other follow-ups are not stored."""
    batch_subclouds: int = BATCH_SUBCLOUDS
    keys: Callable[[], Sequence[bytes]] = tuple
    """The keys that may sign a message; without any, no signature is needed."""

    def apply_message(self, payloads: Sequence[object], *, signature: object = None) -> Tally:
        """Applies the payloads of one message, or rejects it as a whole if its signature is needed and not valid."""
        keys = self.keys()
        if keys and (problem := signature_problem(payloads, signature, keys)):
            return self.apply([], rejected=[_rejected_message(payloads, problem)])
        return self.apply_payloads(payloads)

    def apply_payloads(self, payloads: Iterable[object]) -> Tally:
        """Applies payloads of a trusted message; invalid payloads are rejected."""
        reports: list[Report] = []
        rejected: list[RejectedReport] = []
        for payload in payloads:
            try:
                reports.append(report_from_payload(payload))
            except BadReport as error:
                rejected.append(_rejected(payload, error))
        return self.apply(reports, rejected=rejected)

    def apply(self, reports: Sequence[Report], *, rejected: Sequence[RejectedReport] = ()) -> Tally:
        """Applies reports in any order and commits them. A second call with the same reports changes nothing.

        Raises DatabaseUnreachable; some reports may then be committed, and all of them can be applied again. Raises
        RowLocked after all reports on other subclouds were committed.
        """
        tally = Tally(rejected=len(rejected))
        if rejected:
            self._store_rejected(rejected)
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
            self._trigger_sweep()
        if tally.locked:
            raise RowLocked(f"another session holds the rows of {tally.locked} subclouds")
        return tally

    def add_missing_endpoints(self) -> int:
        """Adds rows for subclouds that are older than a configured endpoint type; returns the number of rows added."""
        return self.store.add_missing_endpoints(self.endpoint_types)

    def _apply_to_all(self, reports: Sequence[EndpointReport]) -> Tally:
        """Applies reports to every subcloud, in batches; then requests the audits that follow."""
        tally = Tally()
        reports = self._reject_future_reports(reports, tally)
        after = ""
        while reports and (region_names := self.store.region_names(after=after, limit=self.batch_subclouds)):
            tally.add(self._apply_batch(dict.fromkeys(region_names, reports)))
            after = region_names[-1]
        if audits := self.follow_ups & {rules.fleet_audit(report) for report in reports}:
            cause = "all subclouds set unknown"
            self._write(StateChanges(audits=[(None, endpoint_type, cause) for endpoint_type in sorted(audits)]))
        return tally

    def _reject_future_reports(self, reports: Sequence[EndpointReport], tally: Tally) -> list[EndpointReport]:
        """Returns the other reports; a report from the future is rejected once, not once per subcloud."""
        usable = []
        for report in reports:
            try:
                rules.reject_future(report, now=self.now())
            except BadReport as error:
                self._store_rejected([_rejected(report_payload(report), error)])
                tally.rejected += 1
            else:
                usable.append(report)
        return usable

    def _apply_batch(self, batch: Mapping[str, Sequence[Report]]) -> Tally:
        """Applies a batch in one transaction; if it fails, the batch is halved until the invalid reports, or the locked
        rows, are found."""
        try:
            return self._apply_in_one_transaction(batch)
        except (BadReport, RowLocked, ArithmeticError, LookupError, TypeError, ValueError) as error:
            if len(batch) > 1:
                tally = Tally()
                for half in _slices(batch, -(-len(batch) // 2)):
                    tally.add(self._apply_batch(half))
                return tally
            if isinstance(error, RowLocked):
                return Tally(locked=1)
            reports = [report for each in batch.values() for report in each]
            self._store_rejected([_rejected(report_payload(report), error) for report in reports])
            return Tally(rejected=len(reports))

    def _apply_in_one_transaction(self, batch: Mapping[str, Sequence[Report]]) -> Tally:
        tally, changes, now = Tally(), StateChanges(), self.now()
        with self.store.transaction() as transaction:
            touched = _touched(report for reports in batch.values() for report in reports)
            rows = transaction.lock(batch.keys(), endpoint_types=touched)
            for row in rows:
                self._apply_to_row(row, batch[row.region_name], changes, tally, now=now)
            for region_name in batch.keys() - {row.region_name for row in rows}:
                _reject_unknown_subcloud(batch[region_name], changes)
            tally.rejected += len(changes.rejected)
            transaction.write(changes, now=now)
        return tally

    def _apply_to_row(
        self, row: StateRow, reports: Sequence[Report], changes: StateChanges, tally: Tally, *, now: datetime
    ) -> None:
        """Applies the reports in the order observed and adds their combined effects to `changes`."""
        facts = memory.facts_of(row, now=now)
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
        memory.write_changes(changes, row, total.facts, now=now)
        _gather_alarms(changes, row, total.alarms)
        if total.event is not None and _is_applicable(row, total.event):
            changes.events.setdefault(total.event, []).append(row.subcloud_id)
            tally.requested += INITIAL_SYNC.state_after(total.event) is InitialSyncState.REQUESTED
        changes.audits += [(row.subcloud_id, each, _cause(total)) for each in total.audits & self.follow_ups]
        if total.realign_alarms:
            changes.realigned.append(row.subcloud_id)

    def _store_rejected(self, rejected: Sequence[RejectedReport]) -> None:
        self._write(StateChanges(rejected=list(rejected)))

    def _write(self, changes: StateChanges) -> None:
        with self.store.transaction() as transaction:
            transaction.write(changes, now=self.now())

    def _trigger_sweep(self) -> None:
        """Triggers a sweep; if the message cannot be sent, the next periodic sweep finds the rows."""
        with suppress(BrokerUnreachable):
            self.messenger.send_sweep()


def _touched(reports: Iterable[Report]) -> frozenset[EndpointType] | None:
    """Returns the endpoint types these reports can change; None: any."""
    types: set[EndpointType] = set()
    for report in reports:
        touched = rules.touched(report)
        if touched is None:
            return None
        types |= touched
    return frozenset(types)


def _is_applicable(row: StateRow, event: InitialSyncEvent) -> bool:
    """Returns whether the event applies; a subcloud without an initial sync cannot leave one."""
    return (row.initial_sync_state, event) != (InitialSyncState.NONE, InitialSyncEvent.LEFT)


def _cause(outcome: Outcome) -> str:
    return "came online" if EndpointType.DC_CERT in outcome.audits else "identity left unknown"


def _gather_alarms(changes: StateChanges, row: StateRow, alarms: Sequence[rules.AlarmChange]) -> None:
    """Adds alarm changes; an alarm raised and cleared within the batch is stored as history."""
    raised: dict[rules.Alarm, AlarmRow] = {}
    for change in alarms:
        alarm = change.alarm
        if change.raised:
            raised.setdefault(alarm, _alarm_row(row, change))
        elif alarm in raised:
            active = raised.pop(alarm)
            changes.raised_alarms.append(_cleared(active, max(change.at, active.raised_at)))
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


def _cleared(alarm: AlarmRow, at: datetime) -> AlarmRow:
    return AlarmRow(
        alarm_id=alarm.alarm_id,
        entity=alarm.entity,
        subcloud_id=alarm.subcloud_id,
        endpoint_type=alarm.endpoint_type,
        severity=alarm.severity,
        reason_text=alarm.reason_text,
        raised_at=alarm.raised_at,
        cleared_at=at,
    )


def _reject_unknown_subcloud(reports: Sequence[Report], changes: StateChanges) -> None:
    error = BadReport("there is no subcloud with this region name")
    changes.rejected += [_rejected(report_payload(report), error) for report in reports]


def _rejected_message(payloads: Sequence[object], problem: str) -> RejectedReport:
    """Returns one row for all reports of a message: who sends many of them shall not fill the table."""
    shown = [readable(payload) for payload in payloads[:KEPT_REPORTS]]
    try:
        text = json.dumps({"reports": len(payloads), "first": shown})
    except (ValueError, TypeError, RecursionError):
        text = json.dumps({"reports": len(payloads)})
    return RejectedReport(None, problem, text[:KEPT_TEXT])


def _rejected(payload: object, error: Exception) -> RejectedReport:
    """Returns the rejected report as plain ASCII, with the known fields of a report only, safe to store and show."""
    reason = str(error) if isinstance(error, BadReport) else f"a fault in dcsync: {type(error).__name__}"
    region_name = payload.get("region_name") if isinstance(payload, dict) else None
    usable = isinstance(region_name, str) and region_name.isprintable()
    text = json.dumps(readable(payload))[:KEPT_TEXT]
    return RejectedReport(region_name[:255] if usable and region_name else None, reason, text)


def _slices(batch: Mapping[str, Sequence[Report]], size: int) -> list[dict[str, Sequence[Report]]]:
    names = list(batch)
    return [{name: batch[name] for name in names[start : start + size]} for start in range(0, len(names), size)]
