"""When was the last sweep, and is this tick taken? Two keys in Redis shared by every beat and worker."""

from __future__ import annotations

from datetime import datetime

import redis

from dcsync.adapters.broker.redis_client import translated_errors

_TICK = "dcsync:sweep:tick"
_LAST = "dcsync:sweep:last"


class SweepTicks:
    """One sweep per tick however many beats there are. A lost key costs one sweep too many, which is harmless."""

    def __init__(self, client: redis.Redis, *, interval_seconds: float) -> None:
        self._client = client
        self._interval = interval_seconds

    @translated_errors
    def take(self) -> bool:
        """False when a sweep was begun less than about half an interval ago, by another beat's message."""
        return bool(self._client.set(_TICK, "taken", nx=True, px=int(self._interval * 600)))

    @translated_errors
    def note_sweep(self, now: datetime) -> None:
        """A sweep has ended well."""
        self._client.set(_LAST, repr(now.timestamp()))

    @translated_errors
    def seconds_since_sweep(self, now: datetime) -> float | None:
        """Since the last sweep that ended well; None if there was none yet."""
        last = self._client.get(_LAST)
        return None if last is None else now.timestamp() - float(last)
