"""What a subcloud's identity data lacks against the centre's, and the writes that repair it; pure.

Unlike the initial sync, an audit creates what is missing, corrects what differs in any field, and deletes what dcsync
itself placed and the centre no longer has. What the site made itself is never touched.
Source: spec/identity-sync.md section 9, with its named defects left out: adopted records are compared at once, a
mismatch counts, an empty central list is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from dcsync.alignment import (
    ALIGNED_AT_DEPLOYMENT,
    Update,
    concerned,
    password_hashes,
    plan_groups,
    refuse_unusable,
    with_members,
)
from dcsync.identity import ActorType, Assignment, Record, Records, ResourceType, RevocationEvent

COMPARED: Mapping[ResourceType, Mapping[str, tuple[str, ...]]] = {
    ResourceType.USERS: {
        "user": ("id", "domain_id", "default_project_id", "enabled", "created_at", "extra"),
        "local_user": ("domain_id", "name", "user_id"),
    },
    ResourceType.GROUPS: {"group": ("id", "domain_id", "name", "description", "extra")},
    ResourceType.PROJECTS: {
        "project": ("id", "domain_id", "name", "extra", "description", "enabled", "parent_id", "is_domain")
    },
    ResourceType.ROLES: {"role": ("id", "domain_id", "name", "description", "extra")},
}
"""The columns that decide. `last_active_at` is not among them: it changes with every first login of a day on each side
(contracts/real-keystone.md K11), upstream's comparison of it makes records differ again minutes after a sync."""

NEVER_DELETED_ROLES = frozenset({"admin"})


@dataclass(frozen=True)
class Placed:
    """What dcsync put on a subcloud, or found there under the centre's name: ids only. A central deletion deletes
    exactly these."""

    ids: Mapping[ResourceType, frozenset[str]] = field(default_factory=dict)
    assignments: frozenset[Assignment] = frozenset()

    def of(self, type_: ResourceType) -> frozenset[str]:
        return self.ids.get(type_, frozenset())


@dataclass(frozen=True)
class Cloud:
    """Everything an identity audit compares, of one cloud."""

    records: Records
    assignments: frozenset[Assignment] = frozenset()
    revocation_events: frozenset[RevocationEvent] = frozenset()


@dataclass(frozen=True)
class Difference:
    """One thing that differs: what it is, by type and name, and in which fields; never a value."""

    type: str
    name: str
    fields: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.type} {self.name}: {', '.join(self.fields)}"


@dataclass(frozen=True)
class Repair:
    """Writes in the order they must be made; each field is finished before the next one begins.

    Updates of `users` may be written side by side, all others one after another.
    """

    created_domains: tuple[Record, ...] = ()
    emptied_groups: tuple[Update, ...] = ()
    users: tuple[Update, ...] = ()
    created_users: tuple[Record, ...] = ()
    groups: tuple[Update, ...] = ()
    created_groups: tuple[Record, ...] = ()
    projects: tuple[Update, ...] = ()
    created_projects: tuple[Record, ...] = ()
    roles: tuple[Update, ...] = ()
    created_roles: tuple[Record, ...] = ()
    granted: tuple[Assignment, ...] = ()
    created_events: tuple[RevocationEvent, ...] = ()
    revoked: tuple[Assignment, ...] = ()
    deleted: tuple[Record, ...] = ()
    groups_to_refill: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def deletions(self) -> int:
        """Records and grants that would go: what a guard counts."""
        return len(self.deleted) + len(self.revoked)


@dataclass(frozen=True)
class IdentityAudit:
    """What differs, how it is repaired, and what is placed on the subcloud once the repair is done."""

    differences: tuple[Difference, ...]
    repair: Repair
    placed: Placed

    @property
    def is_in_sync(self) -> bool:
        return not self.differences


def audit_identity(
    *,
    central: Cloud,
    subcloud: Cloud,
    region_name: str,
    placed: Placed,
    groups_to_refill: Mapping[str, tuple[str, ...]] | None = None,
) -> IdentityAudit:
    """Compare the subcloud with the centre and plan its repair.

    Records are the same thing when name and domain are, or else the id. A column counts only where both sides have
    it: an older site that omits a field is not out of sync. Raises CloudError: central-empty, subcloud-empty, or
    ids-not-aligned.
    """
    refuse_unusable(central=central.records, subcloud=subcloud.records, region_name=region_name)
    matches = {type_: _match(central.records, subcloud.records, type_, region_name) for type_ in ResourceType}
    doomed = {type_: _doomed(matches[type_], subcloud.records, placed, type_, region_name) for type_ in ResourceType}
    users = tuple(Update(old.id, new) for new, old in matches[ResourceType.USERS].pairs if _differing_fields(new, old))
    new_ids = {update.old_id: update.record.id for update in users if update.changes_id}
    gone = {record.id for record in doomed[ResourceType.USERS]}
    user_ids = {new_ids.get(user.id, user.id) for user in subcloud.records.users} - gone
    user_ids |= {record.id for record in matches[ResourceType.USERS].missing}
    group_match = matches[ResourceType.GROUPS]
    membership = plan_groups(
        matched={old.id: new for new, old in group_match.pairs},
        subcloud=subcloud.records,
        new_ids=new_ids,
        user_ids=user_ids,
        remembered=groups_to_refill or {},
    )
    filled = _with_other_fields(membership.filled, group_match, user_ids)
    assignments = _audit_assignments(central, subcloud, matches, placed, region_name)
    missing_events = tuple(
        sorted(central.revocation_events - subcloud.revocation_events, key=lambda event: json.dumps(event.body))
    )
    repair = Repair(
        created_domains=tuple(r for r in _by_depth(matches[ResourceType.PROJECTS].missing) if _is_domain(r)),
        emptied_groups=membership.emptied,
        users=users,
        created_users=matches[ResourceType.USERS].missing,
        groups=filled,
        created_groups=tuple(_known_members(group, user_ids) for group in group_match.missing),
        projects=_updates(matches[ResourceType.PROJECTS]),
        created_projects=tuple(r for r in _by_depth(matches[ResourceType.PROJECTS].missing) if not _is_domain(r)),
        roles=_updates(matches[ResourceType.ROLES]),
        created_roles=matches[ResourceType.ROLES].missing,
        granted=assignments.missing,
        created_events=missing_events,
        revoked=assignments.extra,
        deleted=(
            *doomed[ResourceType.ROLES],
            *reversed(_by_depth(doomed[ResourceType.PROJECTS])),
            *doomed[ResourceType.GROUPS],
            *doomed[ResourceType.USERS],
        ),
        groups_to_refill=membership.to_refill,
    )
    return IdentityAudit(
        differences=tuple(_differences(matches, doomed, filled, assignments, missing_events)),
        repair=repair,
        placed=Placed(
            ids={type_: frozenset(new.id for new, _ in matches[type_].pairs) | {r.id for r in matches[type_].missing}
                 for type_ in ResourceType},
            assignments=assignments.wanted,
        ),
    )  # fmt: skip


# --- records -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Match:
    """Of one type: (central, subcloud) records that are the same thing, and central records the subcloud lacks."""

    pairs: tuple[tuple[Record, Record], ...]
    missing: tuple[Record, ...]


def _match(central: Records, subcloud: Records, type_: ResourceType, region_name: str) -> _Match:
    """By name and domain first; what is left, by id: a record that was renamed centrally."""
    wanted = concerned(central, type_, region_name=region_name)
    own = concerned(subcloud, type_, region_name=region_name)
    pairs = [(new, own[key]) for key, new in wanted.items() if key in own]
    taken = {old.id for _, old in pairs}
    by_id = {record.id: record for record in own.values() if record.id not in taken}
    missing = []
    for key, new in wanted.items():
        if key in own:
            continue
        if new.id in by_id and by_id[new.id].key not in wanted:
            pairs.append((new, by_id[new.id]))
        else:
            missing.append(new)
    return _Match(tuple(pairs), tuple(missing))


def _doomed(
    match: _Match, subcloud: Records, placed: Placed, type_: ResourceType, region_name: str
) -> tuple[Record, ...]:
    """Records dcsync placed, that are still there under their id, and that the centre no longer has."""
    kept = {old.id for _, old in match.pairs} | {new.id for new, _ in match.pairs}
    return tuple(
        record
        for record in concerned(subcloud, type_, region_name=region_name).values()
        if record.id in placed.of(type_) and record.id not in kept and not _is_vital(record)
    )


def _is_vital(record: Record) -> bool:
    """Never deleted, whatever the centre seems to say: what services log in with, role admin, and domains."""
    return (
        record.name in ALIGNED_AT_DEPLOYMENT.get(record.type, ())
        or (record.type is ResourceType.ROLES and record.name in NEVER_DELETED_ROLES)
        or _is_domain(record)
    )


def _is_domain(record: Record) -> bool:
    return record.type is ResourceType.PROJECTS and bool(record.body["project"].get("is_domain"))


def _by_depth(projects: Iterable[Record]) -> tuple[Record, ...]:
    """Parents before children."""
    waiting = {project.id: project for project in projects}
    ordered: list[Record] = []
    while waiting:
        ready = [p for p in waiting.values() if p.body["project"].get("parent_id") not in waiting]
        for project in ready or list(waiting.values()):
            ordered.append(waiting.pop(project.id))
    return tuple(ordered)


def _updates(match: _Match) -> tuple[Update, ...]:
    return tuple(Update(old.id, new) for new, old in match.pairs if _differing_fields(new, old))


def _with_other_fields(filled: tuple[Update, ...], match: _Match, user_ids: set[str]) -> tuple[Update, ...]:
    """Groups to fill, and those whose members are right but whose description or the like is not."""
    written = {update.old_id for update in filled}
    others = tuple(
        Update(old.id, _known_members(new, user_ids))
        for new, old in match.pairs
        if old.id not in written and _differing_fields(new, old)
    )
    return (*filled, *others)


def _known_members(group: Record, user_ids: set[str]) -> Record:
    return with_members(group, [member for member in group.member_ids if member in user_ids])


def _differing_fields(new: Record, old: Record) -> tuple[str, ...]:
    """Names of the fields in which two records of the same thing differ, group members not among them."""
    found = [
        f"{part}.{column}"
        for part, columns in COMPARED[new.type].items()
        for column in columns
        if _differs(new.body[part], old.body[part], column)
    ]
    if new.type is ResourceType.USERS:
        if len(password_hashes(new)) != len(password_hashes(old)) or password_hashes(new) != password_hashes(old):
            found.append("password")
        if "user_option" in new.body and "user_option" in old.body and _options(new) != _options(old):
            found.append("user_option")
    return tuple(found)


def _differs(new: Mapping[str, Any], old: Mapping[str, Any], column: str) -> bool:
    return column in new and column in old and new[column] != old[column]


def _options(user: Record) -> list[tuple[str, str]]:
    return sorted((str(row.get("option_id")), str(row.get("option_value"))) for row in user.body["user_option"])


# --- role assignments --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Assignments:
    wanted: frozenset[Assignment]
    missing: tuple[Assignment, ...]
    extra: tuple[Assignment, ...]


def _audit_assignments(
    central: Cloud,
    subcloud: Cloud,
    matches: Mapping[ResourceType, _Match],
    placed: Placed,
    region_name: str,
) -> _Assignments:
    """Central grants among what both sides know; of the subcloud's other grants, those dcsync placed are extra.

    Grants follow a record's id when it changes, so the subcloud's are read as they will be after the writes.
    """
    wanted = frozenset(a for a in central.assignments if _is_concerned(a, central.records, region_name))
    new_ids = {
        type_: {old.id: new.id for new, old in matches[type_].pairs if new.id != old.id} for type_ in ResourceType
    }
    present = {_renamed(assignment, new_ids) for assignment in subcloud.assignments}
    extra = (present & placed.assignments) - wanted
    return _Assignments(wanted, tuple(sorted(wanted - present)), tuple(sorted(extra)))


_ACTORS = {ActorType.USER: ResourceType.USERS, ActorType.GROUP: ResourceType.GROUPS}


def _is_concerned(assignment: Assignment, records: Records, region_name: str) -> bool:
    def known(type_: ResourceType, id_: str) -> bool:
        return any(record.id == id_ for record in concerned(records, type_, region_name=region_name).values())

    return (
        known(_ACTORS[assignment.actor_type], assignment.actor_id)
        and known(ResourceType.PROJECTS, assignment.project_id)
        and known(ResourceType.ROLES, assignment.role_id)
    )


def _renamed(assignment: Assignment, new_ids: Mapping[ResourceType, Mapping[str, str]]) -> Assignment:
    actors = new_ids[_ACTORS[assignment.actor_type]]
    return Assignment(
        project_id=new_ids[ResourceType.PROJECTS].get(assignment.project_id, assignment.project_id),
        actor_type=assignment.actor_type,
        actor_id=actors.get(assignment.actor_id, assignment.actor_id),
        role_id=new_ids[ResourceType.ROLES].get(assignment.role_id, assignment.role_id),
    )


# --- words for people, and refusals ------------------------------------------------------------------------------


def _differences(
    matches: Mapping[ResourceType, _Match],
    doomed: Mapping[ResourceType, tuple[Record, ...]],
    filled: tuple[Update, ...],
    assignments: _Assignments,
    missing_events: tuple[RevocationEvent, ...],
) -> Iterator[Difference]:
    members = {update.record.id for update in filled}
    for type_ in ResourceType:
        for new, old in matches[type_].pairs:
            fields = _differing_fields(new, old)
            if type_ is ResourceType.GROUPS and new.id in members and _members_differ(new, old, filled):
                fields = (*fields, "local_user_ids")
            if fields:
                yield Difference(type_.value, new.name, fields)
        for record in matches[type_].missing:
            yield Difference(type_.value, record.name, ("missing",))
        for record in doomed[type_]:
            yield Difference(type_.value, record.name, ("deleted centrally",))
    for assignment in assignments.missing:
        yield Difference("project_role_assignments", _assignment_name(assignment), ("missing",))
    for assignment in assignments.extra:
        yield Difference("project_role_assignments", _assignment_name(assignment), ("deleted centrally",))
    if missing_events:
        yield Difference("revoke_events", f"{len(missing_events)} events", ("missing",))


def _members_differ(new: Record, old: Record, filled: tuple[Update, ...]) -> bool:
    return any(u.old_id == old.id and u.record.member_ids != old.member_ids for u in filled)


def _assignment_name(assignment: Assignment) -> str:
    return f"{assignment.project_id}_{assignment.actor_id}_{assignment.role_id}"
