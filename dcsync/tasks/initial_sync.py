"""The task of the `sync` queue: one initial sync of one subcloud, and the audit that follows it."""

from __future__ import annotations

from celery import shared_task

from dcsync.model.messages import AuditHint, SyncHint, TaskName
from dcsync.runs.runner import FollowUp
from dcsync.tasks.base import DcsyncTask, log_outcomes, task_at_work


@shared_task(name=TaskName.INITIAL_SYNC.value, bind=True)
def initial_sync(self: DcsyncTask, region_name: str, generation: int, **_: object) -> dict[str, object]:
    """Runs an initial sync. The message is acknowledged at the start; a sweep finds abandoned runs.

    A run that completed goes on with the audits that are due then: the first ones, unless DCSYNC_AUDIT_INTERVAL is 0.
    """
    task_at_work.set(self.request.id)
    first_audit = FollowUp(self.sync.audit, AuditHint)
    hint, on_end = SyncHint(region_name, generation), log_outcomes(self.request.id)
    return self.sync.act_on(self.sync.initial_sync, hint, then=first_audit, on_end=on_end).as_dict()
