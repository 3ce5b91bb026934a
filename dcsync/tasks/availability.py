"""The task of the `control` queue for availability: the sweep that probes what is due."""

from __future__ import annotations

import structlog
from celery import shared_task

from dcsync.model.messages import TaskName
from dcsync.model.subcloud import AvailabilityStatus
from dcsync.probe.availability import MAX_AT_ONCE
from dcsync.tasks.base import DcsyncTask, WorkerProcess

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(__name__)


STAND_IN = 8 * MAX_AT_ONCE
"""Subclouds taken at once when a sweep is late: one thread then does what several would share."""


@shared_task(name=TaskName.AVAILABILITY_SWEEP.value, bind=True)
def availability_sweep(self: DcsyncTask, hinted: bool = False, **_: object) -> dict[str, int] | str:
    """Probes the subclouds that are due; none while DCSYNC_PROBE_INTERVAL is 0."""
    return self.tick(probe_due, hinted=hinted)


def probe_all_due_now(process: WorkerProcess) -> dict[str, int]:
    """As `probe_due`, in this thread alone."""
    return probe_due(process, most=STAND_IN)


def probe_due(process: WorkerProcess, *, most: int = MAX_AT_ONCE) -> dict[str, int]:
    """Probes until no subcloud is due, and reports changes; returns how many were probed, by result."""
    probe = process.sync.availability_probe
    total = {"good": 0, "bad": 0, "reported": 0}
    is_more = probe is not None
    while is_more and probe is not None:
        tally = probe.run(now=process.clock.now(), most=most)
        for region_name, status, why in tally.changed:
            write = log.warning if status is AvailabilityStatus.OFFLINE else log.info
            write("availability changes", region_name=region_name, availability=status, why=why)
        for name in total:
            total[name] += getattr(tally, name)
        is_more = tally.taken == most
        if is_more:
            process.ticks.ended_well(TaskName.AVAILABILITY_SWEEP.value)  # so far: nobody needs to stand in
    return total
