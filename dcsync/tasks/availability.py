"""Tasks of the `control` queue for availability: the sweep that finds due probes, and the probes."""

from __future__ import annotations

import structlog
from celery import shared_task

from dcsync.model.messages import TaskName
from dcsync.model.subcloud import AvailabilityStatus
from dcsync.tasks.base import DcsyncTask

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(__name__)


@shared_task(name=TaskName.AVAILABILITY_SWEEP.value, bind=True)
def availability_sweep(self: DcsyncTask, **_: object) -> int:
    """Sends the probes that are due; returns how many. Sends none while DCSYNC_PROBE_INTERVAL is 0."""
    sweep = self.sync.availability_sweep
    return sweep.run(now=self.clock.now()) if sweep is not None else 0


@shared_task(name=TaskName.PROBE.value, bind=True)
def probe_availability(self: DcsyncTask, region_names: list[str], **_: object) -> dict[str, int]:
    """Probes these subclouds and reports changes."""
    tally = self.sync.availability_probe.run(region_names)
    for region_name, status, why in tally.changed:
        write = log.warning if status is AvailabilityStatus.OFFLINE else log.info
        write("availability changes", region_name=region_name, availability=status, why=why)
    return {"good": tally.good, "bad": tally.bad, "reported": tally.reported}
