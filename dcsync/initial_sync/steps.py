"""The identity step of an initial sync; it can be repeated from its start.

`dcsync.planner` plans the writes, `dcsync.runs.delivery` carries them out, `engine.py` orders the steps.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from dcsync.model.errors import CloudError
from dcsync.model.identity import NewIds, Placed, Records
from dcsync.model.reasons import Reason
from dcsync.planner.plan import plan_initial_sync
from dcsync.runs.clouds import SubcloudSession
from dcsync.runs.delivery import OwnershipCheck, carry_out, read_records

MAX_PLANS = 2
"""Domains first, if their ids differ, then their contents."""


@dataclass(frozen=True)
class IdentityWritten:
    """How many records the identity step wrote, and how many of their ids changed."""

    written: int
    ids_changed: int

    def __str__(self) -> str:
        return f"{self.written} written, {self.ids_changed} ids changed"


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
) -> IdentityWritten:
    """Gives the subcloud's same-named records the central ids and all other fields that an audit compares.

    Stores before the first write what it places: what is deleted centrally before the first audit must be deleted
    here as well. Source: docs/upstream/identity-sync.md section 2; unlike upstream, the precondition is checked
    before the first write.
    """
    written = ids_changed = 0
    for _ in range(MAX_PLANS):
        plan = plan_initial_sync(
            central=central,
            subcloud=await read_records(session.identity),
            region_name=region_name,
            groups_to_refill=groups_to_refill,
        )
        await remember_placed(plan.placed, plan.new_ids)
        if plan.groups_to_refill:
            await remember_groups(plan.groups_to_refill)
        await carry_out(plan.writes, session=session, check_ownership=check_ownership, users_at_once=users_at_once)
        written += len(plan.writes)
        ids_changed += len(plan.new_ids)
        if not plan.moves_domains:
            break
    else:
        raise CloudError(Reason.IDENTITY_NOT_VERIFIED, "a domain has its old id again")
    if plan.groups_to_refill or groups_to_refill:
        await remember_groups({})
    return IdentityWritten(written, ids_changed)
