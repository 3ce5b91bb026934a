"""In-memory ports of the audit: a site with Keystone's foreign keys and cascades, its centre, and the rows.

`MemoryAuditStore` is held to the same contract as the real one (tests/contract/test_audit_store_contract.py).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from dcsync.audit.identity_audit import Cloud
from dcsync.errors import CloudError, Reason
from dcsync.identity import (
    ActorType,
    Assignment,
    CentralData,
    FernetKeys,
    Record,
    Records,
    ResourceType,
    RevocationEvent,
)
from dcsync.subcloud import (
    Subcloud,
)
from tests.builders import central_data, records, some_keys

_ACTOR = {ActorType.USER: ResourceType.USERS, ActorType.GROUP: ResourceType.GROUPS}


class MemorySite:
    """One cloud's tables behind dcdbsync and Keystone, as a session sees them.

    What a real one refuses is refused: an id or name that is taken, a member, parent or grantee that is not there, a
    user in a group who changes its id (contracts/real-keystone.md R2), a project with children that is deleted.
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
        self.passwords: list[tuple[str, str]] = []
        self.before_call = before_call
        self.identity = self
        self.keystone = _Keystone(self)
        self.fernet_repo = _FernetRepo(self)

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
        table = self.tables[record.type]
        if old_id not in table:
            raise CloudError(Reason.REFUSED, f"404 {record.type} {old_id}")
        moves = record.id != old_id
        if record.type is ResourceType.USERS and moves and any(old_id in g.member_ids for g in self._groups()):
            raise CloudError(Reason.SERVER_ERROR, "500 user_group_membership: foreign key")
        self._check(record, but=old_id)
        self.tables[record.type] = {
            (record.id if id_ == old_id else id_): (record if id_ == old_id else row) for id_, row in table.items()
        }
        if moves:
            self._follow(record.type, old_id, record.id)
        return record

    async def create(self, record: Record) -> Record:
        self.note(f"POST {record.type} {record.name}")
        self._check(record, but=None)
        self.tables[record.type][record.id] = record
        return record

    async def revocation_events(self) -> frozenset[RevocationEvent]:
        self.note("GET revocation events")
        return frozenset(self.events)

    async def create_revocation_event(self, event: RevocationEvent) -> None:
        self.note("POST revocation event")
        self.events.add(event)

    def delete_row(self, type_: ResourceType, id_: str) -> None:
        if self.tables[type_].pop(id_, None) is None:
            return
        if type_ is ResourceType.PROJECTS and any(
            row.body["project"].get("parent_id") == id_ for row in self.tables[type_].values()
        ):
            raise CloudError(Reason.REFUSED, "403 a project with children")
        self.grants = {grant for grant in self.grants if (type_, id_) not in _about(grant)}
        if type_ is ResourceType.USERS:
            for group in self._groups():
                self._set_members(group, [member for member in group.member_ids if member != id_])

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
            parent = record.body["project"].get("parent_id")
            if parent not in (None, "default", record.id) and parent not in self.tables[ResourceType.PROJECTS]:
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
            for row in list(self.tables[type_].values()):
                project = row.body["project"]
                if project.get("parent_id") == old_id:
                    body = {"project": {**project, "parent_id": new_id}}
                    self.tables[type_][row.id] = replace(row, body=body)


def _about(grant: Assignment) -> tuple[tuple[ResourceType, str], ...]:
    return (
        (_ACTOR[grant.actor_type], grant.actor_id),
        (ResourceType.PROJECTS, grant.project_id),
        (ResourceType.ROLES, grant.role_id),
    )


@dataclass
class _Keystone:
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
        self.site.passwords.append((user_id, password))


@dataclass
class _FernetRepo:
    site: MemorySite

    async def read(self) -> FernetKeys:
        self.site.note("GET fernet_repo")
        return self.site.keys

    async def replace(self, keys: FernetKeys) -> None:
        self.site.note("POST fernet_repo")
        self.site.keys = keys


class AuditClouds:
    """A centre and one site; `central_error` and `site_error` are raised instead of answering."""

    def __init__(self, *, central: CentralData | None = None, site: MemorySite | None = None) -> None:
        self.central = central or central_data()
        self.site = site or MemorySite()
        self.central_error: CloudError | None = None
        self.site_error: CloudError | None = None

    async def central_data(self) -> CentralData:
        return await self.central_audit_data()

    async def central_audit_data(self) -> CentralData:
        if self.central_error is not None:
            raise self.central_error
        return self.central

    @asynccontextmanager
    async def subcloud(self, subcloud: Subcloud, *, request_id: str) -> AsyncIterator[MemorySite]:
        if self.site_error is not None:
            raise self.site_error
        await self.site.login()
        yield self.site
