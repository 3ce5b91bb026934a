"""How records and keys are written to a subcloud and read back; shared by the initial sync and the audit.

Before each write the caller's `may_write` is asked, and raises when the run no longer owns its subcloud. A write that
was not stored as sent is a CloudError. What is written is decided elsewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from dcsync.model.ending import Ending
from dcsync.model.errors import CloudError
from dcsync.model.identity import FernetKeys, Record, Records, ResourceType
from dcsync.model.reasons import Reason
from dcsync.planner.alignment import Update, stored_as_sent
from dcsync.runs.clouds import FernetRepo, IdentityService, SubcloudSession
from dcsync.runs.ports import Owner, Ownership, Standing

T = TypeVar("T")

MayWrite = Callable[[], Awaitable[None]]
"""Returns if the run still owns its subcloud; raises what ends the run if not."""


class Stopped(Exception):
    """The run no longer owns its subcloud: raised before the write that would have been one too many."""

    def __init__(self, standing: Standing) -> None:
        super().__init__(standing)
        self.standing = standing


async def require_ownership(ownership: Ownership, run: Owner) -> None:
    """Returns if the run still owns its subcloud, by row and lock; raises Stopped if not."""
    standing = await ownership.standing(run)
    if standing is not None:
        raise Stopped(standing)


async def write_own(ownership: Ownership, run: Owner, write: Callable[..., bool], *args: object) -> None:
    """A write to our own rows, refused when the run lost its subcloud; raises Stopped with the reason why then."""
    if not await asyncio.to_thread(write, *args):
        standing = await ownership.standing(run)
        raise Stopped(standing or Standing(Ending.SUPERSEDED, "its row was no longer its own"))


async def read_records(identity: IdentityService) -> Records:
    """The four lists of one cloud, read side by side."""
    lists = await all_or_first_error([identity.list(type_) for type_ in ResourceType])
    return Records(*lists)


async def write_verified(identity: IdentityService, update: Update) -> Record:
    """PUT one record; what the answer holds is what is stored, so it must be what was sent."""
    stored = await identity.update(update.old_id, update.record)
    if not stored_as_sent(sent=update.record, stored=stored):
        raise CloudError(
            Reason.IDENTITY_NOT_VERIFIED,
            f"{update.type} {update.record.name!r} was stored otherwise than it was sent",
        )
    return stored


async def side_by_side(
    updates: tuple[Update, ...], write: Callable[[Update], Awaitable[None]], *, at_once: int
) -> None:
    """Write them all, `at_once` at a time; at the first error the others are cancelled."""
    waiting = iter(updates)

    async def writer() -> None:
        for update in waiting:
            await write(update)

    await all_or_first_error([writer() for _ in range(min(at_once, len(updates)))])


async def all_or_first_error(jobs: list[Coroutine[Any, Any, T]]) -> list[T]:
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
    Source: docs/upstream/initial-sync.md sections 1 and 6 (step 5); unlike upstream, no error is swallowed.
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
