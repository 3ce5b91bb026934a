"""The steps of a run that talk to the subcloud, in the order their promises need; each can be run from its beginning.

Every step asks `may_write` before each write, and that raises when the run no longer owns its subcloud. A step returns
only after what it wrote was read back; anything else is a CloudError. Which step comes when is `engine.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from dcsync.errors import CloudError, Reason
from dcsync.identity import FernetKeys, Record, Records, ResourceType
from dcsync.initial_sync.identity_plan import Plan, Update, plan_identity, stored_as_sent
from dcsync.ports import FernetRepo, IdentityService, SubcloudSession

T = TypeVar("T")

MayWrite = Callable[[], Awaitable[None]]
"""Returns if the run still owns its subcloud; raises what ends the run if not."""


@dataclass(frozen=True)
class IdentityWritten:
    """What the identity step did: how many records were written, and how many of them took another id."""

    written: int
    ids_changed: int

    def __str__(self) -> str:
        return f"{self.written} written, {self.ids_changed} ids changed"


async def align_identity(
    *,
    identity: IdentityService,
    central: Records,
    region_name: str,
    groups_to_refill: Mapping[str, tuple[str, ...]],
    remember_groups: Callable[[Mapping[str, tuple[str, ...]]], Awaitable[None]],
    may_write: MayWrite,
    users_at_once: int,
) -> IdentityWritten:
    """Give the subcloud's same-named records the central ids and the central users' passwords.

    The four lists are read side by side; users are written `users_at_once` at a time; everything else one after
    another, for tied roles written together are refused (contracts/real-keystone.md R7).
    Source: spec/identity-sync.md section 2; unlike upstream, the precondition is checked before the first write.
    """
    subcloud = await read_records(identity)
    plan = plan_identity(central=central, subcloud=subcloud, region_name=region_name, groups_to_refill=groups_to_refill)
    if plan.groups_to_refill:
        await remember_groups(plan.groups_to_refill)
    await _apply(plan, identity, may_write, users_at_once)
    if plan.groups_to_refill or groups_to_refill:
        await remember_groups({})
    return IdentityWritten(written=len(plan.updates), ids_changed=sum(update.changes_id for update in plan.updates))


async def read_records(identity: IdentityService) -> Records:
    """The four lists of one cloud, read side by side."""
    lists = await _all_or_first_error([identity.list(type_) for type_ in ResourceType])
    return Records(*lists)


async def _apply(plan: Plan, identity: IdentityService, may_write: MayWrite, users_at_once: int) -> None:
    async def write(update: Update) -> None:
        await may_write()
        await write_verified(identity, update)

    for update in plan.emptied_groups:
        await write(update)
    await _side_by_side(plan.users, write, at_once=users_at_once)
    for update in (*plan.groups, *plan.projects, *plan.roles):
        await write(update)


async def write_verified(identity: IdentityService, update: Update) -> Record:
    """PUT one record; what the answer holds is what is stored, so it must be what was sent."""
    stored = await identity.update(update.old_id, update.record)
    if not stored_as_sent(sent=update.record, stored=stored):
        raise CloudError(
            Reason.IDENTITY_NOT_VERIFIED,
            f"{update.type} {update.record.name!r} was stored otherwise than it was sent",
        )
    return stored


async def _side_by_side(
    updates: tuple[Update, ...], write: Callable[[Update], Awaitable[None]], *, at_once: int
) -> None:
    """Write them all, `at_once` at a time; at the first error the others are cancelled."""
    waiting = iter(updates)

    async def writer() -> None:
        for update in waiting:
            await write(update)

    await _all_or_first_error([writer() for _ in range(min(at_once, len(updates)))])


async def _all_or_first_error(jobs: list[Coroutine[Any, Any, T]]) -> list[T]:
    """All results; or, once the others are cancelled and ended, the first error itself (not in a group)."""
    tasks = [asyncio.ensure_future(job) for job in jobs]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def replace_fernet_keys(*, session: SubcloudSession, keys: FernetKeys, may_write: MayWrite) -> None:
    """Send the whole central key set, then read it back under a login made with it.

    Sent even when the subcloud has these keys already: it is also what makes the site drop its cached tokens, which
    name the ids the identity step retired. Raises CloudError keys-not-verified when the set read back differs.
    Source: spec/initial-sync.md sections 1 and 6 (step 5); unlike upstream, no error is swallowed.
    """
    problems = keys.problems()
    if problems:
        raise CloudError(Reason.CENTRAL_KEYS_INVALID, f"nothing was sent: {'; '.join(problems)}")
    await may_write()
    await session.fernet_repo.replace(keys)
    await session.login()
    await verify_fernet_keys(session.fernet_repo, keys)


async def verify_fernet_keys(fernet_repo: FernetRepo, keys: FernetKeys) -> None:
    """Raises CloudError keys-not-verified unless the subcloud holds exactly these keys."""
    stored = await fernet_repo.read()
    if stored.fingerprint() != keys.fingerprint():
        raise CloudError(
            Reason.KEYS_NOT_VERIFIED,
            f"the subcloud answers keys {sorted(stored.keys)} that are not the central {sorted(keys.keys)}",
        )
