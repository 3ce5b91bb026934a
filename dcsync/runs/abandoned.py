"""Decides when a run is abandoned, and when its subcloud is quarantined.

Stores count abandoned runs, and write the decision made here.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from dcsync.model.ending import Failure
from dcsync.model.marks import is_void
from dcsync.model.reasons import Reason

ABANDONED_LIMIT = 3
"""Abandoned runs of one request in a row, after which the subcloud is quarantined like after a failure."""

QUARANTINED = Failure(Reason.QUARANTINED, f"its worker died during {ABANDONED_LIMIT} runs in a row")


@dataclass(frozen=True)
class RunInProgress:
    """A run in progress, as stored in its row."""

    region_name: str
    run_id: str
    claimed_at: datetime
    deaths: int
    """Preceding runs of the same request whose worker died."""

    @property
    def reaches_limit(self) -> bool:
        """Whether the subcloud is quarantined if this run is abandoned as well."""
        return self.deaths + 1 >= ABANDONED_LIMIT


def is_abandoned(*, claimed_at: datetime, lock_is_missing: bool, now: datetime, lock_ttl: timedelta) -> bool:
    """Returns whether a run in progress lost its lock and was claimed longer ago than one lock lifetime.

    A claim from the future was stamped with a wrong clock: it counts as long ago, and the lock alone decides.
    """
    return lock_is_missing and (now - claimed_at > lock_ttl or is_void(claimed_at, now=now))
