"""Tasks of the `control` queue: sweep and housekeeping."""

from __future__ import annotations

from datetime import timedelta

import structlog
from celery import shared_task

from dcsync.model.messages import TaskName
from dcsync.tasks.base import DcsyncTask, WorkerProcess

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(__name__)

HISTORY_BATCH = 1000
HISTORY_BATCHES = 100


@shared_task(name=TaskName.SWEEP.value, bind=True)
def sweep(self: DcsyncTask, hinted: bool = False, **_: object) -> dict[str, int] | str:
    """Sweeps once per tick, whatever the number of beats; with `hinted`, after a row was changed, it always sweeps."""
    return self.tick(sweep_now, hinted=hinted)


def sweep_now(process: WorkerProcess) -> dict[str, int]:
    """Runs one sweep."""
    report = process.sync.sweep.run(now=process.clock.now())
    if not report.is_idle:
        log.info("sweep", **vars(report))
    return vars(report)


@shared_task(name=TaskName.HOUSEKEEPING.value, bind=True)
def housekeeping(self: DcsyncTask, hinted: bool = False, **_: object) -> int | str:
    """Deletes history and operations older than DCSYNC_HISTORY_DAYS."""
    return self.tick(remove_history_now, hinted=hinted)


def remove_history_now(process: WorkerProcess) -> int:
    """Deletes history older than DCSYNC_HISTORY_DAYS, in batches; returns how many rows went."""
    services = process.sync
    before = process.clock.now() - timedelta(days=services.settings.history_days)
    removed = 0
    for _batch in range(HISTORY_BATCHES):
        count = services.history.delete_older(than=before, limit=HISTORY_BATCH)
        removed += count
        if count < HISTORY_BATCH:
            break
    return removed
