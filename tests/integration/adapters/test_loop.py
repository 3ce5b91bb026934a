"""The event loop in its thread: results, errors and the worker's end reach the thread that waits."""

from __future__ import annotations

import asyncio
import threading

import pytest

from dcsync.adapters.host.loop import LoopThread
from dcsync.model.errors import WorkerStopping


def test_results_and_errors_come_back_to_the_thread_that_waits() -> None:
    loop = LoopThread()

    async def answer() -> int:
        await asyncio.sleep(0)
        return 42

    async def fail() -> None:
        raise LookupError("no")

    assert loop.run(answer()) == 42
    with pytest.raises(LookupError):
        loop.run(fail())


def test_many_threads_share_one_loop() -> None:
    loop = LoopThread()
    meeting = 20
    arrived: set[int] = set()
    threads: set[int] = set()
    together = asyncio.Event()

    async def meet(number: int) -> None:
        arrived.add(number)
        threads.add(threading.get_ident())
        if len(arrived) == meeting:
            together.set()
        await asyncio.wait_for(together.wait(), 60)

    waiting = [threading.Thread(target=loop.run, args=(meet(number),)) for number in range(meeting)]
    for thread in waiting:
        thread.start()
    for thread in waiting:
        thread.join(60)
    assert len(arrived) == meeting
    assert len(threads) == 1


def test_cancel_all_ends_what_runs_after_its_clean_up_and_refuses_what_comes_later() -> None:
    loop = LoopThread()
    started, told = threading.Event(), []

    async def run_long() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            told.append("cleaned up")

    async def come_late() -> None:
        told.append("ran")

    def run() -> None:
        try:
            loop.run(run_long())
        except WorkerStopping:
            told.append("stopped")

    waiting = threading.Thread(target=run)
    waiting.start()
    assert started.wait(60)
    loop.cancel_all()
    waiting.join(60)
    assert told == ["cleaned up", "stopped"]
    with pytest.raises(WorkerStopping):
        loop.run(come_late())
    assert "ran" not in told


def test_what_ends_by_itself_though_it_was_cancelled_keeps_its_result() -> None:
    loop = LoopThread()
    started, told = threading.Event(), []

    async def insist() -> str:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "done all the same"
        return "never"

    waiting = threading.Thread(target=lambda: told.append(loop.run(insist())))
    waiting.start()
    assert started.wait(60)
    loop.cancel_all()
    waiting.join(60)
    assert told == ["done all the same"]


def test_only_what_was_handed_over_is_cancelled_and_ends_its_own_children() -> None:
    """A child that has something to finish is asked by its parent, not by the worker's stop."""
    loop = LoopThread()
    started, told = threading.Event(), []

    async def child(may_end: asyncio.Event) -> None:
        started.set()
        await may_end.wait()
        told.append("finished")

    async def parent() -> None:
        may_end = asyncio.Event()
        task = asyncio.create_task(child(may_end))
        try:
            await asyncio.shield(task)
        finally:
            may_end.set()
            await task

    def run() -> None:
        with pytest.raises(WorkerStopping):
            loop.run(parent())
        told.append("stopped")

    waiting = threading.Thread(target=run)
    waiting.start()
    assert started.wait(60)
    loop.cancel_all()
    waiting.join(60)
    assert told == ["finished", "stopped"]
