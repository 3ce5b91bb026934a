"""The base class of audited endpoint types."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, ClassVar, Generic, TypeVar

from dcsync.model.identity import CentralData, Placed
from dcsync.model.reasons import Reason
from dcsync.model.subcloud import EndpointType
from dcsync.planner.differences import Difference
from dcsync.planner.refused import NotWritten
from dcsync.runs.clouds import SubcloudSession
from dcsync.runs.delivery import OwnershipCheck

Held = TypeVar("Held")
"""What is read from one subcloud for an endpoint type."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What is stored about one subcloud: what dcsync placed there, and the members of groups it emptied."""

    placed: Placed = field(default_factory=Placed)
    groups_to_refill: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Scope:
    """The input of a comparison: the subcloud, its memory, and what may be repaired (`only`; None: everything)."""

    region_name: str
    memory: Memory
    only: frozenset[str] | None
    now: datetime
    token_lifetime: timedelta
    knows_admin_password: bool = False
    """Whether the central admin's password can be written to the subcloud's keyring."""
    refused: tuple[NotWritten, ...] = ()
    """What the subcloud refused in this run so far."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The differences and their repair: `writes` describes the writes in order, `plan` is used by `repair`."""

    differences: tuple[Difference, ...]
    writes: tuple[str, ...]
    deletions: int = 0
    """The number of records and grants the repair deletes, checked by a guard."""
    memory_during_repair: Memory
    """Stored before the first write."""
    memory_in_sync: Memory
    """Stored once nothing differs."""
    plan: Any = None
    refused: tuple[NotWritten, ...] = ()
    """What would repair a difference, is not among the writes, and why."""

    @property
    def is_in_sync(self) -> bool:
        return not self.differences


@dataclass(frozen=True, kw_only=True)
class Writer:
    """What `repair` uses: the session, the ownership check before each write, and limits. `note` is called with each
    write, in words, once it was carried out, `note_not_written` with each that was refused or depends on one that was.
    `admin_password` is the central one, for the subcloud's keyring; None if
    unknown."""

    session: SubcloudSession
    check_ownership: OwnershipCheck
    note: Callable[[str], None]
    note_not_written: Callable[[NotWritten], None]
    users_at_once: int
    admin_password: str | None = field(default=None, repr=False)


class AuditedEndpoint(ABC, Generic[Held]):
    """One audited endpoint type: how both sides are read, counted, compared and written. Holds no state."""

    endpoint_type: ClassVar[EndpointType]
    resource_types: ClassVar[tuple[str, ...]]
    """The names operators use for what is compared; a repair may be restricted to some of them."""
    compared: ClassVar[str]
    """What is compared, in a few words."""
    purpose: ClassVar[str]
    """One sentence for operators: what it means that this endpoint type is in-sync."""
    not_verified: ClassVar[Reason]
    """The reason when all writes of a repair were accepted but it still differs."""
    distributes_keys: ClassVar[bool] = False
    """Whether its audit distributes rotated central fernet keys; true for exactly one endpoint type."""

    # --- the central cloud ---

    @abstractmethod
    def central_fingerprint(self, central: CentralData) -> str:
        """Returns a digest of what subclouds receive; a change of it makes every audit of the type due."""

    def central_events_fingerprint(self, central: CentralData) -> str:
        """Returns a digest of frequently changing data, which makes audits due at most once a minute."""
        return ""

    @abstractmethod
    def central_counts(self, central: CentralData) -> dict[str, int]:
        """Returns the length of each central list by its name; a list that shrinks by more than half is refused."""

    # --- a subcloud ---

    @abstractmethod
    async def read(self, session: SubcloudSession) -> Held:
        """Reads everything that is compared. Raises CloudError."""

    def held_fingerprint(self, held: Held) -> str | None:
        """Returns a fingerprint to store in the row; None if the type has none."""
        return None

    @abstractmethod
    def compare(self, central: CentralData, held: Held, scope: Scope) -> Comparison:
        """Returns the differences and the repair. Raises CloudError if no write can repair them."""

    def describe(
        self, comparison: Comparison, *, central: CentralData, held: Held, only: Collection[str] | None
    ) -> tuple[str, ...]:
        """Returns the differences of `only` these resource types (None: all) for a preview, without secrets."""
        return tuple(str(each) for each in comparison.differences if only is None or each.type in only)

    @abstractmethod
    async def repair(self, comparison: Comparison, *, central: CentralData, writer: Writer) -> Held | None:
        """Carries out the comparison's plan. Returns what it read back, None if the caller must read again. Raises
        CloudError."""

    def is_planned(self, keys_planned_until: datetime | None, *, now: datetime) -> bool:
        """Returns whether a difference is expected at this time and raises no alarm."""
        return False
