"""Keeps a write from leaving this process on an old answer about ownership.

Between the answer and the bytes lie a connection, a login and the event loop; the process may be busy, or be stopped
and continued. The HTTP client therefore calls `before_bytes_leave` at the last moment it can, and the answer is asked
for again when it is too old. Context variables carry the question there: everything between knows nothing of runs.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Recheck = Callable[[], Awaitable[None]]
"""Returns if a recent answer says that the run owns its subcloud; raises the error that ends the run if not."""

_answered: ContextVar[Recheck | None] = ContextVar("answered", default=None)
_writing: ContextVar[Recheck | None] = ContextVar("writing", default=None)


def depends_on(recheck: Recheck) -> None:
    """Notes for this run's writes how to ask again about the ownership it has just been granted."""
    _answered.set(recheck)


@contextmanager
def writing() -> Iterator[None]:
    """Requests made in this block leave only while the run's last answer is recent, or is given again."""
    token = _writing.set(_answered.get())
    try:
        yield
    finally:
        _writing.reset(token)


async def before_bytes_leave() -> None:
    """Returns at once outside of `writing` and while the answer is recent. Raises the error that ends the run."""
    recheck = _writing.get()
    if recheck is not None:
        await recheck()
