"""A sysinv-compatible `/v1/fernet_repo` on the key folder Keystone reads, as WSGI.

Source: docs/upstream/http-contracts.md section 4 and docs/upstream/recorded-traffic.md 08.
"""

from __future__ import annotations

import base64
import json
import os
import tempfile
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import webob
import webob.exc

READERS = frozenset({"admin", "reader", "operator", "configurator"})
WRITERS = frozenset({"admin", "configurator"})
SUCCESS = {"POST": 201, "PUT": 202}
KEYS_AFTER_RESET = 3


class MalformedError(Exception):
    """The body is not a list of keys; says what is wrong."""


class FernetRepoApp:
    """`forget_tokens` is called after every write, as sysinv has its token cache flushed."""

    def __init__(self, repository: Path, *, forget_tokens: Callable[[], None]) -> None:
        self._repository = repository
        self._forget_tokens = forget_tokens
        self._writing = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        request = webob.Request(environ)
        try:
            response = self._answer(request)
        except MalformedError as exc:
            response = _client_error(str(exc))
        answer: Iterable[bytes] = response(environ, start_response)
        return answer

    def _answer(self, request: webob.Request) -> webob.Response:
        if request.path_info.rstrip("/") != "/v1/fernet_repo":
            return webob.exc.HTTPNotFound()
        if request.method not in {"GET", *SUCCESS}:
            return webob.exc.HTTPMethodNotAllowed()
        roles = set(request.headers.get("X-Roles", "").split(","))
        if not roles & (READERS if request.method == "GET" else WRITERS):
            return webob.exc.HTTPForbidden()
        if request.method == "GET":
            keys = [{"id": id_, "key": key} for id_, key in sorted(self._read().items())]
            return webob.Response(content_type="application/json", json_body={"keys": keys})
        with self._writing:
            self._write(_keys_in(request))
        self._forget_tokens()
        return webob.Response(status=SUCCESS[request.method], content_type=None, body=b"")

    def _files(self) -> dict[int, Path]:
        return {int(path.name): path for path in self._repository.iterdir() if path.name.isdigit()}

    def _read(self) -> dict[int, str]:
        return {id_: path.read_text(encoding="ascii") for id_, path in self._files().items()}

    def _write(self, keys: dict[int, str]) -> None:
        """Each key by a file of its own put in place by a rename; then those not in the set are removed."""
        for id_, key in keys.items():
            handle, name = tempfile.mkstemp(dir=self._repository, prefix="new-")
            with os.fdopen(handle, "w", encoding="ascii") as file:
                file.write(key)
            os.replace(name, self._repository / str(id_))
        for id_, path in self._files().items():
            if id_ not in keys:
                path.unlink()


def _keys_in(request: webob.Request) -> dict[int, str]:
    """The keys of the body. None at all is a request to reset: brand-new ones."""
    if request.method == "POST" and not request.body.strip():
        return _new_keys()
    try:
        document = json.loads(request.body)
    except ValueError as exc:
        raise MalformedError("Request is not in valid JSON format") from exc
    if document == [] and request.method == "POST":
        return _new_keys()
    if not isinstance(document, list) or not document:
        raise MalformedError("Invalid input for field/attribute keys.")
    try:
        return {int(entry["id"]): str(entry["key"]) for entry in document}
    except (KeyError, TypeError, ValueError) as exc:
        raise MalformedError("Invalid input for field/attribute keys.") from exc


def _new_keys() -> dict[int, str]:
    return {id_: base64.urlsafe_b64encode(os.urandom(32)).decode() for id_ in range(KEYS_AFTER_RESET)}


def _client_error(fault: str) -> webob.Response:
    message = json.dumps({"faultcode": "Client", "faultstring": fault, "debuginfo": None})
    return webob.Response(status=400, content_type="application/json", json_body={"error_message": message})
