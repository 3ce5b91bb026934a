"""What a subcloud's identity data lacks against the centre's, and the writes that repair it; pure.

Unlike the initial sync, an audit creates what is missing, corrects what differs in any field, and deletes what dcsync
itself placed and the centre no longer has. What the site made itself is never touched.
Source: docs/upstream/identity-sync.md section 9, with its named defects left out: adopted records are compared at once,
a mismatch counts, an empty central list is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from dcsync.model.identity import Assignment, Placed, Record, Records, ResourceType, RevocationEvent, record_digest
from dcsync.planner.alignment import (
    ALIGNED_AT_DEPLOYMENT,
    GroupPlan,
    Update,
    concerned,
    is_left_alone,
    password_hashes,
    plan_groups,
    refuse_unusable,
    with_members,
)

T = TypeVar("T")

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
(docs/upstream/real-keystone.md K11), upstream's comparison of it makes records differ again minutes after a sync."""

ADMIN = "admin"
NEVER_DELETED_ROLES = frozenset({"admin"})

TAKEN = "name or id taken by another record"
IN_USE = "deleted centrally, but in use by the site"

ASSIGNMENTS = "project_role_assignments"
REVOCATION_EVENTS = "revoke_events"
RESOURCE_TYPES = (*(type_.value for type_ in ResourceType), ASSIGNMENTS, REVOCATION_EVENTS)
"""What is compared, by the names operators know; a repair may be restricted to some of them."""


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
    wanted: str = field(default="", repr=False)
    """A digest of what the centre has, so that the same field with a newer value is another difference."""

    def __str__(self) -> str:
        return f"{self.type} {self.name}: {', '.join(self.fields)}"


def digest(differences: Iterable[Difference]) -> str | None:
    """What tells one set of differences from another; None for none.

    Revocations beside something else do not count: the centre makes new ones all the time, and what differs for ever
    would never be seen to be the same.
    """
    found = list(differences)
    others = [each for each in found if each.type != REVOCATION_EVENTS]
    lines = sorted(f"{each} {each.wanted}" for each in others or found)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest() if lines else None


@dataclass(frozen=True)
class Repair:
    """Writes in the order they must be made; each field is finished before the next one begins.

    Updates of `users` may be written side by side, all others one after another. A record stands for its creation.
    """

    domains: tuple[Update | Record, ...] = ()
    emptied_groups: tuple[Update, ...] = ()
    users: tuple[Update, ...] = ()
    renamed_users: tuple[Update, ...] = ()
    """Take a name that one of `users`, or an earlier one of these, gives up."""
    created_users: tuple[Record, ...] = ()
    groups: tuple[Update, ...] = ()
    created_groups: tuple[Record, ...] = ()
    projects: tuple[Update | Record, ...] = ()
    roles: tuple[Update, ...] = ()
    created_roles: tuple[Record, ...] = ()
    granted: tuple[Assignment, ...] = ()
    created_events: tuple[RevocationEvent, ...] = ()
    revoked: tuple[Assignment, ...] = ()
    deleted: tuple[Record, ...] = ()
    """Users first: a role or project that Keystone will not delete must not keep those who may log in."""
    groups_to_refill: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    admin_id: str | None = None
    """Of user admin, where its password differs: the subcloud keeps that in its keyring as well."""

    @property
    def deletions(self) -> int:
        """Records and grants that would go: what a guard counts."""
        return len(self.deleted) + len(self.revoked)

    @property
    def writes(self) -> tuple[str, ...]:
        """Every write in its order, as verb, type and name."""
        puts = (
            *self.domains, *self.emptied_groups, *self.users, *self.renamed_users, *self.created_users, *self.groups,
            *self.created_groups, *self.projects, *self.roles, *self.created_roles,
        )  # fmt: skip
        shown = [("PUT" if isinstance(each, Update) else "POST", _record(each)) for each in puts]
        return (
            *(f"{verb} {record.type} {record.name}" for verb, record in shown),
            *(f"PUT {ASSIGNMENTS} {_assignment_name(assignment)}" for assignment in self.granted),
            *(f"POST {REVOCATION_EVENTS}" for _ in self.created_events),
            *(f"DELETE {ASSIGNMENTS} {_assignment_name(assignment)}" for assignment in self.revoked),
            *(f"DELETE {record.type} {record.name}" for record in self.deleted),
        )

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to write, be it that nothing differs or that nothing can be done about it."""
        return not self.writes

    @property
    def changes_ids(self) -> bool:
        """Whether tokens name ids that are gone afterwards."""
        updates = (*self.domains, *self.users, *self.renamed_users, *self.projects, *self.roles)
        return any(isinstance(each, Update) and each.changes_id for each in updates)


@dataclass(frozen=True)
class IdentityAudit:
    """What differs, how it is repaired, and what is placed on the subcloud once the repair is done."""

    differences: tuple[Difference, ...]
    repair: Repair
    placed: Placed

    @property
    def placed_meanwhile(self) -> Placed:
        """The same as long as the repair is not done; what was placed before may be there as well. Grants to be revoked
        are named as they will be, for they follow records that take other ids."""
        return self.placed | Placed(assignments=frozenset(self.repair.revoked))

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
    only: Collection[str] | None = None,
) -> IdentityAudit:
    """Compare the subcloud with the centre and plan its repair; `only` these of RESOURCE_TYPES are repaired.

    Records are the same thing when the id is, or else name and domain. A column counts only where both sides have
    it: an older site that omits a field is not out of sync. A domain whose id differs is repaired alone, for its
    users and projects follow it; what else differs shows afterwards. Raises CloudError: central-empty, subcloud-empty,
    or ids-not-aligned.
    """
    refuse_unusable(central=central.records, subcloud=subcloud.records, region_name=region_name)
    every = {type_: _part(central, subcloud, placed, type_, region_name) for type_ in ResourceType}
    chosen = {type_: part if only is None or type_ in only else part.without_repair() for type_, part in every.items()}
    members = _members(every, subcloud, groups_to_refill)
    grants = _grants(central, subcloud, every, placed, region_name)
    events = _missing_events(central.revocation_events, subcloud.revocation_events)
    differences = tuple(_differences(every, members.filled, grants, events))
    if only is not None:
        members = _members(chosen, subcloud, groups_to_refill)
        grants = _grants(central, subcloud, chosen, placed, region_name)
    domains = tuple(each for each in chosen[ResourceType.PROJECTS].writes if _is_domain(_record(each)))
    if any(isinstance(each, Update) and each.changes_id for each in domains):
        return IdentityAudit(differences, Repair(domains=domains), placed)
    with_grants = only is None or ASSIGNMENTS in only
    with_events = only is None or REVOCATION_EVENTS in only
    return IdentityAudit(
        differences=differences,
        repair=_repair(chosen, members, grants if with_grants else None, events if with_events else ()),
        placed=Placed(
            ids={type_: chosen[type_].placed_after for type_ in ResourceType},
            assignments=grants.wanted | (frozenset() if with_grants else frozenset(grants.revocable)),
        ),
    )


def _repair(
    parts: Mapping[ResourceType, _Part], members: GroupPlan, grants: _Grants | None, events: tuple[RevocationEvent, ...]
) -> Repair:
    users, groups, projects, roles = (parts[type_] for type_ in ResourceType)
    given_up = users.keys_given_up
    return Repair(
        domains=tuple(each for each in projects.writes if _is_domain(_record(each))),
        emptied_groups=members.emptied,
        users=tuple(update for update in users.updates if update.record.key not in given_up),
        renamed_users=tuple(update for update in users.updates if update.record.key in given_up),
        created_users=users.created,
        groups=_group_writes(groups, members.filled, users.ids_after),
        created_groups=tuple(_known_members(group, users.ids_after) for group in groups.created),
        projects=tuple(each for each in projects.writes if not _is_domain(_record(each))),
        roles=roles.updates,
        created_roles=roles.created,
        granted=grants.grantable if grants else (),
        created_events=events,
        revoked=grants.revocable if grants else (),
        deleted=(*users.deleted, *groups.deleted, *roles.deleted, *reversed(_parents_first(projects.deleted))),
        groups_to_refill=members.to_refill,
        admin_id=_admin_with_another_password(users),
    )


def _admin_with_another_password(users: _Part) -> str | None:
    for new, old in users.pairs if users.is_repaired else ():
        if new.name == ADMIN and new.id == old.id and password_hashes(new) != password_hashes(old):
            return new.id
    return None


def _members(
    parts: Mapping[ResourceType, _Part], subcloud: Cloud, remembered: Mapping[str, tuple[str, ...]] | None
) -> GroupPlan:
    users = parts[ResourceType.USERS]
    return plan_groups(
        matched={update.old_id: update.record for update in parts[ResourceType.GROUPS].matched},
        subcloud=subcloud.records,
        new_ids={update.old_id: update.record.id for update in users.updates if update.changes_id},
        user_ids=users.ids_after,
        remembered=remembered or {},
    )


# --- records -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Part:
    """One type: which records are the same thing on both sides, and what each of the others needs."""

    pairs: tuple[tuple[Record, Record], ...]
    """(central, subcloud) records that are the same thing, those aside that are `stuck`."""
    writes: tuple[Update | Record, ...]
    """Updates of those pairs that differ, and creations: no name is taken before it is given up, no project is put
    under a parent that is not there yet."""
    stuck: tuple[Record, ...]
    """Central records whose name or id another record of the subcloud holds. If that one is deleted in this run, a
    second look can put it right; else only a person can tell what is."""
    deleted: tuple[Record, ...]
    others: tuple[Record, ...]
    """Records of the subcloud that stay as they are."""
    in_use: tuple[Record, ...] = ()
    """Projects to be deleted that must stay, for something of the site's own stands under them."""
    is_repaired: bool = True

    def without_repair(self) -> _Part:
        """The same when this type is compared only."""
        return replace(self, writes=(), is_repaired=False)

    @property
    def updates(self) -> tuple[Update, ...]:
        return tuple(each for each in self.writes if isinstance(each, Update))

    @property
    def created(self) -> tuple[Record, ...]:
        return tuple(each for each in self.writes if isinstance(each, Record))

    @property
    def matched(self) -> tuple[Update, ...]:
        """Every pair as the write it would be; none where nothing is repaired."""
        return tuple(Update(old.id, new) for new, old in self.pairs) if self.is_repaired else ()

    @property
    def keys_given_up(self) -> frozenset[tuple[str, str]]:
        """Names that are free once the updates are written."""
        new_keys = {update.old_id: update.record.key for update in self.updates}
        return frozenset(old.key for _, old in self.pairs if new_keys.get(old.id, old.key) != old.key)

    @property
    def placed_after(self) -> frozenset[str]:
        """Ids the centre is answerable for once the repair is done."""
        ids = {new.id if self.is_repaired else old.id for new, old in self.pairs}
        kept = () if self.is_repaired else self.deleted
        return frozenset(ids | {record.id for record in (*self.created, *kept, *self.in_use)})

    @property
    def ids_after(self) -> frozenset[str]:
        """Every id the subcloud has once the repair is done."""
        return self.placed_after | {record.id for record in self.others}


def _part(central: Cloud, subcloud: Cloud, placed: Placed, type_: ResourceType, region_name: str) -> _Part:
    """By id first, which an initial sync has aligned; what is left, by name and domain: to be adopted."""
    wanted = list(concerned(central.records, type_, region_name=region_name).values())
    every = subcloud.records.of(type_)
    own = {record.id: record for record in every if not is_left_alone(record, region_name=region_name)}
    pairs = [(new, own.pop(new.id)) for new in wanted if new.id in own]
    paired = {new.id for new, _ in pairs}
    by_key = {record.key: record for record in own.values()}
    created: list[Record] = []
    for new in (new for new in wanted if new.id not in paired):
        old = by_key.pop(new.key, None)
        if old is None:
            created.append(new)
        else:
            pairs.append((new, own.pop(old.id)))
    deleted = {id_: record for id_, record in own.items() if id_ in placed.of(type_) and not _is_vital(record)}
    matched = {old.id for _, old in pairs}
    others = [record for record in every if record.id not in matched and record.id not in deleted]
    part = _resolved(pairs, created, deleted=tuple(deleted.values()), others=others, stuck=[])
    in_use = _in_use(part)
    return replace(part, deleted=tuple(each for each in part.deleted if each not in in_use), in_use=tuple(in_use))


def _in_use(part: _Part) -> list[Record]:
    """Keystone deletes no project that something stands under."""
    in_use: list[Record] = []
    while True:
        above = {id_ for record in (*part.others, *in_use) for id_ in _above(record)}
        more = [record for record in part.deleted if record.id in above and record not in in_use]
        if not more:
            return in_use
        in_use += more


def _resolved(
    pairs: list[tuple[Record, Record]],
    created: list[Record],
    *,
    deleted: tuple[Record, ...],
    others: list[Record],
    stuck: list[Record],
) -> _Part:
    """Sort out who may take which name and id; what is stuck stays as it is, and may be in the way of others."""
    held = (*others, *deleted)
    ids, keys = {record.id for record in held}, {record.key for record in held}
    not_there = {record.id for record in stuck} - ids - {old.id for _, old in pairs}
    updates = [Update(old.id, new) for new, old in pairs if _differing_fields(new, old)]
    every: list[Update | Record] = [*updates, *created]
    writes, circular = _in_order(every, _needs(updates, created, {old.id: old for _, old in pairs}))
    lost = [new for new in (*(new for new, _ in pairs), *created) if new.id in ids or new.key in keys]
    lost += [each for each in map(_record, writes) if each not in lost and not_there & set(_above(each))]
    lost += [each for each in map(_record, circular) if each not in lost]
    if not lost:
        return _Part(tuple(pairs), tuple(writes), tuple(stuck), deleted, tuple(others))
    gone = {record.id for record in lost}
    return _resolved(
        [(new, old) for new, old in pairs if new.id not in gone],
        [new for new in created if new.id not in gone],
        deleted=deleted,
        others=[*others, *(old for new, old in pairs if new.id in gone)],
        stuck=[*stuck, *lost],
    )


def _needs(
    updates: list[Update], created: list[Record], old: Mapping[str, Record]
) -> Callable[[Update | Record], Iterator[Update | Record]]:
    """What must be written before a write: whoever gives up its name, and the projects it stands under."""
    holders = {old[update.old_id].key: update for update in updates}
    every: list[Update | Record] = [*updates, *created]
    by_new_id = {_record(each).id: each for each in every}

    def needs(each: Update | Record) -> Iterator[Update | Record]:
        record = _record(each)
        holder = holders.get(record.key)
        if holder is not None and holder is not each:
            yield holder
        for id_ in _above(record):
            above = by_new_id.get(id_)
            if above is not None and above is not each:
                yield above

    return needs


def _above(record: Record) -> tuple[str, ...]:
    """Ids of the projects a project stands under: its parent and its domain."""
    if record.type is not ResourceType.PROJECTS:
        return ()
    row = record.body["project"]
    return tuple(id_ for id_ in (row.get("parent_id"), row.get("domain_id")) if id_ and id_ != record.id)


def _in_order(items: Iterable[T], needs: Callable[[T], Iterable[T]]) -> tuple[list[T], list[T]]:
    """Each after all it needs; and those that need one another in a circle, or something in it."""
    waiting = list(items)
    ordered: list[T] = []
    while waiting:
        ready = [item for item in waiting if not any(need in waiting for need in needs(item))]
        if not ready:
            break
        ordered += ready
        waiting = [item for item in waiting if item not in ready]
    return ordered, waiting


def _record(each: Update | Record) -> Record:
    return each.record if isinstance(each, Update) else each


def _parents_first(projects: Iterable[Record]) -> list[Record]:
    every = list(projects)
    by_id = {project.id: project for project in every}

    def needs(project: Record) -> Iterator[Record]:
        parent = by_id.get(project.body["project"].get("parent_id") or "")
        if parent is not None and parent is not project:
            yield parent

    ordered, circular = _in_order(every, needs)
    return ordered + circular


def _is_vital(record: Record) -> bool:
    """Never deleted, whatever the centre seems to say: what services log in with, role admin, and domains."""
    return (
        record.name in ALIGNED_AT_DEPLOYMENT.get(record.type, ())
        or (record.type is ResourceType.ROLES and record.name in NEVER_DELETED_ROLES)
        or _is_domain(record)
    )


def _is_domain(record: Record) -> bool:
    return record.type is ResourceType.PROJECTS and bool(record.body["project"].get("is_domain"))


def _group_writes(groups: _Part, filled: tuple[Update, ...], user_ids: frozenset[str]) -> tuple[Update, ...]:
    """Groups whose fields differ, in the order their names allow, then those that only want filling."""
    contents = {update.old_id: update.record for update in filled}
    fields = tuple(
        Update(update.old_id, contents.get(update.old_id) or _known_members(update.record, user_ids))
        for update in groups.updates
    )
    written = {update.old_id for update in fields}
    return (*fields, *(update for update in filled if update.old_id not in written))


def _known_members(group: Record, user_ids: frozenset[str]) -> Record:
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
        if password_hashes(new) != password_hashes(old):
            found.append("password")
        if "user_option" in new.body and "user_option" in old.body and _options(new) != _options(old):
            found.append("user_option")
    return tuple(found)


def _differs(new: Mapping[str, Any], old: Mapping[str, Any], column: str) -> bool:
    return column in new and column in old and new[column] != old[column]


def _options(user: Record) -> list[tuple[str, str]]:
    return sorted((str(row.get("option_id")), str(row.get("option_value"))) for row in user.body["user_option"])


# --- role assignments and revocation events ----------------------------------------------------------------------


@dataclass(frozen=True)
class _Grants:
    wanted: frozenset[Assignment]
    missing: tuple[Assignment, ...]
    grantable: tuple[Assignment, ...]
    """Those of the missing ones whose user or group, project and role will all be there."""
    revocable: tuple[Assignment, ...]
    """Placed, gone centrally, and not going by themselves with a record that is deleted."""


def _grants(
    central: Cloud, subcloud: Cloud, parts: Mapping[ResourceType, _Part], placed: Placed, region_name: str
) -> _Grants:
    """Central grants among what both sides know; of the subcloud's other grants, those dcsync placed are extra.

    Grants follow a record's id when it changes, so the subcloud's are read as they will be after the writes, and those
    that were placed as well.
    """
    known = {
        type_: {record.id for record in concerned(central.records, type_, region_name=region_name).values()}
        for type_ in ResourceType
    }
    wanted = frozenset(a for a in central.assignments if all(id_ in known[type_] for type_, id_ in a.ids))
    moved = {
        (type_, update.old_id): update.record.id
        for type_, part in parts.items()
        for update in part.updates
        if update.changes_id
    }
    present, ours = subcloud.assignments, placed.assignments
    if moved:
        present, ours = frozenset(each.moved(moved) for each in present), placed.followed(moved).assignments
    after = {type_: part.ids_after for type_, part in parts.items()}
    missing = sorted(wanted - present)
    return _Grants(
        wanted=wanted,
        missing=tuple(missing),
        grantable=tuple(a for a in missing if all(id_ in after[type_] for type_, id_ in a.ids)),
        revocable=tuple(
            a for a in sorted((present & ours) - wanted) if all(id_ in after[type_] for type_, id_ in a.ids)
        ),
    )


def _missing_events(
    central: frozenset[RevocationEvent], subcloud: frozenset[RevocationEvent]
) -> tuple[RevocationEvent, ...]:
    """Central events the subcloud lacks, by the columns both clouds know; events are never deleted."""
    if central <= subcloud:
        return ()
    common = {column for event in (*central, *subcloud) for column in event.body}
    for event in (*central, *subcloud):
        common &= event.body.keys()
    there = {_shown(event, common) for event in subcloud}
    missing = [event for event in central if _shown(event, common) not in there]
    return tuple(sorted(missing, key=lambda event: json.dumps(event.body)))


def _shown(event: RevocationEvent, columns: Collection[str]) -> tuple[tuple[str, str | None], ...]:
    return tuple((column, value) for column, value in event.columns if column in columns)


# --- words for people --------------------------------------------------------------------------------------------


def _differences(
    parts: Mapping[ResourceType, _Part],
    filled: tuple[Update, ...],
    grants: _Grants,
    events: tuple[RevocationEvent, ...],
) -> Iterator[Difference]:
    for type_, part in parts.items():
        for new, old in part.pairs:
            fields = _differing_fields(new, old)
            if type_ is ResourceType.GROUPS and any(
                u.old_id == old.id and u.record.member_ids != old.member_ids for u in filled
            ):
                fields = (*fields, "local_user_ids")
            if fields:
                yield Difference(type_.value, new.name, fields, record_digest(new))
        for record in part.stuck:
            yield Difference(type_.value, record.name, (TAKEN,), record_digest(record))
        for record in part.created:
            yield Difference(type_.value, record.name, ("missing",), record_digest(record))
        for record in part.deleted:
            yield Difference(type_.value, record.name, ("deleted centrally",))
        for record in part.in_use:
            yield Difference(type_.value, record.name, (IN_USE,))
    matched = {old.id for _, old in parts[ResourceType.GROUPS].pairs}
    for update in filled:
        if update.old_id not in matched:
            yield Difference(ResourceType.GROUPS.value, update.record.name, ("local_user_ids",))
    for assignment in grants.missing:
        yield Difference(ASSIGNMENTS, _assignment_name(assignment), ("missing",))
    for assignment in grants.revocable:
        yield Difference(ASSIGNMENTS, _assignment_name(assignment), ("deleted centrally",))
    if events:
        told = hashlib.sha256(repr([event.columns for event in events]).encode()).hexdigest()
        yield Difference(REVOCATION_EVENTS, f"{len(events)} events", ("missing",), told)


def _assignment_name(assignment: Assignment) -> str:
    return f"{assignment.project_id}_{assignment.actor_id}_{assignment.role_id}"
