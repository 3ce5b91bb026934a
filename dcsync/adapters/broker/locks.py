"""One lock per subcloud in Redis, with an owner and a time to live (port `Locks`).

All locks of the process are renewed in one thread and by one script, however many there are: a thread that waited for
the interpreter once per lock would be late in a busy process. A lock keeps two workers from the same subcloud and saves
work; a row is protected by its run id in PostgreSQL.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import redis
from redis.exceptions import NoPermissionError, RedisError

from dcsync.adapters.broker.redis_client import translated_errors

_PREFIX = "dcsync:lock:"

RENEWED_AFTER = 0.1
"""Of a lock's life. One command costs Redis a millisecond; what is left of the life is for a thread that waits for a
busy interpreter, which was measured to take seconds."""

RETRY_SECONDS = 1.0
"""Between two rounds of renewal while Redis does not answer."""

_AT_ONCE = 1000
"""Locks per call of a script, which keeps every other client of Redis waiting meanwhile: about a millisecond."""

_RENEW = """
local held = {}
for number, key in ipairs(KEYS) do
    if redis.call('get', key) == ARGV[number + 1] then
        redis.call('pexpire', key, ARGV[1])
        held[#held + 1] = ARGV[number + 1]
    end
end
return held
"""

_RELEASE = """
local released = {}
for number, key in ipairs(KEYS) do
    if redis.call('get', key) == ARGV[number] then
        redis.call('del', key)
        released[#released + 1] = ARGV[number]
    end
end
return released
"""


class RedisLocks:
    """The locks of this process, renewed often during their time to live, until `close`."""

    def __init__(self, client: redis.Redis, *, ttl_seconds: float) -> None:
        self._client = client
        self._ttl = ttl_seconds
        self._ttl_ms = int(ttl_seconds * 1000)
        self._renewed = client.register_script(_RENEW)
        self._released = client.register_script(_RELEASE)
        self._held: dict[str, str] = {}
        self._guard = threading.Lock()
        self._closing = threading.Event()
        self._renewer: threading.Thread | None = None

    @translated_errors
    def acquire(self, wanted: Mapping[str, str]) -> set[str]:
        got: dict[str, str] = {}
        try:
            for owner, region_name in wanted.items():
                if self._client.set(_PREFIX + region_name, owner, nx=True, px=self._ttl_ms):
                    got[owner] = region_name
        except RedisError:
            self.release(got)
            raise
        self._keep_renewed(got)
        return set(got)

    def _keep_renewed(self, got: Mapping[str, str]) -> None:
        with self._guard:
            self._held |= got
            if got and self._renewer is None:
                self._renewer = threading.Thread(target=self._renew_held, name="lock-renewal", daemon=True)
                self._renewer.start()

    def release(self, held: Mapping[str, str]) -> set[str]:
        with self._guard:
            for owner in held:
                self._held.pop(owner, None)
        try:
            return self._for_each(self._released, held)
        except RedisError:
            return set()

    @translated_errors
    def renew(self, held: Mapping[str, str]) -> set[str]:
        return self._for_each(self._renewed, held, self._ttl_ms)

    def _for_each(self, script: Any, held: Mapping[str, str], *first: object) -> set[str]:
        """Returns the owners for which the script found their lock to be theirs."""
        found: set[str] = set()
        pairs = list(held.items())
        for start in range(0, len(pairs), _AT_ONCE):
            some = pairs[start : start + _AT_ONCE]
            keys = [_PREFIX + region_name for _, region_name in some]
            found.update(script(keys=keys, args=[*first, *(owner for owner, _ in some)]))
        return found

    @translated_errors
    def owners(self, region_names: Sequence[str]) -> dict[str, str | None]:
        if not region_names:
            return {}
        owners: list[Any] = self._client.mget([_PREFIX + name for name in region_names])
        return dict(zip(region_names, owners, strict=True))

    @translated_errors
    def server_uptime(self) -> timedelta | None:
        try:
            found = self._client.info("server")
        except NoPermissionError:
            return None
        return timedelta(seconds=int(found["uptime_in_seconds"]))

    def close(self) -> None:
        """Stops the renewal; locks that are still held expire."""
        self._closing.set()

    def _renew_held(self) -> None:
        pause = self._ttl * RENEWED_AFTER
        while not self._closing.wait(pause):
            with self._guard:
                held = dict(self._held)
            pause = self._ttl * RENEWED_AFTER if self._renew_or_drop(held) else min(RETRY_SECONDS, pause)

    def _renew_or_drop(self, held: Mapping[str, str]) -> bool:
        """Renews all of these; a lost lock is not acquired again. Returns False when Redis does not answer."""
        try:
            lost = held.keys() - self._for_each(self._renewed, held, self._ttl_ms)
        except RedisError:
            return False
        with self._guard:
            for owner in lost:
                self._held.pop(owner, None)
        return True
