"""When records of two clouds are the same thing, which are left alone, and what a group's members must become.

Pure, and shared by the initial sync (which gives ids) and the audit (which gives everything). Not here: which records
are written in which case; that is each service's own plan.
Source: docs/upstream/identity-sync.md sections 3 and 4; docs/upstream/real-keystone.md R1 and R2.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from dcsync.model.errors import CloudError
from dcsync.model.identity import Record, Records, ResourceType
from dcsync.model.reasons import Reason

ALIGNED_AT_DEPLOYMENT = {
    ResourceType.USERS: frozenset({"admin", "sysinv", "dcmanager"}),
    ResourceType.PROJECTS: frozenset({"admin", "services"}),
}
"""Whose ids must agree before the first write: the services log in with them, and rewriting such an id locks them out
(docs/upstream/real-keystone.md R1)."""

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
class GroupPlan:
    """What happens to a subcloud's groups when some of its users take other ids."""

    emptied: tuple[Update, ...]
    """To be written before the users: groups without the members that change."""
    filled: tuple[Update, ...]
    """To be written after the users."""
    to_refill: Mapping[str, tuple[str, ...]]
    """Site-only groups among them, with the members they must have at the end: nobody else knows those if the run dies
    half-way."""


def is_left_alone(record: Record, *, region_name: str) -> bool:
    """Records that belong to the site although the centre has one of that name. Source: identity-sync.md section 4."""
    if record.type is ResourceType.USERS:
        return record.name in LEFT_ALONE_USERS or record.name == f"cinder{region_name}"
    return record.type is ResourceType.ROLES and record.name in LEFT_ALONE_ROLES


def concerned(records: Records, type_: ResourceType, *, region_name: str) -> dict[tuple[str, str], Record]:
    """Those of one type that are not left alone, by name and domain."""
    return {r.key: r for r in records.of(type_) if not is_left_alone(r, region_name=region_name)}


def same_named(
    central: Records, subcloud: Records, type_: ResourceType, *, region_name: str
) -> list[tuple[Record, Record]]:
    """(central record, subcloud record) of the same name and domain, in the order of the subcloud's list."""
    known = concerned(central, type_, region_name=region_name)
    own = concerned(subcloud, type_, region_name=region_name)
    return [(known[key], old) for key, old in own.items() if key in known]


def refuse_unusable(*, central: Records, subcloud: Records, region_name: str) -> None:
    """Raises CloudError where no write could do good: central-empty, subcloud-empty, or ids-not-aligned."""
    for records, reason, whose in (
        (central, Reason.CENTRAL_EMPTY, "the centre"),
        (subcloud, Reason.SUBCLOUD_EMPTY, "the subcloud"),
    ):
        empty = [type_.value for type_ in MANDATORY if not concerned(records, type_, region_name=region_name)]
        if empty:
            raise CloudError(reason, f"{whose} lists no {', no '.join(empty)}")
    misaligned = _misaligned_at_deployment(central, subcloud)
    if misaligned:
        raise CloudError(
            Reason.IDS_NOT_ALIGNED,
            f"{', '.join(misaligned)} must carry the central id since deployment; nothing was written",
        )


def _misaligned_at_deployment(central: Records, subcloud: Records) -> list[str]:
    """Which records that services log in with carry other ids than the centre's, e.g. ["user sysinv"]."""
    return [
        f"{type_.value.removesuffix('s')} {new.name}"
        for type_, names in ALIGNED_AT_DEPLOYMENT.items()
        for new, old in same_named(central, subcloud, type_, region_name="")
        if new.name in names and new.id != old.id
    ]


def plan_groups(
    *,
    matched: Mapping[str, Record],
    subcloud: Records,
    new_ids: Mapping[str, str],
    user_ids: Collection[str],
    remembered: Mapping[str, tuple[str, ...]],
) -> GroupPlan:
    """How groups let go of members whose ids change, and get their members afterwards.

    `matched`: subcloud group id -> its central record; groups that are not matched keep their own members under their
    new ids. `new_ids`: old user id -> new one, for those that change. `user_ids`: every user id the subcloud will have
    once the users are written; other members cannot be written. `remembered`: `to_refill` of a plan whose run died.
    """
    emptied: list[Update] = []
    filled: list[Update] = []
    to_refill: dict[str, tuple[str, ...]] = {}
    for group in subcloud.groups:
        staying = tuple(member for member in group.member_ids if member not in new_ids)
        if len(staying) < len(group.member_ids):
            emptied.append(Update(group.id, with_members(group, staying)))
        if group.id in matched:
            central = matched[group.id]
            wanted = with_members(central, [member for member in central.member_ids if member in user_ids])
        else:
            own = {new_ids.get(member, member) for member in group.member_ids}
            wanted = with_members(group, own | {m for m in remembered.get(group.id, ()) if m in user_ids})
            if wanted.member_ids != staying:
                to_refill[group.id] = wanted.member_ids
        if wanted.id != group.id or wanted.member_ids != staying:
            filled.append(Update(group.id, wanted))
    return GroupPlan(tuple(emptied), tuple(filled), to_refill)


def with_members(group: Record, members: Collection[str]) -> Record:
    """The group with exactly these members."""
    return replace(group, body={**group.body, "local_user_ids": sorted(members)})


def stored_as_sent(*, sent: Record, stored: Record) -> bool:
    """Whether what a PUT answered is the record it was given, as far as a PUT can write it.

    Not compared: auto ids and what a login changes; `failed_auth_*` is not written together with an id
    (docs/upstream/recorded-traffic.md: local_user follows by cascade).
    """
    same = (sent.id, sent.name, sent.domain_id) == (stored.id, stored.name, stored.domain_id)
    if sent.type is ResourceType.GROUPS:
        return same and sent.member_ids == stored.member_ids
    if sent.type is ResourceType.USERS:
        return (
            same
            and password_hashes(sent) == password_hashes(stored)
            and sent.body["user"].get("enabled") == stored.body["user"].get("enabled")
        )
    return same


def password_hashes(user: Record) -> list[str]:
    """Current and earlier hashes, sorted; never to be shown."""
    return sorted(str(row.get("password_hash")) for row in user.body["password"])
