"""When nobody works on a run any more, and what becomes of it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from dcsync.model.ending import Failure
from dcsync.model.messages import AuditHint
from dcsync.model.reasons import Reason
from dcsync.runs.abandoned import ABANDONED_LIMIT, RunInProgress, is_abandoned
from dcsync.runs.dispatch import Dispatcher, SweepLimits
from tests.builders import NOON
from tests.fakes_sync import MemoryLocks


def test_only_a_run_without_its_lock_and_older_than_a_lock_is_abandoned() -> None:
    ttl = timedelta(seconds=30)
    assert is_abandoned(claimed_at=NOON, lock_is_missing=True, now=NOON + timedelta(seconds=31), lock_ttl=ttl)
    assert not is_abandoned(claimed_at=NOON, lock_is_missing=True, now=NOON + timedelta(seconds=30), lock_ttl=ttl)
    assert not is_abandoned(claimed_at=NOON, lock_is_missing=False, now=NOON + timedelta(hours=1), lock_ttl=ttl)


@pytest.mark.parametrize("deaths", range(ABANDONED_LIMIT + 2))
def test_the_third_death_in_a_row_is_the_last(deaths: int) -> None:
    run = RunInProgress("s1", "run-1", NOON, deaths)
    assert run.reaches_limit is (deaths >= 2)


class Rows:
    """What a store is told of abandoned runs."""

    def __init__(self, *runs: RunInProgress) -> None:
        self.runs = list(runs)
        self.again: list[RunInProgress] = []
        self.quarantined: list[RunInProgress] = []
        self.failure: Failure | None = None
        self.retry_at: datetime | None = None

    def in_progress_since_before(self, moment: datetime) -> list[RunInProgress]:
        return [run for run in self.runs if run.claimed_at < moment]

    def take_back(self, abandoned: Collection[RunInProgress], *, now: datetime) -> list[str]:
        self.again = list(abandoned)
        return [run.region_name for run in abandoned]

    def quarantine(
        self, abandoned: Collection[RunInProgress], failure: Failure, *, now: datetime, retry_at: datetime
    ) -> list[str]:
        self.quarantined, self.failure, self.retry_at = list(abandoned), failure, retry_at
        return [run.region_name for run in abandoned]

    def unstarted_hints(self) -> list[tuple[AuditHint, datetime]]:
        return []

    def in_progress_count(self) -> int:
        return len(self.runs)

    def dispatch(self, *, room: int, lost: Collection[AuditHint], now: datetime) -> list[AuditHint]:
        return []

    def undo_dispatch(self, hints: Collection[AuditHint]) -> None:
        return


def test_a_sweep_takes_dead_runs_back_and_quarantines_those_that_died_too_often() -> None:
    ttl, hold_off = timedelta(seconds=30), timedelta(minutes=15)
    once, often, alive = (RunInProgress(f"s{n}", f"run-{n}", NOON, n) for n in range(3))
    both = replace(once, deaths=2)
    young = RunInProgress("s3", "run-3", NOON + ttl, 2)
    rows, locks = Rows(once, both, replace(often, deaths=2), alive, young), MemoryLocks()
    locks.acquire({"run-2": "s2"})
    dispatcher: Dispatcher[AuditHint] = Dispatcher(
        rows, locks, SweepLimits(10, ttl, ttl, hold_off), lambda hints: None, set
    )
    now = NOON + 2 * ttl
    assert dispatcher.take_back_abandoned(now) == 2
    assert rows.again == [once]
    assert rows.quarantined == [both, replace(often, deaths=2)]
    assert rows.failure is not None
    assert (rows.failure.reason, rows.retry_at) == (Reason.QUARANTINED, now + hold_off)
