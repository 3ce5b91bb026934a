"""Tasks of the audits: the sweep and the look at the central cloud on `control`, the audit of one subcloud on
`audit`."""

from __future__ import annotations

import structlog
from celery import shared_task

from dcsync.adapters.host.clock import utc_now
from dcsync.model.messages import AuditHint, TaskName
from dcsync.tasks.base import DcsyncTask

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(__name__)


@shared_task(name=TaskName.AUDIT_SWEEP.value, bind=True)
def audit_sweep(self: DcsyncTask, **_: object) -> dict[str, int]:
    """Find audits that are due; two sweeps at once share them between them."""
    report = self.sync.audit_sweep.run(now=utc_now())
    if not report.is_idle:
        log.info("audit sweep", **vars(report))
    return vars(report)


@shared_task(name=TaskName.WATCH_CENTRAL.value, bind=True)
def watch_central(self: DcsyncTask, **_: object) -> dict[str, object]:
    """Look whether the central cloud changed; if so, its subclouds' audits are sent out at once."""
    results = self.sync.central_watch.run(now=utc_now())
    for result in results:
        tell = log.warning if result.refused else log.info
        tell(
            "the central cloud changed", endpoint_type=result.endpoint_type, rows=result.raised, refused=result.refused
        )
    if any(result.raised for result in results):
        self.sync.audit_sweep.run(now=utc_now())
    return {result.endpoint_type.value: result.refused or result.raised for result in results}


@shared_task(name=TaskName.AUDIT.value, bind=True)
def audit_subcloud(self: DcsyncTask, region_name: str, **_: object) -> dict[str, object]:
    """Act on a hint. Acknowledged when it starts: the rows say everything; the sweep takes an abandoned audit back."""
    outcome = self.sync.act_on(self.sync.audit, AuditHint(region_name))
    tell = log.warning if outcome.is_failure else log.info
    tell("audit", task_id=self.request.id, **outcome.as_dict())
    return outcome.as_dict()
