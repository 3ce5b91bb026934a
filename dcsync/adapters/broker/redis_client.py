"""The Redis client for our own keys: locks, slots, queue look-ups. Celery's broker connections are Celery's own.

redis-py's defaults (ten silent retries, five seconds each) turn one slow answer into a minute of silence, so retries
and timeouts are given explicitly, and whatever goes wrong becomes BrokerUnreachable.
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
    """A thread-safe client; nothing is connected before its first command."""
    return redis.Redis.from_url(
        url,
        socket_connect_timeout=timeout_seconds,
        socket_timeout=timeout_seconds,
        socket_keepalive=True,
        health_check_interval=15,
        retry=Retry(ConstantBackoff(0.2), retries),
        retry_on_error=[redis.exceptions.ConnectionError],
        decode_responses=True,
        encoding_errors="replace",  # whoever reads a queue may find in it what is no text
    )


def translated_errors(call: Callable[P, T]) -> Callable[P, T]:
    """Raise BrokerUnreachable for whatever redis-py raises; the message names the kind of error, never the URL."""

    @wraps(call)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return call(*args, **kwargs)
        except redis.exceptions.RedisError as exc:
            raise BrokerUnreachable(f"Redis: {type(exc).__name__}") from exc

    return wrapper
