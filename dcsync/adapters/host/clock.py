"""This host's two clocks: the wall clock, which may be wrong and may be stepped, and one that only counts seconds.

No row and no report carries this host's wall time: that is `dcsync.adapters.postgres.clock`, the database's.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime


def utc_now() -> datetime:
    """Returns this host's wall time, aware, in UTC; only for comparing it with the database's."""
    return datetime.now(UTC)


_COUNTER: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def elapsed_seconds() -> float:
    """Returns seconds since an arbitrary moment. No step of the wall clock changes it; where the system offers it
    (Linux), it also counts the time for which the host was suspended."""
    return time.clock_gettime(_COUNTER)
