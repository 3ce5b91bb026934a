"""The event loop of a worker process, in its own thread; tasks in other threads submit coroutines to it.

Deadlines are set by the coroutines themselves.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from dcsync.model.errors import WorkerStopping

T = TypeVar("T")

BLOCKING_CALLS_AT_ONCE = 16
"""Threads for database and Redis calls from the loop, and so the most connections a process needs for them."""


class LoopThread:
    """Port `Loop`. The thread starts with the first coroutine, so it may be created before a fork and used after it."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stopping = False

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Returns the coroutine's result. Raises its exception, or WorkerStopping if `cancel_all` cancelled it."""
        try:
            return asyncio.run_coroutine_threadsafe(self._tracked(coroutine), self._running_loop()).result()
        except concurrent.futures.CancelledError:
            raise WorkerStopping("the worker is stopping") from None

    def cancel_all(self) -> None:
        """Cancels all coroutines and accepts no more; callers get WorkerStopping once their coroutine has ended.

        It cancels the tasks, not the futures: cancelled futures would release the callers before the clean-up.
        """
        self._running_loop().call_soon_threadsafe(self._stop)

    async def _tracked(self, coroutine: Coroutine[Any, Any, T]) -> T:
        if self._stopping:
            coroutine.close()
            raise asyncio.CancelledError
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            return await coroutine
        finally:
            self._tasks.discard(task)

    def _stop(self) -> None:
        self._stopping = True
        for task in self._tasks:
            task.cancel()

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        with self._guard:
            if self._loop is None:
                self._loop = _new_loop()
                threading.Thread(target=self._loop.run_forever, name="event-loop", daemon=True).start()
            return self._loop


def _new_loop() -> asyncio.AbstractEventLoop:
    """Returns uvloop's event loop if it is installed, otherwise asyncio's."""
    try:
        import uvloop
    except ImportError:
        loop = asyncio.new_event_loop()
    else:
        loop = uvloop.new_event_loop()
    loop.set_default_executor(
        concurrent.futures.ThreadPoolExecutor(BLOCKING_CALLS_AT_ONCE, thread_name_prefix="blocking-call")
    )
    return loop
