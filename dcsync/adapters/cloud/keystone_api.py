"""Keystone's own API: lists, adds and revokes grants, deletes records, sets passwords.

These writes trigger Keystone's cascades and hooks, writes through dcdbsync do not. The planner decides what is written;
`keystone.py` logs in. Source: docs/upstream/http-contracts.md section 2.2.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from dcsync.adapters.cloud.dbsync import usable_id
from dcsync.adapters.cloud.http import Reply
from dcsync.adapters.cloud.keystone import Authenticated
from dcsync.model.identity import ActorType, Assignment, ResourceType

INHERITED = "OS-INHERIT:inherited_to"
"""Marks a grant inherited by the projects below; it is no grant on the project itself and is not synchronized."""


class KeystoneApi:
    """The `KeystoneService` of one cloud, with one login.

    An id that cannot be part of a URL raises ValueError before anything is sent; none is ever returned. A 404 counts
    only after a new login, because it may concern the token (docs/upstream/real-keystone.md K4).
    """

    def __init__(self, session: Authenticated, *, url: str) -> None:
        self._session = session
        self._url = url

    async def assignments(self) -> frozenset[Assignment]:
        """Returns the roles granted on projects, without implied, inherited, domain and system grants.

        Raises CloudError, as bad-reply also for a list marked as truncated.
        """
        reply = await self._session.request("GET", f"{self._url}/role_assignments", expected=(200,))
        found = await reply.listed(lambda row: _assignment(reply, row), key="role_assignments")
        if found is None:
            raise reply.bad("not a list of role assignments")
        if found.others.get("truncated"):
            raise reply.bad("the list of role assignments is truncated")
        return frozenset(assignment for assignment in found.elements if assignment is not None)

    async def grant(self, assignment: Assignment) -> None:
        """Adds the grant; may be repeated. Raises CloudError, as refused when project, actor or role is missing."""
        await self._session.request("PUT", self._grant_url(assignment), expected=(204,))

    async def revoke(self, assignment: Assignment) -> None:
        """Revokes the grant if it exists; may be repeated. Raises CloudError."""
        await self._session.request("DELETE", self._grant_url(assignment), expected=(204, 404))

    async def delete(self, type_: ResourceType, id_: str) -> None:
        """Deletes the record if it exists; may be repeated. Raises CloudError."""
        await self._session.request("DELETE", f"{self._url}/{type_.value}/{_segment(id_)}", expected=(204, 404))

    async def set_password(self, user_id: str, password: str) -> None:
        """Sets the password. Raises CloudError, as refused when the user is missing or the password is not allowed."""
        url = f"{self._url}/users/{_segment(user_id)}"
        await self._session.request("PATCH", url, expected=(200,), body={"user": {"password": password}})

    def _grant_url(self, assignment: Assignment) -> str:
        project, actor, role = map(_segment, (assignment.project_id, assignment.actor_id, assignment.role_id))
        return f"{self._url}/projects/{project}/{assignment.actor_type.value}s/{actor}/roles/{role}"


def _segment(id_: str) -> str:
    if not usable_id(id_):
        raise ValueError("the id cannot be part of a URL")
    return quote(id_, safe="")


def _assignment(reply: Reply, row: Any) -> Assignment | None:
    """Returns None for a grant that is not on a project itself."""
    scope = row.get("scope") if isinstance(row, dict) else None
    if not isinstance(scope, dict):
        raise reply.bad("not a role assignment")
    if "project" not in scope or INHERITED in scope:
        return None
    actor_type = ActorType.GROUP if "group" in row else ActorType.USER
    ids = [_id_in(part) for part in (scope["project"], row.get(actor_type.value), row.get("role"))]
    if not all(usable_id(id_) for id_ in ids):
        raise reply.bad("a role assignment without usable ids")
    project_id, actor_id, role_id = ids
    return Assignment(project_id=project_id, actor_type=actor_type, actor_id=actor_id, role_id=role_id)


def _id_in(part: Any) -> str:
    """Returns the id, or an empty one, which `usable_id` rejects."""
    id_ = part.get("id") if isinstance(part, dict) else None
    return id_ if isinstance(id_, str) else ""
