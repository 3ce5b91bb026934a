"""Carries out a planned repair on one subcloud, in the plan's order; it can be planned and begun again at any point.

What is written is decided in `identity_audit`; before each write the run's ownership is asked for.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from dcsync.audit.identity_audit import Cloud, Repair
from dcsync.model.errors import CloudError
from dcsync.model.identity import Record
from dcsync.model.reasons import Reason
from dcsync.planner.alignment import Update, stored_as_sent
from dcsync.runs.clouds import SubcloudSession
from dcsync.runs.delivery import MayWrite, all_or_first_error, read_records, side_by_side, write_verified

T = TypeVar("T")


async def read_cloud(session: SubcloudSession) -> Cloud:
    """Everything an identity audit compares, read side by side."""
    reads: list[Coroutine[Any, Any, Any]] = [
        read_records(session.identity),
        session.keystone.assignments(),
        session.identity.revocation_events(),
    ]
    records, assignments, events = await all_or_first_error(reads)
    return Cloud(records, assignments, events)


@dataclass(frozen=True, kw_only=True)
class Repairer:
    """Writes to one subcloud. `admin_password`: the centre's, for the subcloud's keyring; None where not known."""

    session: SubcloudSession
    may_write: MayWrite
    users_at_once: int
    admin_password: str | None = field(default=None, repr=False)

    async def carry_out(self, repair: Repair) -> None:
        """Raises CloudError, as identity-not-verified for a record that was stored otherwise than it was sent."""
        identity, keystone = self.session.identity, self.session.keystone
        await self._put_all(repair.domains)
        await self._put_all(repair.emptied_groups)
        await self._tell_keyring(repair)
        await side_by_side(repair.users, self._put_when_allowed, at_once=self.users_at_once)
        await self._put_all((*repair.renamed_users, *repair.created_users))
        await self._put_all((*repair.groups, *repair.created_groups))
        await self._put_all(repair.projects)
        await self._put_all((*repair.roles, *repair.created_roles))
        await self._each(repair.granted, keystone.grant)
        await self._each(repair.created_events, identity.create_revocation_event)
        await self._each(repair.revoked, keystone.revoke)
        await self._each(repair.deleted, self._delete)

    async def _tell_keyring(self, repair: Repair) -> None:
        """The plain password first, through Keystone, whose hook stores it in the subcloud's keyring; the central hash
        afterwards, over the one Keystone made. The other way round never ends. Source: docs/upstream/identity-sync.md
        section 7.
        """
        if repair.admin_id is not None and self.admin_password is not None:
            await self.may_write()
            await self.session.keystone.set_password(repair.admin_id, self.admin_password)

    async def _each(self, items: Iterable[T], write: Callable[[T], Awaitable[object]]) -> None:
        for item in items:
            await self.may_write()
            await write(item)

    async def _put_all(self, every: Sequence[Update | Record]) -> None:
        await self._each(every, self._put)

    async def _put_when_allowed(self, update: Update) -> None:
        await self.may_write()
        await write_verified(self.session.identity, update)

    async def _put(self, each: Update | Record) -> None:
        if isinstance(each, Update):
            await write_verified(self.session.identity, each)
            return
        stored = await self.session.identity.create(each)
        if not stored_as_sent(sent=each, stored=stored):
            raise CloudError(
                Reason.IDENTITY_NOT_VERIFIED, f"{each.type} {each.name!r} was stored otherwise than it was sent"
            )

    async def _delete(self, record: Record) -> None:
        await self.session.keystone.delete(record.type, record.id)
