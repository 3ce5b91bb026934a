"""A site that answers as a test tells it to, down to the byte, and secrets that must turn up nowhere."""

from __future__ import annotations

import asyncio
import json
import traceback
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from dcsync.adapters.cloud.endpoints import ServiceUrls
from dcsync.adapters.cloud.http import Limits
from dcsync.adapters.cloud.keystone import Credentials
from dcsync.model.states.initial_sync import InitialSyncState
from dcsync.model.subcloud import AvailabilityStatus, ManagementState, Subcloud
from tests.loop_time import time_passes

ADDRESS = "127.18.0.1"
PASSWORD = "canary-password"
TOKEN = "canary-token"
HASH = "canary-hash"
KEYS = {0: "Y2FuYXJ5LWtleS0wLWNhbmFyeS1rZXktMC1jYW5hLTA=", 1: "Y2FuYXJ5LWtleS0xLWNhbmFyeS1rZXktMS1jYW5hLTE="}
SECRETS = (PASSWORD, TOKEN, HASH, *KEYS.values())

USER = {
    "user": {"id": "u1", "extra": "{}", "enabled": True, "default_project_id": None, "domain_id": "default"},
    "local_user": {"id": 1, "domain_id": "default", "name": "admin", "user_id": "u1"},
    "password": [{"id": 1, "local_user_id": 1, "self_service": False, "password_hash": HASH}],
    "user_option": [],
}
LISTS = {
    "users": [USER],
    "groups": [{"group": {"id": "g1", "domain_id": "default", "name": "ops"}, "local_user_ids": ["u1"]}],
    "projects": [{"project": {"id": "p1", "name": "services", "domain_id": "default"}}],
    "roles": [{"role": {"id": "r1", "name": "admin", "domain_id": "<<null>>"}}],
}
GRANT = {"scope": {"project": {"id": "p1"}}, "user": {"id": "u1"}, "role": {"id": "r1"}, "links": {}}
EVENT = {
    "revocation_event": {
        "id": 3, "domain_id": None, "project_id": None, "user_id": "u1", "role_id": None, "trust_id": None,
        "consumer_id": None, "access_token_id": None, "issued_before": "2026-01-31 08:15:00", "expires_at": None,
        "revoked_at": "2026-01-31 08:15:00", "audit_id": None, "audit_chain_id": None,
    }
}  # fmt: skip
SEGMENTS = (
    *LISTS, "tokens", "fernet_repo", "role_assignments", "token-revocation-events", "toy_images",
    "services", "endpoints", "catalog",
)  # fmt: skip


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def parts(self) -> list[str]:
        """Of the path, without the query."""
        return self.path.partition("?")[0].split("/")


Behaviour = Callable[[Request, asyncio.StreamWriter], Awaitable[None]]


def answer(status: int, body: bytes | str | list[Any] | dict[str, Any] = b"", **headers: str) -> bytes:
    """The bytes of a whole HTTP answer; header names with _ for -."""
    if isinstance(body, list | dict):
        body = json.dumps(body).encode()
    raw = body if isinstance(body, bytes) else body.encode()
    lines = {"Content-Type": "application/json", "Content-Length": str(len(raw))}
    lines |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"HTTP/1.1 {status} Because\r\n{head}\r\n".encode() + raw


async def a_moment() -> None:
    """Seconds for the clients of this loop. Long enough for what was sent to arrive before the next one, so that not
    the machine but the client's limits say when it has waited too long."""
    await asyncio.sleep(0.02)
    time_passes(5)


def sends(raw: bytes, *, then: str = "stay") -> Behaviour:
    """Send these bytes, then stay, close, hang (never answer again), or last (the same, and time flies)."""

    async def behave(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(raw)
        await writer.drain()
        if then == "hang":
            await asyncio.Event().wait()
        while then == "last":
            await a_moment()
        if then == "close":
            writer.close()

    return behave


@dataclass
class Site:
    """Keystone, dcdbsync and sysinv behind one port of one address; well-behaved where a test says nothing else."""

    port: int = 0
    scheme: str = "http"
    requests: list[Request] = field(default_factory=list)
    logins: int = 0
    token_life: timedelta | None = timedelta(hours=1)
    clock_ahead: timedelta = timedelta(0)
    behaviours: dict[str, Behaviour] = field(default_factory=dict)
    """By "METHOD segment", the segment being tokens, users, groups, projects, roles, fernet_repo, role_assignments,
    services, endpoints, catalog or token-revocation-events: the first of these in the path."""
    valid_token: Callable[[str], bool] = field(default=lambda _: True)
    lists: dict[str, list[Any]] = field(default_factory=lambda: {kind: list(found) for kind, found in LISTS.items()})
    grants: list[Any] = field(default_factory=lambda: [GRANT])
    events: list[Any] = field(default_factory=lambda: [EVENT])
    keys: list[dict[str, Any]] = field(default_factory=lambda: [{"id": i, "key": k} for i, k in KEYS.items()])
    moved: dict[str, str] = field(default_factory=dict)
    """New URLs by service type."""
    connections: set[asyncio.StreamWriter] = field(default_factory=set)

    def sent(self, method: str, segment: str) -> list[Request]:
        return [r for r in self.requests if r.method == method and segment in r.parts]

    def urls(self, host: str = "{ip}") -> ServiceUrls:
        base = f"{self.scheme}://{host}:{self.port}"
        return ServiceUrls(auth=f"{base}/v3", dbsync=f"{base}/v1.0", sysinv=f"{base}/v1")

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.add(writer)
        try:
            while not writer.is_closing():
                await self._one(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # The client went away, as it may.
        finally:
            self.connections.discard(writer)
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
        method, path, _ = first.split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        request = Request(method, path, headers, body)
        self.requests.append(request)
        segment = next((s for s in request.parts if s in SEGMENTS), "")
        behave = self.behaviours.get(f"{method} {segment}")
        if behave is not None:
            await behave(request, writer)
        else:
            writer.write(self._well_behaved(request, segment))
        await writer.drain()

    def _well_behaved(self, request: Request, segment: str) -> bytes:
        if segment == "tokens":
            return self.login()
        if not self.valid_token(request.headers["x-auth-token"]):
            return answer(401, f"<html>not this one: {request.headers['x-auth-token']}</html>")
        if segment == "fernet_repo":
            return answer(200, {"keys": self.keys}) if request.method == "GET" else answer(201)
        if request.method == "GET" and segment == "role_assignments":
            return answer(200, {"role_assignments": self.grants, "links": {"next": None}})
        if request.method == "GET" and segment == "token-revocation-events":
            return answer(200, self.events)
        if segment in ("services", "endpoints", "catalog"):
            return answer(200, {segment: getattr(self, segment)()})
        return answer(200, self.lists[segment] if request.method == "GET" else request.json)

    def login(self) -> bytes:
        self.logins += 1
        issued = datetime.now(UTC) + self.clock_ahead
        token: dict[str, Any] = {}
        if self.token_life is not None:
            token |= {"issued_at": _keystone_date(issued), "expires_at": _keystone_date(issued + self.token_life)}
        return answer(201, {"token": token}, X_Subject_Token=f"{TOKEN}-{self.logins}")

    def services(self) -> list[Any]:
        return [{"id": f"id-{type_}", "type": type_, "enabled": True} for type_ in self.service_urls()]

    def endpoints(self) -> list[Any]:
        """All of them, whatever filter was asked for."""
        return [
            {
                "service_id": f"id-{type_}",
                "interface": "internal",
                "region_id": "RegionOne",
                "url": url,
                "enabled": True,
            }
            for type_, url in self.service_urls().items()
        ]

    def service_urls(self) -> dict[str, str]:
        urls = self.urls(ADDRESS)
        return {"dcorch-dbsync": urls.dbsync, "platform": urls.sysinv} | self.moved

    def catalog(self) -> list[Any]:
        return [
            {"type": type_, "endpoints": [{"interface": "internal", "region": "RegionOne", "url": url}]}
            for type_, url in self.service_urls().items()
        ]


def _keystone_date(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


CREDENTIALS = Credentials(
    username="dcmanager",
    password=PASSWORD,
    project_name="services",
    user_domain_name="Default",
    project_domain_name="Default",
)
LIMITS = Limits(connect_timeout=60, read_timeout=60, request_timeout=100, max_reply_bytes=50_000)
"""Far beyond what a request needs on a busy machine; who wants to see them passed lets time fly."""


def a_subcloud(management_ip: str = ADDRESS) -> Subcloud:
    return Subcloud(
        id=1,
        name="subcloud1",
        region_name="subcloud1",
        management_ip=management_ip,
        software_version="",
        management_state=ManagementState.MANAGED,
        availability_status=AvailabilityStatus.ONLINE,
        initial_sync_state=InitialSyncState.IN_PROGRESS,
        subsequent_sync=False,
        generation=1,
        attempt=1,
    )


def texts_of(error: BaseException) -> Iterator[str]:
    """Whatever could be printed of an error: itself, its arguments, its traceback, and all errors it hangs on."""
    yield "".join(traceback.format_exception(error))
    seen: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is None or one in seen:
            continue
        seen.append(one)
        yield from (str(one), repr(one), repr(one.args), repr(vars(one)))
        waiting += [one.__cause__, one.__context__]


def assert_no_secret_in(*texts: str) -> None:
    for text in texts:
        for secret in SECRETS:
            assert secret not in text
