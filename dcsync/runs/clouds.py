"""The way to the central cloud and the subclouds, as every run sees it. Calls are coroutines and raise `CloudError`."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from dcsync.model.identity import Assignment, CentralData, FernetKeys, Record, ResourceType, RevocationEvent
from dcsync.model.subcloud import EndpointType, Subcloud


class IdentityService(Protocol):
    """dcdbsync of one subcloud, under one login."""

    async def list(self, type_: ResourceType) -> tuple[Record, ...]:
        """Everything of one type."""

    async def update(self, old_id: str, record: Record) -> Record:
        """PUT `record` over the record `old_id`; answers what is now stored."""

    async def create(self, record: Record) -> Record:
        """POST a record the subcloud does not have, under its own id; answers what is now stored."""

    async def revocation_events(self) -> frozenset[RevocationEvent]:
        """Every revocation event of the subcloud."""

    async def create_revocation_event(self, event: RevocationEvent) -> None:
        """POST an event the subcloud does not have."""


class KeystoneService(Protocol):
    """Keystone's own API of one subcloud, under one login: what must run through Keystone's cascades and hooks."""

    async def assignments(self) -> frozenset[Assignment]:
        """Roles granted on projects, to users and groups; grants on domains and the system are left out."""

    async def grant(self, assignment: Assignment) -> None:
        """A second call changes nothing."""

    async def revoke(self, assignment: Assignment) -> None:
        """No such grant is an answer, not an error."""

    async def delete(self, type_: ResourceType, id_: str) -> None:
        """Delete a user, group, project or role with what hangs on it; not there is an answer, not an error."""

    async def set_password(self, user_id: str, password: str) -> None:
        """PATCH a user's password, in plain text: the way that makes a subcloud update its keyring."""


class FernetRepo(Protocol):
    """sysinv's fernet_repo of one subcloud, under one login."""

    async def read(self) -> FernetKeys:
        """The keys now in use, possibly none."""

    async def replace(self, keys: FernetKeys) -> None:
        """Send the whole set; refuses an empty one, for an empty POST would reset the repository."""


class SubcloudSession(Protocol):
    """One subcloud, logged in. Closed by its context manager."""

    @property
    def identity(self) -> IdentityService: ...

    @property
    def keystone(self) -> KeystoneService: ...

    @property
    def fernet_repo(self) -> FernetRepo: ...

    def service(self, endpoint_type: EndpointType) -> Any:
        """The adapter of the service behind an endpoint type that none of the others serves; KeyError if none is."""

    async def login(self) -> None:
        """Log in anew and drop the token held so far."""


class Clouds(Protocol):
    """The way to the central cloud and to each subcloud."""

    async def central_data(self) -> CentralData:
        """Central records and keys, at most a few seconds old, shared by all runs of the process.

        Without assignments and revocation events: an initial sync gives none, and must not fail for want of them.
        Raises CloudError with a central-* reason; an empty list of users, projects, roles or keys is `central-empty`.
        """

    async def central_audit_data(self, *, max_age: float | None = None) -> CentralData:
        """The same with the central cloud's assignments and revocation events, all of one fetch and shared in the same
        way.

        `max_age`: seconds, for who must not be given what was read before something happened.
        """

    def subcloud(self, subcloud: Subcloud, *, request_id: str) -> AbstractAsyncContextManager[SubcloudSession]:
        """A session, logged in. Every request carries `X-Openstack-Request-Id: <request_id>`."""
