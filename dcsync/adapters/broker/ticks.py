"""What beats and workers know of each other's periodic work: who takes a tick, when work last ended well, how often it
was late. Keys in Redis, shared by all of them; moments are Redis's own, so that no two hosts' clocks are compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import redis

from dcsync.adapters.broker.redis_client import translated_errors

_TICK = "dcsync:tick:"
_ENDED = "dcsync:ended:"
_HINT = "dcsync:hint:"
_LATE = "dcsync:late"

TAKEN_FOR = 0.6
"""Of an interval. Two beats drift apart: longer would lose every second tick, shorter would do the work twice."""


class Ticks:
    """All of it by the name of the work, such as "audit-sweep". A key that is lost costs one run too many, which is
    harmless."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client

    @translated_errors
    def take(self, name: str, *, interval: float) -> bool:
        """Returns False where this tick was taken already: by another beat's message, or because this one is late."""
        return bool(self._client.set(_TICK + name, "taken", nx=True, px=max(1, int(interval * TAKEN_FOR * 1000))))

    @translated_errors
    def ended_well(self, name: str) -> None:
        """Notes that this work has just ended as it should."""
        self._client.set(_ENDED + name, repr(_seconds(self._client.time())))

    @translated_errors
    def seconds_since(self, name: str) -> float | None:
        """Returns how long ago this work last ended well; None: never, as far as is known.

        A moment in the future was written by another Redis, before a failover: it says nothing.
        """
        with self._client.pipeline(transaction=False) as pipeline:
            pipeline.time()
            pipeline.get(_ENDED + name)
            now, ended = pipeline.execute()
        since = None if ended is None else _seconds(now) - float(ended)
        return since if since is not None and since >= 0 else None

    @translated_errors
    def count_late(self, name: str) -> int:
        """Counts that a worker did this work because nobody else had; returns how often that was so far."""
        return int(self._client.hincrby(_LATE, name, 1))

    @translated_errors
    def late_totals(self) -> dict[str, int]:
        """Returns how often each work was late, since Redis was started with empty memory."""
        found: dict[Any, Any] = self._client.hgetall(_LATE)
        return {name: int(count) for name, count in sorted(found.items())}

    @translated_errors
    def may_hint(self, name: str, *, seconds: float) -> bool:
        """Returns False while a hint for this work waits already: whoever takes that one finds what this one means."""
        return bool(self._client.set(_HINT + name, "waits", nx=True, px=max(1, int(seconds * 1000))))

    @translated_errors
    def hint_taken(self, name: str) -> None:
        """To be noted before rows are looked at: who changes one from now on sends a hint of his own."""
        self._client.delete(_HINT + name)


def _seconds(time: Sequence[Any]) -> float:
    seconds, microseconds = time
    return int(seconds) + int(microseconds) / 1e6
