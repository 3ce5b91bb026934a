"""sysinv of one cloud, reduced to `fernet_repo`.

Source: docs/upstream/http-contracts.md section 4, docs/upstream/recorded-traffic.md 08. An empty POST is honoured as
the real one does: the repository is made anew and every token dies. The watchman counts it.
"""

from __future__ import annotations

import json
import secrets

from dcsync.fake_cloud.cloud import Cloud
from dcsync.fake_cloud.deployment import fernet_key
from dcsync.fake_cloud.tokens import Token
from dcsync.fake_cloud.wire import Request, Response, json_response

PATH = "/v1/fernet_repo"
_READERS = {"admin", "reader", "operator", "configurator"}
_WRITERS = {"admin", "configurator"}


def answer(cloud: Cloud, request: Request) -> Response:
    """What sysinv says to this request."""
    token = cloud.confirmed(request.token, service="sysinv") if request.token else None
    if token is None:
        return _unauthorized(cloud)
    if request.path.rstrip("/") != PATH or request.verb not in ("GET", "POST", "PUT"):
        return Response(404, b"<html><title>404 Not Found</title></html>", content_type="text/html; charset=UTF-8")
    if not _allowed(cloud, token, _READERS if request.verb == "GET" else _WRITERS):
        return Response(403, b"<html><title>403 Forbidden</title></html>", content_type="text/html; charset=UTF-8")
    if request.verb == "GET":
        keys = {} if "keys" in cloud.hidden else cloud.tables.keys
        return json_response(200, {"keys": [{"id": key_id, "key": keys[key_id]} for key_id in sorted(keys)]})
    try:
        keys = parse_keys(request.body)
    except ValueError as exc:
        return _refused(str(exc))
    cloud.tables.keys = keys or {key_id: fernet_key(secrets.token_hex(16)) for key_id in (0, 1)}
    cloud.changed()
    return Response(201 if request.verb == "POST" else 202)


def parse_keys(body: bytes) -> dict[int, str]:
    """The keys of a body; none = RESET. Ids may come as text. Raises ValueError with the text of the refusal."""
    if not body.strip():
        return {}
    try:
        rows = json.loads(body)
    except ValueError as exc:
        raise ValueError("Request is not in valid JSON format") from exc
    if not isinstance(rows, list):
        raise ValueError("Invalid input for field/attribute keys: unable to convert to a list")
    try:
        return {int(row["id"]): str(row["key"]) for row in rows}
    except (TypeError, KeyError, ValueError) as exc:
        raise ValueError("Invalid input for field/attribute keys") from exc


def _allowed(cloud: Cloud, token: Token, roles: set[str]) -> bool:
    project = cloud.tables.projects.get(token.project_id or "")
    if project is None or project["project"]["name"] not in ("admin", "services"):
        return False
    return not roles.isdisjoint(cloud.role_names(token.user_id, token.project_id).values())


def _unauthorized(cloud: Cloud) -> Response:
    where = f'Keystone uri="http://{cloud.management_ip}:{cloud.port}/v3"'
    message = "The request you have made requires authentication."
    error = {"code": 401, "title": "Unauthorized", "message": message}
    return json_response(401, {"error": error}, ("Www-Authenticate", where))


def _refused(fault: str) -> Response:
    text = json.dumps({"faultcode": "Client", "faultstring": fault, "debuginfo": None})
    return json_response(400, {"error_message": text})
