"""The task of the `state` queue: applies the reports of one message. No other task uses this queue.

The message is acknowledged after the commit, so that a killed worker loses none; applying it twice changes nothing.
"""

from __future__ import annotations

import threading

import structlog
from celery import shared_task
from celery.exceptions import Reject

from dcsync.model.errors import MisconfiguredError, TemporaryError
from dcsync.model.messages import PAYLOAD_VERSION, TaskName
from dcsync.tasks.base import DcsyncTask

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(__name__)

PAUSE_SECONDS = 1.0
"""How long a worker waits before it returns a message to the queue while PostgreSQL is unavailable."""


@shared_task(name=TaskName.STATE_UPDATES.value, bind=True, acks_late=True, reject_on_worker_lost=True)
def apply_updates(
    self: DcsyncTask,
    updates: list[object] | None = None,
    version: int = PAYLOAD_VERSION,
    signature: object = None,
    **_: object,
) -> dict[str, int]:
    """Applies the reports of one message, and returns it to the queue while the database does not answer."""
    payloads: list[object] = updates if isinstance(updates, list) else [updates]
    if version != PAYLOAD_VERSION:
        payloads = [{"kind": f"message of version {version!r:.20}", "updates": len(payloads)}]
    try:
        tally = self.state.service.apply_message(payloads, signature=signature)
    except (TemporaryError, MisconfiguredError) as error:  # no database, or one not upgraded yet
        log.warning("reports not applied yet", reports=len(payloads), error=str(error))
        threading.Event().wait(PAUSE_SECONDS)
        raise Reject(str(error), requeue=True) from error
    counts = tally.as_dict()
    (log.warning if tally.rejected else log.debug)("reports applied", **counts)
    return counts
