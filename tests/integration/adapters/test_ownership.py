"""Ownership asked for many runs at once: right for each of them, and few questions in all."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence

import pytest

from dcsync.initial_sync.ports import Claim, Run
from dcsync.model.ending import Ending
from dcsync.model.errors import DatabaseUnreachable
from dcsync.runs.ownership import BatchedOwnership
from dcsync.runs.ports import Standing
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
    ownership = BatchedOwnership(store, locks)
    answers = await asyncio.gather(*(ownership.standing(run) for run in runs))
    assert answers == [None] * 50
    assert store.asked <= 2


async def test_each_run_gets_its_own_answer(store: Counting) -> None:
    locks = MemoryLocks()
    runs = claimed_runs(store, locks, ["s0", "s1", "s2"])
    store.leave("s1")
    locks.held["s2"] = "another"
    ownership = BatchedOwnership(store, locks)
    answers = await asyncio.gather(*(ownership.standing(run) for run in runs))
    assert [answer and answer.ending for answer in answers] == [None, Ending.CANCELLED, Ending.LOCK_LOST]


async def test_when_it_cannot_be_found_out_everybody_hears_so_and_the_next_question_is_asked_again(
    store: Counting,
) -> None:
    locks = MemoryLocks()
    runs = claimed_runs(store, locks, ["s0", "s1"])
    ownership = BatchedOwnership(store, locks)
    store.broken = True
    answers = await asyncio.gather(*(ownership.standing(run) for run in runs), return_exceptions=True)
    assert [type(answer) for answer in answers] == [DatabaseUnreachable, DatabaseUnreachable]
    store.broken = False
    assert await ownership.standing(runs[0]) is None


async def test_an_asker_that_goes_away_does_not_disturb_the_others(store: Counting) -> None:
    locks = MemoryLocks()
    runs = claimed_runs(store, locks, ["s0", "s1"])
    ownership = BatchedOwnership(store, locks)
    first = asyncio.create_task(ownership.standing(runs[0]))
    second = asyncio.create_task(ownership.standing(runs[1]))
    await asyncio.sleep(0)
    first.cancel()
    assert await second is None
