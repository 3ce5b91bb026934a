"""Where a subcloud stands, told by comparing its rows with the centre's and with its first day.

The rules of matching and filtering are told here a second time on purpose: a witness may not ask the accused.
Source: spec/identity-sync.md sections 3-4, contracts/real-keystone.md "What must hold after a sync".
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from dcsync.fake_cloud.cloud import SINGULAR, Cloud, domain_of, id_of, name_of
from dcsync.fake_cloud.deployment import Row, Tables

FILTERED_USERS = frozenset({"dcdbsync", "dcorch", "heat_admin", "smapi", "usm", "fm"})
FILTERED_ROLES = frozenset({"heat_stack_owner", "heat_stack_user", "ResellerAdmin"})
_VOLATILE = frozenset({"last_active_at", "failed_auth_count", "failed_auth_at"})

Key = tuple[str, str | None]


@dataclass(frozen=True, slots=True)
class Standing:
    """How one subcloud stands."""

    aligned: bool
    keys_match: bool
    untouched: bool
    assignments_kept: bool
    problems: tuple[str, ...] = field(default=())

    @property
    def is_good(self) -> bool:
        return self.aligned and self.keys_match and self.untouched and self.assignments_kept


def inspect(cloud: Cloud, central: Cloud) -> Standing:
    """Compares everything; costs about a millisecond."""
    alignment = [*_misaligned_users(cloud, central)]
    for type_ in ("groups", "projects", "roles"):
        alignment += _differing_ids(cloud, central, type_)
    alignment += _differing_members(cloud, central)
    alignment = list(dict.fromkeys(alignment))
    keys_match = cloud.tables.keys == central.tables.keys
    first_day = cloud.deployment.build()
    touched = [*_touched(cloud, central, first_day)]
    moved = sorted(assignments_by_name(cloud.tables) ^ assignments_by_name(first_day))
    problems = [*alignment, *([] if keys_match else ["keys differ"]), *touched]
    problems += [f"assignment changed: {' '.join(names)}" for names in moved]
    return Standing(not alignment, keys_match, not touched, not moved, tuple(problems))


def ids_aligned(cloud: Cloud, central: Cloud) -> bool:
    """Do same-named users, projects and roles carry the central ids? This must hold before keys are replaced (K5)."""
    return not any(_differing_ids(cloud, central, type_) for type_ in ("users", "projects", "roles"))


def is_site_only(cloud: Cloud, central: Cloud, type_: str, id_: str) -> bool:
    """Is this a record of the subcloud's that no sync may write: filtered, or without a namesake at the centre?"""
    row = cloud.tables.of(type_).get(id_)
    if row is None:
        return False
    return _is_filtered(cloud, type_, row) or _key(type_, row) not in _by_key(central, type_)


def assignments_by_name(tables: Tables) -> set[tuple[str, str, str, str]]:
    """Who may do what where, in names: what must survive the moving of ids (K8). Ids without a record stay ids."""
    names = {
        id_: name_of(type_, row)
        for type_ in ("users", "groups", "projects", "roles")
        for id_, row in tables.of(type_).items()
    }
    return {
        (kind, names.get(actor, actor), names.get(target, target), names.get(role, role))
        for kind, actor, target, role in tables.assignments
    }


def _key(type_: str, row: Row) -> Key:
    return name_of(type_, row), domain_of(type_, row)


def _by_key(cloud: Cloud, type_: str) -> dict[Key, Row]:
    return {_key(type_, row): row for row in cloud.tables.of(type_).values()}


def _is_filtered(cloud: Cloud, type_: str, row: Row) -> bool:
    name = name_of(type_, row)
    if type_ == "users":
        return name in FILTERED_USERS or name == f"cinder{cloud.region_name}"
    return type_ == "roles" and name in FILTERED_ROLES


def _pairs(cloud: Cloud, central: Cloud, type_: str) -> list[tuple[Row, Row]]:
    """(own record, central record) of everything a sync is about."""
    masters = _by_key(central, type_)
    rows = [row for row in cloud.tables.of(type_).values() if not _is_filtered(cloud, type_, row)]
    return [(row, masters[_key(type_, row)]) for row in rows if _key(type_, row) in masters]


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
            "extra": _extra(own) != _extra(master),
            "enabled": own["user"]["enabled"] != master["user"]["enabled"],
        }
        found += [f"user {name_of('users', own)}: {part} differs" for part, differs in parts.items() if differs]
    return found


def _hashes(user: Row) -> list[str]:
    rows = sorted(user["password"], key=lambda row: (int(row["created_at_int"]), row["password_hash"]))
    return [row["password_hash"] for row in rows]


def _options(user: Row) -> dict[str, str]:
    return {row["option_id"]: row["option_value"] for row in user["user_option"]}


def _extra(user: Row) -> object:
    return json.loads(user["user"]["extra"] or "{}")


def _differing_members(cloud: Cloud, central: Cloud) -> list[str]:
    found = []
    for own, master in _pairs(cloud, central, "groups"):
        due = {member for member in master["local_user_ids"] if member in cloud.tables.users}
        if due != set(own["local_user_ids"]):
            found.append(f"group {name_of('groups', own)}: members differ")
    return found


def _touched(cloud: Cloud, central: Cloud, first_day: Tables) -> list[str]:
    """Site-only and filtered records that are not as they were, members of site-only groups told by name."""
    found = []
    for type_ in ("users", "groups", "projects", "roles"):
        masters = _by_key(central, type_)
        now = {_key(type_, row): row for row in cloud.tables.of(type_).values()}
        for row in first_day.of(type_).values():
            key = _key(type_, row)
            if key in masters and not _is_filtered(cloud, type_, row):
                continue
            if key not in now:
                found.append(f"{SINGULAR[type_]} {key[0]}: gone")
            elif _steady(type_, now[key], cloud.tables) != _steady(type_, row, first_day):
                found.append(f"{SINGULAR[type_]} {key[0]}: changed")
    return found


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
