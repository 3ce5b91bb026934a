"""The steps of an initial sync that read and write a subcloud; each can be repeated from its start.

`dcsync.planner` plans the writes, `dcsync.runs.delivery` carries them out, `engine.py` orders the steps.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass

from dcsync.model.errors import CloudError
from dcsync.model.identity import FernetKeys, NewIds, Placed, Records
from dcsync.model.reasons import Reason
from dcsync.planner.plan import IdentityPlan, plan_initial_sync
from dcsync.planner.refused import NotWritten, failure_of
from dcsync.runs.clouds import SubcloudSession
from dcsync.runs.delivery import (
    OwnershipCheck,
    carry_out,
    holds_fernet_keys,
    read_and_note,
    replace_fernet_keys,
)

MAX_PLANS = 2
"""Domains first, if their ids differ, then their contents."""

FEW = 3
"""How many writes a failure names."""


@dataclass(frozen=True)
class IdentityWritten:
    """How many records the identity step wrote, and how many of their ids changed."""

    written: int
    ids_changed: int

    def __str__(self) -> str:
        return f"{self.written} written, {self.ids_changed} ids changed"


@dataclass(frozen=True)
class KeysGiven:
    """What the step of the fernet keys did; either way they were read from the subcloud."""

    was_sent: bool

    def __str__(self) -> str:
        return "sent and read back" if self.was_sent else "read: the central ones already"


async def align_identity(
    *,
    session: SubcloudSession,
    central: Records,
    region_name: str,
    groups_to_refill: Mapping[str, tuple[str, ...]],
    remember_groups: Callable[[Mapping[str, tuple[str, ...]]], Awaitable[None]],
    remember_placed: Callable[[Placed, NewIds], Awaitable[None]],
    check_ownership: OwnershipCheck,
    users_at_once: int,
    always: Collection[str],
) -> IdentityWritten:
    """Gives the subcloud's same-named records the central ids and all other fields that an audit compares.

    Always reads the lists and checks the precondition; writes what differs, and the users `always`. A refused write
    stops only what depends on it. After any write it reads the lists again, and raises CloudError if what was refused
    still differs, or as identity-not-verified unless the ids agree. Stores before the first write what it places: what
    is deleted centrally before the first audit must be deleted here as well. Source: docs/upstream/identity-sync.md
    section 2; unlike upstream, the precondition is checked before the first write.
    """
    refused: list[NotWritten] = []

    async def plan(always: Collection[str]) -> IdentityPlan:
        return plan_initial_sync(
            central=central,
            subcloud=await read_and_note(session),
            region_name=region_name,
            groups_to_refill=groups_to_refill,
            always=always,
            refused=refused,
        )

    written = ids_changed = 0
    for _ in range(MAX_PLANS):
        planned = await plan(always)
        await remember_placed(planned.placed, planned.new_ids)
        if planned.groups_to_refill:
            await remember_groups(planned.groups_to_refill)
        delivered = await carry_out(
            planned.writes, session=session, check_ownership=check_ownership, users_at_once=users_at_once
        )
        written += len(delivered.written)
        ids_changed += sum(write.changes_id for write in delivered.written)
        refused += delivered.not_written
        if not planned.moves_domains:
            break
    else:
        raise CloudError(Reason.IDENTITY_NOT_VERIFIED, "a domain has its old id again")
    if written or refused or planned.refused:
        _require_agreement(await plan(()), refused)
    if planned.groups_to_refill or groups_to_refill:
        await remember_groups({})
    return IdentityWritten(written, ids_changed)


def _require_agreement(after: IdentityPlan, refused: Collection[NotWritten]) -> None:
    """Raises CloudError where the subcloud, read again, still differs in what was refused, or lists another id than the
    central one. Some writes are answered with an error and stored: those count as written."""
    left = set(after.words)
    lost = (*after.refused, *(each for each in refused if each.action.words in left))
    if any(each.reason is not None for each in lost):
        raise failure_of(lost)
    if after.new_ids:
        words = ", ".join(after.words[:FEW])
        raise CloudError(Reason.IDENTITY_NOT_VERIFIED, f"read back, the ids do not agree; still to be done: {words}")


async def give_fernet_keys(
    *, session: SubcloudSession, keys: FernetKeys, check_ownership: OwnershipCheck, always: bool
) -> KeysGiven:
    """Sends the central keys and reads them back; without `always` only to a subcloud that is read to have others."""
    if not always and await holds_fernet_keys(session=session, keys=keys):
        return KeysGiven(was_sent=False)
    await replace_fernet_keys(session=session, keys=keys, check_ownership=check_ownership)
    return KeysGiven(was_sent=True)
