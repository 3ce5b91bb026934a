"""The Redis client for dcsync's own keys (locks, ticks) and for reading queues. Celery makes its own connections.

With redis-py's defaults (ten retries of five seconds, not logged) one slow answer blocks for a minute, so retries and
timeouts are set here, and every error becomes BrokerUnreachable. A connection that does not answer, or whose server is
not the primary, is discarded with all idle ones of its pool.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, Self, TypeVar

import redis
from redis.backoff import ConstantBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import MasterDownError, NoPermissionError, ReadOnlyError
from redis.retry import Retry
from redis.sentinel import Sentinel

from dcsync.adapters.host.server_urls import SentinelUrl, is_sentinel, sentinel_url
from dcsync.model.errors import BrokerUnreachable

P = ParamSpec("P")
T = TypeVar("T")

PAUSE_SECONDS = 0.2
_ANOTHER_CONNECTION_HELPS = (RedisConnectionError, ReadOnlyError, MasterDownError)


def make_client(url: str, *, timeout_seconds: float = 3.0, retries: int = 2) -> redis.Redis:
    """Returns a thread-safe client, which connects at its first command. A command takes `timeout_seconds` for each of
    its connections and answers at most, and is repeated `retries` times."""
    pool_retry = _FreshConnections(retries)
    options: dict[str, Any] = {
        "socket_connect_timeout": timeout_seconds,
        "socket_timeout": timeout_seconds,
        "socket_keepalive": True,
        "health_check_interval": 15,
        "retry": pool_retry,
        "retry_on_error": list(_ANOTHER_CONNECTION_HELPS),
        "redis_connect_func": _connect_to_primary,
        "decode_responses": True,
        "encoding_errors": "replace",  # a queue may contain messages that are not text
    }
    client = _sentinel_client(sentinel_url(url), options) if is_sentinel(url) else redis.Redis.from_url(url, **options)
    pool_retry.pool = client.connection_pool
    return client


class _FreshConnections(Retry):
    """Repeats a command on a new connection, and discards the idle ones as well: what one has met, the others will."""

    def __init__(self, retries: int) -> None:
        super().__init__(ConstantBackoff(PAUSE_SECONDS), retries)
        self.pool: redis.ConnectionPool | None = None

    def __deepcopy__(self, _: object) -> Self:
        """redis-py copies it for each connection; all of them belong to one pool."""
        return self

    def call_with_retry(self, do: Callable[[], T], fail: Callable[..., Any], *args: Any, **options: Any) -> T:
        def fail_all(*failure: Any) -> None:
            fail(*failure)
            if self.pool is not None:
                self.pool.disconnect(inuse_connections=False)

        return super().call_with_retry(do, fail_all, *args, **options)


def _connect_to_primary(connection: Any) -> None:
    """Authenticates a new connection, and raises ConnectionError where a replica answers: its locks and queues are
    copies, which may be old."""
    connection.on_connect()
    connection.send_command("ROLE")
    try:
        role = connection.read_response()[0]
    except NoPermissionError:
        return  # an ACL without it: writes show what the server is
    if role not in (b"master", "master"):
        raise RedisConnectionError(f"this Redis is not the primary but a {role!s:.20}")


def _sentinel_client(url: SentinelUrl, options: dict[str, Any]) -> redis.Redis:
    tls = {"ssl": True, **dict(url.options)} if url.is_tls else dict(url.options)
    timeouts = {name: options[name] for name in ("socket_connect_timeout", "socket_timeout")}
    watching = {"username": url.sentinel_username, "password": url.sentinel_password, **timeouts, **tls}
    sentinels: Any = Sentinel(list(url.hosts), sentinel_kwargs={**watching, "retry": Retry(ConstantBackoff(0), 0)})  # type: ignore[no-untyped-call]
    login = {"username": url.username, "password": url.password, "db": url.database}
    client: redis.Redis = sentinels.master_for(url.name, redis.Redis, **options, **login, **tls)
    return client


def broker_url(url: str) -> str:
    """Returns the URL in the form Celery takes: for Sentinels one URL each, which name the primary's login."""
    if not is_sentinel(url):
        return url
    parts = sentinel_url(url)
    login = url.partition("://")[2].rpartition("@")[0]
    at = f"{login}@" if login else ""
    hosts = [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in parts.hosts]
    return ";".join(f"sentinel://{at}{host}/{parts.database}" for host in hosts)


def broker_options(url: str) -> dict[str, Any]:
    """Returns what Celery's transport needs beside that URL; nothing without Sentinels."""
    if not is_sentinel(url):
        return {}
    parts = sentinel_url(url)
    tls = {"ssl": True, **dict(parts.options)} if parts.is_tls else {}
    login = {"username": parts.sentinel_username, "password": parts.sentinel_password}
    return {
        "master_name": parts.name,
        "sentinel_kwargs": {"socket_connect_timeout": 3, "socket_timeout": 3, **login, **tls},
    }


def translated_errors(call: Callable[P, T]) -> Callable[P, T]:
    """Raises BrokerUnreachable for every error of redis-py; the message names the error's type, never the URL."""

    @wraps(call)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return call(*args, **kwargs)
        except redis.exceptions.RedisError as exc:
            raise BrokerUnreachable(f"Redis: {type(exc).__name__}") from exc

    return wrapper
