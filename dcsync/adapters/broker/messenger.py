"""Sends hints through Celery (port `Messenger`), and lists which of them are still queued in Redis.

Publishing is bounded in time: when the broker is unavailable the caller gets an error, and the next sweep sends again.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import redis
from celery import Celery
from kombu.exceptions import BatchPublishError, KombuError, OperationalError

from dcsync.adapters.broker.redis_client import translated_errors
from dcsync.adapters.broker.ticks import Ticks
from dcsync.model.errors import BrokerUnreachable
from dcsync.model.messages import QUEUE_OF, AuditHint, Queue, SyncHint, TaskName, sending_id, sent_task_id

P = ParamSpec("P")
T = TypeVar("T")

_BATCH = 500
_RETRIES = {"max_retries": 2, "interval_start": 0, "interval_step": 0.3, "interval_max": 1}


def _broker_errors(call: Callable[P, T]) -> Callable[P, T]:
    @wraps(call)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return call(*args, **kwargs)
        except (BatchPublishError, OperationalError, KombuError, redis.exceptions.RedisError, OSError) as exc:
            raise BrokerUnreachable(f"the message was not sent: {type(exc).__name__}") from exc

    return wrapper


class CeleryMessenger:
    """Messenger over a Celery app's producer pool; thread-safe."""

    def __init__(self, app: Celery, client: redis.Redis, *, hint_seconds: float) -> None:
        """`hint_seconds`: how long a sweep that was hinted at may wait in the queue before another hint is sent."""
        self._app = app
        self._client = client
        self._ticks = Ticks(client)
        self._hint_seconds = hint_seconds

    @_broker_errors
    def send_sync(self, hints: Sequence[SyncHint]) -> None:
        self._send_batch(TaskName.INITIAL_SYNC, hints)

    @_broker_errors
    def send_audits(self, hints: Sequence[AuditHint]) -> None:
        self._send_batch(TaskName.AUDIT, hints)

    def send_sweep(self) -> None:
        self._hint(TaskName.SWEEP)

    def send_audit_sweep(self) -> None:
        self._hint(TaskName.AUDIT_SWEEP)

    def send_availability_sweep(self) -> None:
        self._hint(TaskName.AVAILABILITY_SWEEP)

    def send_key_rotation(self) -> None:
        self._hint(TaskName.ROTATE_KEYS)

    @_broker_errors
    def _hint(self, name: TaskName) -> None:
        """One hint waits at a time: a thousand changed rows are found by one sweep."""
        if self._ticks.may_hint(name.value, seconds=self._hint_seconds):
            self._send(name, {"hinted": True})

    def _send_batch(self, name: TaskName, hints: Sequence[SyncHint] | Sequence[AuditHint]) -> None:
        with self._app.producer_pool.acquire(block=True, timeout=10) as producer, producer.batch(_BATCH):
            for hint in hints:
                task_id = sending_id(hint.task_id, secrets.token_hex(4))
                self._send(name, hint.payload(), task_id=task_id, producer=producer)

    def _send(self, name: TaskName, payload: dict[str, object], **options: Any) -> None:
        self._app.send_task(
            name.value, kwargs=payload, queue=QUEUE_OF[name].value, retry=True, retry_policy=_RETRIES, **options
        )

    @translated_errors
    def waiting_sync_ids(self) -> set[str]:
        return self._waiting_ids(Queue.SYNC)

    @translated_errors
    def waiting_audit_ids(self) -> set[str]:
        return self._waiting_ids(Queue.AUDIT)

    def _waiting_ids(self, queue: Queue) -> set[str]:
        """Returns the ids of the hints in kombu's list of queued messages, whose elements are JSON with the id of the
        sending in a header."""
        waiting: list[Any] = self._client.lrange(queue.value, 0, -1)
        return set(_task_ids(waiting))


def _task_ids(messages: Iterable[str]) -> Iterable[str]:
    for message in messages:
        try:
            yield sent_task_id(str(json.loads(message)["headers"]["id"]))
        except (ValueError, LookupError, TypeError, RecursionError):
            continue  # not a task message, so not a hint of dcsync
