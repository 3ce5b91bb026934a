"""The runner, with work that does nothing but what a test says: locks, claims, errors, deadlines, endings."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import pytest

from dcsync.model.ending import Ending
from dcsync.model.errors import BrokerUnreachable, CloudError, DatabaseUnreachable
from dcsync.model.reasons import Reason
from dcsync.model.subcloud import Subcloud
from dcsync.runs.delivery import Stopped
from dcsync.runs.login import Login
from dcsync.runs.outcome import Outcome, Result
from dcsync.runs.ports import Standing
from dcsync.runs.runner import Ended, FollowUp, Runner, within
from tests.builders import NOON, a_subcloud
from tests.fakes_sync import MemoryLocks
from tests.loop_time import time_passes
from tests.memory_clouds import MemoryClouds


@dataclass(frozen=True)
class Wanted:
    region_name: str


@dataclass(frozen=True)
class Claimed:
    run_id: str
    subcloud: Subcloud


@dataclass
class Digging:
    """A job: what its subcloud's name stands for in `Dig.does`."""

    run: Claimed
    does: Callable[[], Awaitable[None]]
    logins: list[Login]

    async def carry_out(self, login: Login) -> None:
        self.logins.append(login)
        await self.does()


async def nothing() -> None:
    pass


@dataclass
class Dig:
    """Work whose rows are region names; every end that is recorded is noted."""

    rows: set[str] = field(default_factory=lambda: {"s1", "s2", "s3"})
    does: dict[str, Callable[[], Awaitable[None]]] = field(default_factory=dict)
    ends: dict[str, Ended] = field(default_factory=dict)
    logins: list[Login] = field(default_factory=list)
    before_claim: Callable[[], None] = lambda: None
    before_settle: Callable[[str], None] = lambda region_name: None
    noun: str = "dig"

    def claim(self, hints: Mapping[str, Wanted], *, now: datetime) -> list[Digging]:
        self.before_claim()
        return [
            Digging(
                Claimed(run_id, replace(a_subcloud(), name=hint.region_name, region_name=hint.region_name)),
                self.does.get(hint.region_name, nothing),
                self.logins,
            )
            for run_id, hint in hints.items()
            if hint.region_name in self.rows
        ]

    def settle(self, ended: Sequence[tuple[Digging, Ended]]) -> list[Outcome]:
        for job, end in ended:
            self.before_settle(job.run.subcloud.region_name)
            self.ends[job.run.subcloud.region_name] = end
        return [
            Outcome(result=Result(end.ending.value), region_name=job.run.subcloud.region_name, run_id=job.run.run_id)
            for job, end in ended
        ]

    def no_run(self, hint: Wanted, result: Result) -> Outcome:
        return Outcome(result=result, region_name=hint.region_name)


@dataclass
class World:
    work: Dig = field(default_factory=Dig)
    locks: MemoryLocks = field(default_factory=MemoryLocks)
    clouds: MemoryClouds = field(default_factory=MemoryClouds)
    faults: list[BaseException] = field(default_factory=list)
    numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    then: FollowUp[Wanted, Digging] | None = None
    told: list[tuple[str, str, str | None]] = field(default_factory=list)

    async def run(self, *region_names: str) -> list[Outcome]:
        runner = Runner(
            locks=self.locks,
            clouds=self.clouds,
            deadline_seconds=60,
            now=lambda: NOON,
            new_run_id=lambda: f"run-{next(self.numbers)}",
            log_fault=lambda run, error: self.faults.append(error),
        )
        hints = [Wanted(name) for name in region_names]
        return await runner.run(self.work, hints, then=self.then, on_end=self.note)

    def note(self, noun: str, outcome: Outcome) -> None:
        self.told.append((noun, outcome.result.value, outcome.run_id))

    def follows(self, **options: Any) -> Dig:
        """A run of `work` that completed goes on with this."""
        work = Dig(noun="fill", **options)
        self.then = FollowUp(work, Wanted)
        return work


@pytest.fixture
def world() -> World:
    return World()


def raising(error: BaseException) -> Callable[[], Awaitable[None]]:
    async def raise_it() -> None:
        raise error

    return raise_it


def results(outcomes: Sequence[Outcome]) -> list[tuple[str, str]]:
    return [(outcome.region_name, outcome.result.value) for outcome in outcomes]


async def test_many_hints_are_acted_on_at_once_and_answered_in_order(world: World) -> None:
    world.locks.acquire({"somebody": "s2"})
    outcomes = await world.run("s1", "s2", "unknown", "s3")
    assert results(outcomes) == [("s1", "completed"), ("s2", "busy"), ("unknown", "stale"), ("s3", "completed")]
    assert world.locks.held == {"s2": "somebody"}


async def test_two_hints_for_one_subcloud_are_one_run(world: World) -> None:
    assert results(await world.run("s1", "s1")) == [("s1", "completed"), ("s1", "busy")]


async def test_one_run_that_hangs_keeps_no_other_from_its_end(world: World) -> None:
    hung = asyncio.Event()
    world.work.does["s1"] = hung.wait  # type: ignore[assignment]
    running = asyncio.create_task(world.run("s1", "s2", "s3"))
    while len(world.work.ends) < 2:
        await asyncio.sleep(0.001)
    assert set(world.work.ends) == {"s2", "s3"}
    assert set(world.locks.held) == {"s1"}, "locks of those that ended are free"
    hung.set()
    assert [outcome.result for outcome in await running] == [Result.COMPLETED] * 3


@pytest.mark.parametrize(
    ("error", "ending", "reason"),
    [
        (CloudError(Reason.SERVER_ERROR, "500"), Ending.FAILED, Reason.SERVER_ERROR),
        (Stopped(Standing(Ending.CANCELLED, "unmanaged")), Ending.CANCELLED, None),
        (BrokerUnreachable("Redis"), Ending.LOCK_LOST, None),
        (DatabaseUnreachable("PostgreSQL"), Ending.LOCK_LOST, None),
        (ZeroDivisionError("a secret"), Ending.FAILED, Reason.INTERNAL_ERROR),
        (TimeoutError(), Ending.FAILED, Reason.INTERNAL_ERROR),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_each_error_ends_the_run_in_its_way(
    world: World, error: Exception, ending: Ending, reason: Reason | None
) -> None:
    world.work.does["s1"] = raising(error)
    await world.run("s1", "s2")
    ended = world.work.ends["s1"]
    assert (ended.ending, ended.failure and ended.failure.reason) == (ending, reason)
    assert "secret" not in ended.detail
    assert world.faults == ([error] if reason is Reason.INTERNAL_ERROR else [])
    assert world.work.ends["s2"].ending is Ending.COMPLETED
    assert world.locks.held == {}


async def test_a_run_that_takes_longer_than_its_deadline_fails_with_timeout(world: World) -> None:
    async def wait() -> None:
        while True:
            time_passes(60)
            await asyncio.sleep(0)

    world.work.does["s1"] = wait
    await world.run("s1")
    failure = world.work.ends["s1"].failure
    assert failure is not None
    assert (failure.reason, failure.detail) == (Reason.TIMEOUT, "the dig took longer than 60 s")


async def test_an_end_that_cannot_be_recorded_frees_the_lock_and_is_raised(world: World) -> None:
    def refuse(region_name: str) -> None:
        if region_name == "s1":
            raise DatabaseUnreachable("PostgreSQL")

    world.work.before_settle = refuse
    with pytest.raises(DatabaseUnreachable):
        await world.run("s1", "s2")
    assert world.work.ends["s2"].ending is Ending.COMPLETED
    assert world.locks.held == {}


async def test_a_claim_that_cannot_be_made_frees_every_lock(world: World) -> None:
    def refuse() -> None:
        raise DatabaseUnreachable("PostgreSQL")

    world.work.before_claim = refuse
    with pytest.raises(DatabaseUnreachable):
        await world.run("s1", "s2")
    assert world.locks.held == {}


async def test_runs_of_a_worker_that_stops_are_given_back(world: World) -> None:
    begun = asyncio.Event()

    async def hang() -> None:
        begun.set()
        await asyncio.Event().wait()

    world.work.does["s1"] = world.work.does["s2"] = hang
    running = asyncio.create_task(world.run("s1", "s2"))
    await begun.wait()
    running.cancel()
    assert [outcome.result for outcome in await running] == [Result.GIVEN_BACK] * 2
    assert world.locks.held == {}


async def test_a_worker_that_stops_while_a_run_is_claimed_gives_it_back_unbegun(world: World) -> None:
    loop, running = asyncio.get_running_loop(), None

    async def fail() -> None:
        raise AssertionError("must not begin")

    def stop() -> None:
        assert running is not None
        loop.call_soon_threadsafe(running.cancel)
        stopped.wait()

    stopped = threading.Event()
    world.work.does["s1"] = fail
    world.work.before_claim = stop
    running = asyncio.create_task(world.run("s1"))
    await asyncio.sleep(0.01)
    stopped.set()
    (outcome,) = await running
    assert outcome.result is Result.GIVEN_BACK
    assert world.locks.held == {}


async def test_a_timeout_of_somebody_else_is_no_deadline() -> None:
    with pytest.raises(TimeoutError):
        async with within(60, "looking"):
            raise TimeoutError


# --- what a run goes on with ---


async def test_a_run_that_completed_goes_on_under_its_lock_its_id_and_its_login(world: World) -> None:
    fill = world.follows()
    logins = world.clouds.site.calls

    async def look() -> None:
        login = (*world.work.logins, *fill.logins)[-1]
        session = await login.session(central=world.clouds.central.records, check_ownership=nothing)
        seen.append((dict(world.locks.held), session))

    seen: list[Any] = []
    world.work.does["s1"] = fill.does["s1"] = look
    (outcome,) = await world.run("s1")
    assert outcome.result is Result.COMPLETED
    assert world.told == [("dig", "completed", "run-1"), ("fill", "completed", "run-1")]
    assert seen[0] == seen[1]
    assert seen[0][0] == {"s1": "run-1"}
    assert logins == ["login"]
    assert world.locks.held == {}


@pytest.mark.parametrize(
    "error", [CloudError(Reason.SERVER_ERROR, "500"), Stopped(Standing(Ending.CANCELLED, "")), BrokerUnreachable("")]
)
async def test_nothing_follows_a_run_that_did_not_complete(world: World, error: Exception) -> None:
    fill = world.follows()
    world.work.does["s1"] = raising(error)
    await world.run("s1")
    assert (fill.ends, world.locks.held) == ({}, {})


async def test_nothing_follows_where_nothing_is_due(world: World) -> None:
    fill = world.follows(rows=set())
    assert results(await world.run("s1")) == [("s1", "completed")]
    assert (fill.ends, world.locks.held, len(world.told)) == ({}, {}, 1)


async def test_nothing_follows_hints_that_led_to_no_run(world: World) -> None:
    fill = world.follows()
    world.locks.acquire({"somebody": "s1"})
    await world.run("s1", "unknown")
    assert fill.ends == {}
    assert [told[1] for told in world.told] == ["busy", "stale"]


async def test_what_follows_may_fail_and_what_completed_stays_completed(world: World) -> None:
    fill = world.follows()
    fill.does["s1"] = raising(CloudError(Reason.SERVER_ERROR, "500"))
    assert results(await world.run("s1")) == [("s1", "completed")]
    assert (world.work.ends["s1"].ending, fill.ends["s1"].ending) == (Ending.COMPLETED, Ending.FAILED)
    assert world.locks.held == {}


async def test_what_follows_has_a_deadline_of_its_own(world: World) -> None:
    fill = world.follows()

    async def almost_too_long() -> None:
        time_passes(40)
        await asyncio.sleep(0)

    world.work.does["s1"] = fill.does["s1"] = almost_too_long
    await world.run("s1")
    assert (world.work.ends["s1"].ending, fill.ends["s1"].ending) == (Ending.COMPLETED, Ending.COMPLETED)


async def test_a_worker_that_stops_gives_back_what_follows_and_not_what_completed(world: World) -> None:
    fill, begun = world.follows(), asyncio.Event()

    async def hang() -> None:
        begun.set()
        await asyncio.Event().wait()

    fill.does["s1"] = hang
    running = asyncio.create_task(world.run("s1"))
    await begun.wait()
    running.cancel()
    assert results(await running) == [("s1", "completed")]
    assert (world.work.ends["s1"].ending, fill.ends["s1"].ending) == (Ending.COMPLETED, Ending.GIVEN_BACK)
    assert world.locks.held == {}


async def test_a_worker_that_stops_while_an_end_is_recorded_does_not_begin_what_follows(world: World) -> None:
    loop, stopped = asyncio.get_running_loop(), threading.Event()
    fill = world.follows()

    async def fail() -> None:
        raise AssertionError("must not begin")

    def stop(region_name: str) -> None:
        loop.call_soon_threadsafe(running.cancel)
        stopped.wait()

    fill.does["s1"] = fail
    world.work.before_settle = stop
    running = asyncio.create_task(world.run("s1"))
    loop.call_later(0.01, stopped.set)
    assert results(await running) == [("s1", "completed")]
    assert fill.ends["s1"].ending is Ending.GIVEN_BACK
    assert (world.faults, world.locks.held) == ([], {})


async def test_what_cannot_be_claimed_now_is_left_to_the_sweep(world: World) -> None:
    def refuse() -> None:
        raise DatabaseUnreachable("PostgreSQL")

    fill = world.follows(before_claim=refuse)
    assert results(await world.run("s1")) == [("s1", "completed")]
    assert (fill.ends, world.locks.held) == ({}, {})


async def test_an_end_of_what_follows_that_cannot_be_recorded_is_raised_after_the_first_was_told(world: World) -> None:
    def refuse(region_name: str) -> None:
        raise DatabaseUnreachable("PostgreSQL")

    world.follows(before_settle=refuse)
    with pytest.raises(DatabaseUnreachable):
        await world.run("s1")
    assert world.told == [("dig", "completed", "run-1")]
    assert world.locks.held == {}
