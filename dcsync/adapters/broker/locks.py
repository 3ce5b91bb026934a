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

RETRY_SECONDS = 1.0
"""Between two rounds of renewal while Redis does not answer."""


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
        """When Redis does not answer for one lock, the others are not asked for: all of them expire."""
        with self._guard:
            locks = {owner: self._held.pop((region_name, owner), None) for owner, region_name in held.items()}
        released: set[str] = set()
        for owner, lock in locks.items():
            try:
                if lock is not None:
                    lock.release()
                    released.add(owner)
            except LockNotOwnedError:
                continue
            except RedisError:
                break
        return released

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
        pause = self._ttl / 3
        while not self._closing.wait(pause):
            with self._guard:
                held = list(self._held.items())
            answers = all(self._renew(key, lock) for key, lock in held)
            pause = self._ttl / 3 if answers else min(RETRY_SECONDS, self._ttl / 3)

    def _renew(self, key: tuple[str, str], lock: Lock) -> bool:
        """Renews one lock; a lost lock is not acquired again. Returns False when Redis does not answer: the others are
        then not waited for one after another, but renewed in the next round."""
        try:
            lock.extend(self._ttl, replace_ttl=True)
        except LockNotOwnedError:
            with self._guard:
                self._held.pop(key, None)
        except RedisError:
            return False
        return True
