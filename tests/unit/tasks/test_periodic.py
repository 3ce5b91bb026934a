"""What is late is noticed and run by a worker, whatever became of beat, of its messages and of Redis."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from dcsync.adapters.broker.ticks import Ticks
from dcsync.beat_schedule import beat_schedule
from dcsync.model.errors import BrokerUnreachable, DatabaseUnreachable
from dcsync.model.messages import TaskName
from dcsync.settings import load
from dcsync.tasks.app import make_app
from dcsync.tasks.base import WorkerProcess
from dcsync.tasks.periodic import LATE_AFTER_INTERVALS, OF_ROWS, WORK, LateWatch, Periodic, periodics
from tests.processes import wait_until

INTERVAL = 10.0
LATE = INTERVAL * LATE_AFTER_INTERVALS + 0.1


class Redis(Ticks):
    """Ticks of one task in memory, by a clock of the test's own; may be away."""

    def __init__(self) -> None:
        self.elapsed = 100.0
        self.ended: float | None = None
        self.taken_until = 0.0
        self.late = 0
        self.is_away = False

    def _there(self) -> None:
        if self.is_away:
            raise BrokerUnreachable("Redis: ConnectionError")

    def take(self, name: str, *, interval: float) -> bool:
        self._there()
        is_free = self.elapsed >= self.taken_until
        self.taken_until = self.elapsed + interval * 0.6 if is_free else self.taken_until
        return is_free

    def ended_well(self, name: str) -> None:
        self._there()
        self.ended = self.elapsed

    def seconds_since(self, name: str) -> float | None:
        self._there()
        return None if self.ended is None else self.elapsed - self.ended

    def count_late(self, name: str) -> int:
        self._there()
        self.late += 1
        return self.late


class World:
    """Worker processes that watch one task. `problem` is what running it raises."""

    def __init__(self, *, workers: int = 1, needs_broker: bool = True) -> None:
        self.redis = Redis()
        self.ran = 0
        self.problem: Exception | None = None
        task = Periodic("task", INTERVAL, self._run, needs_broker)
        self.workers = [LateWatch(task, self.redis, elapsed=lambda: self.redis.elapsed) for _ in range(workers)]

    def _run(self) -> None:
        self.ran += 1
        if self.problem is not None:
            raise self.problem

    def after(self, seconds: float) -> None:
        self.redis.elapsed += seconds
        for worker in self.workers:
            worker.look()


def test_what_ends_well_in_time_is_left_to_others() -> None:
    world = World()
    for _ in range(10):
        world.redis.ended_well("task")
        world.after(LATE - 1)
    assert (world.ran, world.redis.late) == (0, 0)


@pytest.mark.parametrize("has_ended_before", [True, False])
def test_what_is_late_is_run_by_one_of_the_workers_and_counted(has_ended_before: bool) -> None:
    world = World(workers=3)
    if has_ended_before:
        world.redis.ended_well("task")
    world.after(LATE)
    assert (world.ran, world.redis.late) == (1, 1)
    world.after(INTERVAL)
    assert world.ran == 1, "it has just ended well"
    world.after(LATE)
    assert (world.ran, world.redis.late) == (2, 2)


def test_a_worker_that_has_just_come_up_gives_others_the_time_to() -> None:
    world = World()
    world.after(LATE - 1)
    assert world.ran == 0


@pytest.mark.parametrize("problem", [DatabaseUnreachable("away"), ValueError("a fault of ours")])
def test_what_fails_is_tried_again_but_not_with_every_look(problem: Exception) -> None:
    world = World()
    world.problem = problem
    world.after(LATE)
    world.after(INTERVAL)
    assert world.ran == 1
    world.after(LATE)
    assert world.ran == 2


def test_without_redis_every_worker_does_what_concerns_rows_only() -> None:
    world = World(workers=2, needs_broker=False)
    world.redis.is_away = True
    world.after(LATE)
    assert world.ran == 2
    world.after(INTERVAL)
    assert world.ran == 2


def test_without_redis_nobody_does_what_needs_it() -> None:
    world = World()
    world.redis.is_away = True
    world.after(LATE)
    assert world.ran == 0


def test_the_watch_goes_on_whatever_goes_wrong() -> None:
    """Also where Redis answers what it never should."""
    looks: list[int] = []
    stopping = threading.Event()

    class Broken(Redis):
        def seconds_since(self, name: str) -> float | None:
            looks.append(1)
            raise ValueError("could not convert string to float")

    watch = LateWatch(Periodic("task", 0.01, lambda: None), Broken())
    thread = threading.Thread(target=watch.keep_watching, kwargs={"stopping": stopping}, daemon=True)
    thread.start()
    try:
        wait_until(lambda: len(looks) > 2, seconds=60, what="it looks again")
    finally:
        stopping.set()
        thread.join(timeout=60)


# --- who watches what --------------------------------------------------------------------------------------------

USUAL = {"DCSYNC_REDIS_URL": "redis://r.invalid", "DCSYNC_DATABASE_URL": "postgresql://db.invalid/d"}


def watched(*, reaches_clouds: bool) -> dict[str, float]:
    settings = load(USUAL)
    with make_app(settings) as app:
        found = periodics(WorkerProcess(app, settings), reaches_clouds=reaches_clouds)
        return {each.name: each.interval for each in found}


def test_workers_that_reach_the_clouds_watch_all_that_beat_sends() -> None:
    with make_app(load(USUAL)) as app:
        sent = {entry["task"]: entry["schedule"] for entry in app.conf.beat_schedule.values()}
    assert watched(reaches_clouds=True) == sent
    assert set(sent) == {task.value for task in WORK}


def test_state_workers_watch_what_concerns_rows_only() -> None:
    assert set(watched(reaches_clouds=False)) == {task.value for task in OF_ROWS}
    assert {TaskName.DELIVER_ALARMS, TaskName.RECONCILE_ALARMS} <= OF_ROWS


# --- messages ----------------------------------------------------------------------------------------------------


def run(task: TaskName, ticks: Redis, monkeypatch: pytest.MonkeyPatch, **payload: Any) -> object:
    """What the task of this name does with such a message."""
    with make_app(load(USUAL)) as app:
        monkeypatch.setattr(WorkerProcess, "ticks", ticks)
        return app.tasks[task.value](**payload)


def test_a_message_whose_tick_was_taken_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beat may have sent hundreds while nobody took them: the services are not even made."""
    ticks = Redis()
    ticks.take("task", interval=INTERVAL)
    entries = beat_schedule(sweep_interval=10, probe_interval=30, audit_interval=1200, central_watch_interval=10)
    for entry in entries.values():
        told = run(TaskName(str(entry["task"])), ticks, monkeypatch)
        assert told == "this tick was taken already"
    assert ticks.ended is None


def test_a_message_that_is_first_is_run_and_its_good_end_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = Redis()
    feed = SimpleNamespace(alarm_feed=SimpleNamespace(deliver=lambda: {"log": 1}))
    monkeypatch.setattr(WorkerProcess, "state", feed)
    assert run(TaskName.DELIVER_ALARMS, ticks, monkeypatch) == {"log": 1}
    assert ticks.ended == ticks.elapsed
