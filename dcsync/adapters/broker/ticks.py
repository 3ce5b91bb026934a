"""When the last sweep ended, and whether this tick is taken: two Redis keys shared by all beats and workers."""

from __future__ import annotations

from datetime import datetime

import redis

from dcsync.adapters.broker.redis_client import translated_errors

_TICK = "dcsync:sweep:tick"
_LAST = "dcsync:sweep:last"


class SweepTicks:
    """One sweep per tick, whatever the number of beats. A lost key causes one additional sweep, which is harmless."""

    def __init__(self, client: redis.Redis, *, interval_seconds: float) -> None:
        self._client = client
        self._interval = interval_seconds

    @translated_errors
    def take(self) -> bool:
        """Returns False when another beat's message started a sweep within about half an interval."""
        return bool(self._client.set(_TICK, "taken", nx=True, px=int(self._interval * 600)))

    @translated_errors
    def note_sweep(self, now: datetime) -> None:
        """Records that a sweep succeeded."""
        self._client.set(_LAST, repr(now.timestamp()))

    @translated_errors
    def seconds_since_sweep(self, now: datetime) -> float | None:
        """Returns the seconds since the last successful sweep; None before the first."""
        last = self._client.get(_LAST)
        return None if last is None else now.timestamp() - float(last)
