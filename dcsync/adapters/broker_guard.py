"""Keeps a worker alive when Redis goes away while it holds unacknowledged messages.

kombu 5.7.0: after a lost connection Celery closes the connection twice; the second close tries to restore messages
through a transport without a client, and dies of an AttributeError nothing catches. Here such a connection looks like
what it is, a lost one, which every caller handles. To be applied before the Celery app is made. Drop it, and the exact
pins of celery and kombu, once upstream is mended: tests/integration/test_broker_guard.py tells.

And keeps it alive when somebody lays into a queue what is no message at all: kombu takes it out of the queue, fails to
read it, and ends the worker with a ValueError, TypeError or KeyError. Here it is dropped with a warning. Messages that
are whole, but of another kind than ours, Celery drops by itself: tests/acceptance/test_celery_surface.py has both.
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
    except ValueError:
        return None


def _deliver(self: Any, message: Any, queue: str) -> Any:
    properties = message.get("properties") if isinstance(message, dict) else None
    if not (isinstance(properties, dict) and properties.get("delivery_tag")):
        log.warning("what waited in a queue is no message and is dropped", queue=queue)
        return None
    return _original_deliver(self, message, queue)


def apply() -> None:
    """Put the guards in place; a second call changes nothing."""
    kombu_redis.Channel._connparams = _connparams
    kombu_redis.loads = _loads
    kombu_redis.Transport._deliver = _deliver
