"""When a moment in a row or a report can be believed: pure.

All of dcsync stamps with the database's time (`dcsync.adapters.postgres.clock`). A moment in the future was stamped by
somebody whose clock was wrong, or before the database's clock was set back. It says nothing, and is void.
"""

from __future__ import annotations

from datetime import datetime, timedelta

CLOCK_TOLERANCE = timedelta(seconds=2)
"""By how much two processes may differ about the present moment."""


def is_void(moment: datetime, *, now: datetime) -> bool:
    """Returns whether something that is said to have happened lies in the future."""
    return moment - now > CLOCK_TOLERANCE


def is_void_deadline(moment: datetime, *, now: datetime, longest: timedelta) -> bool:
    """Returns whether a deadline lies further away than anybody sets one; it has passed then."""
    return moment - now > longest + CLOCK_TOLERANCE
