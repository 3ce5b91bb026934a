"""Ports of every run: the lock of its subcloud, the ownership check, and the process's event loop.

Locks are blocking calls and raise `BrokerUnreachable`. A negative answer is a return value, not an error.
"""

from __future__ import annotations

from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol, TypeVar

from dcsync.model.ending import Ending
from dcsync.model.subcloud import Subcloud

T = TypeVar("T")


@dataclass(frozen=True)
class Standing:
    """Why a run must stop, as stored in its row; see `RunStore.standing`."""

    ending: Ending
    detail: str


class Locks(Protocol):
    """One lock per subcloud with an owner and a time to live; held locks are renewed until released."""

    def acquire(self, wanted: Mapping[str, str]) -> set[str]:
        """Takes owner -> region name; returns the owners that now hold their subcloud's lock, without waiting for
        locks."""

    def release(self, held: Mapping[str, str]) -> set[str]:
        """Takes owner -> region name; returns the owners that held their lock until now. A lock of another owner is
        never removed. When the broker does not answer, the lock expires after its time to live."""

    def renew(self, held: Mapping[str, str]) -> set[str]:
        """Takes owner -> region name; gives these locks their whole time to live back, and returns the owners that
        still hold theirs; one round trip."""

    def owners(self, region_names: Sequence[str]) -> dict[str, str | None]:
        """Returns the owner of each lock, None if it is free; one round trip."""

    def server_uptime(self) -> timedelta | None:
        """Returns for how long the server that keeps the locks has been running; None if it may not be asked."""


class Owner(Protocol):
    """A run of any service: its id is stored in the row and in the lock of its subcloud."""

    @property
    def run_id(self) -> str: ...

    @property
    def subcloud(self) -> Subcloud: ...


class Ownership(Protocol):
    """Checks by row and lock whether a run still owns its subcloud."""

    async def standing(self, run: Owner) -> Standing | None:
        """Returns None while the run owns both the row and the lock, else why it must stop. Raises DatabaseUnreachable
        or BrokerUnreachable when ownership cannot be checked; the run must not write then either."""

    def is_recent(self, run: Owner) -> bool:
        """Returns whether the last answer that this run owns both is recent enough to write on; asks nobody."""


class Loop(Protocol):
    """The event loop of this process, used from a task's thread."""

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Waits for the coroutine; raises its error, or WorkerStopping once it was cancelled and has ended."""
