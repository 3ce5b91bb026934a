"""The task of the `sync` queue: one initial sync of one subcloud."""

from __future__ import annotations

import structlog
from celery import shared_task

from dcsync.initial_sync.engine import Result
from dcsync.messages import TaskName
from dcsync.tasks.base import DcsyncTask

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(__name__)


@shared_task(name=TaskName.INITIAL_SYNC.value, bind=True)
def initial_sync(self: DcsyncTask, region_name: str, generation: int, **_: object) -> dict[str, object]:
    """Act on a hint. Acknowledged when it starts: the row says everything; the sweep takes an abandoned run back."""
    outcome = self.sync.initial_sync.run(region_name=region_name, generation=generation).as_dict()
    tell = log.warning if outcome["result"] == Result.FAILED else log.info
    tell("initial sync", task_id=self.request.id, **outcome)
    return outcome
