"""The task of the `sync` queue: one initial sync of one subcloud."""

from __future__ import annotations

import structlog
from celery import shared_task

from dcsync.adapters.host.clock import utc_now
from dcsync.model.errors import TemporaryError
from dcsync.model.messages import SyncHint, TaskName
from dcsync.runs.outcome import Result
from dcsync.tasks.base import DcsyncTask

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(__name__)


@shared_task(name=TaskName.INITIAL_SYNC.value, bind=True)
def initial_sync(self: DcsyncTask, region_name: str, generation: int, **_: object) -> dict[str, object]:
    """Act on a hint. Acknowledged when it starts: the row says everything; the sweep takes an abandoned run back."""
    outcome = self.sync.act_on(self.sync.initial_sync, SyncHint(region_name, generation))
    tell = log.warning if outcome.is_failure else log.info
    tell("initial sync", task_id=self.request.id, **outcome.as_dict())
    if outcome.result is Result.COMPLETED and self.sync.settings.audit_interval:
        _audit_at_once(self, region_name)
    return outcome.as_dict()


def _audit_at_once(task: DcsyncTask, region_name: str) -> None:
    """The row says that its audits are due; a hint that cannot be sent is made good by the next sweep."""
    try:
        task.sync.audit_sweep.send_now(region_name, now=utc_now())
    except TemporaryError as exc:
        log.warning("first audit waits for the next sweep", region_name=region_name, error=str(exc))
