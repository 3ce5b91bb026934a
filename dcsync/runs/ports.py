"""What every run asks of the world: the lock of its subcloud, whether it still owns it, and the process's event loop.

Locks are plain blocking calls and raise `BrokerUnreachable`. Where an answer can be "no", it is a value, not an error.
"""

from __future__ import annotations

from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from dcsync.model.ending import Ending
from dcsync.model.subcloud import Subcloud

T = TypeVar("T")


@dataclass(frozen=True)
class Standing:
    """Why a run may not go on, as its row says; see `RunStore.standing`."""

    ending: Ending
    detail: str


class Locks(Protocol):
    """One lock per subcloud with an owner and a time to live; held locks are renewed until released."""

    def acquire(self, wanted: Mapping[str, str]) -> set[str]:
        """Owner -> region name: the owners that now hold their subcloud's lock; nobody waits for the others."""

    def release(self, held: Mapping[str, str]) -> set[str]:
        """Owner -> region name: the owners that held theirs until now; a lock of somebody else is never removed, and
        where the broker does not answer, its time to live ends it."""

    def owners(self, region_names: Sequence[str]) -> dict[str, str | None]:
        """Who holds each lock now, None where nobody does; one round trip."""


class Owner(Protocol):
    """A run of whatever kind: its id is in the row and in the lock of its subcloud."""

    @property
    def run_id(self) -> str: ...

    @property
    def subcloud(self) -> Subcloud: ...


class Ownership(Protocol):
    """Whether a run still owns its subcloud, asked of row and lock together."""

    async def standing(self, run: Owner) -> Standing | None:
        """None while both the row and the lock are the run's own, else why it must stop. Raises DatabaseUnreachable or
        BrokerUnreachable when that cannot be found out; then nothing may be written either."""


class Loop(Protocol):
    """The event loop of this process, seen from a task's thread."""

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Wait for the coroutine; raises what it raised, or WorkerStopping once it was cancelled and has ended."""
