"""What the event loop of a process promises, held against one per coroutine and the thread of a worker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from dcsync.adapters.host.loop import LoopThread
from dcsync.model.errors import WorkerStopping
from dcsync.runs.ports import Loop
from tests.contract.held import Held
from tests.fakes_sync import OwnLoop

HELD = (Held(OwnLoop, Loop),)


@dataclass
class Running:
    loop: Loop
    stop: Callable[[], None]
    """What the worker does that stops."""


@pytest.fixture(params=["own", "thread"])
def running(request: pytest.FixtureRequest) -> Running:
    if request.param == "own":
        own = OwnLoop()
        return Running(own, own.stop)
    thread = LoopThread()
    return Running(thread, thread.cancel_all)


def test_the_result_and_the_error_of_a_coroutine_reach_its_caller(running: Running) -> None:
    async def answer() -> int:
        await asyncio.sleep(0)
        return 42

    async def fail() -> None:
        raise LookupError("no")

    assert running.loop.run(answer()) == 42
    with pytest.raises(LookupError):
        running.loop.run(fail())
    assert running.loop.run(answer()) == 42


def test_a_cancelled_coroutine_ends_its_clean_up_before_its_caller_hears_that_the_worker_stops(
    running: Running,
) -> None:
    ended = []

    async def run_long() -> None:
        try:
            running.stop()
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append("cleaned up")

    with pytest.raises(WorkerStopping):
        running.loop.run(run_long())
    assert ended == ["cleaned up"]


def test_a_coroutine_that_ends_by_itself_though_it_was_cancelled_keeps_its_result(running: Running) -> None:
    async def insist() -> str:
        try:
            running.stop()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "done all the same"
        return "never"

    assert running.loop.run(insist()) == "done all the same"
