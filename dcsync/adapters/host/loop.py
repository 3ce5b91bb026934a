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
        result: concurrent.futures.Future[T] = concurrent.futures.Future()
        self._running_loop().call_soon_threadsafe(self._start, coroutine, result)
        return result.result()

    def cancel_all(self) -> None:
        """Cancel what runs and accept nothing more; the callers hear WorkerStopping once their coroutine has ended."""
        self._running_loop().call_soon_threadsafe(self._stop)

    def _start(self, coroutine: Coroutine[Any, Any, T], result: concurrent.futures.Future[T]) -> None:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(lambda ended: self._hand_over(ended, result))
        if self._stopping:
            task.cancel()

    def _stop(self) -> None:
        self._stopping = True
        for task in self._tasks:
            task.cancel()

    def _hand_over(self, ended: asyncio.Task[T], result: concurrent.futures.Future[T]) -> None:
        self._tasks.discard(ended)
        if ended.cancelled():
            result.set_exception(WorkerStopping("the worker stops"))
        elif (error := ended.exception()) is not None:
            result.set_exception(error)
        else:
            result.set_result(ended.result())

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
