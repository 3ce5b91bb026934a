"""What beat fires, and how often. Data only; read by `dcsync.tasks.app`."""

from __future__ import annotations

from dcsync.messages import QUEUE_OF, TaskName

HOUSEKEEPING_SECONDS = 3600.0
DELIVER_ALARMS_SECONDS = 5.0
RECONCILE_ALARMS_SECONDS = 60.0


def beat_schedule(*, sweep_interval: float) -> dict[str, dict[str, object]]:
    """Celery's `beat_schedule`. A message that nobody took before the next one is due is worthless: it expires."""
    return {
        "sweep": _entry(TaskName.SWEEP, sweep_interval),
        "housekeeping": _entry(TaskName.HOUSEKEEPING, HOUSEKEEPING_SECONDS),
        "deliver-alarms": _entry(TaskName.DELIVER_ALARMS, DELIVER_ALARMS_SECONDS),
        "reconcile-alarms": _entry(TaskName.RECONCILE_ALARMS, RECONCILE_ALARMS_SECONDS),
    }


def _entry(task: TaskName, seconds: float) -> dict[str, object]:
    return {
        "task": task.value,
        "schedule": seconds,
        "options": {"queue": QUEUE_OF[task].value, "expires": seconds},
    }
