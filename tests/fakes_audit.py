"""`AuditStore` in memory.

`MemoryAuditStore` is held to the same contract as the real one (tests/contract/test_audit_store_contract.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from dcsync.audit.endpoints import audited_types
from dcsync.audit.ports import (
    SETTLED,
    AuditChanges,
    AuditPart,
    AuditRow,
    AuditRun,
    CentralState,
    LostReport,
    Settlement,
)
from dcsync.audit.standing import standing_of
from dcsync.model.ending import Failure
from dcsync.model.errors import refuse_unknown
from dcsync.model.history import AuditHistory
from dcsync.model.identity import Placed
from dcsync.model.marks import CLOCK_TOLERANCE, is_void_deadline
from dcsync.model.messages import AuditHint
from dcsync.model.operation import Intent, Operation
from dcsync.model.reasons import Reason
from dcsync.model.states.audit import AUDIT, AuditEvent, AuditStatus
from dcsync.model.states.initial_sync import InitialSyncState
from dcsync.model.subcloud import AvailabilityStatus, EndpointType, ManagementState, Subcloud, SyncStatus
from dcsync.runs.abandoned import ANY_DEATHS, RunInProgress, Suspects
from dcsync.runs.ports import Standing
from dcsync.state.ports import CentralFacts, RefusedFacts
from tests.builders import NOON
from tests.fakes_sync import was_before

NEVER = datetime.min.replace(tzinfo=UTC)


@dataclass
class Kept:
    """One row of `subcloud_sync`."""

    due_at: datetime
    generation: int = 0
    observed_generation: int = 0
    requested_at: datetime | None = None
    requested_by: str = ""
    status: AuditStatus = AuditStatus.NONE
    dispatched_at: datetime | None = None
    dispatches: int = 0
    run_id: str | None = None
    claimed_at: datetime | None = None
    attempt: int = 0
    abandoned: int = 0
    failing_since: datetime | None = None
    failures: int = 0
    reason: Reason | None = None
    detail: str = ""
    result: SyncStatus | None = None
    reported: SyncStatus | None = None
    reported_at: datetime | None = None
    last_audit_time: datetime | None = None
    last_good_at: datetime | None = None
    difference: str | None = None
    differences: tuple[str, ...] = ()
    difference_at: datetime | None = None
    difference_repairs: int = 0
    repaired_at: datetime | None = None
    deletes_allowed: bool = False
    resource_types: frozenset[str] | None = None
    keys_fingerprint: str | None = None

    def move(self, event: AuditEvent, **changes: Any) -> None:
        after = AUDIT.next_state(self.status, event)
        assert after is not None, f"{self.status} does not know {event}"
        self.status = after
        for name, value in changes.items():
            assert hasattr(self, name), name
            setattr(self, name, value)

    def free(self) -> None:
        self.run_id = self.claimed_at = self.dispatched_at = None


@dataclass
class MemoryAuditStore:
    """AuditStore over dictionaries; the rows are due from NOON on."""

    subclouds: dict[str, Subcloud] = field(default_factory=dict)
    rows: dict[tuple[str, EndpointType], Kept] = field(default_factory=dict)
    started_at: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    placed: dict[str, Placed] = field(default_factory=dict)
    groups: dict[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)
    centre: dict[EndpointType, CentralState] = field(default_factory=dict)
    follow_ups: list[tuple[str | None, EndpointType, str]] = field(default_factory=list)
    keys_planned_until: datetime | None = None
    history: list[AuditHistory] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)
    observed: dict[tuple[str, EndpointType], datetime] = field(default_factory=dict)
    """What the state service's rows have seen."""
    checked: CentralFacts = field(default_factory=CentralFacts)
    """What the watch recorded beside `centre`."""

    def add(self, *subclouds: Subcloud) -> MemoryAuditStore:
        for subcloud in subclouds:
            self.subclouds[subcloud.region_name] = subcloud
            for type_ in audited_types():
                self.rows[subcloud.region_name, type_] = Kept(due_at=NOON)
        return self

    def delete(self, region_name: str) -> None:
        del self.subclouds[region_name]
        self.rows = {key: row for key, row in self.rows.items() if key[0] != region_name}

    def leave(self, region_name: str) -> None:
        changed = replace(self.subclouds[region_name], initial_sync_state=InitialSyncState.NONE)
        self.subclouds[region_name] = changed

    def row(self, region_name: str, type_: EndpointType = EndpointType.IDENTITY) -> Kept:
        return self.rows[region_name, type_]

    # --- what is asked ---

    def request(
        self,
        names: Sequence[str] | None,
        endpoint_types: Collection[EndpointType],
        *,
        now: datetime,
        by: str,
        allow_deletes: bool = False,
        resource_types: Collection[str] | None = None,
        intent: Intent | None = None,
    ) -> list[str]:
        regions = self._regions(names)
        for (region, type_), row in self.rows.items():
            if region in regions and type_ in endpoint_types:
                is_open, open_types = row.generation > row.observed_generation, row.resource_types
                self._raise(row, now=now, by=by, due_at=now)
                if resource_types is not None and not (is_open and open_types is None):
                    row.resource_types = frozenset(resource_types) | (open_types if is_open and open_types else set())
                row.attempt = row.difference_repairs = 0
                row.deletes_allowed = row.deletes_allowed or allow_deletes
        if allow_deletes and names is None:
            self.centre = {k: replace(s, shrink_allowed=k in endpoint_types) for k, s in self.centre.items()}
        if intent is not None:
            names = [self.subclouds[region].name for region in regions]
            self.operations.append(intent.done(names, now=now))
        return sorted(regions)

    def raise_generation(self, endpoint_type: EndpointType, *, now: datetime, by: str) -> int:
        rows = [row for (_, type_), row in self.rows.items() if type_ is endpoint_type]
        for row in rows:
            self._raise(row, now=now, by=by, due_at=self._sooner(row, now))
        return len(rows)

    def lost_reports(self, *, since: datetime | None, before: datetime, now: datetime) -> list[LostReport]:
        return [
            LostReport(
                region_name=region_name,
                endpoint_type=endpoint_type,
                sync_status=row.reported,
                reason=row.reason,
                reported_at=row.reported_at,
                keys_planned_until=self.keys_planned_until,
            )
            for (region_name, endpoint_type), row in sorted(self.rows.items())
            if row.reported is not None
            and row.reported_at is not None
            and (since is None or since <= row.reported_at)
            and row.reported_at < before
            and self._eligible(region_name)
            and not row.reported_at <= self.observed.get((region_name, endpoint_type), NEVER) <= now + CLOCK_TOLERANCE
        ]

    def take_follow_ups(self, *, now: datetime) -> int:
        taken = [each for each in self.follow_ups if each[1] in audited_types()]
        self.follow_ups = [each for each in self.follow_ups if each not in taken]
        for region, wanted, cause in taken:
            for (name, type_), row in self.rows.items():
                if type_ is wanted and region in (None, name):
                    self._raise(row, now=now, by=cause, due_at=self._sooner(row, now))
        return len(taken)

    def audits(self, names: Sequence[str] | None) -> list[AuditRow]:
        regions = self._regions(names)
        return [
            self._shown(self.subclouds[region], type_, row)
            for (region, type_), row in sorted(self.rows.items())
            if region in regions
        ]

    # --- the sweep ---

    def in_progress_since_before(self, moment: datetime, *, now: datetime) -> list[RunInProgress]:
        found = {
            (region, row.run_id, row.claimed_at, row.abandoned)
            for (region, _), row in self.rows.items()
            if row.run_id is not None and row.claimed_at is not None and was_before(moment, row.claimed_at, now=now)
        }
        return [RunInProgress(*each) for each in sorted(found)]

    def void_deadlines(self, *, now: datetime, longest: timedelta) -> int:
        void = [
            row
            for row in self.rows.values()
            if row.status is not AuditStatus.IN_PROGRESS and is_void_deadline(row.due_at, now=now, longest=longest)
        ]
        for row in void:
            row.due_at = now
        return len(void)

    def take_back(self, abandoned: Collection[RunInProgress], *, now: datetime, counted: bool = True) -> list[str]:
        died = [(run, run.deaths + int(counted)) for run in abandoned]
        return self._end_abandoned(died, AuditEvent.ABANDONED, due_at=now)

    def quarantine(
        self, abandoned: Collection[RunInProgress], failure: Failure, *, now: datetime, retry_at: datetime
    ) -> list[str]:
        forgotten = [(run, 0) for run in abandoned]
        failed = AuditChanges(due_at=retry_at, reason=failure.reason, detail=failure.detail)
        return self._end_abandoned(forgotten, AuditEvent.QUARANTINED, **failed)

    def _end_abandoned(self, runs: Iterable[tuple[RunInProgress, int]], event: AuditEvent, **changes: Any) -> list[str]:
        changed = set()
        for run, deaths in runs:
            for (region, _), row in self.rows.items():
                if (row.run_id, row.abandoned) == (run.run_id, run.deaths):
                    row.free()
                    row.move(event, abandoned=deaths, **changes)
                    changed.add(region)
        return sorted(changed)

    def server_started_at(self) -> datetime:
        return self.started_at

    def suspects(self, *, lost: Collection[AuditHint]) -> Suspects:
        again = {hint.region_name for hint in lost}
        found: Counter[tuple[int, bool]] = Counter()
        for (region, _), row in self.rows.items():
            if row.abandoned and self._eligible(region):
                is_hinted = row.dispatched_at is not None and region not in again
                found[row.abandoned, row.run_id is not None or is_hinted] += 1
        return found

    def unstarted_hints(self) -> list[tuple[AuditHint, datetime]]:
        found: dict[AuditHint, datetime] = {}
        for (region, _), row in self.rows.items():
            if row.dispatched_at and row.status is not AuditStatus.IN_PROGRESS and self._eligible(region):
                found[AuditHint(region, row.dispatches)] = row.dispatched_at
        return list(found.items())

    def in_progress_count(self) -> int:
        return len({row.run_id for row in self.rows.values() if row.run_id})

    def dispatch(
        self, *, room: int, lost: Collection[AuditHint], now: datetime, deaths: range = ANY_DEATHS
    ) -> list[AuditHint]:
        again = {hint.region_name for hint in lost}
        due = [
            (row.due_at, self.subclouds[region].id, type_, region)
            for (region, type_), row in self.rows.items()
            if self._is_due(region, row, now)
            and row.abandoned in deaths
            and (row.dispatched_at is None or region in again)
        ]
        chosen = sorted(due)[:room]
        numbers: dict[str, int] = {}
        for _, _, type_, region in chosen:
            numbers[region] = max(numbers.get(region, 0), self.rows[region, type_].dispatches + 1)
        for _, _, type_, region in chosen:
            self.rows[region, type_].dispatched_at = now
            self.rows[region, type_].dispatches = numbers[region]
        return [AuditHint(region, number) for region, number in numbers.items()]

    def undo_dispatch(self, hints: Collection[AuditHint]) -> None:
        for hint in hints:
            for (region, _), row in self.rows.items():
                if region == hint.region_name and row.status is not AuditStatus.IN_PROGRESS:
                    row.dispatched_at = None

    # --- one run ---

    def claim(self, regions: Mapping[str, str], *, now: datetime) -> list[AuditRun]:
        found = (self._claim(region_name, run_id, now) for run_id, region_name in regions.items())
        return [run for run in found if run is not None]

    def _claim(self, region_name: str, run_id: str, now: datetime) -> AuditRun | None:
        due = {key: row for key, row in self.rows.items() if key[0] == region_name and self._is_due(key[0], row, now)}
        for row in due.values():
            row.free()
            row.move(AuditEvent.CLAIMED, run_id=run_id, claimed_at=now, attempt=row.attempt + 1)
        return self._run(region_name, run_id, due) if due else None

    def read_run(self, name: str) -> AuditRun:
        (region,) = self._regions([name])
        return self._run(region, "", {key: row for key, row in self.rows.items() if key[0] == region})

    def standing(self, run_ids: Collection[str]) -> dict[str, Standing | None]:
        return {run_id: self._standing(run_id) for run_id in run_ids}

    def _standing(self, run_id: str) -> Standing | None:
        regions = {region for (region, _), row in self.rows.items() if row.run_id == run_id}
        return standing_of(owns_rows=bool(regions), is_eligible=all(map(self._eligible, regions)))

    def remember_placed(self, run: AuditRun, placed: Placed) -> bool:
        if not self._mine(run):
            return False
        self.placed[run.subcloud.region_name] = placed
        return True

    def remember_groups(self, run: AuditRun, groups: Mapping[str, tuple[str, ...]]) -> bool:
        if not self._mine(run):
            return False
        self.groups[run.subcloud.region_name] = dict(groups)
        return True

    def settle(self, settlements: Sequence[Settlement]) -> set[str]:
        lost = set()
        for each in settlements:
            row = self._mine(each.run).get(each.endpoint_type)
            if row is None:
                lost.add(each.run.run_id)
                continue
            row.free()
            is_requested = row.generation > each.generation
            if each.history is not None:
                self.history.append(each.history)
            row.move(each.event, **each.always, **(each.if_requested if is_requested else each.unless_requested))
        return {each.run.run_id for each in settlements} - lost

    def release(self, run: AuditRun, *, now: datetime) -> bool:
        mine = self._mine(run)
        for row in mine.values():
            row.free()
            row.move(AuditEvent.RELEASED, attempt=row.attempt - 1, due_at=now)
        return bool(mine)

    # --- the central cloud ---

    def central_state(self, endpoint_type: EndpointType) -> CentralState | None:
        return self.centre.get(endpoint_type)

    def add_rows(self, endpoint_type: EndpointType, *, now: datetime) -> int:
        missing = [region for region in self.subclouds if (region, endpoint_type) not in self.rows]
        self.rows |= {(region, endpoint_type): Kept(due_at=now) for region in missing}
        return len(missing)

    def accept_central(
        self, state: CentralState, *, old: CentralState | None, now: datetime, unless_rotating: bool = False
    ) -> int | None:
        kept = self.centre.get(state.endpoint_type)
        if old is None:
            if kept is not None:
                return None
            self.centre[state.endpoint_type] = replace(state, changed_at=now)
            return 0
        if kept is None or (kept.fingerprint, kept.events_fingerprint) != (old.fingerprint, old.events_fingerprint):
            return None
        self.centre[state.endpoint_type] = replace(state, generation=kept.generation + 1, changed_at=now)
        return self.raise_generation(state.endpoint_type, now=now, by="the central cloud changed")

    def refuse_central(self, endpoint_type: EndpointType, *, why: str, now: datetime) -> None:
        if endpoint_type in self.centre:
            kept = self.centre[endpoint_type]
            since = min(kept.refused_since or now, now)
            self.centre[endpoint_type] = replace(kept, refused=why, refused_since=since)

    def note_central_check(self, *, unreadable: str | None, now: datetime) -> None:
        before = self.checked.readable_since if unreadable is None else self.checked.unreadable_since
        since = min(before or now, now)
        self.checked = (
            CentralFacts(checked_at=now, readable_since=since)
            if unreadable is None
            else CentralFacts(checked_at=now, unreadable_since=since, unreadable_reason=unreadable)
        )

    def central_facts(self) -> CentralFacts:
        refused = [
            RefusedFacts(kind, kept.refused_since, kept.refused)
            for kind, kept in sorted(self.centre.items())
            if kept.refused is not None and kept.refused_since is not None
        ]
        return replace(self.checked, refused=tuple(refused))

    def confirm_central(self, endpoint_type: EndpointType, *, now: datetime) -> None:
        if endpoint_type in self.centre:
            confirmed = replace(self.centre[endpoint_type], refused=None, refused_since=None, shrink_allowed=False)
            self.centre[endpoint_type] = confirmed

    # --- inside ---

    def _regions(self, names: Sequence[str] | None) -> set[str]:
        known = {subcloud.name: region for region, subcloud in self.subclouds.items()}
        refuse_unknown(names or (), known)
        return {region for name, region in known.items() if names is None or name in names}

    def _eligible(self, region_name: str) -> bool:
        subcloud = self.subclouds[region_name]
        return (subcloud.management_state, subcloud.availability_status, subcloud.initial_sync_state) == (
            ManagementState.MANAGED,
            AvailabilityStatus.ONLINE,
            InitialSyncState.COMPLETED,
        )

    def _is_due(self, region_name: str, row: Kept, now: datetime) -> bool:
        return self._eligible(region_name) and row.status is not AuditStatus.IN_PROGRESS and row.due_at <= now

    def _raise(self, row: Kept, *, now: datetime, by: str, due_at: datetime) -> None:
        row.generation += 1
        row.requested_at, row.requested_by, row.due_at, row.resource_types = now, by, due_at, None

    def _sooner(self, row: Kept, now: datetime) -> datetime:
        is_held_off = row.status is AuditStatus.FAILED and row.reason not in SETTLED
        return row.due_at if is_held_off else min(row.due_at, now)

    def _mine(self, run: AuditRun) -> dict[EndpointType, Kept]:
        return {
            type_: row
            for (region, type_), row in self.rows.items()
            if region == run.subcloud.region_name and row.run_id == run.run_id
        }

    def _run(self, region: str, run_id: str, rows: Mapping[tuple[str, EndpointType], Kept]) -> AuditRun:
        parts = [
            AuditPart(
                endpoint_type=type_,
                generation=row.generation,
                attempt=row.attempt,
                difference=row.difference,
                difference_repairs=row.difference_repairs,
                deletes_allowed=row.deletes_allowed,
                resource_types=row.resource_types,
                requested_at=row.requested_at,
                failing_since=row.failing_since,
                failures=row.failures,
            )
            for (_, type_), row in sorted(rows.items())
        ]
        return AuditRun(
            run_id=run_id,
            subcloud=self.subclouds[region],
            parts=tuple(parts),
            placed=self.placed.get(region, Placed()),
            groups_to_refill=dict(self.groups.get(region, {})),
            central_counts={what: n for state in self.centre.values() for what, n in state.counts.items()},
            keys_planned_until=self.keys_planned_until,
        )

    def _shown(self, subcloud: Subcloud, type_: EndpointType, row: Kept) -> AuditRow:
        return AuditRow(
            name=subcloud.name,
            region_name=subcloud.region_name,
            endpoint_type=type_,
            is_eligible=self._eligible(subcloud.region_name),
            generation=row.generation,
            observed_generation=row.observed_generation,
            requested_at=row.requested_at,
            requested_by=row.requested_by,
            audit_status=row.status,
            due_at=row.due_at,
            claimed_at=row.claimed_at,
            attempt=row.attempt,
            reason=row.reason,
            detail=row.detail,
            result=row.result,
            reported=row.reported,
            last_audit_time=row.last_audit_time,
            last_good_at=row.last_good_at,
            differences=row.differences,
            difference_at=row.difference_at,
            difference_repairs=row.difference_repairs,
            repaired_at=row.repaired_at,
        )
