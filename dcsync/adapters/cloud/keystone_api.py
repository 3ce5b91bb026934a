"""Keystone's own API of one cloud: grants read, given and taken back, records deleted, passwords set.

Such writes run through Keystone's cascades and hooks, which rows written by dcdbsync do not. Which grants and records
are whose is decided elsewhere; logging in is `keystone.py`. Source: docs/upstream/http-contracts.md section 2.2.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from dcsync.adapters.cloud.dbsync import usable_id
from dcsync.adapters.cloud.http import Reply
from dcsync.adapters.cloud.keystone import Authenticated
from dcsync.model.identity import ActorType, Assignment, ResourceType

INHERITED = "OS-INHERIT:inherited_to"
"""Marks a grant that counts below the project only: another thing than a grant on the project, and not ours."""


class KeystoneApi:
    """The `KeystoneService` of one cloud, under one login.

    Ids no address can be made of raise ValueError before anything is sent; what is read has none. A 404 is believed
    only after a fresh login, for it may have been said of the token (docs/upstream/real-keystone.md K4).
    """

    def __init__(self, session: Authenticated, *, url: str) -> None:
        self._session = session
        self._url = url

    async def assignments(self) -> frozenset[Assignment]:
        """Roles granted on projects, as granted: implied, inherited, domain and system ones are left out.

        Raises CloudError, as bad-reply also for a list the cloud says it cut short.
        """
        reply = await self._session.request("GET", f"{self._url}/role_assignments", expected=(200,))
        answer = reply.json()
        rows = answer.get("role_assignments") if isinstance(answer, dict) else None
        if not isinstance(rows, list):
            raise reply.bad("not a list of role assignments")
        if answer.get("truncated"):
            raise reply.bad("the list of role assignments was cut short")
        found = (_assignment(reply, row) for row in rows)
        return frozenset(assignment for assignment in found if assignment is not None)

    async def grant(self, assignment: Assignment) -> None:
        """May be repeated. Raises CloudError, as refused when project, actor or role is not there."""
        await self._session.request("PUT", self._grant_url(assignment), expected=(204,))

    async def revoke(self, assignment: Assignment) -> None:
        """May be repeated; no such grant is fine. Raises CloudError."""
        await self._session.request("DELETE", self._grant_url(assignment), expected=(204, 404))

    async def delete(self, type_: ResourceType, id_: str) -> None:
        """May be repeated; no such record is fine. Raises CloudError."""
        await self._session.request("DELETE", f"{self._url}/{type_.value}/{_segment(id_)}", expected=(204, 404))

    async def set_password(self, user_id: str, password: str) -> None:
        """Raises CloudError, as refused when there is no such user or its password rules do not allow this one."""
        url = f"{self._url}/users/{_segment(user_id)}"
        await self._session.request("PATCH", url, expected=(200,), body={"user": {"password": password}})

    def _grant_url(self, assignment: Assignment) -> str:
        project, actor, role = map(_segment, (assignment.project_id, assignment.actor_id, assignment.role_id))
        return f"{self._url}/projects/{project}/{assignment.actor_type.value}s/{actor}/roles/{role}"


def _segment(id_: str) -> str:
    if not usable_id(id_):
        raise ValueError("an id that cannot stand in an address")
    return quote(id_, safe="")


def _assignment(reply: Reply, row: Any) -> Assignment | None:
    """None for a grant that is not one on a project itself."""
    scope = row.get("scope") if isinstance(row, dict) else None
    if not isinstance(scope, dict):
        raise reply.bad("not a role assignment")
    if "project" not in scope or INHERITED in scope:
        return None
    kind = ActorType.GROUP if "group" in row else ActorType.USER
    ids = [_id_in(part) for part in (scope["project"], row.get(kind.value), row.get("role"))]
    if not all(usable_id(id_) for id_ in ids):
        raise reply.bad("a role assignment without usable ids")
    project_id, actor_id, role_id = ids
    return Assignment(project_id=project_id, actor_type=kind, actor_id=actor_id, role_id=role_id)


def _id_in(part: Any) -> str:
    """Empty where there is none; `usable_id` refuses that."""
    id_ = part.get("id") if isinstance(part, dict) else None
    return id_ if isinstance(id_, str) else ""
