"""A plain client of a cloud, and an initial sync as the contracts describe it, without a line of dcsync."""

from __future__ import annotations

import http.client
import json
import socket
import uuid
from dataclasses import dataclass, field
from typing import Any

from dcsync.fake_cloud.control import PASSWORD, FakeCloud

SINGULAR = {"users": "user", "groups": "group", "projects": "project", "roles": "role"}
LEFT_ALONE = {"dcdbsync", "dcorch", "fm", "smapi", "usm", "heat_stack_owner"}
ALWAYS = {"admin", "sysinv", "dcmanager"}
AT_ONCE = 2.0
"""Seconds for which a write is in flight that others shall meet: they are sent within a millisecond of each other, and
whoever sends them may be kept from it for a while."""


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Client:
    """One connection to one cloud; `request_id` names the run it works for."""

    ip: str
    port: int
    request_id: str | None = None
    timeout: float = 60.0
    token: str = ""
    connection: http.client.HTTPConnection = field(init=False)

    def __post_init__(self) -> None:
        self.connection = http.client.HTTPConnection(self.ip, self.port, timeout=self.timeout)

    def ask(self, verb: str, path: str, body: Any = None, **headers: str) -> Reply:
        self.send(verb, path, body, **headers)
        return self.answer()

    def send(self, verb: str, path: str, body: Any = None, **headers: str) -> None:
        """Without waiting for the answer."""
        sent = {"X-Auth-Token": self.token} if self.token else {}
        if self.request_id:
            sent["X-Openstack-Request-Id"] = self.request_id
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        self.connection.request(verb, path, data, sent)

    def answer(self) -> Reply:
        """To what was sent last."""
        response = self.connection.getresponse()
        return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())

    def log_in(self, user: str = "dcmanager", password: str = PASSWORD, project: str = "services") -> Reply:
        domain = {"name": "Default"}
        identity = {
            "methods": ["password"],
            "password": {"user": {"name": user, "domain": domain, "password": password}},
        }
        scope = {"project": {"name": project, "domain": domain}}
        reply = self.ask("POST", "/v3/auth/tokens", {"auth": {"identity": identity, "scope": scope}})
        self.token = reply.headers.get("x-subject-token", self.token)
        return reply

    def records(self, type_: str) -> dict[str, Any]:
        """Name -> record."""
        return {name_of(type_, row): row for row in self.ask("GET", f"/v1.0/identity/{type_}/").json}

    def put(self, type_: str, id_: str, record: Any, **headers: str) -> Reply:
        return self.ask("PUT", f"/v1.0/identity/{type_}/{id_}", record, **headers)

    def send_put(self, type_: str, id_: str, record: Any) -> None:
        self.send("PUT", f"/v1.0/identity/{type_}/{id_}", record)

    def validate(self, subject: str) -> Reply:
        return self.ask("GET", "/v3/auth/tokens", X_Subject_Token=subject)

    def fernet_keys(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.ask("GET", "/v1/fernet_repo").json["keys"]
        return found

    def close(self) -> None:
        self.connection.close()


def name_of(type_: str, row: Any) -> str:
    name: str = row["local_user" if type_ == "users" else SINGULAR[type_]]["name"]
    return name


def id_of(type_: str, row: Any) -> str:
    id_: str = row[SINGULAR[type_]]["id"]
    return id_


@dataclass
class Run:
    """An initial sync of one subcloud, step by step."""

    central: Client
    site: Client

    @classmethod
    def at(cls, fake: FakeCloud, region_name: str) -> Run:
        ip = fake.state(region_name)["management_ip"]
        central = Client(fake.central_ip, fake.port)
        site = Client(ip, fake.port, request_id=f"req-{uuid.uuid4()}")
        assert central.log_in().status == 201
        assert site.log_in().status == 201
        return cls(central, site)

    def identity(self) -> list[int]:
        """All writes of the identity step, the tied ones one after another; the statuses answered."""
        own_groups, groups = self.site.records("groups"), self.central.records("groups")
        common = own_groups.keys() & groups.keys()
        statuses = [
            self.site.put("groups", id_of("groups", own_groups[name]), groups[name] | {"local_user_ids": []}).status
            for name in common
        ]
        for type_ in ("users", "projects", "roles"):
            statuses += [self.site.put(type_, id_, record).status for id_, record in self.due(type_)]
        present = {id_of("users", row) for row in self.site.records("users").values()}
        for name in common:
            members = [member for member in groups[name]["local_user_ids"] if member in present]
            record = groups[name] | {"local_user_ids": members}
            statuses.append(self.site.put("groups", id_of("groups", record), record).status)
        return statuses

    def due(self, type_: str) -> list[tuple[str, Any]]:
        """(id here, central record) of what is to be written."""
        own, master = self.site.records(type_), self.central.records(type_)
        return [
            (id_of(type_, own[name]), master[name])
            for name in own.keys() & master.keys() - LEFT_ALONE
            if id_of(type_, own[name]) != id_of(type_, master[name]) or (type_ == "users" and name in ALWAYS)
        ]

    def keys(self) -> int:
        """Delivers the central keys; the status answered."""
        return self.site.ask("POST", "/v1/fernet_repo", self.central.fernet_keys()).status

    def verify(self) -> bool:
        """Reads the keys back with a fresh login."""
        assert self.site.log_in().status == 201
        return self.site.fernet_keys() == self.central.fernet_keys()

    def whole(self) -> None:
        assert set(self.identity()) == {200}
        assert self.keys() == 201
        assert self.verify()

    def close(self) -> None:
        self.central.close()
        self.site.close()


def is_refused(ip: str, port: int) -> bool:
    try:
        socket.create_connection((ip, port), timeout=60).close()
    except ConnectionRefusedError:
        return True
    return False
