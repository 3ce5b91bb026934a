"""The task of the `control` queue about the central cloud's keys: rotate when due, hand them out in waves."""

from __future__ import annotations

import structlog
from celery import shared_task

from dcsync.model.messages import TaskName
from dcsync.rotation.rotate_keys import Result
from dcsync.tasks.base import DcsyncTask

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(__name__)

_WORTH_A_WARNING = frozenset({Result.REFUSED, Result.FAILED})


@shared_task(name=TaskName.ROTATE_KEYS.value, bind=True)
def rotate_keys(self: DcsyncTask, **_: object) -> dict[str, object]:
    """One look; any number of them at once do no harm."""
    outcome = self.sync.key_rotation.run()
    if not outcome.is_idle:
        tell = log.warning if outcome.result in _WORTH_A_WARNING else log.info
        tell("key rotation", **outcome.as_dict())
    return outcome.as_dict()
