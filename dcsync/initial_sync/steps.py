"""The identity step of an initial sync, in the order its promise needs; it can be run again from its beginning.

How single records and keys are delivered is `dcsync.runs.delivery`; which step comes when is `engine.py`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from dcsync.initial_sync.identity_plan import Plan, plan_identity
from dcsync.model.identity import NewIds, Placed, Records
from dcsync.planner.alignment import Update
from dcsync.runs.clouds import IdentityService
from dcsync.runs.delivery import MayWrite, read_records, side_by_side, write_verified


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
    remember_placed: Callable[[Placed, NewIds], Awaitable[None]],
    may_write: MayWrite,
    users_at_once: int,
) -> IdentityWritten:
    """Give the subcloud's same-named records the central ids and the central users' passwords.

    The four lists are read side by side; users are written `users_at_once` at a time; everything else one after
    another, for tied roles written together are refused (docs/upstream/real-keystone.md R7). Before the first write it
    is kept what is the centre's from then on: what is deleted there before the first audit must go here as well.
    Source: docs/upstream/identity-sync.md section 2; unlike upstream, the precondition is checked before the first
    write.
    """
    subcloud = await read_records(identity)
    plan = plan_identity(central=central, subcloud=subcloud, region_name=region_name, groups_to_refill=groups_to_refill)
    await remember_placed(plan.placed, plan.new_ids)
    if plan.groups_to_refill:
        await remember_groups(plan.groups_to_refill)
    await _apply(plan, identity, may_write, users_at_once)
    if plan.groups_to_refill or groups_to_refill:
        await remember_groups({})
    return IdentityWritten(written=len(plan.updates), ids_changed=sum(update.changes_id for update in plan.updates))


async def _apply(plan: Plan, identity: IdentityService, may_write: MayWrite, users_at_once: int) -> None:
    async def write(update: Update) -> None:
        await may_write()
        await write_verified(identity, update)

    for update in plan.emptied_groups:
        await write(update)
    await side_by_side(plan.users, write, at_once=users_at_once)
    for update in (*plan.groups, *plan.projects, *plan.roles):
        await write(update)
