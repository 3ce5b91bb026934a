"""Time of an event loop that moves because a test moves it: a deadline passes without the test waiting for it, and none
passes because the machine was busy."""

from __future__ import annotations

import asyncio
import time

AHEAD = "_ahead_of_the_clock"


def time_passes(seconds: float) -> None:
    """The running loop's timers are so much nearer from now on."""
    loop = asyncio.get_running_loop()
    ahead: float = getattr(loop, AHEAD, 0.0) + seconds
    setattr(loop, AHEAD, ahead)
    loop.time = lambda: time.monotonic() + ahead  # type: ignore[method-assign]
