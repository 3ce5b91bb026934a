"""Keeps a worker alive when Redis goes away while it holds unacknowledged messages.

kombu 5.7.0: after a lost connection Celery closes the connection twice; the second close tries to restore messages
through a transport without a client, and dies of an AttributeError nothing catches. Here such a connection looks like
what it is, a lost one, which every caller handles. To be applied before the Celery app is made. Drop it, and the exact
pins of celery and kombu, once upstream is mended: tests/integration/test_broker_guard.py tells.
"""

from __future__ import annotations

from typing import Any

import redis
from kombu.transport import redis as kombu_redis

_original = kombu_redis.Channel._connparams


def _connparams(self: Any, *args: Any, **kwargs: Any) -> Any:
    if self.connection is None or self.connection.client is None:
        raise redis.exceptions.ConnectionError("the broker connection was closed")
    return _original(self, *args, **kwargs)


def apply() -> None:
    """Put the guard in place; a second call changes nothing."""
    kombu_redis.Channel._connparams = _connparams
