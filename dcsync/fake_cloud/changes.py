"""What can be done to a cloud's data while it runs, at the central cloud (a change) or on a subcloud (drift).

One table from action name to function; every function takes the cloud and plain keyword arguments, and raises KeyError
or ValueError for names it does not know.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from dcsync.fake_cloud.cloud import SINGULAR, Cloud, NamedGrant, key_of
from dcsync.fake_cloud.deployment import DOMAIN, NULL, Row, fernet_key, moment
from dcsync.fake_cloud.keystone import add_password, delete_record, is_leaf, revoke_tokens_of

MAX_ACTIVE_KEYS = 3


def apply(cloud: Cloud, action: str, arguments: dict[str, Any]) -> None:
    """Carries out one action. Raises KeyError, TypeError or ValueError when it cannot be, and then changes nothing."""
    if action not in ACTIONS:
        raise ValueError(f"unknown action {action}; there are: {', '.join(sorted(ACTIONS))}")
    ACTIONS[action](cloud, **arguments)
    cloud.changed()


def _rotate_keys(cloud: Cloud) -> None:
    """As keystone-manage does: the staged key becomes primary, a new one is staged, the oldest go."""
    keys = dict(cloud.tables.keys)
    keys[max(keys) + 1] = keys.pop(0)
    oldest_first = sorted(keys)
    kept = oldest_first[max(0, len(oldest_first) - (MAX_ACTIVE_KEYS - 1)) :]
    cloud.tables.keys = {0: fernet_key(secrets.token_hex(16)), **{key_id: keys[key_id] for key_id in kept}}


def _replace_keys(cloud: Cloud) -> None:
    cloud.tables.keys = {key_id: fernet_key(secrets.token_hex(16)) for key_id in cloud.tables.keys}


def _set_keys(cloud: Cloud, *, keys: dict[str, str]) -> None:
    cloud.tables.keys = {int(key_id): str(key) for key_id, key in keys.items()}


def _halve_keys(cloud: Cloud) -> None:
    """Only the older half is left, the staged one among them."""
    kept = sorted(cloud.tables.keys)[: max(1, len(cloud.tables.keys) // 2)]
    cloud.tables.keys = {key_id: cloud.tables.keys[key_id] for key_id in kept}


def _swap_keys(cloud: Cloud) -> None:
    """The right keys under each other's ids: the staged one and the primary change places."""
    keys = dict(cloud.tables.keys)
    first, last = min(keys), max(keys)
    keys[first], keys[last] = keys[last], keys[first]
    cloud.tables.keys = keys


def _hide(cloud: Cloud, *, list: str) -> None:
    """This list (users, groups, projects, roles, keys, assignments or events) answers empty, though the rows are there
    and logins work."""
    if list not in {*SINGULAR, "keys", "assignments", "events"}:
        raise ValueError(f"there is no list {list}")
    cloud.hidden |= {list}


def _show(cloud: Cloud) -> None:
    cloud.hidden = frozenset()


def _set_password(cloud: Cloud, *, user: str, password: str) -> None:
    row = _edit(cloud, "users", user)
    add_password(cloud, row, password)
    revoke_tokens_of(cloud, user_id=row["user"]["id"])


def _forget_passwords(cloud: Cloud, *, user: str) -> None:
    """Keeps the current password and removes its history."""
    row = _edit(cloud, "users", user)
    row["password"] = sorted(row["password"], key=lambda entry: int(entry["created_at_int"]))[-1:]


def _set_column(cloud: Cloud, *, type: str, name: str, column: str, value: Any) -> None:
    """Any column of a user, group, project or role but those that say which it is."""
    row = _edit(cloud, type, name)[SINGULAR[type]]
    if column not in row or column in ("id", "name", "domain_id"):
        raise ValueError(f"column {column} of {type} cannot be set")
    row[column] = value


def _revoke_tokens(cloud: Cloud, *, user: str | None = None, audit_id: str | None = None) -> None:
    """A revocation event, for all of a user's tokens so far or for one token."""
    if (user is None) == (audit_id is None):
        raise ValueError("either a user or an audit_id")
    columns = {"user_id": cloud.id_named("users", user)} if user is not None else {"audit_id": audit_id}
    revoke_tokens_of(cloud, **columns)


def _forget_events(cloud: Cloud) -> None:
    cloud.tables.events = []


def _set_extra(cloud: Cloud, *, user: str, extra: dict[str, Any]) -> None:
    _edit(cloud, "users", user)["user"]["extra"] = json.dumps(extra)


def _set_enabled(cloud: Cloud, *, user: str, enabled: bool) -> None:
    row = _edit(cloud, "users", user)
    row["user"]["enabled"] = enabled
    if not enabled:
        revoke_tokens_of(cloud, user_id=row["user"]["id"])


def _set_option(cloud: Cloud, *, user: str, option: str, value: str | None) -> None:
    row = _edit(cloud, "users", user)
    others = [entry for entry in row["user_option"] if entry["option_id"] != option]
    own = [{"user_id": row["user"]["id"], "option_id": option, "option_value": value}] if value is not None else []
    row["user_option"] = others + own


def _add_user(cloud: Cloud, *, user: str, password: str, id: str | None = None) -> None:
    if cloud.named("users", user):
        raise ValueError(f"there is a user {user}")
    user_id, number = id or secrets.token_hex(16), cloud.tables.next_row()
    row: Row = {
        "local_user": {
            "id": number, "user_id": user_id, "domain_id": DOMAIN, "name": user, "failed_auth_count": 0,
            "failed_auth_at": None,
        },
        "user": {
            "id": user_id, "extra": "{}", "enabled": True, "default_project_id": None,
            "created_at": moment(datetime.now(UTC)), "last_active_at": None, "domain_id": DOMAIN,
        },
        "password": [],
        "user_option": [],
    }  # fmt: skip
    add_password(cloud, row, password)
    cloud.tables.users[user_id] = row
    _note_own(cloud, "users", row)


def _add_project(cloud: Cloud, *, project: str, id: str | None = None, parent: str | None = None) -> None:
    """Below the project `parent`, or right below its domain."""
    model = cloud.named("projects", "services")
    if model is None or cloud.named("projects", project):
        raise ValueError(f"project {project} cannot be added")
    project_id = id or secrets.token_hex(16)
    columns = {"id": project_id, "name": project, "parent_id": cloud.id_named("projects", parent) if parent else DOMAIN}
    cloud.tables.projects[project_id] = {"project": model["project"] | columns}
    _note_own(cloud, "projects", cloud.tables.projects[project_id])


def _add_role(cloud: Cloud, *, role: str, id: str | None = None) -> None:
    if cloud.named("roles", role):
        raise ValueError(f"there is a role {role}")
    row = {"id": id or secrets.token_hex(16), "name": role, "extra": "{}", "domain_id": NULL, "description": None}
    cloud.tables.roles[row["id"] or ""] = {"role": row}
    _note_own(cloud, "roles", {"role": row})


def _add_group(cloud: Cloud, *, group: str, members: list[str], id: str | None = None) -> None:
    if cloud.named("groups", group):
        raise ValueError(f"there is a group {group}")
    row = {
        "id": id or secrets.token_hex(16), "domain_id": DOMAIN, "name": group, "description": "", "extra": "{}",
    }  # fmt: skip
    cloud.tables.groups[str(row["id"])] = {"group": row, "local_user_ids": _user_ids(cloud, members)}
    _note_own(cloud, "groups", {"group": row})


def _note_own(cloud: Cloud, type_: str, row: Row) -> None:
    """What is made here by hand is the subcloud's own from now on: nobody else may change or remove it."""
    cloud.own_records |= {(type_, key_of(type_, row))}


def _set_members(cloud: Cloud, *, group: str, members: list[str]) -> None:
    row = _edit(cloud, "groups", group)
    unknown = set(row["local_user_ids"]).difference(_user_ids(cloud, members))
    row["local_user_ids"] = _user_ids(cloud, members)
    for user_id in sorted(unknown):
        revoke_tokens_of(cloud, user_id=user_id)


def _remove(cloud: Cloud, *, type: str, name: str) -> None:
    """As Keystone deletes it: with what hangs on it, a project only when none is below it."""
    row = _edit(cloud, type, name)
    if type == "projects" and not is_leaf(cloud, row["project"]["id"]):
        raise ValueError(f"there are projects below {name}")
    delete_record(cloud, type, row[SINGULAR[type]]["id"])
    cloud.own_records -= {(type, key_of(type, row))}
    cloud.own_grants = frozenset(grant for grant in cloud.own_grants if name not in grant)


def _rename(cloud: Cloud, *, type: str, name: str, to: str) -> None:
    if cloud.named(type, to):
        raise ValueError(f"{type} {to} is there")
    _edit(cloud, type, name)["local_user" if type == "users" else SINGULAR[type]]["name"] = to


def _move_id(cloud: Cloud, *, type: str, name: str, id: str | None = None) -> None:
    """Gives a record another id, and takes everything that points at it along."""
    old_id, new_id = cloud.id_named(type, name), id or secrets.token_hex(16)
    tables, kind = cloud.tables, SINGULAR[type]
    row = _edit(cloud, type, name)
    row[kind]["id"] = new_id
    if type == "users":
        row["local_user"]["user_id"] = new_id
        row["user_option"] = [option | {"user_id": new_id} for option in row["user_option"]]
    tables.of(type)[new_id] = tables.of(type).pop(old_id)
    for group in tables.groups.values() if type == "users" else ():
        group["local_user_ids"] = sorted(new_id if user == old_id else user for user in group["local_user_ids"])
    moved = {old_id: new_id}
    tables.implied = {(moved.get(prior, prior), moved.get(tied, tied)) for prior, tied in tables.implied}
    tables.assignments = {
        (actor_kind, moved.get(actor, actor), moved.get(target, target), moved.get(role, role))
        for actor_kind, actor, target, role in tables.assignments
    }


def _grant(cloud: Cloud, *, project: str, role: str, user: str | None = None, group: str | None = None) -> None:
    cloud.tables.assignments.add(_assignment(cloud, project, role, user, group))
    cloud.own_grants |= {_named(project, role, user, group)}


def _revoke(cloud: Cloud, *, project: str, role: str, user: str | None = None, group: str | None = None) -> None:
    cloud.tables.assignments.remove(_assignment(cloud, project, role, user, group))
    cloud.own_grants -= {_named(project, role, user, group)}


def _named(project: str, role: str, user: str | None, group: str | None) -> NamedGrant:
    return ("user" if user else "group", user or group or "", project, role)


def _assignment(
    cloud: Cloud, project: str, role: str, user: str | None, group: str | None
) -> tuple[str, str, str, str]:
    actor = ("user", cloud.id_named("users", user)) if user else ("group", cloud.id_named("groups", group or ""))
    return (*actor, cloud.id_named("projects", project), cloud.id_named("roles", role))


def _user_ids(cloud: Cloud, names: list[str]) -> list[str]:
    return sorted(cloud.id_named("users", name) for name in names)


def _edit(cloud: Cloud, type_: str, name: str) -> Row:
    """The record itself, for changing in place."""
    row = cloud.named(type_, name)
    if row is None:
        raise KeyError(f"no {SINGULAR[type_]} {name}")
    return row


ACTIONS: dict[str, Callable[..., None]] = {
    "rotate-keys": _rotate_keys, "replace-keys": _replace_keys, "set-keys": _set_keys, "halve-keys": _halve_keys,
    "swap-keys": _swap_keys, "hide": _hide, "show": _show, "revoke-tokens": _revoke_tokens,
    "forget-events": _forget_events, "set-password": _set_password, "forget-passwords": _forget_passwords,
    "set-extra": _set_extra, "set-enabled": _set_enabled, "set-option": _set_option, "set-column": _set_column,
    "add-user": _add_user, "add-project": _add_project, "add-role": _add_role, "add-group": _add_group,
    "set-members": _set_members, "remove": _remove, "rename": _rename, "move-id": _move_id, "grant": _grant,
    "revoke": _revoke, "redeploy": Cloud.redeploy,
}  # fmt: skip
