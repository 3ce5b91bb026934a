"""When nobody works on a run any more, and what becomes of it."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from dcsync.audit.endpoints import audited_types
from dcsync.model.messages import AuditHint
from dcsync.model.reasons import Reason
from dcsync.model.states.audit import AuditEvent, AuditStatus
from dcsync.model.states.initial_sync import InitialSyncState
from dcsync.runs.abandoned import ABANDONED_LIMIT, ALONE, SUSPECTED, RunInProgress, is_abandoned, suspects_room
from dcsync.runs.dispatch import Dispatcher, SweepLimits
from tests.builders import NOON, a_subcloud
from tests.fakes_audit import MemoryAuditStore
from tests.fakes_sync import MemoryLocks


def test_only_a_run_without_its_lock_and_older_than_a_lock_is_abandoned() -> None:
    ttl = timedelta(seconds=30)
    assert is_abandoned(claimed_at=NOON, lock_is_missing=True, now=NOON + timedelta(seconds=31), lock_ttl=ttl)
    assert not is_abandoned(claimed_at=NOON, lock_is_missing=True, now=NOON + timedelta(seconds=30), lock_ttl=ttl)
    assert is_abandoned(claimed_at=NOON + timedelta(hours=1), lock_is_missing=True, now=NOON, lock_ttl=ttl), "void"
    assert not is_abandoned(claimed_at=NOON + timedelta(hours=1), lock_is_missing=False, now=NOON, lock_ttl=ttl)
    assert not is_abandoned(claimed_at=NOON, lock_is_missing=False, now=NOON + timedelta(hours=1), lock_ttl=ttl)


@pytest.mark.parametrize("deaths", range(ABANDONED_LIMIT + 2))
def test_the_third_death_in_a_row_is_the_last(deaths: int) -> None:
    run = RunInProgress("s1", "run-1", NOON, deaths)
    assert run.reaches_limit is (deaths >= 2)


def a_store(*runs: RunInProgress) -> MemoryAuditStore:
    """Each run has a row of its own; two of the same subcloud have rows of different endpoint types."""
    store = MemoryAuditStore()
    for id_, region_name in enumerate(sorted({run.region_name for run in runs}), start=1):
        store.add(a_subcloud(region_name, id=id_, initial_sync_state=InitialSyncState.COMPLETED))
        own = [run for run in runs if run.region_name == region_name]
        for run, type_ in zip(own, audited_types(), strict=False):
            store.row(region_name, type_).move(
                AuditEvent.CLAIMED, run_id=run.run_id, claimed_at=run.claimed_at, abandoned=run.deaths
            )
    return store


def test_a_sweep_takes_dead_runs_back_and_quarantines_those_that_died_too_often() -> None:
    ttl, hold_off = timedelta(seconds=30), timedelta(minutes=15)
    once, often, alive = (RunInProgress(f"s{n}", f"run-{n}", NOON, n) for n in range(3))
    both = once
    young = RunInProgress("s3", "run-3", NOON + ttl, 2)
    store, locks = a_store(once, replace(both, deaths=1), replace(often, deaths=2), alive, young), MemoryLocks()
    locks.acquire({"run-2": "s2"})
    dispatcher: Dispatcher[AuditHint] = Dispatcher(
        store, locks, SweepLimits(10, ttl, ttl, hold_off), lambda hints: None, set
    )
    now = NOON + 2 * ttl
    assert dispatcher.take_back_abandoned(now) == 2
    first, second = audited_types()
    for row, deaths in ((store.row("s0", first), 1), (store.row("s0", second), 2)):
        assert (row.run_id, row.status, row.abandoned, row.due_at) == (None, AuditStatus.FAILED, deaths, now)
    row = store.row("s1", first)
    assert (row.run_id, row.status, row.abandoned, row.due_at) == (None, AuditStatus.FAILED, 0, now + hold_off)
    assert row.reason is Reason.QUARANTINED
    assert [store.row(region, first).run_id for region in ("s2", "s3")] == ["run-2", "run-3"]


def test_of_several_that_die_once_too_often_together_none_is_quarantined() -> None:
    """None of them was alone; their deaths are not forgotten either."""
    ttl = timedelta(seconds=30)
    runs = [RunInProgress(f"s{number}", f"run-{number}", NOON, 2) for number in range(3)]
    store = a_store(*runs)
    dispatcher: Dispatcher[AuditHint] = Dispatcher(
        store, MemoryLocks(), SweepLimits(10, ttl, ttl, timedelta(minutes=15)), lambda hints: None, set
    )
    assert dispatcher.take_back_abandoned(NOON + 2 * ttl) == 3
    rows = [store.row(run.region_name, audited_types()[0]) for run in runs]
    assert {(row.abandoned, row.reason) for row in rows} == {(2, None)}


def test_few_suspects_run_at_a_time_and_those_that_died_twice_alone() -> None:
    assert suspects_room({(1, False): 5}, SUSPECTED) == 8
    assert suspects_room({(1, False): 900, (1, True): 0}, SUSPECTED) == 30
    assert suspects_room({(1, False): 60, (1, True): 6, (2, True): 1}, SUSPECTED) == 2
    assert suspects_room({(1, False): 60, (1, True): 9}, SUSPECTED) == 0
    assert suspects_room({(2, False): 60, (1, True): 9}, ALONE) == 1
    assert suspects_room({(2, False): 60, (3, True): 1}, ALONE) == 0
