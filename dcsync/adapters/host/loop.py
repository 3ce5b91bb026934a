"""The one event loop of a worker process, in a thread of its own; tasks in other threads hand it their coroutines.

Not here: deadlines. A coroutine brings its own.
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
"""Threads for database and Redis calls made from the loop; also the most such connections a process needs for it."""


class LoopThread:
    """Port `Loop`. Starts with the first coroutine, so it is made before a fork and used after it."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stopping = False

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Wait for the coroutine's result. Raises what it raised, or WorkerStopping if `cancel_all` ended it."""
        try:
            return asyncio.run_coroutine_threadsafe(self._tracked(coroutine), self._running_loop()).result()
        except concurrent.futures.CancelledError:
            raise WorkerStopping("the worker stops") from None

    def cancel_all(self) -> None:
        """Cancel what runs and accept nothing more; the callers hear WorkerStopping once their coroutine has ended.

        Cancels their tasks, not the futures callers wait for: those would release the callers before the clean-up.
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
    """uvloop's where it is installed, else asyncio's own."""
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
