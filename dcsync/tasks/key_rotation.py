"""The task of the `control` queue for the central cloud's keys: rotate when due, distribute them in waves."""

from __future__ import annotations

import structlog
from celery import shared_task

from dcsync.model.messages import TaskName
from dcsync.rotation.rotate_keys import Result
from dcsync.tasks.base import DcsyncTask, WorkerProcess

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(__name__)

_WARNINGS = frozenset({Result.REFUSED, Result.FAILED})


@shared_task(name=TaskName.ROTATE_KEYS.value, bind=True)
def rotate_keys(self: DcsyncTask, hinted: bool = False, **_: object) -> dict[str, object] | str:
    """Rotates or sends the next wave if due."""
    return self.tick(rotate_keys_now, hinted=hinted)


def rotate_keys_now(process: WorkerProcess) -> dict[str, object]:
    """Rotates or sends the next wave if due; concurrent calls are harmless."""
    outcome = process.sync.key_rotation.run()
    if not outcome.is_idle:
        write = log.warning if outcome.result in _WARNINGS else log.info
        write("key rotation", **outcome.as_dict())
    return outcome.as_dict()
