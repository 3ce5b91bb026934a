"""The database's time in a process: whatever the wall clock does, and however the measurements end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import structlog.testing

from dcsync.adapters.postgres.clock import NAMED_EVERY_SECONDS, SLOWEST_ANSWER_SECONDS, DatabaseClock
from dcsync.model.errors import DatabaseUnreachable
from tests.builders import NOON


class Time:
    """A host and a database: seconds pass for both alike, each with a wall clock of its own."""

    def __init__(self) -> None:
        self.elapsed = 1000.0
        self.host = self.database = timedelta(0)
        """By how much each wall clock is wrong."""
        self.answer_seconds = 0.0
        self.is_away = False
        self.asked = 0

    def wall(self) -> datetime:
        return self.true + self.host

    @property
    def true(self) -> datetime:
        return NOON + timedelta(seconds=self.elapsed)

    @contextmanager
    def connect(self) -> Iterator[Any]:
        if self.is_away:
            raise DatabaseUnreachable("connection refused")
        yield self

    def execute(self, _: object) -> Any:
        self.asked += 1
        found = self.true + self.database
        self.elapsed += self.answer_seconds
        return SimpleNamespace(scalar_one=lambda: found)


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def clock(time: Time) -> DatabaseClock:
    engine: Any = time
    return DatabaseClock(engine, elapsed=lambda: time.elapsed, wall=time.wall)


def seconds(between: timedelta) -> float:
    return round(between.total_seconds(), 3)


@pytest.mark.parametrize("step", [-3600.0, 3600.0])
def test_it_is_the_databases_and_no_step_of_the_hosts_clock_moves_it(
    time: Time, clock: DatabaseClock, step: float
) -> None:
    time.host = timedelta(seconds=20)
    assert seconds(clock.now() - time.true) == 0
    time.host += timedelta(seconds=step)
    time.elapsed += 30
    assert seconds(clock.now() - time.true) == 0
    assert time.asked == 1, "it is asked once, then carried on"


def test_before_anything_was_measured_nothing_is_stamped(time: Time, clock: DatabaseClock) -> None:
    time.is_away = True
    with pytest.raises(DatabaseUnreachable):
        clock.now()
    assert clock.seconds_ahead() is None
    time.is_away = False
    assert seconds(clock.now() - time.true) == 0


def test_what_was_measured_last_is_carried_on_while_the_database_is_away(time: Time, clock: DatabaseClock) -> None:
    clock.measure()
    time.is_away = True
    time.elapsed += 7200
    with pytest.raises(DatabaseUnreachable):
        clock.measure()
    assert seconds(clock.now() - time.true) == 0


def test_an_answer_that_took_long_is_not_used(time: Time, clock: DatabaseClock) -> None:
    clock.measure()
    time.answer_seconds = SLOWEST_ANSWER_SECONDS + 1
    with pytest.raises(DatabaseUnreachable, match=r"3\.0 s"):
        clock.measure()
    assert seconds(clock.now() - time.true) == 0
    time.answer_seconds = 1.0
    clock.measure()
    assert abs(seconds(clock.now() - time.true)) == 0.5, "wrong by half of what the answer took, at most"


def test_what_is_stamped_later_stays_later_whatever_small_correction_is_made(time: Time, clock: DatabaseClock) -> None:
    stamps = [clock.now(), clock.now()]
    time.database = timedelta(seconds=-1)
    clock.measure()
    stamps += [clock.now(), clock.now()]
    time.elapsed += 3
    stamps.append(clock.now())
    assert stamps == sorted(set(stamps))
    assert seconds(stamps[-1] - time.true) == -1, "caught up with"


def test_a_database_whose_clock_was_stepped_is_followed(time: Time, clock: DatabaseClock) -> None:
    clock.now()
    time.database = timedelta(hours=-1)
    clock.measure()
    assert seconds(clock.now() - time.true) == -3600


def test_a_host_whose_clock_is_wrong_is_named_once_an_hour(time: Time, clock: DatabaseClock) -> None:
    clock.measure()
    with structlog.testing.capture_logs() as told:
        for wrong, passes in ((1.9, 0.0), (-20.0, 60.0), (-20.0, NAMED_EVERY_SECONDS), (-21.0, 1.0)):
            time.host = timedelta(seconds=wrong)
            clock.name_wrong_clock()
            time.elapsed += passes
        clock.name_wrong_clock()
    assert [each["seconds_ahead"] for each in told] == [-20.0, -21.0]
    assert clock.seconds_ahead() == pytest.approx(-21.0)
