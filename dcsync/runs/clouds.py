"""Ports to the central cloud and the subclouds, used by every run. Calls are coroutines and raise `CloudError`."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from dcsync.model.identity import Assignment, CentralData, FernetKeys, Record, Records, ResourceType, RevocationEvent
from dcsync.model.subcloud import EndpointType, Subcloud


class IdentityService(Protocol):
    """dcdbsync of one subcloud, with one login."""

    async def list(self, type_: ResourceType) -> tuple[Record, ...]:
        """Returns all records of one type."""

    async def update(self, old_id: str, record: Record) -> Record:
        """Replaces the record `old_id` by PUT; returns the stored record."""

    async def create(self, record: Record) -> Record:
        """Creates a record under its own id by POST; returns the stored record."""

    async def revocation_events(self) -> frozenset[RevocationEvent]:
        """Returns every revocation event of the subcloud."""

    async def create_revocation_event(self, event: RevocationEvent) -> None:
        """Creates an event that is missing on the subcloud."""


class KeystoneService(Protocol):
    """Keystone's API of one subcloud, with one login, for writes that need Keystone's cascades and hooks."""

    async def assignments(self) -> frozenset[Assignment]:
        """Returns roles granted on projects to users and groups, without grants on domains and the system."""

    async def grant(self, assignment: Assignment) -> None:
        """Grants the role; a second call changes nothing."""

    async def revoke(self, assignment: Assignment) -> None:
        """Revokes the grant; a missing grant is not an error."""

    async def delete(self, type_: ResourceType, id_: str) -> None:
        """Deletes a user, group, project or role with its dependent rows; a missing record is not an error."""

    async def set_password(self, user_id: str, password: str) -> None:
        """Sets a user's plain password by PATCH, which also updates the subcloud's keyring."""


class FernetRepo(Protocol):
    """sysinv's fernet_repo of one subcloud, with one login."""

    async def read(self) -> FernetKeys:
        """Returns the keys in use, possibly none."""

    async def replace(self, keys: FernetKeys) -> None:
        """Sends the whole set; raises ValueError for an empty one, because an empty POST resets the repository."""


@dataclass
class Seen:
    """What a run last read of its subcloud and has not written since; None where it must be read again.

    Writes void it (`runs.delivery`), and whoever takes it leaves nothing behind: the reading that ends one piece of
    work is the first reading of the work that follows, and of no other.
    """

    records: Records | None = None
    keys: FernetKeys | None = None

    def take_records(self) -> Records | None:
        taken, self.records = self.records, None
        return taken

    def take_keys(self) -> FernetKeys | None:
        taken, self.keys = self.keys, None
        return taken


class SubcloudSession(Protocol):
    """A logged-in session with one subcloud; closed by its context manager."""

    @property
    def seen(self) -> Seen: ...

    @property
    def identity(self) -> IdentityService: ...

    @property
    def keystone(self) -> KeystoneService: ...

    @property
    def fernet_repo(self) -> FernetRepo: ...

    def service(self, endpoint_type: EndpointType) -> Any:
        """Returns the adapter of another service by endpoint type; raises KeyError if there is none."""

    async def login(self) -> None:
        """Logs in again and discards the previous token."""


class Clouds(Protocol):
    """Access to the central cloud and to each subcloud."""

    @property
    def own_user(self) -> str:
        """The name of the user that dcsync logs in as, on every cloud."""

    async def central_data(self) -> CentralData:
        """Returns central records and keys, at most a few seconds old, shared by all runs of the process.

        Contains no assignments and revocation events: an initial sync does not need them and must not fail without
        them. Raises CloudError with a central-* reason; an empty list of users, projects, roles or keys is
        `central-empty`.
        """

    async def central_audit_data(self, *, max_age: float | None = None) -> CentralData:
        """Returns the same with the central cloud's assignments and revocation events, read together and shared in the
        same way.

        `max_age`: seconds, for callers that need data read after a certain event.
        """

    def subcloud(self, subcloud: Subcloud, *, request_id: str) -> AbstractAsyncContextManager[SubcloudSession]:
        """Opens a logged-in session. Every request carries `X-Openstack-Request-Id: <request_id>`."""

    def with_previous_password(
        self, subcloud: Subcloud, *, request_id: str
    ) -> AbstractAsyncContextManager[SubcloudSession | None]:
        """Opens a session with the password from before its last change; None if none is known. It is only for
        delivering the new hash: when the block ends without an error, the subcloud is taken to have it."""
