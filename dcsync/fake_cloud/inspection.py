"""The state of a subcloud, found by comparing its rows with the central cloud's and with its first day.

The rules of matching and filtering are written here a second time on purpose: a check that shared
dcsync's code would share its errors.
Source: docs/upstream/identity-sync.md sections 3-4, docs/upstream/real-keystone.md "What must hold after a sync".
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from dcsync.fake_cloud.cloud import SINGULAR, Cloud, Key, NamedGrant, assignments_by_name, id_of, key_of, name_of
from dcsync.fake_cloud.deployment import ALIGNED, Assignment, Row, Tables

FILTERED_USERS = frozenset({"dcdbsync", "dcorch", "heat_admin", "smapi", "usm", "fm"})
FILTERED_ROLES = frozenset({"heat_stack_owner", "heat_stack_user", "ResellerAdmin"})
TYPES = ("users", "groups", "projects", "roles")
_VOLATILE = frozenset({"last_active_at", "failed_auth_count", "failed_auth_at"})


@dataclass(frozen=True, slots=True)
class Standing:
    """The state of one subcloud: after an initial sync the first four must hold, after an audit `audited`."""

    aligned: bool
    keys_match: bool
    untouched: bool
    assignments_kept: bool
    problems: tuple[str, ...] = field(default=())
    differences: tuple[str, ...] = field(default=())
    """What an audit has to repair, and what nobody but the subcloud may have done."""

    @property
    def is_good(self) -> bool:
        return self.aligned and self.keys_match and self.untouched and self.assignments_kept

    @property
    def audited(self) -> bool:
        return not self.differences


def inspect(cloud: Cloud, central: Cloud) -> Standing:
    """Compares everything; costs about a millisecond."""
    alignment = [*_misaligned_users(cloud, central)]
    for type_ in ("groups", "projects", "roles"):
        alignment += _differing_ids(cloud, central, type_)
    alignment += _differing_members(cloud, central)
    alignment = list(dict.fromkeys(alignment))
    keys_match = cloud.tables.keys == central.tables.keys
    keys = [] if keys_match else ["keys differ"]
    first_day = cloud.deployment.build()
    touched = [*_touched(cloud, central, first_day), *_lost(cloud, central)]
    moved = _moved_assignments(cloud, central, first_day)
    differences = [*_record_differences(cloud, central), *_grant_differences(cloud, central)]
    differences += [*_event_differences(cloud, central), *keys, *touched, *moved]
    return Standing(
        aligned=not alignment,
        keys_match=keys_match,
        untouched=not touched,
        assignments_kept=not moved,
        problems=(*alignment, *keys, *touched, *moved),
        differences=tuple(dict.fromkeys(differences)),
    )


def ids_aligned(cloud: Cloud, central: Cloud) -> bool:
    """Do same-named users, projects and roles carry the central ids? This must hold before keys are replaced (K5)."""
    return not any(_differing_ids(cloud, central, type_) for type_ in ("users", "projects", "roles"))


def is_subcloud_only(cloud: Cloud, central: Cloud, type_: str, id_: str) -> bool:
    """Is this a record of the subcloud's that no sync may write: filtered, or neither of a name nor of an id that the
    central cloud has?"""
    row = cloud.tables.of(type_).get(id_)
    if row is None:
        return False
    if _is_filtered(cloud, type_, row):
        return True
    return id_ not in central.tables.of(type_) and key_of(type_, row) not in _by_key(central, type_)


def _by_key(cloud: Cloud, type_: str) -> dict[Key, Row]:
    return {key_of(type_, row): row for row in cloud.tables.of(type_).values()}


def _is_filtered(cloud: Cloud, type_: str, row: Row) -> bool:
    name = name_of(type_, row)
    if type_ == "users":
        return name in FILTERED_USERS or name == f"cinder{cloud.region_name}"
    return type_ == "roles" and name in FILTERED_ROLES


def _pairs(cloud: Cloud, central: Cloud, type_: str) -> list[tuple[Row, Row]]:
    """(own record, central record) of everything a sync is about."""
    masters = _by_key(central, type_)
    rows = [row for row in cloud.tables.of(type_).values() if not _is_filtered(cloud, type_, row)]
    return [(row, masters[key_of(type_, row)]) for row in rows if key_of(type_, row) in masters]


def may_be_deleted(cloud: Cloud, central: Cloud, type_: str, id_: str) -> bool:
    """Is this a record of the central cloud's that the central cloud itself has no longer, and none that a sync leaves
    alone?"""
    row = cloud.tables.of(type_).get(id_)
    if row is None:
        return True
    if _is_filtered(cloud, type_, row) or _is_never_deleted(type_, row):
        return False
    return id_ in central.ever.ids and id_ not in central.tables.of(type_)


def may_be_revoked(central: Cloud, grant: Assignment) -> bool:
    """Is this a grant of the central cloud's that the central cloud itself has no longer?"""
    return grant in central.ever.grants and grant not in central.tables.assignments


def _is_never_deleted(type_: str, row: Row) -> bool:
    """What a cloud cannot live without: the names aligned at deployment, role admin, domains."""
    name = name_of(type_, row)
    if type_ == "projects":
        return row["project"]["is_domain"] or name in ("admin", "services")
    return (type_ == "users" and name in ALIGNED) or (type_ == "roles" and name == "admin")


def _differing_ids(cloud: Cloud, central: Cloud, type_: str) -> list[str]:
    pairs = _pairs(cloud, central, type_)
    return [
        f"{SINGULAR[type_]} {name_of(type_, own)}: id differs"
        for own, master in pairs
        if id_of(type_, own) != id_of(type_, master)
    ]


def _misaligned_users(cloud: Cloud, central: Cloud) -> list[str]:
    found = []
    for own, master in _pairs(cloud, central, "users"):
        parts = {
            "id": own["user"]["id"] != master["user"]["id"],
            "password": _hashes(own) != _hashes(master),
            "options": _options(own) != _options(master),
            "extra": _extra(own["user"]) != _extra(master["user"]),
            "enabled": own["user"]["enabled"] != master["user"]["enabled"],
        }
        found += [f"user {name_of('users', own)}: {part} differs" for part, differs in parts.items() if differs]
    return found


def _hashes(user: Row) -> list[str]:
    rows = sorted(user["password"], key=lambda row: (int(row["created_at_int"]), row["password_hash"]))
    return [row["password_hash"] for row in rows]


def _options(user: Row) -> dict[str, str]:
    return {row["option_id"]: row["option_value"] for row in user["user_option"]}


def _extra(row: Row) -> object:
    return json.loads(row["extra"] or "{}")


def _differing_members(cloud: Cloud, central: Cloud) -> list[str]:
    found = []
    for own, master in _pairs(cloud, central, "groups"):
        due = {member for member in master["local_user_ids"] if member in cloud.tables.users}
        if due != set(own["local_user_ids"]):
            found.append(f"group {name_of('groups', own)}: members differ")
    return found


def _touched(cloud: Cloud, central: Cloud, first_day: Tables) -> list[str]:
    """Subcloud-only and filtered records that changed; members of subcloud-only groups are named.

    A record is no longer subcloud-only once the central cloud had one of that name, even if it was removed again.
    """
    found = []
    once_central = central.ever.keys
    for type_ in TYPES:
        now = {key_of(type_, row): row for row in cloud.tables.of(type_).values()}
        for row in first_day.of(type_).values():
            key = key_of(type_, row)
            if (type_, key) in once_central and not _is_filtered(cloud, type_, row):
                continue
            if key not in now:
                found.append(f"{SINGULAR[type_]} {key[0]}: gone")
            elif _steady(type_, now[key], cloud.tables) != _steady(type_, row, first_day):
                found.append(f"{SINGULAR[type_]} {key[0]}: changed")
    return found


def _lost(cloud: Cloud, central: Cloud) -> list[str]:
    """What the subcloud made itself, under a name the central cloud never had, and is missing now."""
    held = {(type_, key_of(type_, row)) for type_ in TYPES for row in cloud.tables.of(type_).values()}
    return [f"{SINGULAR[type_]} {key[0]}: gone" for type_, key in sorted(cloud.own_records - held - central.ever.keys)]


def _moved_assignments(cloud: Cloud, central: Cloud, first_day: Tables) -> list[str]:
    """Grants that are there or not there by nobody's right: neither as on the first day, nor made by the subcloud, nor
    the central cloud's, given and taken."""
    ever, due = central.ever.named_grants, assignments_by_name(central.tables)
    now, then = assignments_by_name(cloud.tables), assignments_by_name(first_day) | cloud.own_grants
    gone_names = _names_gone(cloud, central)
    lost = {
        grant for grant in then - now
        if not (grant in ever and grant not in due) and gone_names.isdisjoint(_parts(grant))
    }  # fmt: skip
    return [f"assignment changed: {' '.join(names)}" for names in sorted(lost | (now - then - ever))]


def _parts(grant: NamedGrant) -> set[tuple[str, str]]:
    kind, actor, project, role = grant
    return {(f"{kind}s", actor), ("projects", project), ("roles", role)}


def _names_gone(cloud: Cloud, central: Cloud) -> set[tuple[str, str]]:
    """(type, name) of records the central cloud once had, and neither it nor the subcloud has any longer."""
    left = {(type_, key) for side in (cloud, central) for type_ in TYPES for key in _by_key(side, type_)}
    return {(type_, key[0]) for type_, key in central.ever.keys - left}


def _steady(type_: str, row: Row, tables: Tables) -> Row:
    if type_ == "groups":
        members = (tables.users.get(member) for member in row["local_user_ids"])
        return {"group": row["group"], "members": sorted(name_of("users", user) for user in members if user)}
    if type_ != "users":
        return row
    user, local = row["user"], row["local_user"]
    return row | {
        "user": {column: value for column, value in user.items() if column not in _VOLATILE},
        "local_user": {column: value for column, value in local.items() if column not in _VOLATILE},
    }


# What an audit promises


_COMPARED = {
    "users": ("domain_id", "default_project_id", "enabled", "created_at"),
    "groups": ("domain_id", "description"),
    "projects": ("domain_id", "description", "enabled", "parent_id", "is_domain"),
    "roles": ("domain_id", "description"),
}


def _record_differences(cloud: Cloud, central: Cloud) -> list[str]:
    found = []
    for type_ in TYPES:
        own, masters = _by_key(cloud, type_), _by_key(central, type_)
        for key, master in masters.items():
            if _is_filtered(cloud, type_, master):
                continue
            parts = _differing_parts(cloud, type_, own[key], master) if key in own else ["missing"]
            found += [f"{SINGULAR[type_]} {key[0]}: {part}" for part in parts]
        found += [
            f"{SINGULAR[type_]} {name_of(type_, row)}: still there"
            for id_, row in cloud.tables.of(type_).items()
            if may_be_deleted(cloud, central, type_, id_) and key_of(type_, row) not in masters
        ]
    return found


def _differing_parts(cloud: Cloud, type_: str, own: Row, master: Row) -> list[str]:
    kind = SINGULAR[type_]
    parts = {"id": own[kind]["id"] != master[kind]["id"], "extra": _extra(own[kind]) != _extra(master[kind])}
    parts |= {column: own[kind][column] != master[kind][column] for column in _COMPARED[type_]}
    if type_ == "users":
        parts["password"] = _hashes(own) != _hashes(master)
        parts["options"] = _options(own) != _options(master)
    if type_ == "groups":
        known = {member for member in master["local_user_ids"] if member in cloud.tables.users}
        parts["members"] = known != set(own["local_user_ids"])
    return [f"{part} differs" if part != "members" else "members differ" for part, differs in parts.items() if differs]


def _grant_differences(cloud: Cloud, central: Cloud) -> list[str]:
    """Central grants among records an audit is about: those not there, and those removed from the central cloud still
    there."""
    about = {
        id_ for type_ in TYPES for id_, row in central.tables.of(type_).items() if not _is_filtered(cloud, type_, row)
    }  # fmt: skip
    due = {grant for grant in central.tables.assignments if about.issuperset(grant[1:])}
    own_made = {grant for grant in cloud.tables.assignments if _named(cloud, grant) in cloud.own_grants}
    late = {grant for grant in cloud.tables.assignments & central.ever.grants if about.issuperset(grant[1:])}
    missing = [f"assignment {' '.join(_named(central, grant))}: missing" for grant in due - cloud.tables.assignments]
    left = late - central.tables.assignments - own_made
    return sorted([*missing, *(f"assignment {' '.join(_named(cloud, grant))}: still there" for grant in left)])


def _named(cloud: Cloud, grant: Assignment) -> NamedGrant:
    """The grant in names; ids without a record stay ids."""
    kind, *ids = grant
    kinds = (f"{kind}s", "projects", "roles")
    rows = ((type_, cloud.tables.of(type_).get(id_)) for type_, id_ in zip(kinds, ids, strict=True))
    names = [id_ if row is None else name_of(type_, row) for id_, (type_, row) in zip(ids, rows, strict=True)]
    return kind, names[0], names[1], names[2]


def _event_differences(cloud: Cloud, central: Cloud) -> list[str]:
    """Central revocation events that are missing, named by what they revoke."""
    held = {_columns(event) for event in cloud.tables.events}
    found = []
    for event in central.tables.events:
        if _columns(event) not in held:
            row = event["revocation_event"]
            subject = next((column for column in _EVENT_SUBJECTS if row[column]), "nothing")
            found.append(f"revocation event of {subject} {row.get(subject)}: missing")
    return found


_EVENT_SUBJECTS = ("audit_id", "audit_chain_id", "user_id", "project_id", "role_id")


def _columns(event: Row) -> frozenset[tuple[str, object]]:
    return frozenset((column, value) for column, value in event["revocation_event"].items() if column != "id")
