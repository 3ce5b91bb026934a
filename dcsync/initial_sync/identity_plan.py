"""What must be written to a subcloud so that its records carry the central ids; pure, values in and values out.

Not here: reading lists, sending updates, and creating or deleting anything (an initial sync does neither).
Source: spec/identity-sync.md sections 2-4; the group order is contracts/real-keystone.md R2.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from dcsync.errors import CloudError, Reason
from dcsync.identity import Record, Records, ResourceType

ALIGNED_AT_DEPLOYMENT = {
    ResourceType.USERS: frozenset({"admin", "sysinv", "dcmanager"}),
    ResourceType.PROJECTS: frozenset({"admin", "services"}),
}
"""Whose ids must agree before the first write: the services log in with them, and rewriting such an id locks them out
(contracts/real-keystone.md R1)."""

ALWAYS_WRITTEN_USERS = frozenset({"admin", "sysinv", "dcmanager"})
"""Written even when ids agree: their ids were aligned at deployment, their password hashes were not."""

LEFT_ALONE_USERS = frozenset({"dcdbsync", "dcorch", "heat_admin", "smapi", "usm", "fm"})
LEFT_ALONE_ROLES = frozenset({"heat_stack_owner", "heat_stack_user", "ResellerAdmin"})

MANDATORY = (ResourceType.USERS, ResourceType.PROJECTS, ResourceType.ROLES)
"""A cloud without any of these is not a cloud: an empty list is an error. Groups are optional."""


@dataclass(frozen=True)
class Update:
    """One PUT: `record` over the subcloud's record `old_id`."""

    old_id: str
    record: Record

    @property
    def type(self) -> ResourceType:
        return self.record.type

    @property
    def changes_id(self) -> bool:
        return self.old_id != self.record.id


@dataclass(frozen=True)
class Plan:
    """Updates in the order they must be written: each field is finished before the next one begins.

    Updates of `users` are independent of one another and may be written side by side; all others go one by one.
    """

    emptied_groups: tuple[Update, ...]
    users: tuple[Update, ...]
    groups: tuple[Update, ...]
    projects: tuple[Update, ...]
    roles: tuple[Update, ...]
    groups_to_refill: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Site-only groups among `emptied_groups`, with the members they must have at the end: to be remembered before the
    first write, for nobody else knows them if the run dies half-way."""

    @property
    def updates(self) -> tuple[Update, ...]:
        return (*self.emptied_groups, *self.users, *self.groups, *self.projects, *self.roles)


def plan_identity(
    *,
    central: Records,
    subcloud: Records,
    region_name: str,
    groups_to_refill: Mapping[str, tuple[str, ...]] | None = None,
) -> Plan:
    """Updates that give same-named subcloud records the central id; records on one side only are left alone.

    Matches on (name, domain_id). Users admin, sysinv and dcmanager are updated even when ids agree. A group is updated
    when its id or its members differ; central members the subcloud does not know are left out. A user whose id changes
    is first taken out of its groups, for Keystone's foreign keys refuse the change otherwise. Applying a plan retires
    the old ids, so plan anew for every try. `groups_to_refill` is what an earlier plan left to be remembered.

    Raises CloudError: central-empty, subcloud-empty, or ids-not-aligned.
    """
    _refuse_empty(central, region_name, Reason.CENTRAL_EMPTY, "the centre")
    _refuse_empty(subcloud, region_name, Reason.SUBCLOUD_EMPTY, "the subcloud")
    _refuse_misaligned(central, subcloud)
    users = tuple(
        Update(old.id, new)
        for new, old in _pairs(central, subcloud, ResourceType.USERS, region_name)
        if new.id != old.id or new.name in ALWAYS_WRITTEN_USERS
    )
    new_ids = {update.old_id: update.record.id for update in users if update.changes_id}
    user_ids = {new_ids.get(user.id, user.id) for user in subcloud.users}
    emptied, groups, refill = _plan_groups(central, subcloud, new_ids, user_ids, groups_to_refill or {})
    return Plan(
        emptied_groups=emptied,
        users=users,
        groups=groups,
        projects=_differing(central, subcloud, ResourceType.PROJECTS, region_name),
        roles=_differing(central, subcloud, ResourceType.ROLES, region_name),
        groups_to_refill=refill,
    )


def is_left_alone(record: Record, *, region_name: str) -> bool:
    """Records that belong to the site although the centre has one of that name. Source: identity-sync.md section 4."""
    if record.type is ResourceType.USERS:
        return record.name in LEFT_ALONE_USERS or record.name == f"cinder{region_name}"
    return record.type is ResourceType.ROLES and record.name in LEFT_ALONE_ROLES


def stored_as_sent(*, sent: Record, stored: Record) -> bool:
    """Whether what a PUT answered is the record it was given, as far as a PUT can write it.

    Not compared: auto ids and what a login changes; `failed_auth_*` is not written together with an id
    (contracts/recorded: local_user follows by cascade).
    """
    same = (sent.id, sent.name, sent.domain_id) == (stored.id, stored.name, stored.domain_id)
    if sent.type is ResourceType.GROUPS:
        return same and sent.member_ids == stored.member_ids
    if sent.type is ResourceType.USERS:
        return (
            same
            and _hashes(sent) == _hashes(stored)
            and sent.body["user"].get("enabled") == stored.body["user"].get("enabled")
        )
    return same


def _hashes(user: Record) -> list[str]:
    return sorted(str(row.get("password_hash")) for row in user.body["password"])


def _kept(records: Records, type_: ResourceType, region_name: str) -> dict[tuple[str, str], Record]:
    return {r.key: r for r in records.of(type_) if not is_left_alone(r, region_name=region_name)}


def _pairs(central: Records, subcloud: Records, type_: ResourceType, region_name: str) -> list[tuple[Record, Record]]:
    """(central record, subcloud record) of the same name and domain, in the order of the subcloud's list."""
    known = _kept(central, type_, region_name)
    return [(known[key], old) for key, old in _kept(subcloud, type_, region_name).items() if key in known]


def _differing(central: Records, subcloud: Records, type_: ResourceType, region_name: str) -> tuple[Update, ...]:
    return tuple(Update(old.id, new) for new, old in _pairs(central, subcloud, type_, region_name) if new.id != old.id)


def _refuse_empty(records: Records, region_name: str, reason: Reason, whose: str) -> None:
    empty = [type_.value for type_ in MANDATORY if not _kept(records, type_, region_name)]
    if empty:
        raise CloudError(reason, f"{whose} lists no {', no '.join(empty)}")


def _refuse_misaligned(central: Records, subcloud: Records) -> None:
    wrong = [
        f"{type_.value.removesuffix('s')} {new.name}"
        for type_, names in ALIGNED_AT_DEPLOYMENT.items()
        for new, old in _pairs(central, subcloud, type_, region_name="")
        if new.name in names and new.id != old.id
    ]
    if wrong:
        raise CloudError(
            Reason.IDS_NOT_ALIGNED,
            f"{', '.join(wrong)} must carry the central id since deployment; nothing was written",
        )


def _plan_groups(
    central: Records,
    subcloud: Records,
    new_ids: Mapping[str, str],
    user_ids: Collection[str],
    remembered: Mapping[str, tuple[str, ...]],
) -> tuple[tuple[Update, ...], tuple[Update, ...], dict[str, tuple[str, ...]]]:
    """Groups to empty of changing members, groups to write after the users, and what to remember of the former."""
    matched = {old.id: new for new, old in _pairs(central, subcloud, ResourceType.GROUPS, region_name="")}
    emptied: list[Update] = []
    written: list[Update] = []
    refill: dict[str, tuple[str, ...]] = {}
    for group in subcloud.groups:
        staying = tuple(member for member in group.member_ids if member not in new_ids)
        if len(staying) < len(group.member_ids):
            emptied.append(Update(group.id, _with_members(group, staying)))
        now = tuple(sorted(new_ids.get(member, member) for member in group.member_ids))
        if group.id in matched:
            wanted = _with_members(matched[group.id], [m for m in matched[group.id].member_ids if m in user_ids])
        else:
            wanted = _with_members(group, {*now, *(m for m in remembered.get(group.id, ()) if m in user_ids)})
            if wanted.member_ids != staying:
                refill[group.id] = wanted.member_ids
        if wanted.id != group.id or wanted.member_ids != staying:
            written.append(Update(group.id, wanted))
    return tuple(emptied), tuple(written), refill


def _with_members(group: Record, members: Collection[str]) -> Record:
    return replace(group, body={**group.body, "local_user_ids": sorted(members)})
