"""Keystone v3 of one cloud: logging in, validating tokens, and the plain resources an auditor reads and mends.

Source: docs/upstream/http-contracts.md section 2, docs/upstream/real-keystone.md K1-K12,
docs/upstream/recorded-traffic.md 01, 02, 06, 09, 10. Not there: federation, trusts, application credentials, other
scopes than a project, policies beyond "admin writes".
"""

from __future__ import annotations

import copy
import json
import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from dcsync.fake_cloud.cloud import SINGULAR, Cloud, Refused, name_of
from dcsync.fake_cloud.deployment import Assignment, Row, microseconds, moment, password_row
from dcsync.fake_cloud.passwords import hash_password, matches
from dcsync.fake_cloud.tokens import Token
from dcsync.fake_cloud.wire import Request, Response, json_response

LOCKOUT_ATTEMPTS = 5
LOCKOUT_SECONDS = 1800
PASSWORDS_KEPT = 5
_NEVER_LOCKED = "1002"
_SERVICES = (("identity", "keystone", "/v3"), ("dcorch-dbsync", "dcdbsync", "/v1.0"), ("platform", "sysinv", "/v1"))


def answer(cloud: Cloud, request: Request) -> Response:
    """What Keystone says to this request."""
    path = request.path.rstrip("/")
    if path in ("", "/v3"):
        return _versions(cloud, at_root=not path)
    if path == "/v3/auth/tokens":
        return _TOKENS.get(request.verb, _no_such_verb)(cloud, request)
    caller = _caller(cloud, request)
    if isinstance(caller, Response):
        return caller
    parts = path.split("/")[2:]
    if request.verb in ("GET", "HEAD"):
        return _read(cloud, request, parts)
    if "admin" not in cloud.role_names(caller.user_id, caller.project_id).values():
        return _error(403, "You are not authorized to perform the requested action.", "Forbidden")
    return _write(cloud, request, parts)


def _error(status: int, message: str, title: str, *headers: tuple[str, str]) -> Response:
    return json_response(status, {"error": {"code": status, "message": message, "title": title}}, *headers)


def _unauthorized(cloud: Cloud) -> Response:
    where = f'Keystone uri="http://{cloud.management_ip}:{cloud.port}/v3"'
    message = "The request you have made requires authentication."
    return _error(401, message, "Unauthorized", ("Www-Authenticate", where))


def _bad_request(message: str) -> Response:
    return _error(400, message, "Bad Request")


def _not_found(message: str) -> Response:
    return _error(404, message, "Not Found")


def _no_such_verb(cloud: Cloud, request: Request) -> Response:
    return _error(405, "The method is not allowed for the requested URL.", "Method Not Allowed")


def _versions(cloud: Cloud, *, at_root: bool) -> Response:
    href = f"http://{cloud.management_ip}:{cloud.port}/v3/"
    version = {
        "id": "v3.14", "status": "stable", "updated": "2020-04-07T00:00:00Z", "links": [{"rel": "self", "href": href}],
        "media-types": [{"base": "application/json", "type": "application/vnd.openstack.identity-v3+json"}],
    }  # fmt: skip
    if at_root:
        return json_response(300, {"versions": {"values": [version]}}, ("Location", href))
    return json_response(200, {"version": version})


def _caller(cloud: Cloud, request: Request) -> Token | Response:
    """The caller's token; or 401, or 404 for one that names ids which no longer exist (K3, K4)."""
    verdict = cloud.check_token(request.token) if request.token else Refused(401, "none")
    if isinstance(verdict, Token):
        return verdict
    return _unauthorized(cloud) if verdict.status == 401 else _not_found(verdict.message)


# Tokens


def _log_in(cloud: Cloud, request: Request) -> Response:
    try:
        auth = json.loads(request.body)["auth"]
        claimed = auth["identity"]["password"]["user"]
        password = claimed["password"]
        scope = auth.get("scope")
    except ValueError:
        return _bad_request("Expecting to find valid JSON in request body.")
    except (KeyError, TypeError, AttributeError):
        return _bad_request("Invalid input for field: not a password login.")
    user = _claimed(cloud, "users", claimed)
    if user is None or not user["user"]["enabled"] or _is_locked(user):
        return _unauthorized(cloud)
    if not _accepts(user, password):
        return _wrong_password(cloud, user)
    project = _claimed(cloud, "projects", scope["project"]) if scope and "project" in scope else None
    if scope and (project is None or not project["project"]["enabled"]):
        return _unauthorized(cloud)
    project_id = project["project"]["id"] if project else None
    if project_id and not cloud.role_names(user["user"]["id"], project_id):
        return _unauthorized(cloud)
    return _logged_in(cloud, user, project_id, with_catalog="nocatalog" not in request.query)


def _logged_in(cloud: Cloud, user: Row, project_id: str | None, *, with_catalog: bool) -> Response:
    if not cloud.tables.keys:
        return _error(500, "No encryption keys found", "Internal Server Error")
    user["local_user"].update(failed_auth_count=0, failed_auth_at=None)
    user["user"]["last_active_at"] = datetime.now(UTC).strftime("%Y-%m-%d")
    audit_id = secrets.token_urlsafe(16)
    text, token = cloud.issue(user_id=user["user"]["id"], project_id=project_id, audit_id=audit_id)
    return _token_response(cloud, 201, text, token, with_catalog=with_catalog)


def _claimed(cloud: Cloud, type_: str, claim: Any) -> Row | None:
    """The user or project somebody names by id, or by name and domain."""
    if "id" in claim:
        return cloud.tables.of(type_).get(claim["id"])
    domain = claim.get("domain", {})
    if "default" not in (domain.get("id"), str(domain.get("name", "")).lower()):
        return None
    return cloud.named(type_, claim.get("name", ""))


def _accepts(user: Row, password: str) -> bool:
    rows = sorted(user["password"], key=lambda row: int(row["created_at_int"]))
    if not rows or not isinstance(password, str):
        return False
    expires = rows[-1]["expires_at_int"]
    is_current = expires is None or expires > microseconds(datetime.now(UTC))
    return is_current and matches(password, rows[-1]["password_hash"])


def _is_locked(user: Row) -> bool:
    """K12: five wrong passwords, then half an hour of 401."""
    local = user["local_user"]
    if (local["failed_auth_count"] or 0) < LOCKOUT_ATTEMPTS or not local["failed_auth_at"]:
        return False
    if any(option["option_id"] == _NEVER_LOCKED for option in user["user_option"]):
        return False
    since = datetime.fromisoformat(local["failed_auth_at"]).replace(tzinfo=UTC)
    return (datetime.now(UTC) - since).total_seconds() < LOCKOUT_SECONDS


def _wrong_password(cloud: Cloud, user: Row) -> Response:
    local = user["local_user"]
    local["failed_auth_count"] = (local["failed_auth_count"] or 0) + 1
    local["failed_auth_at"] = moment(datetime.now(UTC))
    return _unauthorized(cloud)


def _token_response(cloud: Cloud, status: int, text: str, token: Token, *, with_catalog: bool) -> Response:
    user = cloud.tables.users[token.user_id]
    domain = {"id": "default", "name": "Default"}
    expires = max((row["expires_at"] or "" for row in user["password"]), default="")
    body: dict[str, Any] = {
        "methods": ["password"],
        "user": {
            "domain": domain, "id": token.user_id, "name": user["local_user"]["name"],
            "password_expires_at": f"{expires.replace(' ', 'T')}.000000" if expires else None,
        },
        "audit_ids": [token.audit_id],
        "expires_at": _iso(token.expires_at),
        "issued_at": _iso(token.issued_at),
    }  # fmt: skip
    if token.project_id is not None:
        roles = cloud.role_names(token.user_id, token.project_id)
        name = cloud.tables.projects[token.project_id]["project"]["name"]
        body["project"] = {"domain": domain, "id": token.project_id, "name": name}
        body["is_domain"] = False
        body["roles"] = [{"id": role_id, "name": role} for role_id, role in roles.items()]
        if with_catalog:
            body["catalog"] = _catalog(cloud)
    return json_response(status, {"token": body}, ("X-Subject-Token", text), ("Vary", "X-Auth-Token"))


def _iso(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.000000Z")


def _catalog(cloud: Cloud) -> list[Row]:
    return [
        {"endpoints": _endpoints(cloud, type_, path), "id": f"service-{name}", "type": type_, "name": name}
        for type_, name, path in _SERVICES
    ]


def _endpoints(cloud: Cloud, type_: str, path: str) -> list[Row]:
    region, url = cloud.catalog_region, f"http://{cloud.management_ip}:{cloud.port}{path}"
    return [
        {
            "id": f"{type_}-{interface}",
            "interface": interface,
            "region_id": region,
            "url": url,
            "region": region,
        }
        for interface in ("public", "internal", "admin")
    ]


def _validate(cloud: Cloud, request: Request) -> Response:
    verdict = _subject(cloud, request)
    if isinstance(verdict, Response):
        return verdict
    text = request.headers["x-subject-token"]
    return _token_response(cloud, 200, text, verdict, with_catalog="nocatalog" not in request.query)


def _subject(cloud: Cloud, request: Request) -> Token | Response:
    """The token asked about. Not good as a caller: 401 or 404; not good as a subject: always 404 (K3)."""
    caller = _caller(cloud, request)
    if isinstance(caller, Response):
        return caller
    verdict = cloud.check_token(request.headers.get("x-subject-token", ""))
    return _not_found(verdict.message) if isinstance(verdict, Refused) else verdict


def _log_out(cloud: Cloud, request: Request) -> Response:
    """Revokes the subject; leaves two events, one for the token and one for its chain (K10)."""
    token = _subject(cloud, request)
    if isinstance(token, Response):
        return token
    for column in ("audit_id", "audit_chain_id"):
        revoke_tokens_of(cloud, **{column: token.audit_id})
    cloud.changed()
    return Response(204)


def revoke_tokens_of(cloud: Cloud, **columns: Any) -> None:
    """Leaves an event that ends every token issued so far, in this second too, which names this user or project."""
    cloud.tables.events.append(revocation_event(cloud, **columns))


def revocation_event(cloud: Cloud, **columns: Any) -> Row:
    """A new event of this moment, everything null but what is given."""
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S")
    row = {
        "id": cloud.tables.next_row(), "domain_id": None, "project_id": None, "user_id": None, "role_id": None,
        "trust_id": None, "consumer_id": None, "access_token_id": None, "issued_before": now, "expires_at": None,
        "revoked_at": now, "audit_id": None, "audit_chain_id": None,
    }  # fmt: skip
    return {"revocation_event": row | columns}


_TOKENS: dict[str, Callable[[Cloud, Request], Response]] = {
    "POST": _log_in, "GET": _validate, "HEAD": _validate, "DELETE": _log_out,
}  # fmt: skip


# Resources


def _read(cloud: Cloud, request: Request, parts: list[str]) -> Response:
    match parts:
        case [("users" | "groups" | "projects" | "roles") as type_]:
            return json_response(200, {type_: [_shown(type_, row) for row in _listed(cloud, type_, request.query)]})
        case [("users" | "groups" | "projects" | "roles") as type_, id_]:
            row = cloud.tables.of(type_).get(id_)
            if row is None:
                return _not_found(f"Could not find {SINGULAR[type_]}: {id_}.")
            return json_response(200, {SINGULAR[type_]: _shown(type_, row)})
        case ["groups", group_id, "users"]:
            members = cloud.tables.groups.get(group_id, {}).get("local_user_ids", [])
            return json_response(200, {"users": [_shown("users", cloud.tables.users[id_]) for id_ in members]})
        case ["domains"]:
            domains = [row["project"] for row in cloud.tables.projects.values() if row["project"]["is_domain"]]
            return json_response(200, {"domains": [row for row in domains if row["id"] == "default"]})
        case ["role_assignments"]:
            links = {"next": None, "self": f"{_base(cloud)}/role_assignments", "previous": None}
            return json_response(200, {"role_assignments": _assignments(cloud, request.query), "links": links})
        case ["services"]:
            rows = [
                {"id": f"service-{name}", "type": type_, "name": name, "enabled": True} for type_, name, _ in _SERVICES
            ]
            return json_response(200, {"services": rows})
        case ["endpoints"]:
            rows = [
                end | {"service_id": f"service-{name}", "enabled": True}
                for type_, name, path in _SERVICES
                for end in _endpoints(cloud, type_, path)
            ]
            return json_response(200, {"endpoints": rows})
    return _not_found("The resource could not be found.")


def _listed(cloud: Cloud, type_: str, query: dict[str, str]) -> list[Row]:
    rows = [row for row in cloud.tables.of(type_).values() if type_ != "projects" or not row["project"]["is_domain"]]
    if "domain_id" in query:
        rows = [row for row in rows if row[SINGULAR[type_]]["domain_id"] == query["domain_id"]]
    return [row for row in rows if query.get("name", name_of(type_, row)) == name_of(type_, row)]


def _shown(type_: str, row: Row) -> Row:
    """A record in Keystone's own API form: no hashes, `extra` unpacked."""
    inner = row[SINGULAR[type_]]
    extra = json.loads(inner["extra"] or "{}")
    shown = {
        column: value for column, value in inner.items() if column not in ("extra", "created_at", "last_active_at")
    }
    if type_ == "users":
        expires = max((entry["expires_at"] or "" for entry in row["password"]), default="")
        shown |= {"name": name_of(type_, row), "options": {}, "password_expires_at": expires or None}
    if type_ == "roles":
        shown["domain_id"] = None if shown["domain_id"] == "<<null>>" else shown["domain_id"]
    merged: Row = extra | shown | {"links": {}}
    return merged


def _base(cloud: Cloud) -> str:
    return f"http://{cloud.management_ip}:{cloud.port}/v3"


def _assignments(cloud: Cloud, query: dict[str, str]) -> list[Row]:
    wanted = (query.get("user.id"), query.get("group.id"), query.get("scope.project.id"), query.get("role.id"))
    user, group, project, role = wanted
    base = _base(cloud)
    found = []
    for kind, actor_id, target_id, role_id in () if "assignments" in cloud.hidden else sorted(cloud.tables.assignments):
        if (user and (kind, actor_id) != ("user", user)) or (group and (kind, actor_id) != ("group", group)):
            continue
        if (project and target_id != project) or (role and role_id != role):
            continue
        link = f"{base}/projects/{target_id}/{kind}s/{actor_id}/roles/{role_id}"
        found.append(_assignment(cloud, (kind, actor_id, target_id, role_id), link, named="include_names" in query))
    return found


def _assignment(cloud: Cloud, assignment: Assignment, link: str, *, named: bool) -> Row:
    kind, actor_id, target_id, role_id = assignment
    shown: Row = {"links": {"assignment": link}}
    for key, type_, id_ in (
        (kind, f"{kind}s", actor_id),
        ("project", "projects", target_id),
        ("role", "roles", role_id),
    ):
        part: Row = {"id": id_}
        row = cloud.tables.of(type_).get(id_)
        if named and row is not None:
            part["name"] = name_of(type_, row)
            if key != "role":
                part["domain"] = {"id": "default", "name": "Default"}
        if key == "project":
            shown["scope"] = {"project": part}
        else:
            shown[key] = part
    return shown


def _write(cloud: Cloud, request: Request, parts: list[str]) -> Response:
    match parts:
        case ["projects", project_id, ("users" | "groups") as actors, actor_id, "roles", role_id]:
            grant = (SINGULAR[actors], actor_id, project_id, role_id)
            return _grant(cloud, grant) if request.verb == "PUT" else _revoke(cloud, request, grant)
        case ["groups", group_id, "users", user_id]:
            return _membership(cloud, request.verb, group_id, user_id)
        case ["projects", project_id, "tags", tag] if project_id in cloud.tables.projects:
            return _tag(cloud, request, project_id, tag)
        case [("users" | "groups" | "projects" | "roles") as type_, id_]:
            if id_ not in cloud.tables.of(type_):
                return _not_found(f"Could not find {SINGULAR[type_]}: {id_}.")
            if request.verb == "DELETE":
                return _delete(cloud, type_, id_)
            if request.verb == "PATCH":
                return _patch(cloud, request, type_, id_)
    return _not_found("The resource could not be found.")


def _grant(cloud: Cloud, grant: Assignment) -> Response:
    kind, actor_id, project_id, role_id = grant
    for type_, id_ in ((f"{kind}s", actor_id), ("projects", project_id), ("roles", role_id)):
        if id_ not in cloud.tables.of(type_):
            return _not_found(f"Could not find {SINGULAR[type_]}: {id_}.")
    cloud.tables.assignments.add(grant)
    cloud.changed()
    return Response(204)


def _revoke(cloud: Cloud, request: Request, grant: Assignment) -> Response:
    if request.verb != "DELETE":
        return _no_such_verb(cloud, request)
    if grant not in cloud.tables.assignments:
        return _not_found("Could not find role assignment.")
    cloud.tables.assignments.discard(grant)
    cloud.changed()
    return Response(204)


def _membership(cloud: Cloud, verb: str, group_id: str, user_id: str) -> Response:
    group = cloud.tables.groups.get(group_id)
    if group is None or user_id not in cloud.tables.users:
        return _not_found("Could not find group or user.")
    members = set(group["local_user_ids"])
    if verb == "DELETE" and user_id not in members:
        return _not_found("Could not find user in group.")
    members = members | {user_id} if verb == "PUT" else members - {user_id}
    cloud.tables.groups[group_id] = group | {"local_user_ids": sorted(members)}
    if verb == "DELETE":
        revoke_tokens_of(cloud, user_id=user_id)
    cloud.changed()
    return Response(204)


def _tag(cloud: Cloud, request: Request, project_id: str, tag: str) -> Response:
    tags = {(project_id, tag)}
    if request.verb not in ("PUT", "DELETE"):
        return _no_such_verb(cloud, request)
    if request.verb == "DELETE" and not tags <= cloud.tables.tags:
        return _not_found(f"Could not find project tag: {tag}.")
    cloud.tables.tags = cloud.tables.tags | tags if request.verb == "PUT" else cloud.tables.tags - tags
    cloud.changed()
    return Response(201 if request.verb == "PUT" else 204)


def _delete(cloud: Cloud, type_: str, id_: str) -> Response:
    """Removes the record with what hangs on it, as Keystone's own cascades do; a project only when none is below it."""
    if type_ == "projects" and not is_leaf(cloud, id_):
        return _error(403, f"Cannot delete the project {id_} since it is not a leaf in the hierarchy.", "Forbidden")
    delete_record(cloud, type_, id_)
    return Response(204)


def is_leaf(cloud: Cloud, project_id: str) -> bool:
    """Is no other project below it?"""
    projects = (row["project"] for row in cloud.tables.projects.values())
    return not any(project_id in (project["parent_id"], project["domain_id"]) for project in projects)


def delete_record(cloud: Cloud, type_: str, id_: str) -> None:
    """Removes a record with its assignments, memberships and implications, and revokes the tokens that need it.

    Of a group those of its members, if it had roles. Raises KeyError when the record is not there.
    """
    tables = cloud.tables
    row = tables.of(type_).pop(id_)
    has_roles = any(actor == id_ for _, actor, _, _ in tables.assignments)
    tables.assignments = {grant for grant in tables.assignments if id_ not in grant[1:]}
    tables.implied = {pair for pair in tables.implied if id_ not in pair}
    if type_ == "users":
        for group_id, group in tables.groups.items():
            rest = [member for member in group["local_user_ids"] if member != id_]
            tables.groups[group_id] = group | {"local_user_ids": rest}
        revoke_tokens_of(cloud, user_id=id_)
    if type_ == "groups" and has_roles:
        for member in row["local_user_ids"]:
            revoke_tokens_of(cloud, user_id=member)
    if type_ == "projects":
        tables.tags = {tag for tag in tables.tags if tag[0] != id_}
        for user_id, user in tables.users.items():
            if user["user"]["default_project_id"] == id_:
                tables.users[user_id] = user | {"user": user["user"] | {"default_project_id": None}}
        revoke_tokens_of(cloud, project_id=id_)
    cloud.changed()


def _patch(cloud: Cloud, request: Request, type_: str, id_: str) -> Response:
    try:
        changes = dict(json.loads(request.body)[SINGULAR[type_]])
    except (ValueError, KeyError, TypeError):
        return _bad_request("Expecting to find valid JSON in request body.")
    table = cloud.tables.of(type_)
    row: Row = copy.deepcopy(table[id_])
    inner = row[SINGULAR[type_]]
    if type_ == "users" and (changes.get("enabled") is False or "password" in changes):
        revoke_tokens_of(cloud, user_id=id_)
    if type_ == "users" and "password" in changes:
        add_password(cloud, row, str(changes.pop("password")))
    if "name" in changes:
        row["local_user" if type_ == "users" else SINGULAR[type_]]["name"] = changes.pop("name")
    columns = {column: changes.pop(column) for column in list(changes) if column in inner}
    inner.update(columns)
    changes.pop("options", None)
    inner["extra"] = json.dumps(json.loads(inner["extra"] or "{}") | changes)
    table[id_] = row
    cloud.changed()
    return json_response(200, {SINGULAR[type_]: _shown(type_, row)})


def add_password(cloud: Cloud, user: Row, password: str) -> None:
    """Makes this the user's current password; the former ones expire and stay as history, the newest few of them."""
    now = datetime.now(UTC)
    hashed = hash_password(password, salt=secrets.token_hex(8))
    row = password_row(cloud.tables.next_row(), user["local_user"]["id"], hashed, now)
    oldest_first = sorted(user["password"], key=lambda entry: int(entry["created_at_int"]))
    former = [_expired(entry, now) for entry in oldest_first[-(PASSWORDS_KEPT - 1) :]]
    user["password"] = [*former, row]


def _expired(password: Row, now: datetime) -> Row:
    if password["expires_at_int"] is not None and password["expires_at_int"] <= microseconds(now):
        return password
    ends = now.replace(microsecond=0)
    return password | {"expires_at": ends.strftime("%Y-%m-%d %H:%M:%S"), "expires_at_int": microseconds(ends)}
