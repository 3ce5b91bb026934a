"""Checks whether anybody observes, and raises and clears the alarms that `silence` decides on.

Every worker process, sync and state alike, checks on a timer of its own, in no queue; the first one does it for all. So
these alarms are raised also when beat, the broker, or all workers of one kind are stopped.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta

from dcsync.model.errors import BrokerUnreachable
from dcsync.model.marks import CLOCK_TOLERANCE
from dcsync.model.shown import Windows
from dcsync.state import silence
from dcsync.state.ports import SilenceStore
from dcsync.state.silence import SilenceLimits

CHECK_INTERVAL = timedelta(seconds=30)
"""Time between two checks of one process."""


@dataclass(frozen=True, slots=True)
class SilenceResult:
    """What one check changed: the number of alarms raised and cleared."""

    raised: int
    cleared: int

    @property
    def is_idle(self) -> bool:
        return not (self.raised or self.cleared)


@dataclass(frozen=True, kw_only=True)
class SilenceCheck:
    """One object per process; any number of processes may check at the same time."""

    store: SilenceStore
    seconds_since_sweep: Callable[[], float | None]
    """Since a sweep last ended well; None: not known. Raises BrokerUnreachable."""
    windows: Windows
    limits: SilenceLimits
    now: Callable[[], datetime]

    def run(self) -> SilenceResult | None:
        """Checks once; None if another process has just done so, or has overtaken this one. Raises
        DatabaseUnreachable; the next check then starts over."""
        now = self.now()
        if not self.store.begin_check(now=now, swept_at=self._swept_at(now), unless_since=now - CHECK_INTERVAL / 2):
            return None
        facts = self.store.facts(silence.cutoffs(self.windows, self.limits, now=now), now=now)
        expected = silence.expected(facts, limits=self.limits, now=now)
        settled = self.store.settle(expected, checked_at=now, now=self.now())
        return None if settled is None else SilenceResult(*settled)

    def _swept_at(self, now: datetime) -> datetime | None:
        """Without a broker, what was recorded before stands, and grows old."""
        with suppress(BrokerUnreachable):
            seconds = self.seconds_since_sweep()
            if seconds is not None and timedelta(seconds=seconds) >= -CLOCK_TOLERANCE:
                return now - timedelta(seconds=max(seconds, 0))
        return None
