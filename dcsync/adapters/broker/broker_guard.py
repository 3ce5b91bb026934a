"""Patches for kombu and celery 5.7.0 that keep a worker running; applied before the Celery app is created.

Lost connection: when Redis fails while a worker has unacknowledged messages, Celery closes the connection twice. The
second close tries to restore messages through a transport without a client and raises an AttributeError that nothing
catches. Here it raises a ConnectionError, which every caller handles. Remove this, and the exact pins of celery and
kombu, once tests/integration/test_broker_guard.py shows that upstream is fixed.

Malformed messages: kombu takes them out of the queue, and the worker ends with a ValueError, TypeError, KeyError or
similar. Here they are dropped with a warning. Celery itself drops well-formed messages of unknown tasks;
tests/acceptance/test_celery_surface.py tests both.

Heartbeats: celery 5.7.0 retries a failed heartbeat without end in the worker's main loop, which then neither detects
the lost broker nor shows a sign of life. Here a heartbeat is sent once; the first test covers it.
"""

from __future__ import annotations

from typing import Any

import redis
import structlog
from kombu.transport import redis as kombu_redis

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(__name__)

_original = kombu_redis.Channel._connparams
_original_loads = kombu_redis.loads
_original_deliver = kombu_redis.Transport._deliver


def _connparams(self: Any, *args: Any, **kwargs: Any) -> Any:
    if self.connection is None or self.connection.client is None:
        raise redis.exceptions.ConnectionError("the broker connection was closed")
    return _original(self, *args, **kwargs)


def _loads(text: str, *args: Any, **kwargs: Any) -> Any:
    """Returns None for anything but JSON; `_deliver` drops it."""
    try:
        return _original_loads(text, *args, **kwargs)
    except (ValueError, RecursionError):
        return None


def _deliver(self: Any, message: Any, queue: str) -> Any:
    if not _is_message(message):
        log.warning("dropped a queue entry that is not a message", queue=queue)
        return None
    try:
        return _original_deliver(self, message, queue)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        log.warning("dropped a malformed message", queue=queue, error=type(error).__name__)
        _reject(self, message["properties"]["delivery_tag"])
        return None


def _is_message(message: Any) -> bool:
    """Returns whether it has the fields kombu needs to acknowledge and to redeliver it."""
    properties = message.get("properties") if isinstance(message, dict) else None
    if not isinstance(properties, dict):
        return False
    tag, info = properties.get("delivery_tag"), properties.get("delivery_info")
    return isinstance(tag, str) and isinstance(info, dict) and {"exchange", "routing_key"} <= info.keys()


def _reject(transport: Any, tag: str) -> None:
    """Rejects the message; otherwise it would be redelivered after each visibility timeout."""
    for channel in transport.channels:
        if tag in channel.qos._delivered:
            channel.basic_reject(tag, requeue=False)


def try_heartbeats_once() -> None:
    """Sends each heartbeat without retries; one that fails is buffered like other events. Called in a worker only."""
    from celery.worker.heartbeat import Heart

    Heart._send.__defaults__ = (False,)


def apply() -> None:
    """Applies the patches; a second call changes nothing."""
    kombu_redis.Channel._connparams = _connparams
    kombu_redis.loads = _loads
    kombu_redis.Transport._deliver = _deliver
