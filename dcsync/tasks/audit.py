"""Tasks of audits: the sweep and the watch of the central cloud on `control`, audits of subclouds on `audit`."""

from __future__ import annotations

import structlog
from celery import shared_task

from dcsync.model.messages import AuditHint, TaskName
from dcsync.tasks.base import DcsyncTask, WorkerProcess, log_outcomes

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(__name__)


@shared_task(name=TaskName.AUDIT_SWEEP.value, bind=True)
def audit_sweep(self: DcsyncTask, hinted: bool = False, **_: object) -> dict[str, int] | str:
    """Sends hints for audits that are due."""
    return self.tick(audit_sweep_now, hinted=hinted)


def audit_sweep_now(process: WorkerProcess) -> dict[str, int]:
    """Sends hints for audits that are due; concurrent sweeps send each hint once."""
    report = process.sync.audit_sweep.run(now=process.clock.now())
    if not report.is_idle:
        log.info("audit sweep", **vars(report))
    return vars(report)


@shared_task(name=TaskName.WATCH_CENTRAL.value, bind=True)
def watch_central(self: DcsyncTask, hinted: bool = False, **_: object) -> dict[str, object] | str:
    """Checks whether the central cloud changed."""
    return self.tick(watch_central_now, hinted=hinted)


def watch_central_now(process: WorkerProcess) -> dict[str, object]:
    """Checks whether the central cloud changed; if so, sends hints for audits of its subclouds immediately."""
    results = process.sync.central_watch.run(now=process.clock.now())
    for result in results:
        write = log.warning if result.refused else log.info
        write(
            "the central cloud changed", endpoint_type=result.endpoint_type, rows=result.raised, refused=result.refused
        )
    if any(result.raised for result in results):
        process.sync.audit_sweep.run(now=process.clock.now())
    return {result.endpoint_type.value: result.refused or result.raised for result in results}


@shared_task(name=TaskName.AUDIT.value, bind=True)
def audit_subcloud(self: DcsyncTask, region_name: str, **_: object) -> dict[str, object]:
    """Runs the due audits of one subcloud. The message is acknowledged at the start; a sweep finds abandoned audits."""
    on_end = log_outcomes(self.request.id)
    return self.sync.act_on(self.sync.audit, AuditHint(region_name), on_end=on_end).as_dict()
