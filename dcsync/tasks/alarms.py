"""Tasks of the `control` queue for alarms: deliver them to sinks, and reconcile alarms, rows and settings."""

from __future__ import annotations

from datetime import timedelta

import structlog
from celery import shared_task

from dcsync.model.messages import TaskName
from dcsync.tasks.base import DcsyncTask, WorkerProcess

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(__name__)

REJECTED_KEPT = 10_000


@shared_task(name=TaskName.DELIVER_ALARMS.value, bind=True)
def deliver_alarms(self: DcsyncTask, hinted: bool = False, **_: object) -> dict[str, int] | str:
    """Delivers new alarm notices to each sink."""
    return self.tick(deliver_now, hinted=hinted)


def deliver_now(process: WorkerProcess) -> dict[str, int]:
    """Delivers new alarm notices to each sink; returns how many each accepted."""
    return process.state.alarm_feed.deliver()


@shared_task(name=TaskName.RECONCILE_ALARMS.value, bind=True)
def reconcile_alarms(self: DcsyncTask, hinted: bool = False, **_: object) -> dict[str, int] | str:
    """Makes alarms, rows and settings agree."""
    return self.tick(reconcile_now, hinted=hinted)


def reconcile_now(process: WorkerProcess) -> dict[str, int]:
    """Raises and clears alarms to match the rows, and deletes old cleared ones.

    Adds the status rows of endpoint types that were configured after a subcloud was added.
    """
    services = process.state
    now = process.clock.now()
    added = services.service.add_missing_endpoints()
    raised, cleared = services.alarm_store.reconcile(now=now)
    if raised or cleared:
        log.warning("alarms did not match the rows", raised=raised, cleared=cleared)
    history = timedelta(days=services.settings.history_days)
    removed = services.alarm_store.prune(cleared_before=now - history, rejected_kept=REJECTED_KEPT)
    return {"raised": raised, "cleared": cleared, "removed": removed, "added": added}
