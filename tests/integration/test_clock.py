"""The database's time, asked of a real PostgreSQL by a process whose own clock is wrong."""

from __future__ import annotations

from datetime import timedelta

import time_machine
from sqlalchemy import Engine, text

from dcsync.adapters.host.clock import utc_now
from dcsync.adapters.postgres.clock import DatabaseClock


def test_a_wall_clock_that_is_stepped_changes_nothing(engine: Engine) -> None:
    clock = DatabaseClock(engine)
    before = clock.now()
    for hours in (-1, 1):
        with time_machine.travel(utc_now() + timedelta(hours=hours), tick=True):
            stamped = clock.now()
            assert abs((clock.seconds_ahead() or 0) - hours * 3600) < 60
            with engine.connect() as rows:
                true = rows.execute(text("SELECT clock_timestamp()")).scalar_one()
        assert before < stamped
        assert abs(true - stamped) < timedelta(seconds=60)
        before = stamped
