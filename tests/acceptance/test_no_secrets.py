"""The canary test: after runs that went well and runs that failed in every way, no password, hash, key or token of any
cloud is in anything dcsync printed, sent, stored or answered."""

from __future__ import annotations

import base64
import binascii
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.request import Request, urlopen

import pytest
import redis
import sqlalchemy as sa

from dcsync.fake_cloud.control import PASSWORD, USERNAME, FakeCloud
from dcsync.fake_cloud.faults import Fault
from tests.acceptance.conftest import a_whole_system
from tests.acceptance.test_celery_surface import listening
from tests.system import SECONDS, System, redis_client

pytestmark = [pytest.mark.xdist_group("no-secrets"), pytest.mark.timeout(900)]

TOKEN_BEGINS = "gAAAA"
TROUBLES = [
    Fault("unauthorized", service="dbsync"),
    Fault("unauthorized", service="sysinv"),
    Fault("wrong-password"),
    Fault("status", status=500),
    Fault("status", status=500, service="dbsync", verb="write", every=2),
    Fault("swallow", service="dbsync"),
    Fault("swallow", service="sysinv"),
    Fault("partial-keys"),
    Fault("lost-answer", service="dbsync", verb="write"),
    Fault("html", service="dbsync"),
    Fault("wrong-shape"),
    Fault("garbage"),
    Fault("truncated", service="dbsync", verb="GET"),
    Fault("endless", service="dbsync"),
]


@dataclass(frozen=True)
class Sinks:
    """Everything that left dcsync, as text, by where it was found."""

    texts: dict[str, str]
    secrets: frozenset[str]

    def leaks(self) -> list[str]:
        """Where a secret was found; never the secret itself."""
        return [
            sink
            for sink, text in self.texts.items()
            if any(secret in text for secret in self.secrets) or TOKEN_BEGINS in text
        ]


def with_what_is_encoded(text: str) -> str:
    """The text, and what its base64 parts say: Celery's messages travel so."""
    decoded = []
    for part in re.findall(r"[A-Za-z0-9+/]{16,}={0,2}", text):
        try:
            decoded.append(base64.b64decode(part + "=" * (-len(part) % 4)).decode())
        except (binascii.Error, UnicodeDecodeError):
            continue
    return "\n".join([text, *decoded])


class Monitor:
    """Every command Redis is given, arguments and all, while it listens."""

    def __init__(self, url: str) -> None:
        self.seen: list[str] = []
        self._client = redis.Redis.from_url(url)
        self._stopping = threading.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._listen)

    def _listen(self) -> None:
        with self._client.monitor() as monitor:
            self._ready.set()
            while not self._stopping.is_set():
                self.seen.append(str(monitor.next_command()["command"]))

    def __enter__(self) -> Monitor:
        self._thread.start()
        assert self._ready.wait(SECONDS)
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopping.set()
        self._client.ping()  # so that it sees one more command
        self._thread.join(timeout=SECONDS)
        self._client.close()


# --- what is secret ----------------------------------------------------------------------------------------------


def call(base: str, path: str, *, token: str = "", body: object = None) -> tuple[Any, str]:
    data = None if body is None else json.dumps(body).encode()
    request = Request(base + path, data=data, headers={"X-Auth-Token": token, "Accept": "application/json"})
    with urlopen(request, timeout=SECONDS) as answer:
        return json.loads(answer.read() or b"null"), answer.headers.get("X-Subject-Token", "")


def secrets_of(base: str) -> set[str]:
    """Password hashes, keys and a token of one cloud, asked for by its own interface."""
    user = {"name": USERNAME, "domain": {"name": "Default"}, "password": PASSWORD}
    scope = {"project": {"name": "services", "domain": {"name": "Default"}}}
    identity = {"methods": ["password"], "password": {"user": user}}
    _, token = call(base, "/v3/auth/tokens", body={"auth": {"identity": identity, "scope": scope}})
    users, _ = call(base, "/v1.0/identity/users/", token=token)
    keys, _ = call(base, "/v1/fernet_repo", token=token)
    hashes = {row["password_hash"] for user in users for row in user["password"]}
    return {token} | hashes | {row["key"] for row in keys["keys"]}


def all_secrets(cloud: FakeCloud, addresses: list[str]) -> set[str]:
    bases = [f"http://{address}:{cloud.port}" for address in (cloud.central_ip, *addresses)]
    return {PASSWORD}.union(*(secrets_of(base) for base in bases))


# --- where it could be -------------------------------------------------------------------------------------------


def redis_dump(system: System) -> str:
    readers = {
        "string": lambda client, key: client.get(key),
        "list": lambda client, key: client.lrange(key, 0, -1),
        "hash": lambda client, key: client.hgetall(key),
        "set": lambda client, key: sorted(client.smembers(key)),
        "zset": lambda client, key: client.zrange(key, 0, -1, withscores=True),
        "none": lambda client, key: "(gone since it was listed)",  # the system is alive: locks come and go
    }
    with redis_client(system) as client:
        return "\n".join(f"{key} {readers[client.type(key)](client, key)}" for key in client.scan_iter())


def database_dump(system: System) -> str:
    """Every row of every table as text."""
    with system.engine.connect() as connection:
        tables = sa.inspect(connection).get_table_names()
        rows = [
            row for table in tables for row in connection.scalars(sa.text(f'SELECT t::text FROM "{table}" t')).all()
        ]
    assert len(rows) > 50
    return "\n".join(rows)


def answers_of_commands(system: System, names: list[str]) -> str:
    answers = [system.cli("subcloud", "list"), system.cli("subcloud", "list", "-o", "json")]
    answers += [system.cli("config", "show"), system.cli("config", "show", "-o", "json")]
    answers += [system.cli("operations"), system.cli("operations", "-o", "json")]
    for name in names:
        answers += [
            system.cli("history", name),
            system.cli("history", name, "-o", "json"),
            system.cli("subcloud", "show", name),
        ]
    return "\n".join(answers)


@pytest.fixture(scope="module")
def sinks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sinks]:
    """One system that lives through everything, and all it left behind."""
    with a_whole_system(tmp_path_factory.mktemp("system"), online=len(TROUBLES) + 2) as system:
        names = system.take(len(TROUBLES) + 2)
        troubled = names[2:]
        secrets = all_secrets(system.cloud, [system.address(name) for name in names])
        for name, trouble in zip(troubled, TROUBLES, strict=True):
            system.cloud.set_fault(name, trouble)
        app = system.celery_app()
        with listening(app) as events, Monitor(system.redis.url) as monitor:
            system.manage(*names)
            for name in troubled:
                system.until_failed(name)
            system.cloud.set_fault("central", Fault("wrong-password"), Fault("unauthorized"))
            system.cli("sync", names[0])
            system.until_failed(names[0])
            system.cloud.set_fault("central", None)
            while_failed = answers_of_commands(system, troubled[:3]) + database_dump(system)
            for name in troubled:
                system.cloud.set_fault(name, None)
            system.until_completed(*names)
        app.close()
        postgres, redis_ = system.postgres, system.redis
        urls = (postgres.url, postgres.owner_url, postgres.app_url, redis_.url, redis_.app_url)
        own = {url.split(":")[2].split("@")[0] for url in urls}
        after = all_secrets(system.cloud, [system.address(name) for name in names])
        texts = {
            "output": system.output(),
            "events": json.dumps(events.seen, default=str),
            "commands given to Redis": "\n".join(monitor.seen),
            "what Redis holds": redis_dump(system),
            "what PostgreSQL holds": database_dump(system),
            "answers of commands": answers_of_commands(system, names[:3]),
            "answers and rows while failed": while_failed,
        }
        assert len(events.seen) > 50
        assert len(monitor.seen) > 500
        yield Sinks(
            texts={sink: with_what_is_encoded(text) for sink, text in texts.items()},
            secrets=frozenset(secrets | after | own),
        )


def test_no_secret_is_in_anything_that_left_dcsync(sinks: Sinks) -> None:
    assert len(sinks.secrets) > 100
    assert sinks.leaks() == []


def test_what_was_looked_through_is_what_dcsync_said(sinks: Sinks) -> None:
    """Redis itself holds little once all is quiet; what went through it is among its commands."""
    quiet = "what Redis holds"
    assert [sink for sink, text in sinks.texts.items() if "subcloud3" not in text and sink != quiet] == []
    assert "_kombu.binding.sync" in sinks.texts[quiet]


@pytest.mark.parametrize("encoded", [False, True])
def test_a_secret_would_have_been_found(sinks: Sinks, encoded: bool) -> None:
    for secret in (PASSWORD, *sorted(sinks.secrets)[:5]):
        message = json.dumps([[], {"region_name": "subcloud3", "detail": f"401 for {secret}"}, {}])
        said = base64.b64encode(message.encode()).decode() if encoded else message
        assert Sinks({"a log": with_what_is_encoded(f"line {said} line")}, sinks.secrets).leaks() == ["a log"]
