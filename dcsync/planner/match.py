"""Which records of two clouds are the same thing, which are excluded, and when no write could do good.

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
"""Whose ids must agree before the first write: the services log in with them, and rewriting such an id locks them out
(docs/upstream/real-keystone.md R1)."""

EXCLUDED_USERS = frozenset({"dcdbsync", "dcorch", "heat_admin", "smapi", "usm", "fm"})
EXCLUDED_ROLES = frozenset({"heat_stack_owner", "heat_stack_user", "ResellerAdmin"})
NEVER_DELETED_ROLES = frozenset({"admin"})

MANDATORY = (ResourceType.USERS, ResourceType.PROJECTS, ResourceType.ROLES)
"""A cloud without any of these is not a cloud: an empty list is an error. Groups are optional."""


@dataclass(frozen=True)
class Cloud:
    """Everything an identity audit compares, of one cloud."""

    records: Records
    assignments: frozenset[Assignment] = frozenset()
    revocation_events: frozenset[RevocationEvent] = frozenset()


@dataclass(frozen=True)
class Match:
    """The records of one type of two clouds."""

    pairs: tuple[tuple[Record, Record], ...]
    """(central, subcloud) records that are the same thing."""
    missing: tuple[Record, ...] = ()
    """Central records to be created."""
    surplus: tuple[Record, ...] = ()
    """Records of the subcloud to be deleted."""
    others: tuple[Record, ...] = ()
    """Records of the subcloud that stay as they are."""


def excluded_names(type_: ResourceType, *, region_name: str) -> frozenset[str]:
    """Names of records that belong to the subcloud although the central cloud has one of that name.

    Source: docs/upstream/identity-sync.md section 4.
    """
    if type_ is ResourceType.USERS:
        return EXCLUDED_USERS | {f"cinder{region_name}"}
    return EXCLUDED_ROLES if type_ is ResourceType.ROLES else frozenset()


def is_excluded(record: Record, *, region_name: str) -> bool:
    """Whether a record belongs to the subcloud by its name."""
    return record.name in excluded_names(record.type, region_name=region_name)


def concerned(records: Records, type_: ResourceType, *, region_name: str) -> list[Record]:
    """Those of one type that are not left alone."""
    left_alone = excluded_names(type_, region_name=region_name)
    return [record for record in records.of(type_) if record.name not in left_alone]


def is_domain(record: Record) -> bool:
    """Domains are listed among the projects."""
    return record.type is ResourceType.PROJECTS and bool(record.body["project"].get("is_domain"))


def is_vital(record: Record) -> bool:
    """Never deleted, whatever the central cloud seems to say: what services log in with, role admin, and domains."""
    return (
        record.name in ALIGNED_AT_DEPLOYMENT.get(record.type, ())
        or (record.type is ResourceType.ROLES and record.name in NEVER_DELETED_ROLES)
        or is_domain(record)
    )


def match_all(
    central: Records, subcloud: Records, type_: ResourceType, *, region_name: str, placed: Collection[str]
) -> Match:
    """The audit's rule: by id first, which an initial sync has aligned; what is left, by name and domain.

    `placed`: ids of this type that dcsync placed; those among what is left on the subcloud are to be deleted.
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
    """The initial sync's rule: by name and domain, unless one of the two ids belongs to another record of the other
    side. Then the record was renamed at the central cloud, or its name was given anew there, and which one it is is for
    an audit, which can rename and create as well. Records on one side only stay as they are.
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
    """In the order of the subcloud's list."""
    known = {record.key: record for record in concerned(central, type_, region_name=region_name)}
    own = concerned(subcloud, type_, region_name=region_name)
    return [(known[old.key], old) for old in own if old.key in known]


def _under_known_parents(
    pairs: Iterable[tuple[Record, Record]], *, central: Iterable[Record], others: Iterable[Record]
) -> list[tuple[Record, Record]]:
    """A project whose central parent is not on the subcloud stays under the parent it has there: Keystone would refuse
    it, and only an audit creates the parent."""
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
    """Raises CloudError where no write could do good: central-empty, subcloud-empty, or ids-not-aligned."""
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
            f"{', '.join(misaligned)} must carry the central id since deployment; nothing was written",
        )


def _misaligned_at_deployment(central: Records, subcloud: Records) -> list[str]:
    """Which records that services log in with carry other ids than the central ones, e.g. ["user sysinv"]."""
    return [
        f"{type_.value.removesuffix('s')} {new.name}"
        for type_, names in ALIGNED_AT_DEPLOYMENT.items()
        for new, old in _same_named(central, subcloud, type_, region_name="")
        if new.name in names and new.id != old.id
    ]
