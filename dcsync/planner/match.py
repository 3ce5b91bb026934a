"""Matches records of two clouds, excludes some, and refuses clouds that no write could repair.

Two rules: an audit matches by id and then by name, and may create and delete; an initial sync matches same-named
records only. Not here: what differs between matched records, and whether they can be written.
Source: docs/upstream/identity-sync.md sections 3, 4 and 9; docs/upstream/real-keystone.md R1.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from dcsync.model.errors import CloudError
from dcsync.model.identity import Assignment, Record, Records, ResourceType, RevocationEvent
from dcsync.model.reasons import Reason

ALIGNED_AT_DEPLOYMENT = {
    ResourceType.USERS: frozenset({"admin", "sysinv", "dcmanager"}),
    ResourceType.PROJECTS: frozenset({"admin", "services"}),
}
"""Records whose ids must agree before the first write: services log in with them, and changing such an id locks them
out (docs/upstream/real-keystone.md R1)."""

EXCLUDED_USERS = frozenset({"dcdbsync", "dcorch", "heat_admin", "smapi", "usm", "fm"})
EXCLUDED_ROLES = frozenset({"heat_stack_owner", "heat_stack_user", "ResellerAdmin"})
NEVER_DELETED_ROLES = frozenset({"admin"})

MANDATORY = (ResourceType.USERS, ResourceType.PROJECTS, ResourceType.ROLES)
"""Types of which every cloud has records: an empty list is an error."""

MAY_BE_EMPTY = (ResourceType.GROUPS,)
"""The other types; each type is in one of the two."""


@dataclass(frozen=True)
class Cloud:
    """The data of one cloud that an identity audit compares."""

    records: Records
    assignments: frozenset[Assignment] = frozenset()
    revocation_events: frozenset[RevocationEvent] = frozenset()


@dataclass(frozen=True)
class Match:
    """Records of one type of two clouds, matched."""

    pairs: tuple[tuple[Record, Record], ...]
    """Pairs of matching (central, subcloud) records."""
    missing: tuple[Record, ...] = ()
    """Central records to create."""
    surplus: tuple[Record, ...] = ()
    """Subcloud records to delete."""
    others: tuple[Record, ...] = ()
    """Subcloud records that are not changed."""


def excluded_names(type_: ResourceType, *, region_name: str) -> frozenset[str]:
    """Returns names that belong to the subcloud even if the central cloud has a record with the same name.

    Source: docs/upstream/identity-sync.md section 4.
    """
    if type_ is ResourceType.USERS:
        return EXCLUDED_USERS | {f"cinder{region_name}"}
    return EXCLUDED_ROLES if type_ is ResourceType.ROLES else frozenset()


def concerned(records: Records, type_: ResourceType, *, region_name: str) -> list[Record]:
    """Returns the records of one type that are not excluded."""
    left_alone = excluded_names(type_, region_name=region_name)
    return [record for record in records.of(type_) if record.name not in left_alone]


def is_domain(record: Record) -> bool:
    """Returns whether a record is a domain; domains are listed among the projects."""
    return record.type is ResourceType.PROJECTS and bool(record.body["project"].get("is_domain"))


def is_vital(record: Record) -> bool:
    """Returns whether a record is never deleted: service users and projects, role admin, and domains."""
    return (
        record.name in ALIGNED_AT_DEPLOYMENT.get(record.type, ())
        or (record.type is ResourceType.ROLES and record.name in NEVER_DELETED_ROLES)
        or is_domain(record)
    )


def match_all(
    central: Records, subcloud: Records, type_: ResourceType, *, region_name: str, placed: Collection[str]
) -> Match:
    """Matches by id first (an initial sync has aligned ids), then the rest by name and domain; the rule of audits.

    `placed`: ids of this type that dcsync placed; unmatched subcloud records among them are to be deleted.
    """
    wanted = concerned(central, type_, region_name=region_name)
    own = {record.id: record for record in concerned(subcloud, type_, region_name=region_name)}
    pairs = [(new, own.pop(new.id)) for new in wanted if new.id in own]
    paired = {new.id for new, _ in pairs}
    by_key = {record.key: record for record in own.values()}
    missing: list[Record] = []
    for new in (new for new in wanted if new.id not in paired):
        old = by_key.pop(new.key, None)
        if old is None:
            missing.append(new)
        else:
            pairs.append((new, own.pop(old.id)))
    surplus = {id_: record for id_, record in own.items() if id_ in placed and not is_vital(record)}
    matched = {old.id for _, old in pairs}
    others = (r for r in subcloud.of(type_) if r.id not in matched and r.id not in surplus)
    return Match(tuple(pairs), tuple(missing), tuple(surplus.values()), tuple(others))


def match_same_named(central: Records, subcloud: Records, type_: ResourceType, *, region_name: str) -> Match:
    """Matches by name and domain, unless one of the two ids belongs to another record of the other cloud; the rule of
    initial syncs. In that case the record was renamed centrally or its name was reused, which is left to an audit, as
    it can rename and create. Records of one cloud only are not changed.
    """
    central_ids, subcloud_ids = ({record.id for record in side.of(type_)} for side in (central, subcloud))
    pairs = [
        (new, old)
        for new, old in _same_named(central, subcloud, type_, region_name=region_name)
        if new.id == old.id or (old.id not in central_ids and new.id not in subcloud_ids)
    ]
    matched = {old.id for _, old in pairs}
    others = tuple(record for record in subcloud.of(type_) if record.id not in matched)
    if type_ is ResourceType.PROJECTS:
        pairs = _under_known_parents(pairs, central=central.projects, others=others)
    return Match(tuple(pairs), others=others)


def _same_named(
    central: Records, subcloud: Records, type_: ResourceType, *, region_name: str
) -> list[tuple[Record, Record]]:
    """Returns matching pairs in the order of the subcloud's list."""
    known = {record.key: record for record in concerned(central, type_, region_name=region_name)}
    own = concerned(subcloud, type_, region_name=region_name)
    return [(known[old.key], old) for old in own if old.key in known]


def _under_known_parents(
    pairs: Iterable[tuple[Record, Record]], *, central: Iterable[Record], others: Iterable[Record]
) -> list[tuple[Record, Record]]:
    """Keeps the subcloud parent of a project whose central parent does not exist there: Keystone would reject the
    change, and only an audit creates the parent."""
    pairs = list(pairs)
    new_ids = {old.id: new.id for new, old in pairs}
    lacking = {record.id for record in central} - set(new_ids.values()) - {record.id for record in others}
    return [
        (_under(old, new, new_ids) if new.body["project"].get("parent_id") in lacking else new, old)
        for new, old in pairs
    ]


def _under(old: Record, new: Record, new_ids: dict[str, str]) -> Record:
    parent = old.body["project"].get("parent_id")
    return replace(new, body={"project": {**new.body["project"], "parent_id": new_ids.get(parent, parent)}})


def refuse_unusable(*, central: Records, subcloud: Records, region_name: str) -> None:
    """Raises CloudError where no write could help: central-empty, subcloud-empty, or ids-not-aligned."""
    for records, reason, whose in (
        (central, Reason.CENTRAL_EMPTY, "the central cloud"),
        (subcloud, Reason.SUBCLOUD_EMPTY, "the subcloud"),
    ):
        empty = [type_.value for type_ in MANDATORY if not concerned(records, type_, region_name=region_name)]
        if empty:
            raise CloudError(reason, f"{whose} lists no {', no '.join(empty)}")
    misaligned = _misaligned_at_deployment(central, subcloud)
    if misaligned:
        raise CloudError(
            Reason.IDS_NOT_ALIGNED,
            f"{', '.join(misaligned)} must have the central id since deployment; nothing was written",
        )


def _misaligned_at_deployment(central: Records, subcloud: Records) -> list[str]:
    """Returns the service records whose ids differ from the central ones, e.g. ["user sysinv"]."""
    return [
        f"{type_.value.removesuffix('s')} {new.name}"
        for type_, names in ALIGNED_AT_DEPLOYMENT.items()
        for new, old in _same_named(central, subcloud, type_, region_name="")
        if new.name in names and new.id != old.id
    ]
