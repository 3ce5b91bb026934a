"""The task of the `sync` queue: one initial sync of one subcloud."""

from __future__ import annotations

import structlog
from celery import shared_task

from dcsync.model.errors import TemporaryError
from dcsync.model.messages import SyncHint, TaskName
from dcsync.runs.outcome import Result
from dcsync.tasks.base import DcsyncTask

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(__name__)


@shared_task(name=TaskName.INITIAL_SYNC.value, bind=True)
def initial_sync(self: DcsyncTask, region_name: str, generation: int, **_: object) -> dict[str, object]:
    """Runs an initial sync. The message is acknowledged at the start; a sweep finds abandoned runs."""
    outcome = self.sync.act_on(self.sync.initial_sync, SyncHint(region_name, generation))
    write = log.warning if outcome.is_failure else log.info
    write("initial sync", task_id=self.request.id, **outcome.as_dict())
    if outcome.result is Result.COMPLETED and self.sync.settings.audit_interval:
        _send_first_audit(self, region_name)
    return outcome.as_dict()


def _send_first_audit(task: DcsyncTask, region_name: str) -> None:
    """Sends the hint for the first audit; if it cannot be sent, the next sweep finds the audit due."""
    try:
        task.sync.audit_sweep.send_now(region_name, now=task.clock.now())
    except TemporaryError as exc:
        log.warning("first audit waits for the next sweep", region_name=region_name, error=str(exc))
