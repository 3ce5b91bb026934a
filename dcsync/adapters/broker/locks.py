"""One lock per subcloud in Redis, with an owner and a time to live (port `Locks`).

redis-py's Lock acquires and releases; this module renews all locks of the process in one thread. A lock keeps two
workers from the same subcloud and saves work; a row is protected by its run id in PostgreSQL.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import redis
from redis.exceptions import LockNotOwnedError, RedisError
from redis.lock import Lock

from dcsync.adapters.broker.redis_client import translated_errors

_PREFIX = "dcsync:lock:"


class RedisLocks:
    """The locks of this process, renewed after every third of their time to live until `close`."""

    def __init__(self, client: redis.Redis, *, ttl_seconds: float) -> None:
        self._client = client
        self._ttl = ttl_seconds
        self._held: dict[tuple[str, str], Lock] = {}
        self._guard = threading.Lock()
        self._closing = threading.Event()
        self._renewer: threading.Thread | None = None

    @translated_errors
    def acquire(self, wanted: Mapping[str, str]) -> set[str]:
        got: dict[str, str] = {}
        try:
            for owner, region_name in wanted.items():
                if self._acquire(region_name, owner):
                    got[owner] = region_name
        except RedisError:
            self.release(got)
            raise
        return set(got)

    def _acquire(self, region_name: str, owner: str) -> bool:
        lock = Lock(self._client, _PREFIX + region_name, timeout=self._ttl, blocking=False, thread_local=False)
        if not lock.acquire(token=owner):
            return False
        with self._guard:
            self._held[region_name, owner] = lock
            if self._renewer is None:
                self._renewer = threading.Thread(target=self._renew_held, name="lock-renewal", daemon=True)
                self._renewer.start()
        return True

    def release(self, held: Mapping[str, str]) -> set[str]:
        return {owner for owner, region_name in held.items() if self._release(region_name, owner)}

    def _release(self, region_name: str, owner: str) -> bool:
        """Returns False when the lock was no longer ours, or when Redis does not answer: then the lock expires."""
        with self._guard:
            lock = self._held.pop((region_name, owner), None)
        if lock is None:
            return False
        try:
            lock.release()
        except (LockNotOwnedError, RedisError):
            return False
        return True

    @translated_errors
    def owners(self, region_names: Sequence[str]) -> dict[str, str | None]:
        if not region_names:
            return {}
        owners: list[Any] = self._client.mget([_PREFIX + name for name in region_names])
        return dict(zip(region_names, owners, strict=True))

    def close(self) -> None:
        """Stops the renewal; locks that are still held expire."""
        self._closing.set()

    def _renew_held(self) -> None:
        while not self._closing.wait(self._ttl / 3):
            with self._guard:
                held = list(self._held.items())
            for key, lock in held:
                self._renew(key, lock)

    def _renew(self, key: tuple[str, str], lock: Lock) -> None:
        """Renews one lock; a lost lock is not acquired again. When Redis does not answer, the next renewal retries."""
        try:
            lock.extend(self._ttl, replace_ttl=True)
        except LockNotOwnedError:
            with self._guard:
                self._held.pop(key, None)
        except RedisError:
            return
