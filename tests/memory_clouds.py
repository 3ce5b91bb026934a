"""The one memory cloud: a subcloud with Keystone's foreign keys and cascades, and its central cloud.

Held to the same contract as the fake cloud and a real Keystone (tests/contract/test_clouds_contract.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from dcsync.model.errors import CloudError
from dcsync.model.identity import (
    REVOCATION_EVENT_COLUMNS,
    ActorType,
    Assignment,
    CentralData,
    FernetKeys,
    Record,
    Records,
    ResourceType,
    RevocationEvent,
    record_from_body,
    revocation_event,
)
from dcsync.model.reasons import Reason
from dcsync.model.subcloud import EndpointType, Subcloud
from dcsync.planner.match import Cloud
from dcsync.runs.clouds import Seen
from tests.builders import NOON, central_data, records, some_keys

_ACTOR = {ActorType.USER: ResourceType.USERS, ActorType.GROUP: ResourceType.GROUPS}


OWN_HASH = "$2b$04$own-"
"""How a hash begins that stands for a password set at the cloud itself."""

ROOTS = ("default", "root")
"""Domains that stand in no list of the tests."""


class MemorySite:
    """One cloud's tables behind dcdbsync and Keystone, as a session sees them.

    Rows are listed by physical position, as PostgreSQL does where nobody asks for an order: whatever is rewritten moves
    to the end. What a real one refuses is refused: an id or name that is taken, a member, parent, domain or grantee
    that is not there, a user in a group or a project with tags that changes its id (docs/upstream/real-keystone.md R2,
    R8), a new user without a password (R9), a project with children that is deleted.
    """

    def __init__(
        self,
        cloud: Cloud | None = None,
        *,
        keys: FernetKeys | None = None,
        before_call: Callable[[str], None] = lambda call: None,
    ) -> None:
        cloud = cloud or Cloud(records())
        self.tables: dict[ResourceType, dict[str, Record]] = {
            type_: {record.id: record for record in cloud.records.of(type_)} for type_ in ResourceType
        }
        self.grants = set(cloud.assignments)
        self.events = set(cloud.revocation_events)
        self.keys = keys or some_keys()
        self.calls: list[str] = []
        self.tagged: set[str] = set()
        """Ids of projects with tags or options, which do not follow an id."""
        self.passwords: list[tuple[str, str]] = []
        self.before_call = before_call
        self.identity = self
        self.keystone = MemoryKeystone(self)
        self.fernet_repo = MemoryFernetRepo(self)
        self.services: dict[EndpointType, Any] = {}
        self.seen = Seen()

    def service(self, endpoint_type: EndpointType) -> Any:
        return self.services[endpoint_type]

    @property
    def cloud(self) -> Cloud:
        lists = {type_.value: tuple(self.tables[type_].values()) for type_ in ResourceType}
        return Cloud(Records(**lists), frozenset(self.grants), frozenset(self.events))

    @property
    def writes(self) -> list[str]:
        return [call for call in self.calls if not call.startswith(("GET", "login"))]

    def note(self, call: str) -> None:
        self.before_call(call)
        self.calls.append(call)

    def named(self, type_: ResourceType, name: str) -> Record:
        (found,) = [record for record in self.tables[type_].values() if record.name == name]
        return found

    def put(self, *changed: Record) -> None:
        """Drift: these records, under their ids, over whatever was there."""
        for record in changed:
            self.tables[record.type][record.id] = record

    # --- a session ---

    async def login(self) -> None:
        self.note("login")

    async def list(self, type_: ResourceType) -> tuple[Record, ...]:
        self.note(f"GET {type_}")
        return tuple(self.tables[type_].values())

    async def update(self, old_id: str, record: Record) -> Record:
        self.note(f"PUT {record.type} {record.name}")
        await asyncio.sleep(0)
        table = self.tables[record.type]
        if old_id not in table:
            return self._moved_earlier(old_id, record)
        moves = record.id != old_id
        if record.type is ResourceType.USERS and moves and any(old_id in g.member_ids for g in self._groups()):
            raise CloudError(Reason.SERVER_ERROR, "500 user_group_membership: foreign key")
        if record.type is ResourceType.PROJECTS and moves and old_id in self.tagged:
            raise CloudError(Reason.SERVER_ERROR, f"PUT /identity/projects/{old_id}: 500")
        self._check(record, but=old_id)
        record = _over(table[old_id], record)
        self._rewrite(old_id, record)
        if moves:
            self._follow(record.type, old_id, record.id)
        return record

    def _moved_earlier(self, old_id: str, record: Record) -> Record:
        """Answers a repeated update with the record under its new id (docs/upstream/real-keystone.md R3)."""
        if record.id not in self.tables[record.type]:
            raise CloudError(Reason.REFUSED, f"PUT /identity/{record.type}/{old_id}: 404")
        return self.tables[record.type][record.id]

    async def create(self, record: Record) -> Record:
        self.note(f"POST {record.type} {record.name}")
        self._check(record, but=None)
        if record.type is ResourceType.USERS and not record.body["password"]:
            raise CloudError(Reason.SERVER_ERROR, "500 password: null value")
        self.tables[record.type][record.id] = record
        return record

    async def revocation_events(self) -> frozenset[RevocationEvent]:
        self.note("GET revocation events")
        return frozenset(self.events)

    async def create_revocation_event(self, event: RevocationEvent) -> None:
        self.note("POST revocation event")
        self.events.add(event)

    def delete_row(self, type_: ResourceType, id_: str) -> None:
        if id_ not in self.tables[type_]:
            return
        if type_ is ResourceType.PROJECTS and any(
            id_ in (row.body["project"].get("parent_id"), row.domain_id) for row in self.tables[type_].values()
        ):
            raise CloudError(Reason.REFUSED, "403 a project with children")
        has_roles = any((type_, id_) in _about(grant) for grant in self.grants)
        row = self.tables[type_].pop(id_)
        self.grants = {grant for grant in self.grants if (type_, id_) not in _about(grant)}
        if type_ is ResourceType.USERS:
            for group in self._groups():
                self._set_members(group, [member for member in group.member_ids if member != id_])
            self.end_tokens(user_id=id_)
        if type_ is ResourceType.GROUPS and has_roles:
            for member in row.member_ids:
                self.end_tokens(user_id=member)
        if type_ is ResourceType.PROJECTS:
            self.end_tokens(project_id=id_)

    def end_tokens(self, **columns: str) -> None:
        """Leaves a revocation event, as Keystone does where tokens end."""
        now = NOON.strftime("%Y-%m-%d %H:%M:%S")
        row: dict[str, Any] = dict.fromkeys(REVOCATION_EVENT_COLUMNS)
        self.events.add(revocation_event(row | {"issued_before": now, "revoked_at": now} | columns))

    def add_password(self, user_id: str, password: str) -> None:
        """The former passwords stay as history."""
        user = self.tables[ResourceType.USERS][user_id]
        hashes = [*user.body["password"], {**user.body["password"][-1], "password_hash": f"{OWN_HASH}{password}"}]
        self.tables[ResourceType.USERS][user_id] = record_from_body(user.type, {**user.body, "password": hashes})
        self.end_tokens(user_id=user_id)

    def _groups(self) -> tuple[Record, ...]:
        return tuple(self.tables[ResourceType.GROUPS].values())

    def _set_members(self, group: Record, members: Iterable[str]) -> None:
        body = {**group.body, "local_user_ids": sorted(members)}
        self.tables[ResourceType.GROUPS][group.id] = replace(group, body=body)

    def _check(self, record: Record, *, but: str | None) -> None:
        others = [row for id_, row in self.tables[record.type].items() if id_ != but]
        if any(row.id == record.id or row.key == record.key for row in others):
            raise CloudError(Reason.SERVER_ERROR, f"500 {record.type} {record.name}: duplicate")
        if record.type is ResourceType.GROUPS and not set(record.member_ids) <= self.tables[ResourceType.USERS].keys():
            raise CloudError(Reason.SERVER_ERROR, "500 user_group_membership: foreign key")
        if record.type is ResourceType.PROJECTS:
            for above in (record.body["project"].get("parent_id"), record.domain_id):
                if above not in (None, *ROOTS, record.id) and above not in self.tables[ResourceType.PROJECTS]:
                    raise CloudError(Reason.SERVER_ERROR, "500 project: foreign key")

    def _follow(self, type_: ResourceType, old_id: str, new_id: str) -> None:
        def moved(of: ResourceType, id_: str) -> str:
            return new_id if (of, id_) == (type_, old_id) else id_

        self.grants = {
            Assignment(
                moved(ResourceType.PROJECTS, a.project_id),
                a.actor_type,
                moved(_ACTOR[a.actor_type], a.actor_id),
                moved(ResourceType.ROLES, a.role_id),
            )
            for a in self.grants
        }
        if type_ is ResourceType.PROJECTS:
            self._follow_project(old_id, new_id)

    def _follow_project(self, old_id: str, new_id: str) -> None:
        """What stands under it follows; users of a domain that moves lose passwords and options, groups stay behind."""
        for row in list(self.tables[ResourceType.PROJECTS].values()):
            project = row.body["project"]
            moved = {column: new_id for column in ("parent_id", "domain_id") if project.get(column) == old_id}
            if moved:
                self._rewrite(row.id, record_from_body(row.type, {"project": {**project, **moved}}))
        for row in list(self.tables[ResourceType.USERS].values()):
            if row.domain_id == old_id:
                parts = {part: {**row.body[part], "domain_id": new_id} for part in ("user", "local_user")}
                self._rewrite(row.id, record_from_body(row.type, {**parts, "password": [], "user_option": []}))

    def _rewrite(self, old_id: str, record: Record) -> None:
        table = self.tables[record.type]
        del table[old_id]
        table[record.id] = record


def _over(old: Record, sent: Record) -> Record:
    """What is stored: columns and options that were not sent stay as they were."""
    rows = {part: {**old.body[part], **row} for part, row in sent.body.items() if isinstance(row, Mapping)}
    return record_from_body(sent.type, {**old.body, **sent.body, **rows})


def _about(grant: Assignment) -> tuple[tuple[ResourceType, str], ...]:
    return (
        (_ACTOR[grant.actor_type], grant.actor_id),
        (ResourceType.PROJECTS, grant.project_id),
        (ResourceType.ROLES, grant.role_id),
    )


@dataclass
class MemoryKeystone:
    """The Keystone API of a MemorySite."""

    site: MemorySite

    async def assignments(self) -> frozenset[Assignment]:
        self.site.note("GET role assignments")
        return frozenset(self.site.grants)

    async def grant(self, assignment: Assignment) -> None:
        self.site.note("PUT role assignment")
        if any(id_ not in self.site.tables[type_] for type_, id_ in _about(assignment)):
            raise CloudError(Reason.REFUSED, "404 grant")
        self.site.grants.add(assignment)

    async def revoke(self, assignment: Assignment) -> None:
        self.site.note("DELETE role assignment")
        self.site.grants.discard(assignment)

    async def delete(self, type_: ResourceType, id_: str) -> None:
        name = self.site.tables[type_][id_].name if id_ in self.site.tables[type_] else id_
        self.site.note(f"DELETE {type_} {name}")
        self.site.delete_row(type_, id_)

    async def set_password(self, user_id: str, password: str) -> None:
        self.site.note(f"PATCH users {user_id}")
        if user_id not in self.site.tables[ResourceType.USERS]:
            raise CloudError(Reason.REFUSED, f"PATCH /users/{user_id}: 404")
        self.site.add_password(user_id, password)
        self.site.passwords.append((user_id, password))


@dataclass
class MemoryFernetRepo:
    """The fernet repository of a MemorySite."""

    site: MemorySite

    async def read(self) -> FernetKeys:
        self.site.note("GET fernet_repo")
        return self.site.keys

    async def replace(self, keys: FernetKeys) -> None:
        if not keys.keys:
            raise ValueError("an empty set of keys is never sent")
        self.site.note("POST fernet_repo")
        self.site.keys = keys


class MemoryClouds:
    """A central cloud and one subcloud, whose `calls` note every call to either in their order.

    `central_error` and `site_error` are raised instead of answering. The subcloud refuses the current password of
    `own_user` while it has one that was set there; `previous_password` is the one known from before.
    """

    own_user = "dcmanager"

    def __init__(self, *, central: CentralData | None = None, site: MemorySite | None = None) -> None:
        self.central = central or central_data()
        self.site = site or MemorySite()
        self.central_error: CloudError | None = None
        self.site_error: CloudError | None = None
        self.asked_ages: list[float | None] = []
        self.previous_password: str | None = None

    async def central_data(self) -> CentralData:
        return await self.central_audit_data()

    async def central_audit_data(self, *, max_age: float | None = None) -> CentralData:
        self.asked_ages.append(max_age)
        if self.central_error is not None:
            raise self.central_error
        self.site.note("GET central data")
        return self.central

    @asynccontextmanager
    async def subcloud(self, subcloud: Subcloud, *, request_id: str) -> AsyncIterator[MemorySite]:
        if self.site_error is not None:
            raise self.site_error
        if self._set_at_the_site() is not None:
            raise CloudError(Reason.AUTH_FAILED, "POST tokens: 401")
        self.site.seen = Seen()
        await self.site.login()
        yield self.site

    @asynccontextmanager
    async def with_previous_password(self, subcloud: Subcloud, *, request_id: str) -> AsyncIterator[MemorySite | None]:
        if self.previous_password is None:
            yield None
            return
        if self._set_at_the_site() != f"{OWN_HASH}{self.previous_password}":
            raise CloudError(Reason.AUTH_FAILED, "POST tokens: 401")
        self.site.note("login with the previous password")
        yield self.site

    def _set_at_the_site(self) -> str | None:
        """The hash of the own user's password, if it was set there and not sent by us."""
        users = [user for user in self.site.tables[ResourceType.USERS].values() if user.name == self.own_user]
        newest = [str(user.body["password"][-1]["password_hash"]) for user in users if user.body["password"]]
        return next((word for word in newest if word.startswith(OWN_HASH)), None)
