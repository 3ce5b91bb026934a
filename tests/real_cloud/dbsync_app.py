"""A dcdbsync-compatible `/v1.0/identity/{users,groups,projects,roles}[/id]` and `token-revocation-events`, as WSGI.

Status codes and wording: docs/upstream/http-contracts.md section 3.2 and docs/upstream/recorded-traffic.md 04 and 10.
Who the caller is comes from the token middleware's headers.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable
from typing import Any

import webob
import webob.exc
from sqlalchemy.exc import SQLAlchemyError

from tests.real_cloud.identity_tables import IdentityTables, NotStoredError

KINDS = ("users", "groups", "projects", "roles")
EVENTS = "token-revocation-events"


class RefusedError(Exception):
    """An answer other than success: status and detail."""

    def __init__(self, status: int, detail: str = "") -> None:
        super().__init__(status, detail)
        self.status = status
        self.detail = detail


class DbsyncApp:
    def __init__(self, tables: IdentityTables) -> None:
        self._tables = tables

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        request = webob.Request(environ)
        try:
            response = self._answer(request)
        except RefusedError as exc:
            response = _error(request, exc)
        except (KeyError, TypeError, AttributeError):  # a record of another shape: unhandled there, an empty 500
            response = webob.Response(status=500, body=b"")
        answer: Iterable[bytes] = response(environ, start_response)
        return answer

    def _answer(self, request: webob.Request) -> webob.Response:
        if request.path_info == "/":
            return _root(request)
        _require_token(request)
        event = _event_target(request.path_info)
        if event is not None:
            return self._answer_events(request, *event)
        kind, id_ = _target(request.path_info)
        if request.method == "GET":
            return _json(self._read(kind, id_))
        if request.method not in {"PUT", "POST"}:
            raise RefusedError(404)
        body = _body(request)
        if request.method == "POST":
            return self._create(request, kind, body)
        return self._update(request, kind, id_, body)

    def _answer_events(self, request: webob.Request, by: str, key: str) -> webob.Response:
        if not by:
            if request.method == "GET":
                return _json(self._tables.events())
            if request.method == "POST":
                return self._create_event(request, _body(request))
            raise RefusedError(404)
        wanted = {"audit_id": key} if by == "audits" else _user_and_time(key)
        if request.method == "GET":
            return _json(self._event(by, wanted))
        if request.method != "DELETE":
            raise RefusedError(404)
        if by == "users":
            self._event(by, wanted)
        if not _is_admin(request):
            raise RefusedError(500, "Unable to delete token revocation event")
        self._tables.delete_events(**wanted)
        return webob.Response(status=204)

    def _event(self, by: str, wanted: dict[str, str]) -> Any:
        """Raises RefusedError where there is none."""
        try:
            found = self._tables.events(**wanted)
        except SQLAlchemyError as exc:
            raise RefusedError(500, "Unable to read token revocation event") from exc
        if not found:
            about = f"with id {wanted['audit_id']}" if by == "audits" else " and ".join(map(" ".join, wanted.items()))
            raise RefusedError(404, f"Token revocation event {about} doesn't exist.")
        return found[0]

    def _create_event(self, request: webob.Request, body: Any) -> webob.Response:
        """Answers what is found by audit id or user, so an event that names neither gets an empty object."""
        row = body["revocation_event"]
        if not _is_admin(request):
            raise RefusedError(500, "Unable to create token revocation event")
        try:
            self._tables.create_event(body)
        except SQLAlchemyError as exc:
            raise RefusedError(500, "Unable to create token revocation event") from exc
        if row.get("audit_id"):
            return _json(self._event("audits", {"audit_id": row["audit_id"]}), status=201)
        if row.get("user_id"):
            wanted = {"user_id": row["user_id"], "issued_before": row["issued_before"]}
            return _json(self._event("users", wanted), status=201)
        return _json({}, status=201)

    def _read(self, kind: str, id_: str) -> Any:
        if not id_:
            return self._tables.list_all(kind)
        try:
            return self._tables.get(kind, id_)
        except NotStoredError as exc:
            raise _unknown(kind, id_) from exc

    def _create(self, request: webob.Request, kind: str, body: Any) -> webob.Response:
        if not body["local_user" if kind == "users" else _singular(kind)].get("name"):
            raise RefusedError(400, f"{_singular(kind).capitalize()} name required")
        if not _is_admin(request):
            raise RefusedError(500, f"Unable to create {_singular(kind)}")
        try:
            return _json(self._tables.create(kind, body), status=201)
        except SQLAlchemyError as exc:
            raise RefusedError(500, f"Unable to create {_singular(kind)}") from exc

    def _update(self, request: webob.Request, kind: str, id_: str, body: Any) -> webob.Response:
        if not id_:
            raise RefusedError(400, f"{_singular(kind).capitalize()} ID required")
        if isinstance(body, list):
            return _json(self._read(kind, id_))
        if not _is_admin(request):
            raise RefusedError(500, f"Unable to update {_singular(kind)}")
        try:
            return _json(self._tables.update(kind, id_, body))
        except NotStoredError as exc:
            raise _unknown(kind, str(exc)) from exc
        except SQLAlchemyError as exc:
            raise RefusedError(500, f"Unable to update {_singular(kind)}") from exc


def _root(request: webob.Request) -> webob.Response:
    if request.method != "GET":
        raise RefusedError(405, f"The method {request.method} is not allowed for this resource.")
    link = {"rel": "self", "href": f"{request.host_url}/v1.0/"}
    return _json({"versions": [{"status": "CURRENT", "links": [link], "id": "v1.0", "updated": "2018-11-20"}]})


def _require_token(request: webob.Request) -> None:
    if request.headers.get("X-Identity-Status") == "Confirmed":
        return
    token = request.headers.get("X-Auth-Token")
    reason = f"Auth token is invalid: {token}" if token else "Authentication required"
    raise RefusedError(401, f"Failed to validate access token: {reason}")


def _target(path: str) -> tuple[str, str]:
    parts = path.strip("/").split("/")
    if parts[:2] != ["v1.0", "identity"] or len(parts) not in {3, 4} or parts[2] not in KINDS:
        raise RefusedError(404)
    return parts[2], parts[3] if len(parts) == 4 else ""


def _event_target(path: str) -> tuple[str, str] | None:
    """("users" or "audits", key), both empty for the list; None for other paths. Raises RefusedError."""
    parts = path.strip("/").split("/")
    if parts[:3] != ["v1.0", "identity", EVENTS]:
        return None
    if len(parts) == 3:
        return "", ""
    if len(parts) != 5 or parts[3] not in {"users", "audits"}:
        raise RefusedError(404)
    return parts[3], parts[4]


def _user_and_time(key: str) -> dict[str, str]:
    """What `{b64}` says: `<user_id>_<issued_before>`."""
    try:
        user_id, separator, issued_before = base64.urlsafe_b64decode(key).decode().rpartition("_")
    except ValueError as exc:
        raise RefusedError(404, "Invalid event ID format") from exc
    if not separator:
        raise RefusedError(404, "Invalid event ID format")
    return {"user_id": user_id, "issued_before": issued_before}


def _body(request: webob.Request) -> Any:
    try:
        body = json.loads(request.body)
    except ValueError as exc:
        raise RefusedError(400, "Request body decoding error") from exc
    if not body:
        raise RefusedError(400, "Body required")
    return body


def _is_admin(request: webob.Request) -> bool:
    return "admin" in request.headers.get("X-Roles", "").split(",")


def _singular(kind: str) -> str:
    return kind.removesuffix("s")


def _unknown(kind: str, id_: str) -> RefusedError:
    name = _singular(kind).capitalize()
    return RefusedError(404, f"{name} not found: {name} with id {id_} doesn't exist.")


def _json(document: Any, *, status: int = 200) -> webob.Response:
    return webob.Response(status=status, content_type="application/json", json_body=document)


def _error(request: webob.Request, refused: RefusedError) -> webob.Response:
    """JSON if the caller asks for it, else HTML, as webob words it."""
    error = webob.exc.status_map[refused.status](detail=refused.detail)
    if "application/json" in request.headers.get("Accept", ""):
        document = {"code": refused.status, "title": error.title, "description": refused.detail}
        return _json(document, status=refused.status)
    page: webob.Response = request.get_response(error)
    return page
