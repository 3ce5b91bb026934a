"""When nobody works on a run any more, and when its subcloud is held off for it.

Stores read how often it happened, and write what is decided here.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from dcsync.model.ending import Failure
from dcsync.model.reasons import Reason

ABANDONED_LIMIT = 3
"""Runs of one request that may end with their worker's death before it is held off like a failure."""

QUARANTINED = Failure(Reason.QUARANTINED, f"{ABANDONED_LIMIT} runs of it ended with the death of their worker")


@dataclass(frozen=True)
class RunInProgress:
    """A run as its row shows it to a sweep."""

    region_name: str
    run_id: str
    claimed_at: datetime
    deaths: int
    """Runs right before it, of the same request, that ended with the death of their worker."""

    @property
    def is_last_straw(self) -> bool:
        """Whether it is quarantined, should this run have died as well."""
        return self.deaths + 1 >= ABANDONED_LIMIT


def is_abandoned(*, claimed_at: datetime, lock_is_missing: bool, now: datetime, lock_ttl: timedelta) -> bool:
    """In progress, its lock gone, claimed longer ago than one lock lifetime: nobody is working on it."""
    return lock_is_missing and now - claimed_at > lock_ttl
