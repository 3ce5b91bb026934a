"""Gives a subcloud the new password hash of the user that dcsync itself logs in as, and writes nothing else there."""

from __future__ import annotations

from dcsync.model.errors import CloudError
from dcsync.model.identity import Records
from dcsync.model.reasons import Reason
from dcsync.planner.plan import plan_initial_sync
from dcsync.planner.refused import failure_of
from dcsync.planner.writes import Update, Write
from dcsync.runs.clouds import SubcloudSession
from dcsync.runs.delivery import OwnershipCheck, carry_out, read_records


async def deliver_own_password(
    *, session: SubcloudSession, own_user: str, central: Records, region_name: str, check_ownership: OwnershipCheck
) -> None:
    """Replaces the subcloud's record of `own_user` by the central one, as an initial sync does.

    Raises CloudError: ids-not-aligned if the two have different ids, auth-failed if they do not differ, and the
    reason of a write that is refused.
    """
    held = await read_records(session.identity)
    plan = plan_initial_sync(central=central, subcloud=held, region_name=region_name, always=())
    own = [user for user in held.users if user.name == own_user]
    updates = [write.action for write in plan.writes if isinstance(write.action, Update) and write.action.old in own]
    if not updates:
        raise CloudError(
            Reason.AUTH_FAILED, f"the subcloud refuses the password of {own_user}, but has the central hash of it"
        )
    if any(update.changes_id for update in updates):
        raise CloudError(Reason.IDS_NOT_ALIGNED, f"user {own_user} must have the central id since deployment")
    writes = [Write(update) for update in updates]
    delivered = await carry_out(writes, session=session, check_ownership=check_ownership, users_at_once=1)
    if delivered.not_written:
        raise failure_of(delivered.not_written)
