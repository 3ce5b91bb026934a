"""One cloud: its rows, made when first looked at, and the questions all its services ask of them.

No HTTP here; who may ask what is for keystone.py, dbsync.py and sysinv.py to say.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime

from dcsync.fake_cloud.deployment import Assignment, Deployment, Row, Tables
from dcsync.fake_cloud.tokens import Token, seal, unseal

SINGULAR = {"users": "user", "groups": "group", "projects": "project", "roles": "role"}
TOKEN_LIFE = 3600
_TOLD_APART_BY = ("audit_id", "user_id", "project_id", "audit_chain_id", "trust_id", "consumer_id")
"""Columns of a revocation event that keep it from counting where they name something else. A token made by password
begins no chain, so an event that names one never counts (K10)."""

Key = tuple[str, str | None]
"""(name, domain)"""
NamedGrant = tuple[str, str, str, str]
"""("user" | "group", actor, project, role), in names"""


@dataclass(slots=True)
class Held:
    """What a cloud holds or once held: what a sync may have given to others."""

    ids: set[str] = field(default_factory=set)
    keys: set[tuple[str, Key]] = field(default_factory=set)
    """(type, key)"""
    grants: set[Assignment] = field(default_factory=set)
    named_grants: set[NamedGrant] = field(default_factory=set)

    def add(self, tables: Tables) -> None:
        for type_ in SINGULAR:
            self.ids.update(tables.of(type_))
            self.keys.update((type_, key_of(type_, row)) for row in tables.of(type_).values())
        self.grants |= tables.assignments
        self.named_grants |= assignments_by_name(tables)


@dataclass(frozen=True, slots=True)
class Refused:
    """Why a token is not good: `status` is what Keystone says to it as a caller."""

    status: int
    message: str


@dataclass(slots=True)
class ServiceLogin:
    """The token with which a service's own middleware asks Keystone; renewed on 401 only, never on 404 (R1, K4)."""

    user: str
    token: str | None = None


class Cloud:
    """A central cloud (`region_name` "central") or a subcloud."""

    __slots__ = (
        "_ever", "_tables", "deployment", "hidden", "management_ip", "own_grants", "own_records", "port", "region_name",
        "roles_in_flight", "service_logins", "version",
    )  # fmt: skip

    def __init__(self, *, deployment: Deployment, management_ip: str, port: int = 0) -> None:
        self.deployment = deployment
        self.region_name = deployment.region_name or "central"
        self.management_ip = management_ip
        self.port = port
        self.version = 0
        """Grows with every change; 0 = as deployed."""
        self.hidden: frozenset[str] = frozenset()
        """Lists that answer empty though the rows are there."""
        self.roles_in_flight: dict[str, int] = {}
        self.service_logins: dict[str, ServiceLogin] = {}
        self.own_records: frozenset[tuple[str, Key]] = frozenset()
        """(type, key) of what a subcloud made itself after its first day."""
        self.own_grants: frozenset[NamedGrant] = frozenset()
        self._ever = Held() if deployment.is_central else None
        self._tables: Tables | None = None

    @property
    def tables(self) -> Tables:
        if self._tables is None:
            self._tables = self.deployment.build()
            self._remember()
        return self._tables

    @property
    def ever(self) -> Held:
        """At the central cloud: all it holds or once held; elsewhere nothing."""
        if self._tables is None:
            self._remember()
        return self._ever or Held()

    @property
    def catalog_region(self) -> str:
        return "RegionOne" if self.deployment.is_central else self.region_name

    def changed(self) -> None:
        """To be called after every change that an inspection could see."""
        self.version += 1
        self._remember()

    def _remember(self) -> None:
        if self._ever is not None:
            self._ever.add(self.tables)

    def redeploy(self) -> None:
        """As on the first day."""
        self._tables = None
        self.hidden = frozenset()
        self.service_logins = {}
        self.own_records = frozenset()
        self.own_grants = frozenset()
        self.changed()

    def named(self, type_: str, name: str) -> Row | None:
        """The record with this name in its usual domain, or None."""
        for row in self.tables.of(type_).values():
            if name_of(type_, row) == name:
                return row
        return None

    def id_named(self, type_: str, name: str) -> str:
        """Its id; raises KeyError when there is none."""
        row = self.named(type_, name)
        if row is None:
            raise KeyError(f"{type_} {name}")
        return id_of(type_, row)

    def role_names(self, user_id: str, project_id: str | None) -> dict[str, str]:
        """Role id -> name of what a user may do in a project: own grants, the groups' grants, and what they imply."""
        tables = self.tables
        actors = {user_id} | {id_ for id_, row in tables.groups.items() if user_id in row["local_user_ids"]}
        waiting = [role for _, actor, target, role in tables.assignments if target == project_id and actor in actors]
        held: dict[str, str] = {}
        while waiting:
            role_id = waiting.pop()
            if role_id not in held and role_id in tables.roles:
                held[role_id] = tables.roles[role_id]["role"]["name"]
                waiting.extend(tied for prior, tied in tables.implied if prior == role_id)
        return held

    def issue(self, *, user_id: str, project_id: str | None, audit_id: str) -> tuple[str, Token]:
        """A new token under the highest key, as text and as a value."""
        now = int(time.time())
        token = Token(user_id, project_id, audit_id, now, now + TOKEN_LIFE)
        return seal(token, self.tables.keys), token

    def check_token(self, text: str) -> Token | Refused:
        """The token if it is good here and now. Source: docs/upstream/real-keystone.md K1-K4, K10."""
        token = unseal(text, self.tables.keys)
        if token is None or token.expires_at <= time.time():
            return Refused(401, "Could not recognize Fernet token")
        if any(_revokes(event["revocation_event"], token) for event in self.tables.events):
            return Refused(401, "Failed to validate token")
        user = self.tables.users.get(token.user_id)
        if user is None:
            return Refused(404, f"Could not find user: {token.user_id}.")
        if token.project_id is not None and token.project_id not in self.tables.projects:
            return Refused(404, f"Could not find project: {token.project_id}.")
        if not user["user"]["enabled"]:
            return Refused(401, "Failed to validate token")
        if token.project_id is not None and not self.role_names(token.user_id, token.project_id):
            return Refused(401, "Failed to validate token")
        return token

    def confirmed(self, text: str, *, service: str) -> Token | None:
        """The token as a service's middleware sees it: its own login must be good as well (R1). No cache (R4)."""
        if not self._service_is_known(service):
            return None
        token = self.check_token(text)
        return token if isinstance(token, Token) else None

    def _service_is_known(self, service: str) -> bool:
        login = self.service_logins.get(service)
        if login is None:
            login = self.service_logins[service] = ServiceLogin(user="sysinv" if service == "sysinv" else "dcdbsync")
        verdict = self.check_token(login.token) if login.token else Refused(401, "not logged in yet")
        if isinstance(verdict, Refused) and verdict.status == 401:
            login.token = self._service_token(login.user)
            return login.token is not None
        return isinstance(verdict, Token)

    def _service_token(self, user_name: str) -> str | None:
        user, project = self.named("users", user_name), self.named("projects", "services")
        if user is None or project is None:
            return None
        text, _ = self.issue(user_id=user["user"]["id"], project_id=project["project"]["id"], audit_id=user_name)
        return text


def _revokes(event: Row, token: Token) -> bool:
    """Does it name this token, its user or its project, and no other? Counts to the second, as Keystone does."""
    named = {"audit_id": token.audit_id, "user_id": token.user_id, "project_id": token.project_id}
    if any(event[column] not in (None, named.get(column)) for column in _TOLD_APART_BY):
        return False
    return token.issued_at <= datetime.fromisoformat(event["issued_before"]).replace(tzinfo=UTC).timestamp()


def id_of(type_: str, row: Row) -> str:
    id_: str = row[SINGULAR[type_]]["id"]
    return id_


def name_of(type_: str, row: Row) -> str:
    name: str = row["local_user" if type_ == "users" else SINGULAR[type_]]["name"]
    return name


def domain_of(type_: str, row: Row) -> str | None:
    domain_id: str | None = row[SINGULAR[type_]]["domain_id"]
    return domain_id


def key_of(type_: str, row: Row) -> Key:
    """What makes records of two clouds the same thing."""
    return name_of(type_, row), domain_of(type_, row)


def assignments_by_name(tables: Tables) -> set[NamedGrant]:
    """Who may do what where, in names: what must survive the moving of ids (K8). Ids without a record stay ids."""
    names = {id_: name_of(type_, row) for type_ in SINGULAR for id_, row in tables.of(type_).items()}
    return {
        (kind, names.get(actor, actor), names.get(target, target), names.get(role, role))
        for kind, actor, target, role in tables.assignments
    }
