"""A request and a response as plain values. How they travel is `connection.py`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

REASONS = {
    200: "OK", 201: "Created", 202: "Accepted", 204: "No Content", 300: "Multiple Choices", 400: "Bad Request",
    401: "Unauthorized", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed", 409: "Conflict",
    413: "Content Too Large", 429: "Too Many Requests", 500: "Internal Server Error", 502: "Bad Gateway",
    503: "Service Unavailable", 504: "Gateway Timeout",
}  # fmt: skip

WRITES = frozenset({"POST", "PUT", "PATCH", "DELETE"})


@dataclass(slots=True)
class Request:
    """One request; header names are in lower case, `path` has no query."""

    verb: str
    path: str
    query_text: str
    headers: dict[str, str]
    body: bytes

    @property
    def query(self) -> dict[str, str]:
        return dict(parse_qsl(self.query_text, keep_blank_values=True))

    @property
    def token(self) -> str | None:
        return self.headers.get("x-auth-token")

    @property
    def request_id(self) -> str | None:
        """What ties the requests of one run together."""
        return self.headers.get("x-openstack-request-id")

    @property
    def wants_json(self) -> bool:
        return "application/json" in self.headers.get("accept", "")

    @property
    def service(self) -> str:
        """Which of a cloud's services is asked: keystone, dbsync, sysinv, or control."""
        if self.path.startswith("/v1.0"):
            return "dbsync"
        if self.path.startswith("/v1/"):
            return "sysinv"
        return "control" if self.path.startswith("/control") else "keystone"

    @property
    def subject(self) -> str:
        """What it is about, without ids, for counting: `dbsync users`, `keystone auth`, `sysinv fernet_repo`."""
        parts = self.path.split("/", 4)
        place = 3 if self.service == "dbsync" else 2
        return f"{self.service} {parts[place] if len(parts) > place else ''}".rstrip()

    @property
    def is_write(self) -> bool:
        """Would it change the cloud if it succeeded? Logging in and out does not count."""
        return self.verb in WRITES and not self.path.startswith(("/v3/auth", "/control"))


@dataclass(slots=True)
class Response:
    """One answer, not yet on its way."""

    status: int
    body: bytes = b""
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()

    def head(self, *, length: int | None = None) -> bytes:
        """Status line and headers; `length` in place of the body's own when the answer shall lie about it."""
        size = len(self.body) if length is None else length
        extra = "".join(f"{name}: {value}\r\n" for name, value in self.headers)
        reason = REASONS.get(self.status, "Unknown")
        return (
            f"HTTP/1.1 {self.status} {reason}\r\nContent-Type: {self.content_type}\r\n"
            f"Content-Length: {size}\r\n{extra}\r\n"
        ).encode("latin-1")


def json_response(status: int, value: Any, *headers: tuple[str, str]) -> Response:
    """An answer with a JSON body."""
    return Response(status, json.dumps(value).encode(), headers=headers)
