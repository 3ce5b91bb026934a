"""Keeps a worker alive when Redis goes away while it holds unacknowledged messages.

kombu 5.7.0: after a lost connection Celery closes the connection twice; the second close tries to restore messages
through a transport without a client, and dies of an AttributeError nothing catches. Here such a connection looks like
what it is, a lost one, which every caller handles. To be applied before the Celery app is made. Drop it, and the exact
pins of celery and kombu, once upstream is mended: tests/integration/test_broker_guard.py tells.

And keeps it alive when somebody lays into a queue what is no message, or one that cannot be read: kombu takes it out of
the queue, and the worker ends with a ValueError, TypeError, KeyError or the like. Here it is dropped with a warning.
Messages that are whole, but of another kind than ours, Celery drops by itself: tests/acceptance/test_celery_surface.py
has both.

And keeps it from waiting for ever: celery 5.7.0 repeats a heartbeat that cannot be sent without end, in the worker's
main loop, which then neither notices that the broker is lost nor shows a sign of life. The first of those tests tells.
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
    """None for what is not JSON; `_deliver` drops it."""
    try:
        return _original_loads(text, *args, **kwargs)
    except (ValueError, RecursionError):
        return None


def _deliver(self: Any, message: Any, queue: str) -> Any:
    if not _is_message(message):
        log.warning("what waited in a queue is no message and is dropped", queue=queue)
        return None
    try:
        return _original_deliver(self, message, queue)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        log.warning("a message that cannot be read is dropped", queue=queue, error=type(error).__name__)
        _forget(self, message["properties"]["delivery_tag"])
        return None


def _is_message(message: Any) -> bool:
    """Has it what kombu needs to acknowledge it, and to hand it out again?"""
    properties = message.get("properties") if isinstance(message, dict) else None
    if not isinstance(properties, dict):
        return False
    tag, info = properties.get("delivery_tag"), properties.get("delivery_info")
    return isinstance(tag, str) and isinstance(info, dict) and {"exchange", "routing_key"} <= info.keys()


def _forget(transport: Any, tag: str) -> None:
    """Or it would be distributed again after the visibility timeout, and for ever."""
    for channel in transport.channels:
        if tag in channel.qos._delivered:
            channel.basic_reject(tag, requeue=False)


def try_heartbeats_once() -> None:
    """To be called in a worker, which has loaded what this needs. One that is not sent waits, as all events then do."""
    from celery.worker.heartbeat import Heart

    Heart._send.__defaults__ = (False,)


def apply() -> None:
    """Put the guards in place; a second call changes nothing."""
    kombu_redis.Channel._connparams = _connparams
    kombu_redis.loads = _loads
    kombu_redis.Transport._deliver = _deliver
