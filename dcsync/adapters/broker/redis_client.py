"""The Redis client for dcsync's own keys (locks, ticks) and for reading queues. Celery makes its own connections.

With redis-py's defaults (ten retries of five seconds, not logged) one slow answer blocks for a minute, so retries and
timeouts are set here, and every error becomes BrokerUnreachable.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from dcsync.model.errors import BrokerUnreachable

P = ParamSpec("P")
T = TypeVar("T")


def make_client(url: str, *, timeout_seconds: float = 3.0, retries: int = 2) -> redis.Redis:
    """Returns a thread-safe client, which connects at its first command."""
    return redis.Redis.from_url(
        url,
        socket_connect_timeout=timeout_seconds,
        socket_timeout=timeout_seconds,
        socket_keepalive=True,
        health_check_interval=15,
        retry=Retry(ConstantBackoff(0.2), retries),
        retry_on_error=[redis.exceptions.ConnectionError],
        decode_responses=True,
        encoding_errors="replace",  # a queue may contain messages that are not text
    )


def translated_errors(call: Callable[P, T]) -> Callable[P, T]:
    """Raises BrokerUnreachable for every error of redis-py; the message names the error's type, never the URL."""

    @wraps(call)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return call(*args, **kwargs)
        except redis.exceptions.RedisError as exc:
            raise BrokerUnreachable(f"Redis: {type(exc).__name__}") from exc

    return wrapper
