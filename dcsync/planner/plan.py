"""The plan: the differences, and one ordered list of writes that brings a subcloud into line. Pure.

An audit carries out the whole plan: it creates missing records, updates differing ones, and deletes those that dcsync
placed and the central cloud no longer has. An initial sync is the same plan restricted to updates of same-named
records. Records created by the subcloud are never changed. Previews show the same list that is written.
Source: docs/upstream/identity-sync.md sections 2 to 4 and 9, without the defects named in section 9: adopted records
are compared immediately, a mismatch counts, an empty central list is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from dcsync.model.errors import listed
from dcsync.model.identity import NewIds, Placed, Record, Records, ResourceType, RevocationEvent
from dcsync.model.reasons import Reason
from dcsync.planner.differences import (
    ASSIGNMENTS,
    DELETED,
    IN_USE,
    MEMBERS,
    MISSING,
    REVOCATION_EVENTS,
    TAKEN,
    Difference,
)
from dcsync.planner.grants import Grants, compare_grants, missing_events
from dcsync.planner.groups import GroupPlan, plan_groups
from dcsync.planner.match import Cloud, is_domain, match_all, match_same_named, refuse_unusable
from dcsync.planner.order import children_first
from dcsync.planner.passwords import created
from dcsync.planner.refused import NAMED_AT_MOST, NotWritten, without
from dcsync.planner.resolve import Part, resolve
from dcsync.planner.writes import (
    Action,
    AddEvent,
    Change,
    Delete,
    Grant,
    Revoke,
    SetPassword,
    Update,
    Write,
    assignment_name,
)

USERS, GROUPS, PROJECTS, ROLES = ResourceType.USERS, ResourceType.GROUPS, ResourceType.PROJECTS, ResourceType.ROLES

ALWAYS_WRITTEN_USERS = frozenset({"admin", "sysinv", "dcmanager"})
"""Users that an initial sync writes even when nothing differs, because services log in with them; not
on a subcloud that merely returns."""

ADMIN = "admin"

Parts = Mapping[ResourceType, Part]
ToRefill = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class IdentityPlan:
    """The differences, the writes that repair them, and what dcsync has placed on the subcloud afterwards."""

    differences: tuple[Difference, ...]
    writes: tuple[Write, ...]
    """In the order in which they must be sent."""
    placed: Placed
    groups_to_refill: ToRefill = field(default_factory=dict)
    """Stored before the first write: see `GroupPlan.to_refill`."""
    moves_domains: bool = False
    """The writes only change ids of domains, because users and projects follow their domain; other differences are
    planned afterwards."""
    refused: tuple[NotWritten, ...] = ()
    """What would repair a difference and is not among the writes: domains that keep their id, and what depends on
    that."""

    @property
    def is_in_sync(self) -> bool:
        return not self.differences

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to write, because nothing differs or the differences cannot be repaired."""
        return not self.writes

    @property
    def words(self) -> tuple[str, ...]:
        """Every write in order, as verb, type and name."""
        return tuple(write.words for write in self.writes)

    @property
    def deletions(self) -> int:
        """Number of records and grants that would be removed, as counted by the guard."""
        return sum(write.is_deletion for write in self.writes)

    @property
    def new_ids(self) -> NewIds:
        """New ids of records whose id changes."""
        updates = [each.action for each in self.writes if isinstance(each.action, Update)]
        return {(each.record.type, each.old.id): each.record.id for each in updates if each.changes_id}

    @property
    def placed_meanwhile(self) -> Placed:
        """What may be placed while the writes are in progress, in addition to what was placed before. Grants to be
        revoked are listed with their new ids, because they follow records whose ids change."""
        revoked = [each.action.assignment for each in self.writes if isinstance(each.action, Revoke)]
        return self.placed | Placed(assignments=frozenset(revoked))


def plan_audit(
    *,
    central: Cloud,
    subcloud: Cloud,
    region_name: str,
    placed: Placed,
    groups_to_refill: ToRefill | None = None,
    only: Collection[str] | None = None,
    knows_admin_password: bool = False,
    refused: Collection[NotWritten] = (),
) -> IdentityPlan:
    """Returns the whole plan; all types are compared, only the resource types in `only` (None: all) are repaired.

    `placed`: what dcsync placed on the subcloud; nothing else is deleted. `groups_to_refill`: the value stored for an
    earlier, interrupted plan. `knows_admin_password`: a differing password of user admin is also written to the
    subcloud's keyring. `refused`: what the subcloud refused in this run; a domain among it keeps its id. Raises
    CloudError: central-empty, subcloud-empty, or ids-not-aligned.
    """
    refuse_unusable(central=central.records, subcloud=subcloud.records, region_name=region_name)
    parts = {
        type_: resolve(
            match_all(central.records, subcloud.records, type_, region_name=region_name, placed=placed.of(type_))
        )
        for type_ in ResourceType
    }
    return _plan(
        parts,
        central=central,
        subcloud=subcloud,
        region_name=region_name,
        placed=placed,
        groups_to_refill=groups_to_refill,
        only=only,
        knows_admin_password=knows_admin_password,
        refused=refused,
    )


def plan_initial_sync(
    *,
    central: Records,
    subcloud: Records,
    region_name: str,
    groups_to_refill: ToRefill | None = None,
    always: Collection[str] = ALWAYS_WRITTEN_USERS,
    refused: Collection[NotWritten] = (),
) -> IdentityPlan:
    """Returns the plan restricted to updates of same-named records; records of one cloud only are not changed.

    `always`: names of users that are updated even when nothing differs. `refused`: as in `plan_audit`. Central members
    and parents that the subcloud does not have are omitted. Carrying out a plan removes the old ids, so every attempt
    needs a new plan.
    Raises CloudError: central-empty, subcloud-empty, or ids-not-aligned.
    """
    refuse_unusable(central=central, subcloud=subcloud, region_name=region_name)
    parts = {
        type_: resolve(
            match_same_named(central, subcloud, type_, region_name=region_name),
            always=always if type_ is USERS else (),
        )
        for type_ in ResourceType
    }
    return _plan(
        parts,
        central=Cloud(central),
        subcloud=Cloud(subcloud),
        region_name=region_name,
        placed=Placed(),
        groups_to_refill=groups_to_refill,
        refused=refused,
    )


def _plan(
    parts: Parts,
    *,
    central: Cloud,
    subcloud: Cloud,
    region_name: str,
    placed: Placed,
    groups_to_refill: ToRefill | None,
    only: Collection[str] | None = None,
    knows_admin_password: bool = False,
    refused: Collection[NotWritten] = (),
) -> IdentityPlan:
    def follow(chosen: Parts) -> tuple[GroupPlan, Grants]:
        """Returns the changes of groups and grants that follow from these changes of records."""
        groups = plan_groups(
            part=chosen[GROUPS],
            groups=subcloud.records.groups,
            users=chosen[USERS],
            remembered=groups_to_refill or {},
        )
        grants = compare_grants(
            central=central, subcloud=subcloud, parts=chosen, placed=placed, region_name=region_name
        )
        return groups, grants

    groups, grants = follow(parts)
    events = missing_events(central.revocation_events, subcloud.revocation_events)
    differences = tuple(_differences(parts, groups, grants, events))
    if only is not None:
        parts = {type_: part if type_ in only else part.without_repair() for type_, part in parts.items()}
        groups, grants = follow(parts)
    domains = [change for change in parts[PROJECTS].changes if is_domain(change.record)]
    kept = {number: each for number, each in enumerate(_kept(domains, subcloud.records.users, refused)) if each}
    if any(change.changes_id for number, change in enumerate(domains) if number not in kept):
        moves, left_out = without(domains, kept)
        return IdentityPlan(differences, moves, placed, moves_domains=True, refused=tuple(left_out))
    with_grants = only is None or ASSIGNMENTS in only
    with_events = only is None or REVOCATION_EVENTS in only
    actions: list[Action] = [
        *domains,
        *groups.emptied,
        *(_keyring(parts[USERS]) if knows_admin_password else ()),
        *parts[USERS].updates,
        *(write for each in parts[USERS].created for write in created(each.record)),
        *groups.filled,
        *groups.created,
        *(change for change in parts[PROJECTS].changes if not is_domain(change.record)),
        *parts[ROLES].updates,
        *parts[ROLES].created,
        *(map(Grant, grants.grantable) if with_grants else ()),
        *(map(AddEvent, events) if with_events else ()),
        *(map(Revoke, grants.revocable) if with_grants else ()),
        # Users first: if Keystone refuses to delete a role or project, users who could log in are removed already.
        *(Delete(record) for type_ in (USERS, GROUPS, ROLES) for record in parts[type_].removed),
        *map(Delete, children_first(parts[PROJECTS].removed)),
    ]
    writes, left_out = without(actions, kept)
    return IdentityPlan(
        differences=differences,
        writes=writes,
        refused=tuple(left_out),
        placed=Placed(
            ids={type_: part.placed_after for type_, part in parts.items()},
            assignments=grants.wanted.union(() if with_grants else grants.revocable),
        ),
        groups_to_refill=groups.to_refill,
    )


def _kept(
    domains: Iterable[Change], users: Iterable[Record], refused: Collection[NotWritten]
) -> Iterator[NotWritten | None]:
    """Yields for each change of a domain why it keeps its id, None if nothing is against the change.

    A real dcdbsync deletes the users of such a domain and inserts them again without their passwords and options; those
    of users that only the subcloud has are in no other place. Source: docs/upstream/identity-sync.md section 5 (c).
    """
    earlier = {
        (each.action.old.id, each.action.record.id): each
        for each in refused
        if isinstance(each.action, Update) and each.reason is not Reason.GUARD_REFUSED
    }
    for change in domains:
        if not (isinstance(change, Update) and change.changes_id):
            yield None
            continue
        names = sorted(user.name for user in users if user.domain_id == change.old.id)
        yield earlier.get((change.old.id, change.record.id)) or (_occupied(change, names) if names else None)


def _occupied(change: Update, names: Sequence[str]) -> NotWritten:
    return NotWritten(
        change,
        "it has another id on the subcloud, and changing that would delete the passwords of the users in it "
        f"({listed(names, at_most=NAMED_AT_MOST)}); remove these users from it, or delete the domain on the subcloud, "
        "and an audit creates it with the central id",
        Reason.GUARD_REFUSED,
    )


def _keyring(users: Part) -> Iterator[SetPassword]:
    """Yields a password change for user admin if its password differs: the subcloud keeps it in its keyring as well.

    The plain password is set first, through Keystone; the central hash then replaces the hash Keystone computed. In the
    reverse order the hashes would differ after every repair. Source: docs/upstream/identity-sync.md section 7.
    """
    for pair in users.pairs if users.is_repaired else ():
        if pair.new.name == ADMIN and pair.new.id == pair.old.id and "password" in pair.fields:
            yield SetPassword(pair.new)


def _differences(
    parts: Parts, groups: GroupPlan, grants: Grants, events: tuple[RevocationEvent, ...]
) -> Iterator[Difference]:
    for type_, part in parts.items():
        for pair in part.pairs:
            members = (MEMBERS,) if type_ is GROUPS and pair.old.id in groups.differing else ()
            if fields := (*pair.fields, *members):
                yield Difference(type_.value, pair.new.name, fields, pair.new)
        for record in part.stuck:
            yield Difference(type_.value, record.name, (TAKEN,), record)
        for change in part.created:
            yield Difference(type_.value, change.record.name, (MISSING,), change.record)
        for record in part.deleted:
            yield Difference(type_.value, record.name, (DELETED,))
        for record in part.in_use:
            yield Difference(type_.value, record.name, (IN_USE,))
    matched = {pair.old.id for pair in parts[GROUPS].pairs}
    for update in groups.filled:
        if update.old.id not in matched:
            yield Difference(GROUPS.value, update.record.name, (MEMBERS,))
    for assignment in grants.missing:
        yield Difference(ASSIGNMENTS, assignment_name(assignment), (MISSING,))
    for assignment in grants.revocable:
        yield Difference(ASSIGNMENTS, assignment_name(assignment), (DELETED,))
    if events:
        wanted = hashlib.sha256(repr([event.columns for event in events]).encode()).hexdigest()
        yield Difference(REVOCATION_EVENTS, f"{len(events)} events", (MISSING,), wanted)
