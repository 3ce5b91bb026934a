"""The clock of the whole system: the database's time, as each process knows it.

Hosts' clocks differ, and are stepped. Whatever is written to a row or reported therefore carries the database's time:
measured when first needed, then every minute, and carried on in between by a clock that only counts seconds.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog
from sqlalchemy import Engine, text

from dcsync.adapters.host.clock import elapsed_seconds, utc_now
from dcsync.adapters.postgres.database import database_errors
from dcsync.model.errors import DatabaseUnreachable, DcsyncError

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(__name__)

MEASURE_SECONDS = 60.0
"""Between two measurements: in a minute a bad quartz drifts by a few milliseconds."""

RETRY_SECONDS = 1.0
"""Between two tries while nothing was measured yet."""

SLOWEST_ANSWER_SECONDS = 2.0
"""An answer that took longer says too little about the present moment, and is not used."""

LARGEST_CORRECTION = timedelta(seconds=2)
"""A measurement that sets the clock back by less never makes it run backwards: what is stamped later stays later."""

TOLERATED_SECONDS = 2.0
"""A host whose clock differs from the database's by more is named in the log and in `dcsync service monitor`."""

NAMED_EVERY_SECONDS = 3600.0

_TICK = timedelta(microseconds=1)
_CLOCK = text("SELECT clock_timestamp()")


@dataclass(frozen=True, slots=True)
class _Anchor:
    """The database's time at one reading of the counting clock."""

    at: datetime
    elapsed: float


class DatabaseClock:
    """The database's time in this process; thread-safe."""

    def __init__(
        self,
        engine: Engine,
        *,
        elapsed: Callable[[], float] = elapsed_seconds,
        wall: Callable[[], datetime] = utc_now,
    ) -> None:
        self._engine = engine
        self._elapsed = elapsed
        self._wall = wall
        self._anchor: _Anchor | None = None
        self._last: datetime | None = None
        self._guard = threading.Lock()
        self._measuring = threading.Lock()
        self._named_at: float | None = None

    def now(self) -> datetime:
        """Returns the database's time, aware, in UTC: strictly later than what it returned before, unless the
        database's own clock was set back by more than a small correction.

        Measures first where nothing was measured yet; raises DatabaseUnreachable when that is not possible, for a wrong
        stamp is worse than none.
        """
        if self._anchor is None:
            with self._measuring:
                if self._anchor is None:
                    self._measure()
        with self._guard:
            moment = self._carried_on()
            if self._last is not None and timedelta(0) <= self._last - moment < LARGEST_CORRECTION:
                moment = self._last + _TICK
            self._last = moment
            return moment

    def measure(self) -> None:
        """Asks the database for its time. Raises DatabaseUnreachable, also for an answer that took too long; then what
        was measured before is carried on."""
        with self._measuring:
            self._measure()

    def seconds_ahead(self) -> float | None:
        """Returns by how many seconds this host's wall clock is ahead of the database's; None: not measured yet."""
        with self._guard:
            if self._anchor is None:
                return None
            return (self._wall() - self._carried_on()).total_seconds()

    def keep_measured(self, *, stopping: threading.Event) -> None:
        """Measures for as long as the process lives, and names this host in the log when its clock is wrong."""
        while True:
            try:
                self.measure()
            except DcsyncError as exc:
                log.warning("the database's time was not measured", error=str(exc), measured_before=self.is_measured)
            except Exception:  # the boundary of this thread: without it nobody would measure any more
                log.exception("the database's time was not measured")
            self.name_wrong_clock()
            if stopping.wait(MEASURE_SECONDS if self.is_measured else RETRY_SECONDS):
                return

    @property
    def is_measured(self) -> bool:
        return self._anchor is not None

    def name_wrong_clock(self) -> None:
        """Logs a wall clock that differs from the database's by more than TOLERATED_SECONDS, at most once an hour."""
        ahead = self.seconds_ahead()
        if ahead is None or abs(ahead) <= TOLERATED_SECONDS:
            self._named_at = None
            return
        now = self._elapsed()
        if self._named_at is None or now - self._named_at >= NAMED_EVERY_SECONDS:
            self._named_at = now
            log.warning(
                "this host's clock differs from the database's; dcsync goes by the database's, other programs may not",
                seconds_ahead=round(ahead, 1),
            )

    def _carried_on(self) -> datetime:
        if self._anchor is None:
            raise DatabaseUnreachable("the database's time was not measured yet")
        return self._anchor.at + timedelta(seconds=self._elapsed() - self._anchor.elapsed)

    def _measure(self) -> None:
        anchor = self._asked()
        with self._guard:
            step = timedelta(0) if self._anchor is None else anchor.at - self._carried_on()
            self._anchor = anchor
        if abs(step) >= LARGEST_CORRECTION:
            log.warning("the database's clock was stepped", seconds=round(step.total_seconds(), 1))

    @database_errors()
    def _asked(self) -> _Anchor:
        """The moment lies between question and answer: their middle is wrong by half of what lies between at most."""
        with self._engine.connect() as connection:
            before = self._elapsed()
            found: datetime = connection.execute(_CLOCK).scalar_one()
            after = self._elapsed()
        if after - before > SLOWEST_ANSWER_SECONDS:
            raise DatabaseUnreachable(f"it took {after - before:.1f} s to say what time it is")
        return _Anchor(found, (before + after) / 2)
