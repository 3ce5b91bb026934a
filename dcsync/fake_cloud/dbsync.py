"""dcdbsync of one cloud: reads and rewrites Keystone's rows, with all the refusals of the real tables.

A write either counts as a whole or not at all. Source: docs/upstream/http-contracts.md section 3,
docs/upstream/identity-sync.md section 5, docs/upstream/real-keystone.md R2, R3, R7 to R9,
docs/upstream/recorded-traffic.md 03-05, 07, 10, 11.
"""

from __future__ import annotations

import base64
import binascii
import html
import json
from collections.abc import Callable
from datetime import datetime
from typing import Any

from dcsync.fake_cloud.cloud import SINGULAR, Cloud, domain_of, name_of
from dcsync.fake_cloud.deployment import ROOT, Row
from dcsync.fake_cloud.keystone import revocation_event
from dcsync.fake_cloud.wire import Request, Response, json_response

PREFIX = "/v1.0/identity/"
EVENTS = "token-revocation-events"

_COLUMNS = {
    "user": {"id", "extra", "enabled", "default_project_id", "created_at", "last_active_at", "domain_id"},
    "local_user": {"id", "domain_id", "name", "user_id", "failed_auth_count", "failed_auth_at"},
    "password": {
        "id", "local_user_id", "self_service", "password_hash", "created_at", "created_at_int", "expires_at",
        "expires_at_int",
    },
    "user_option": {"user_id", "option_id", "option_value"},
    "group": {"id", "domain_id", "name", "description", "extra"},
    "project": {"id", "name", "extra", "description", "enabled", "domain_id", "parent_id", "is_domain"},
    "role": {"id", "name", "extra", "domain_id", "description"},
    "revocation_event": {
        "id", "domain_id", "project_id", "user_id", "role_id", "trust_id", "consumer_id", "access_token_id",
        "issued_before", "expires_at", "revoked_at", "audit_id", "audit_chain_id",
    },
}  # fmt: skip
_OWN_NAMES = {column: column for columns in _COLUMNS.values() for column in columns}
"""One string object per column for all rows of all clouds; parsed JSON would bring its own ones every time."""
_TIMES = ("created_at", "expires_at", "failed_auth_at", "last_active_at", "issued_before", "revoked_at")
_TITLES = {400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 500: "Internal Server Error"}
_EXPLAINED = {
    400: "The server could not comply with the request since it is either malformed or otherwise incorrect.",
    401: "This server could not verify that you are authorized to access the document you requested.",
    404: "The resource could not be found.",
    500: "The server has either erred or is incapable of performing the requested operation.",
}


class RefusedByTables(Exception):
    """A constraint of the tables does not allow it; the caller sees 500 and nothing was changed."""


class Missing(Exception):
    """No such record; the argument is the text shown."""


def answer(cloud: Cloud, request: Request, *, collides: bool = False) -> Response:
    """What dcdbsync says. `collides`: another write of a tied row is under way (R7)."""
    if not request.path.startswith(PREFIX):
        return _error(request, 404, "")
    token = cloud.confirmed(request.token, service="dbsync") if request.token else None
    if token is None:
        about = f"Auth token is invalid: {request.token}" if request.token else "Authentication required"
        return _error(request, 401, f"Failed to validate access token: {about}")
    type_, _, id_ = request.path[len(PREFIX) :].rstrip("/").partition("/")
    if type_ == EVENTS:
        return _events(cloud, request, id_, is_admin=_is_admin(cloud, token.user_id, token.project_id))
    handler = _HANDLERS.get(request.verb)
    if type_ not in SINGULAR or handler is None:
        return _error(request, 404, "")
    is_admin = _is_admin(cloud, token.user_id, token.project_id)
    return handler(cloud, request, type_, id_, not collides and is_admin)


def _is_admin(cloud: Cloud, user_id: str, project_id: str | None) -> bool:
    return "admin" in cloud.role_names(user_id, project_id).values()


def _error(request: Request, status: int, detail: str) -> Response:
    """HTML, or JSON for who asks for it (docs/upstream/recorded-traffic.md 04: 4, 8)."""
    title = _TITLES[status]
    if request.wants_json:
        return json_response(status, {"code": status, "title": title, "description": detail})
    text = (
        f"<html>\n <head>\n  <title>{status} {title}</title>\n </head>\n <body>\n  <h1>{status} {title}</h1>\n"
        f"  {_EXPLAINED[status]}<br /><br />\n{html.escape(detail)}\n\n\n </body>\n</html>"
    )
    return Response(status, text.encode(), content_type="text/html; charset=UTF-8")


def _get(cloud: Cloud, request: Request, type_: str, id_: str, _may_write: bool) -> Response:
    table = cloud.tables.of(type_)
    if not id_:
        return json_response(200, [] if type_ in cloud.hidden else list(table.values()))
    return json_response(200, table[id_]) if id_ in table else _no_such(request, type_, id_)


def _no_such(request: Request, type_: str, id_: str) -> Response:
    kind = SINGULAR[type_].capitalize()
    return _error(request, 404, f"{kind} not found: {kind} with id {id_} doesn't exist.")


def _body(request: Request) -> Any:
    """The JSON body; raises ValueError with the text dcdbsync answers 400 with."""
    try:
        body = json.loads(request.body)
    except ValueError as exc:
        raise ValueError("Request body decoding error") from exc
    if not body:
        raise ValueError("Body required")
    return body


def _put(cloud: Cloud, request: Request, type_: str, id_: str, may_write: bool) -> Response:
    try:
        body = _body(request)
    except ValueError as exc:
        return _error(request, 400, str(exc))
    if not id_:
        return _error(request, 400, f"{SINGULAR[type_].capitalize()} ID required")
    if isinstance(body, list):
        return _get(cloud, request, type_, id_, may_write)
    try:
        if not may_write:
            raise RefusedByTables("not admin, or a tied row is being written")
        stored = _UPDATES[type_](cloud, id_, body)
    except Missing as exc:
        return _no_such(request, type_, str(exc))
    except (RefusedByTables, KeyError, TypeError, ValueError, AttributeError):
        return _error(request, 500, f"Unable to update {SINGULAR[type_]}")
    cloud.changed()
    return json_response(200, stored)


def _post(cloud: Cloud, request: Request, type_: str, id_: str, may_write: bool) -> Response:
    singular = SINGULAR[type_]
    if id_:
        return _error(request, 404, "")
    try:
        body = _body(request)
        name = body["local_user" if type_ == "users" else singular]["name"]
    except ValueError as exc:
        return _error(request, 400, str(exc))
    except (KeyError, TypeError):
        return Response(500, content_type="text/plain")
    if not name:
        return _error(request, 400, f"{singular.capitalize()} name required")
    try:
        if not may_write:
            raise RefusedByTables("not admin")
        stored = _create(cloud, type_, body)
    except (RefusedByTables, KeyError, TypeError, ValueError, AttributeError):
        return _error(request, 500, f"Unable to create {singular}")
    cloud.changed()
    return json_response(201, stored)


_HANDLERS: dict[str, Callable[[Cloud, Request, str, str, bool], Response]] = {"GET": _get, "PUT": _put, "POST": _post}


# Constraints


def _checked(part: str, row: Any) -> Row:
    """A copy of a row that the table can take; raises RefusedByTables for unknown columns and unreadable times."""
    if not isinstance(row, dict) or not set(row) <= _COLUMNS[part]:
        raise RefusedByTables(f"{part}: unknown column")
    for column in _TIMES:
        if row.get(column) is not None:
            datetime.fromisoformat(row[column])
    return {_OWN_NAMES[column]: value for column, value in row.items()}


def _check_free(cloud: Cloud, type_: str, *, id_: str, but: str | None, name: str, domain_id: str | None) -> None:
    """Ids and (name, domain) pairs are unique."""
    if not isinstance(id_, str) or not id_ or not isinstance(name, str):
        raise RefusedByTables("id or name is no text")
    for other_id, row in cloud.tables.of(type_).items():
        if other_id == but:
            continue
        if other_id == id_ or (name_of(type_, row), domain_of(type_, row)) == (name, domain_id):
            raise RefusedByTables(f"{type_}: id or name is taken")


def _move(table: dict[str, Row], old_id: str, new_id: str, row: Row) -> None:
    del table[old_id]
    table[new_id] = row


def _follow_actor(cloud: Cloud, kind: str, old_id: str, new_id: str) -> None:
    cloud.tables.assignments = {
        (kind, new_id, target, role) if (found, actor) == (kind, old_id) else (found, actor, target, role)
        for found, actor, target, role in cloud.tables.assignments
    }


# Updates: (cloud, id in the path, body) -> the stored record


def _gone(cloud: Cloud, type_: str, new_id: str) -> Row:
    """Answer to an update that matched no row: the record under its new id, when an earlier try got through (R3)."""
    if new_id not in cloud.tables.of(type_):
        raise Missing(new_id)
    return cloud.tables.of(type_)[new_id]


def _passwords(cloud: Cloud, rows: list[Any], local_user_id: int) -> list[Row]:
    checked = [_checked("password", row) for row in rows]
    own = ({"id": cloud.tables.next_row(), "local_user_id": local_user_id} for _ in checked)
    return [row | ids for row, ids in zip(checked, own, strict=True)]


def _options(rows: list[Any], user_id: str) -> list[Row]:
    checked = [_checked("user_option", row) for row in rows]
    if any(row["user_id"] != user_id for row in checked):
        raise RefusedByTables("user_option: foreign key")
    return checked


def _update_user(cloud: Cloud, old_id: str, body: Row) -> Row:
    sent, local = _checked("user", body["user"]), _checked("local_user", body["local_user"])
    new_id = sent.get("id", old_id)
    table = cloud.tables.users
    if old_id not in table:
        if new_id not in table and body.get("user_option"):
            raise RefusedByTables("user_option: foreign key")
        return _gone(cloud, "users", new_id)
    stored = table[old_id]
    if new_id != old_id:
        if any(old_id in group["local_user_ids"] for group in cloud.tables.groups.values()):
            raise RefusedByTables("user_group_membership: foreign key")
        renamed = stored["local_user"] | {"user_id": new_id}
    else:
        renamed = stored["local_user"] | local | {"id": stored["local_user"]["id"], "user_id": old_id}
    domain_id = sent.get("domain_id", stored["user"]["domain_id"])
    _check_free(cloud, "users", id_=new_id, but=old_id, name=renamed["name"], domain_id=domain_id)
    options = body["user_option"] if "user_option" in body else [
        option | {"user_id": new_id} for option in stored["user_option"]
    ]  # fmt: skip
    row = {
        "local_user": renamed,
        "user": stored["user"] | sent,
        "password": _passwords(cloud, body["password"], renamed["id"]),
        "user_option": _options(options, new_id),
    }
    _move(table, old_id, new_id, row)
    _follow_actor(cloud, "user", old_id, new_id)
    return row


def _update_group(cloud: Cloud, old_id: str, body: Row) -> Row:
    table = cloud.tables.groups
    if "group" not in body or "local_user_ids" not in body:
        return _gone(cloud, "groups", old_id)
    sent, members = _checked("group", body["group"]), _members(cloud, body["local_user_ids"])
    new_id = sent.get("id", old_id)
    if old_id not in table:
        return _gone(cloud, "groups", new_id)
    inner = table[old_id]["group"] | sent
    _check_free(cloud, "groups", id_=new_id, but=old_id, name=inner["name"], domain_id=inner["domain_id"])
    row = {"group": inner, "local_user_ids": members}
    _move(table, old_id, new_id, row)
    _follow_actor(cloud, "group", old_id, new_id)
    return row


def _members(cloud: Cloud, user_ids: list[str]) -> list[str]:
    if not all(user_id in cloud.tables.users for user_id in user_ids):
        raise RefusedByTables("user_group_membership: foreign key")
    return sorted(set(user_ids))


def _update_project(cloud: Cloud, old_id: str, body: Row) -> Row:
    sent = _checked("project", body["project"])
    new_id = sent.get("id", old_id)
    table = cloud.tables.projects
    if old_id not in table:
        return _gone(cloud, "projects", new_id)
    inner = table[old_id]["project"] | sent
    _check_project(cloud, inner, old_id)
    if new_id != old_id and old_id in (project_id for project_id, _ in cloud.tables.tags):
        raise RefusedByTables("project_tag: foreign key (R8)")
    row = {"project": inner}
    _move(table, old_id, new_id, row)
    if new_id != old_id:
        _follow_project(cloud, old_id, new_id)
    return row


def _check_project(cloud: Cloud, inner: Row, old_id: str | None) -> None:
    domain_id = inner["domain_id"]
    _check_free(cloud, "projects", id_=inner["id"], but=old_id, name=inner["name"], domain_id=domain_id)
    for parent in (domain_id, inner["parent_id"]):
        if parent not in (None, ROOT, inner["id"]) and parent not in cloud.tables.projects:
            raise RefusedByTables("project: foreign key")


def _follow_project(cloud: Cloud, old_id: str, new_id: str) -> None:
    """Children and assignments follow; users of a domain that moves lose passwords and options, as on the real one."""
    tables = cloud.tables
    for id_, row in list(tables.projects.items()):
        inner = row["project"]
        moved = {column: new_id for column in ("domain_id", "parent_id") if inner[column] == old_id}
        if moved:
            tables.projects[id_] = {"project": inner | moved}
    for id_, user in list(tables.users.items()):
        if user["user"]["domain_id"] == old_id:
            tables.users[id_] = user | {
                "user": user["user"] | {"domain_id": new_id}, "password": [], "user_option": [],
                "local_user": user["local_user"] | {"domain_id": new_id},
            }  # fmt: skip
    tables.assignments = {
        (kind, actor, new_id if target == old_id else target, role) for kind, actor, target, role in tables.assignments
    }


def _update_role(cloud: Cloud, old_id: str, body: Row) -> Row:
    sent = _checked("role", body["role"])
    new_id = sent.get("id", old_id)
    tables = cloud.tables
    if old_id not in tables.roles:
        return _gone(cloud, "roles", new_id)
    inner = tables.roles[old_id]["role"] | sent
    _check_free(cloud, "roles", id_=new_id, but=old_id, name=inner["name"], domain_id=inner["domain_id"])
    row = {"role": inner}
    _move(tables.roles, old_id, new_id, row)
    moved = {old_id: new_id}
    tables.implied = {(moved.get(prior, prior), moved.get(tied, tied)) for prior, tied in tables.implied}
    tables.assignments = {
        (kind, actor, target, moved.get(role, role)) for kind, actor, target, role in tables.assignments
    }
    return row


_UPDATES: dict[str, Callable[[Cloud, str, Row], Row]] = {
    "users": _update_user, "groups": _update_group, "projects": _update_project, "roles": _update_role,
}  # fmt: skip


def tied_roles(cloud: Cloud, role_id: str) -> set[str]:
    """The roles whose rows a write of this one touches: itself and those tied to it by an implication (R7)."""
    return {role_id}.union(*(pair for pair in cloud.tables.implied if role_id in pair))


# Creations


def _create(cloud: Cloud, type_: str, body: Row) -> Row:
    singular = SINGULAR[type_]
    inner = _checked(singular, body[singular])
    id_, name = inner["id"], (body["local_user"] if type_ == "users" else inner)["name"]
    if type_ == "projects":
        _check_project(cloud, inner, None)
    _check_free(cloud, type_, id_=id_, but=None, name=name, domain_id=inner["domain_id"])
    row: Row = {singular: inner}
    if type_ == "users":
        local: Row = dict.fromkeys(_COLUMNS["local_user"]) | _checked("local_user", body["local_user"])
        local |= {"id": cloud.tables.next_row(), "user_id": id_}
        inner = dict.fromkeys(_COLUMNS["user"]) | inner
        options = _options(body.get("user_option", []), id_)
        passwords = _passwords(cloud, body["password"], local["id"])
        if not passwords:
            raise RefusedByTables("password: a row of nothing (R9)")
        row = {"local_user": local, "user": inner, "password": passwords, "user_option": options}
    if type_ == "groups":
        row["local_user_ids"] = _members(cloud, body["local_user_ids"])
    cloud.tables.of(type_)[id_] = row
    return row


# Revocation events


def _events(cloud: Cloud, request: Request, rest: str, *, is_admin: bool) -> Response:
    if not rest:
        if request.verb == "GET":
            return json_response(200, [] if "events" in cloud.hidden else cloud.tables.events)
        return _post_event(cloud, request, is_admin) if request.verb == "POST" else _error(request, 404, "")
    by, _, key = rest.partition("/")
    if by not in ("users", "audits") or request.verb not in ("GET", "DELETE"):
        return _error(request, 404, "")
    try:
        wanted = {"audit_id": key} if by == "audits" else _user_and_time(key)
    except ValueError:
        return _error(request, 404, "Invalid event ID format")
    found = [event for event in cloud.tables.events if wanted.items() <= event["revocation_event"].items()]
    if not found and not (by == "audits" and request.verb == "DELETE"):
        about = f"id {key}" if by == "audits" else " and ".join(f"{name} {value}" for name, value in wanted.items())
        return _error(request, 404, f"Token revocation event {'with ' if by == 'audits' else ''}{about} doesn't exist.")
    if request.verb == "GET":
        return json_response(200, found[0])
    if not is_admin:
        return _error(request, 500, "Unable to delete token revocation event")
    cloud.tables.events = [event for event in cloud.tables.events if event not in found]
    cloud.changed()
    return Response(204)


def _user_and_time(key: str) -> Row:
    try:
        user_id, separator, issued_before = base64.urlsafe_b64decode(key).decode().rpartition("_")
    except binascii.Error as exc:
        raise ValueError("not base64") from exc
    if not separator:
        raise ValueError("no separator")
    return {"user_id": user_id, "issued_before": issued_before}


def _post_event(cloud: Cloud, request: Request, is_admin: bool) -> Response:
    """An event that names neither a token nor a user is stored, and answered with an empty object
    (docs/upstream/recorded-traffic.md 10: 9)."""
    try:
        row = _checked("revocation_event", _body(request)["revocation_event"])
        if not is_admin or None in (row.get("issued_before", ""), row.get("revoked_at", "")):
            raise RefusedByTables("not admin, or an event without its times")
    except (RefusedByTables, KeyError, TypeError):
        return _error(request, 500, "Unable to create token revocation event")
    except ValueError as exc:
        return _error(request, 400, str(exc))
    row.pop("id", None)
    event = revocation_event(cloud, **row)
    cloud.tables.events.append(event)
    cloud.changed()
    return json_response(201, event if row.get("audit_id") or row.get("user_id") else {})
