"""What beat fires, and how often. Data only; read by `dcsync.tasks.app`."""

from __future__ import annotations

from dcsync.model.messages import QUEUE_OF, TaskName

HOUSEKEEPING_SECONDS = 3600.0
DELIVER_ALARMS_SECONDS = 5.0
RECONCILE_ALARMS_SECONDS = 60.0
KEY_ROTATION_SECONDS = 5.0
"""How often it is looked whether a rotation is due, and while one is distributed, who gets the keys next."""
PROBE_SWEEPS_PER_INTERVAL = 5
"""Probes are due at times of their own, a little spread: so who is due is asked more often than each is due."""
PROBE_SWEEP_SECONDS = (0.25, 5.0)
"""The least and the most between two availability sweeps."""


def beat_schedule(
    *, sweep_interval: float, probe_interval: float, audit_interval: float, central_watch_interval: float
) -> dict[str, dict[str, object]]:
    """Celery's `beat_schedule`. No message expires: that would compare beat's clock with a worker's. One that is late
    finds its tick taken and ends at once (see `dcsync.tasks.periodic`).

    A `probe_interval` of 0 is for systems whose availability others observe, an `audit_interval` of 0 for those that
    audit only on request: nobody watches the central cloud then, but sweeps find what was requested.
    """
    schedule = {
        "sweep": _entry(TaskName.SWEEP, sweep_interval),
        "audit-sweep": _entry(TaskName.AUDIT_SWEEP, sweep_interval),
        "housekeeping": _entry(TaskName.HOUSEKEEPING, HOUSEKEEPING_SECONDS),
        "deliver-alarms": _entry(TaskName.DELIVER_ALARMS, DELIVER_ALARMS_SECONDS),
        "reconcile-alarms": _entry(TaskName.RECONCILE_ALARMS, RECONCILE_ALARMS_SECONDS),
        "key-rotation": _entry(TaskName.ROTATE_KEYS, min(KEY_ROTATION_SECONDS, sweep_interval)),
    }
    if audit_interval:
        schedule["watch-central"] = _entry(TaskName.WATCH_CENTRAL, central_watch_interval)
    if probe_interval:
        least, most = PROBE_SWEEP_SECONDS
        seconds = min(most, max(least, probe_interval / PROBE_SWEEPS_PER_INTERVAL))
        schedule["availability-sweep"] = _entry(TaskName.AVAILABILITY_SWEEP, seconds)
    return schedule


def _entry(task: TaskName, seconds: float) -> dict[str, object]:
    return {
        "task": task.value,
        "schedule": seconds,
        "options": {"queue": QUEUE_OF[task].value},
    }
