"""In-memory ports of the audit: a site with Keystone's foreign keys and cascades, its central cloud, and the rows.

`MemoryAuditStore` is held to the same contract as the real one (tests/contract/test_audit_store_contract.py).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from dcsync.audit.endpoints import audited_types
from dcsync.audit.ports import SETTLED, AuditChanges, AuditPart, AuditRow, AuditRun, CentralState, Settlement
from dcsync.model.ending import Ending, Failure
from dcsync.model.errors import CloudError, refuse_unknown
from dcsync.model.identity import (
    ActorType,
    Assignment,
    CentralData,
    FernetKeys,
    Placed,
    Record,
    Records,
    ResourceType,
    RevocationEvent,
    record_from_body,
)
from dcsync.model.messages import AuditHint
from dcsync.model.reasons import Reason
from dcsync.model.states.audit import AUDIT, AuditEvent, AuditStatus
from dcsync.model.states.initial_sync import InitialSyncState
from dcsync.model.subcloud import AvailabilityStatus, EndpointType, ManagementState, Subcloud, SyncStatus
from dcsync.planner.match import Cloud
from dcsync.runs.abandoned import RunInProgress
from dcsync.runs.ports import Standing
from tests.builders import NOON, central_data, records, some_keys

_ACTOR = {ActorType.USER: ResourceType.USERS, ActorType.GROUP: ResourceType.GROUPS}


ROOTS = ("default", "root")
"""Domains that stand in no list of the tests."""


class MemorySite:
    """One cloud's tables behind dcdbsync and Keystone, as a session sees them.

    Rows are listed by physical position, as PostgreSQL does where nobody asks for an order: whatever is rewritten moves
    to the end. What a real one refuses is refused: an id or name that is taken, a member, parent, domain or grantee
    that is not there, a user in a group who changes its id (docs/upstream/real-keystone.md R2), a project with children
    that is deleted.
    """

    def __init__(
        self,
        cloud: Cloud | None = None,
        *,
        keys: FernetKeys | None = None,
        before_call: Callable[[str], None] = lambda call: None,
    ) -> None:
        cloud = cloud or Cloud(records())
        self.tables: dict[ResourceType, dict[str, Record]] = {
            type_: {record.id: record for record in cloud.records.of(type_)} for type_ in ResourceType
        }
        self.grants = set(cloud.assignments)
        self.events = set(cloud.revocation_events)
        self.keys = keys or some_keys()
        self.calls: list[str] = []
        self.passwords: list[tuple[str, str]] = []
        self.before_call = before_call
        self.identity = self
        self.keystone = _Keystone(self)
        self.fernet_repo = _FernetRepo(self)
        self.services: dict[EndpointType, Any] = {}

    def service(self, endpoint_type: EndpointType) -> Any:
        return self.services[endpoint_type]

    @property
    def cloud(self) -> Cloud:
        lists = {type_.value: tuple(self.tables[type_].values()) for type_ in ResourceType}
        return Cloud(Records(**lists), frozenset(self.grants), frozenset(self.events))

    @property
    def writes(self) -> list[str]:
        return [call for call in self.calls if not call.startswith(("GET", "login"))]

    def note(self, call: str) -> None:
        self.before_call(call)
        self.calls.append(call)

    def named(self, type_: ResourceType, name: str) -> Record:
        (found,) = [record for record in self.tables[type_].values() if record.name == name]
        return found

    def put(self, *changed: Record) -> None:
        """Drift: these records, under their ids, over whatever was there."""
        for record in changed:
            self.tables[record.type][record.id] = record

    # --- a session ---

    async def login(self) -> None:
        self.note("login")

    async def list(self, type_: ResourceType) -> tuple[Record, ...]:
        self.note(f"GET {type_}")
        return tuple(self.tables[type_].values())

    async def update(self, old_id: str, record: Record) -> Record:
        self.note(f"PUT {record.type} {record.name}")
        table = self.tables[record.type]
        if old_id not in table:
            raise CloudError(Reason.REFUSED, f"404 {record.type} {old_id}")
        moves = record.id != old_id
        if record.type is ResourceType.USERS and moves and any(old_id in g.member_ids for g in self._groups()):
            raise CloudError(Reason.SERVER_ERROR, "500 user_group_membership: foreign key")
        self._check(record, but=old_id)
        record = _over(table[old_id], record)
        self._rewrite(old_id, record)
        if moves:
            self._follow(record.type, old_id, record.id)
        return record

    async def create(self, record: Record) -> Record:
        self.note(f"POST {record.type} {record.name}")
        self._check(record, but=None)
        self.tables[record.type][record.id] = record
        return record

    async def revocation_events(self) -> frozenset[RevocationEvent]:
        self.note("GET revocation events")
        return frozenset(self.events)

    async def create_revocation_event(self, event: RevocationEvent) -> None:
        self.note("POST revocation event")
        self.events.add(event)

    def delete_row(self, type_: ResourceType, id_: str) -> None:
        if id_ not in self.tables[type_]:
            return
        if type_ is ResourceType.PROJECTS and any(
            id_ in (row.body["project"].get("parent_id"), row.domain_id) for row in self.tables[type_].values()
        ):
            raise CloudError(Reason.REFUSED, "403 a project with children")
        del self.tables[type_][id_]
        self.grants = {grant for grant in self.grants if (type_, id_) not in _about(grant)}
        if type_ is ResourceType.USERS:
            for group in self._groups():
                self._set_members(group, [member for member in group.member_ids if member != id_])

    def _groups(self) -> tuple[Record, ...]:
        return tuple(self.tables[ResourceType.GROUPS].values())

    def _set_members(self, group: Record, members: Iterable[str]) -> None:
        body = {**group.body, "local_user_ids": sorted(members)}
        self.tables[ResourceType.GROUPS][group.id] = replace(group, body=body)

    def _check(self, record: Record, *, but: str | None) -> None:
        others = [row for id_, row in self.tables[record.type].items() if id_ != but]
        if any(row.id == record.id or row.key == record.key for row in others):
            raise CloudError(Reason.SERVER_ERROR, f"500 {record.type} {record.name}: duplicate")
        if record.type is ResourceType.GROUPS and not set(record.member_ids) <= self.tables[ResourceType.USERS].keys():
            raise CloudError(Reason.SERVER_ERROR, "500 user_group_membership: foreign key")
        if record.type is ResourceType.PROJECTS:
            for above in (record.body["project"].get("parent_id"), record.domain_id):
                if above not in (None, *ROOTS, record.id) and above not in self.tables[ResourceType.PROJECTS]:
                    raise CloudError(Reason.SERVER_ERROR, "500 project: foreign key")

    def _follow(self, type_: ResourceType, old_id: str, new_id: str) -> None:
        def moved(of: ResourceType, id_: str) -> str:
            return new_id if (of, id_) == (type_, old_id) else id_

        self.grants = {
            Assignment(
                moved(ResourceType.PROJECTS, a.project_id),
                a.actor_type,
                moved(_ACTOR[a.actor_type], a.actor_id),
                moved(ResourceType.ROLES, a.role_id),
            )
            for a in self.grants
        }
        if type_ is ResourceType.PROJECTS:
            self._follow_project(old_id, new_id)

    def _follow_project(self, old_id: str, new_id: str) -> None:
        """What stands under it follows; users of a domain that moves lose passwords and options, groups stay behind."""
        for row in list(self.tables[ResourceType.PROJECTS].values()):
            project = row.body["project"]
            moved = {column: new_id for column in ("parent_id", "domain_id") if project.get(column) == old_id}
            if moved:
                self._rewrite(row.id, record_from_body(row.type, {"project": {**project, **moved}}))
        for row in list(self.tables[ResourceType.USERS].values()):
            if row.domain_id == old_id:
                parts = {part: {**row.body[part], "domain_id": new_id} for part in ("user", "local_user")}
                self._rewrite(row.id, record_from_body(row.type, {**parts, "password": [], "user_option": []}))

    def _rewrite(self, old_id: str, record: Record) -> None:
        table = self.tables[record.type]
        del table[old_id]
        table[record.id] = record


def _over(old: Record, sent: Record) -> Record:
    """What is stored: columns and options that were not sent stay as they were."""
    rows = {part: {**old.body[part], **row} for part, row in sent.body.items() if isinstance(row, Mapping)}
    return record_from_body(sent.type, {**old.body, **sent.body, **rows})


def _about(grant: Assignment) -> tuple[tuple[ResourceType, str], ...]:
    return (
        (_ACTOR[grant.actor_type], grant.actor_id),
        (ResourceType.PROJECTS, grant.project_id),
        (ResourceType.ROLES, grant.role_id),
    )


@dataclass
class _Keystone:
    site: MemorySite

    async def assignments(self) -> frozenset[Assignment]:
        self.site.note("GET role assignments")
        return frozenset(self.site.grants)

    async def grant(self, assignment: Assignment) -> None:
        self.site.note("PUT role assignment")
        if any(id_ not in self.site.tables[type_] for type_, id_ in _about(assignment)):
            raise CloudError(Reason.REFUSED, "404 grant")
        self.site.grants.add(assignment)

    async def revoke(self, assignment: Assignment) -> None:
        self.site.note("DELETE role assignment")
        self.site.grants.discard(assignment)

    async def delete(self, type_: ResourceType, id_: str) -> None:
        name = self.site.tables[type_][id_].name if id_ in self.site.tables[type_] else id_
        self.site.note(f"DELETE {type_} {name}")
        self.site.delete_row(type_, id_)

    async def set_password(self, user_id: str, password: str) -> None:
        self.site.note(f"PATCH users {user_id}")
        self.site.passwords.append((user_id, password))


@dataclass
class _FernetRepo:
    site: MemorySite

    async def read(self) -> FernetKeys:
        self.site.note("GET fernet_repo")
        return self.site.keys

    async def replace(self, keys: FernetKeys) -> None:
        self.site.note("POST fernet_repo")
        self.site.keys = keys


class AuditClouds:
    """A central cloud and one site; `central_error` and `site_error` are raised instead of answering."""

    def __init__(self, *, central: CentralData | None = None, site: MemorySite | None = None) -> None:
        self.central = central or central_data()
        self.site = site or MemorySite()
        self.central_error: CloudError | None = None
        self.site_error: CloudError | None = None
        self.asked_ages: list[float | None] = []

    async def central_data(self) -> CentralData:
        return await self.central_audit_data()

    async def central_audit_data(self, *, max_age: float | None = None) -> CentralData:
        self.asked_ages.append(max_age)
        if self.central_error is not None:
            raise self.central_error
        return self.central

    @asynccontextmanager
    async def subcloud(self, subcloud: Subcloud, *, request_id: str) -> AsyncIterator[MemorySite]:
        if self.site_error is not None:
            raise self.site_error
        await self.site.login()
        yield self.site


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
    placed: dict[str, Placed] = field(default_factory=dict)
    groups: dict[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)
    centre: dict[EndpointType, CentralState] = field(default_factory=dict)
    follow_ups: list[tuple[str | None, EndpointType, str]] = field(default_factory=list)
    keys_planned_until: datetime | None = None

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
        return sorted(regions)

    def raise_generation(self, endpoint_type: EndpointType, *, now: datetime, by: str) -> int:
        rows = [row for (_, type_), row in self.rows.items() if type_ is endpoint_type]
        for row in rows:
            self._raise(row, now=now, by=by, due_at=self._sooner(row, now))
        return len(rows)

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

    def in_progress_since_before(self, moment: datetime) -> list[RunInProgress]:
        found = {
            (region, row.run_id, row.claimed_at, row.abandoned)
            for (region, _), row in self.rows.items()
            if row.run_id is not None and row.claimed_at is not None and row.claimed_at < moment
        }
        return [RunInProgress(*each) for each in sorted(found)]

    def take_back(self, abandoned: Collection[RunInProgress], *, now: datetime) -> list[str]:
        died = [(run, run.deaths + 1) for run in abandoned]
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

    def unstarted_hints(self) -> list[tuple[AuditHint, datetime]]:
        found: dict[AuditHint, datetime] = {}
        for (region, _), row in self.rows.items():
            if row.dispatched_at and row.status is not AuditStatus.IN_PROGRESS and self._eligible(region):
                found[AuditHint(region, row.dispatches)] = row.dispatched_at
        return list(found.items())

    def in_progress_count(self) -> int:
        return len({row.run_id for row in self.rows.values() if row.run_id})

    def dispatch(
        self, *, room: int, lost: Collection[AuditHint], now: datetime, region_name: str | None = None
    ) -> list[AuditHint]:
        again = {hint.region_name for hint in lost}
        due = [
            (row.due_at, self.subclouds[region].id, type_, region)
            for (region, type_), row in self.rows.items()
            if self._is_due(region, row, now)
            and (row.dispatched_at is None or region in again)
            and region_name in (None, region)
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

    def look(self, name: str) -> AuditRun:
        (region,) = self._regions([name])
        return self._run(region, "", {key: row for key, row in self.rows.items() if key[0] == region})

    def standing(self, run_ids: Collection[str]) -> dict[str, Standing | None]:
        return {run_id: self._standing(run_id) for run_id in run_ids}

    def _standing(self, run_id: str) -> Standing | None:
        regions = {region for (region, _), row in self.rows.items() if row.run_id == run_id}
        if not regions:
            return Standing(Ending.SUPERSEDED, "taken back")
        return None if all(map(self._eligible, regions)) else Standing(Ending.CANCELLED, "left")

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
            asked_meanwhile = row.generation > each.generation
            row.move(each.event, **each.always, **(each.asked_meanwhile if asked_meanwhile else each.as_found))
        return {each.run.run_id for each in settlements} - lost

    def release(self, run: AuditRun, *, now: datetime) -> bool:
        mine = self._mine(run)
        for row in mine.values():
            row.free()
            row.move(AuditEvent.RELEASED, attempt=row.attempt - 1, due_at=now)
        return bool(mine)

    # --- the central cloud ---

    def central_state(self, kind: EndpointType) -> CentralState | None:
        return self.centre.get(kind)

    def add_rows(self, endpoint_type: EndpointType, *, now: datetime) -> int:
        missing = [region for region in self.subclouds if (region, endpoint_type) not in self.rows]
        self.rows |= {(region, endpoint_type): Kept(due_at=now) for region in missing}
        return len(missing)

    def accept_central(
        self, state: CentralState, *, old: CentralState | None, now: datetime, unless_rotating: bool = False
    ) -> int | None:
        kept = self.centre.get(state.kind)
        if old is None:
            if kept is not None:
                return None
            self.centre[state.kind] = replace(state, changed_at=now)
            return 0
        if kept is None or (kept.fingerprint, kept.events_fingerprint) != (old.fingerprint, old.events_fingerprint):
            return None
        self.centre[state.kind] = replace(state, generation=kept.generation + 1, changed_at=now)
        return self.raise_generation(state.kind, now=now, by="the central cloud changed")

    def refuse_central(self, kind: EndpointType, *, why: str, now: datetime) -> None:
        if kind in self.centre:
            self.centre[kind] = replace(self.centre[kind], refused=why)

    def confirm_central(self, kind: EndpointType, *, now: datetime) -> None:
        if kind in self.centre:
            self.centre[kind] = replace(self.centre[kind], refused=None, shrink_allowed=False)

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
