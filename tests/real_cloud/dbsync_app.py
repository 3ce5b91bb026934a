"""A dcdbsync-compatible `/v1.0/identity/{users,groups,projects,roles}[/id]`, as WSGI, without revocation events.

Status codes and wording: spec/http-contracts.md section 3.2 and contracts/recorded/04. Who the caller is comes from the
token middleware's headers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

import webob
import webob.exc
from sqlalchemy.exc import SQLAlchemyError

from tests.real_cloud.identity_tables import IdentityTables, NotStoredError

KINDS = ("users", "groups", "projects", "roles")


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
        kind, id_ = _target(request.path_info)
        if request.method == "GET":
            return _json(self._read(kind, id_))
        if request.method not in {"PUT", "POST"}:
            raise RefusedError(404)
        body = _body(request)
        if request.method == "POST":
            return self._create(request, kind, body)
        return self._update(request, kind, id_, body)

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
