"""Decides when a run is abandoned, whether that counts against its subcloud, and when the subcloud is quarantined.

A run that died with its worker is not guilty by presence: what died together is suspected together. Suspects are run
again a few at a time, and those that died twice alone, so that a third death has one cause. Stores count deaths, and
write the decision made here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from dcsync.model.ending import Failure
from dcsync.model.marks import is_void
from dcsync.model.reasons import Reason

ABANDONED_LIMIT = 3
"""Abandoned runs of one request in a row, after which the subcloud is quarantined like after a failure."""

QUARANTINED = Failure(
    Reason.QUARANTINED, f"its worker died during {ABANDONED_LIMIT} runs in a row, the last time without other suspects"
)

ANY_DEATHS = range(1_000_000)
"""Of due rows, whatever became of the runs before."""

UNSUSPECTED, SUSPECTED, ALONE = range(1), range(1, ABANDONED_LIMIT - 1), range(ABANDONED_LIMIT - 1, ANY_DEATHS.stop)
"""Numbers of deaths: of rows that are sent as room allows, a few at a time, and one at a time."""

FEW = 8
"""Suspects run at a time, at least."""

Suspects = Mapping[tuple[int, bool], int]
"""How many rows have this many deaths and are, or are not, in flight: hinted at or in progress."""


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


def died_with_a_server(run: RunInProgress, *, servers_started_at: datetime) -> bool:
    """Returns whether PostgreSQL or Redis was started since the run was claimed: their crash ended it, not its
    subcloud."""
    return run.claimed_at < servers_started_at


def suspects_room(suspects: Suspects, deaths: range) -> int:
    """Returns how many more rows with so many deaths may be sent.

    Of those that died once, as many at a time as the square root of their number: then neither running them all, nor
    running the few alone that died with the guilty one, takes long.
    """
    numbers: Counter[bool] = Counter()
    for (died, is_in_flight), number in suspects.items():
        if died in deaths:
            numbers[is_in_flight] += number
    at_once = 1 if deaths is ALONE else max(FEW, int(numbers.total() ** 0.5))
    return max(0, at_once - numbers[True])
