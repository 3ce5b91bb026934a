"""Ownership asked for many runs at once: right for each of them, and few questions in all."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Sequence

import pytest

from dcsync.initial_sync.ports import Claim, Run
from dcsync.model.ending import Ending
from dcsync.model.errors import DatabaseUnreachable
from dcsync.runs.delivery import Stopped, require_ownership
from dcsync.runs.ownership import BatchedOwnership
from dcsync.runs.ports import Standing
from dcsync.runs.writing import before_bytes_leave, writing
from tests.builders import NOON
from tests.fakes_sync import MemoryLocks, MemoryRunStore, a_requested_store


class Counting(MemoryRunStore):
    """Counts how often it was asked, and may fail."""

    asked = 0
    broken = False

    def standing(self, run_ids: Collection[str]) -> dict[str, Standing | None]:
        self.asked += 1
        if self.broken:
            raise DatabaseUnreachable("gone")
        return super().standing(run_ids)


def claimed_runs(store: MemoryRunStore, locks: MemoryLocks, names: Sequence[str]) -> list[Run]:
    runs = []
    for name in names:
        locks.acquire({f"run-{name}": name})
        (run,) = store.claim([Claim(f"run-{name}", name, 1)], worker="w", now=NOON)
        assert run is not None
        runs.append(run)
    return runs


@pytest.fixture
def store() -> Counting:
    names = [f"s{number}" for number in range(50)]
    return Counting(*(row.subcloud for row in a_requested_store(*names).rows.values()))


async def test_fifty_runs_asking_at_once_cost_a_handful_of_questions(store: Counting) -> None:
    locks = MemoryLocks()
    runs = claimed_runs(store, locks, list(store.rows))
    ownership = BatchedOwnership(store, locks, lock_ttl_seconds=30, elapsed=time.monotonic)
    answers = await asyncio.gather(*(ownership.standing(run) for run in runs))
    assert answers == [None] * 50
    assert store.asked <= 2


async def test_each_run_gets_its_own_answer(store: Counting) -> None:
    locks = MemoryLocks()
    runs = claimed_runs(store, locks, ["s0", "s1", "s2"])
    store.leave("s1")
    locks.held["s2"] = "another"
    ownership = BatchedOwnership(store, locks, lock_ttl_seconds=30, elapsed=time.monotonic)
    answers = await asyncio.gather(*(ownership.standing(run) for run in runs))
    assert [answer and answer.ending for answer in answers] == [None, Ending.CANCELLED, Ending.LOCK_LOST]


async def test_when_it_cannot_be_found_out_everybody_hears_so_and_the_next_question_is_asked_again(
    store: Counting,
) -> None:
    locks = MemoryLocks()
    runs = claimed_runs(store, locks, ["s0", "s1"])
    ownership = BatchedOwnership(store, locks, lock_ttl_seconds=30, elapsed=time.monotonic)
    store.broken = True
    answers = await asyncio.gather(*(ownership.standing(run) for run in runs), return_exceptions=True)
    assert [type(answer) for answer in answers] == [DatabaseUnreachable, DatabaseUnreachable]
    store.broken = False
    assert await ownership.standing(runs[0]) is None


async def test_an_asker_that_goes_away_does_not_disturb_the_others(store: Counting) -> None:
    locks = MemoryLocks()
    runs = claimed_runs(store, locks, ["s0", "s1"])
    ownership = BatchedOwnership(store, locks, lock_ttl_seconds=30, elapsed=time.monotonic)
    first = asyncio.create_task(ownership.standing(runs[0]))
    second = asyncio.create_task(ownership.standing(runs[1]))
    await asyncio.sleep(0)
    first.cancel()
    assert await second is None


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def test_an_answer_is_recent_for_half_of_a_lock_s_life_from_when_it_was_asked_for(store: Counting) -> None:
    locks, clock = MemoryLocks(), Clock()
    (run, other) = claimed_runs(store, locks, ["s0", "s1"])
    ownership = BatchedOwnership(store, locks, lock_ttl_seconds=10, elapsed=clock)
    assert not ownership.is_recent(run)
    assert await ownership.standing(run) is None
    assert ownership.is_recent(run)
    assert not ownership.is_recent(other)
    clock.now += 4.9
    assert ownership.is_recent(run)
    clock.now += 0.2
    assert not ownership.is_recent(run)


async def test_a_no_is_never_recent(store: Counting) -> None:
    locks = MemoryLocks()
    (run,) = claimed_runs(store, locks, ["s0"])
    ownership = BatchedOwnership(store, locks, lock_ttl_seconds=10, elapsed=Clock())
    assert await ownership.standing(run) is None
    locks.held["s0"] = "another"
    assert await ownership.standing(run) is not None
    assert not ownership.is_recent(run)


class Slow(Counting):
    """The clock moves while the rows are read, as in a process that is stopped meanwhile."""

    clock: Clock
    seconds: Sequence[float] = ()

    def standing(self, run_ids: Collection[str]) -> dict[str, Standing | None]:
        pause, *rest = self.seconds or [0.0]
        self.seconds = rest
        self.clock.now += pause
        return super().standing(run_ids)


@pytest.fixture
def slow() -> Slow:
    made = Slow(*(row.subcloud for row in a_requested_store("s0").rows.values()))
    made.clock = Clock()
    return made


async def test_an_answer_that_came_too_late_is_asked_for_again(slow: Slow) -> None:
    locks = MemoryLocks()
    (run,) = claimed_runs(slow, locks, ["s0"])
    ownership = BatchedOwnership(slow, locks, lock_ttl_seconds=10, elapsed=slow.clock)
    slow.seconds = [60.0]
    await require_ownership(ownership, run)
    assert slow.asked == 2
    assert ownership.is_recent(run)


async def test_a_run_whose_answers_all_come_too_late_is_given_back(slow: Slow) -> None:
    locks = MemoryLocks()
    (run,) = claimed_runs(slow, locks, ["s0"])
    ownership = BatchedOwnership(slow, locks, lock_ttl_seconds=10, elapsed=slow.clock)
    slow.seconds = [60.0] * 9
    with pytest.raises(Stopped) as stopped:
        await require_ownership(ownership, run)
    assert stopped.value.standing.ending is Ending.LOCK_LOST


async def test_bytes_wait_for_a_new_answer_where_the_last_is_old(store: Counting) -> None:
    locks, clock = MemoryLocks(), Clock()
    (run,) = claimed_runs(store, locks, ["s0"])
    ownership = BatchedOwnership(store, locks, lock_ttl_seconds=10, elapsed=clock)
    await require_ownership(ownership, run)
    with writing():
        await before_bytes_leave()
        assert store.asked == 1, "a recent answer is not asked for again"
        clock.now += 6
        await before_bytes_leave()
        assert store.asked == 2
        clock.now += 6
        locks.held["s0"] = "another"
        with pytest.raises(Stopped):
            await before_bytes_leave()
    await before_bytes_leave()
    assert store.asked == 3, "outside of a write nothing is asked"
