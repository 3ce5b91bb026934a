"""What every audited endpoint type must say of itself: a class of its own, one of the registry's rooms."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, ClassVar, Generic, TypeVar

from dcsync.audit.ports import AuditRun
from dcsync.model.identity import CentralData, Placed
from dcsync.model.reasons import Reason
from dcsync.model.subcloud import EndpointType
from dcsync.planner.differences import Difference
from dcsync.runs.clouds import SubcloudSession
from dcsync.runs.delivery import OwnershipCheck

Held = TypeVar("Held")
"""What one subcloud holds of an endpoint type, as the room reads it."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What our rows remember of one subcloud: what dcsync placed there, and the members of groups it emptied."""

    placed: Placed = field(default_factory=Placed)
    groups_to_refill: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Scope:
    """Of which subcloud, with what is remembered of it, and what may be repaired (`only`; None: everything)."""

    region_name: str
    memory: Memory
    only: frozenset[str] | None
    now: datetime
    token_lifetime: timedelta
    knows_admin_password: bool = False
    """Whether the central admin's password can be written to the subcloud's keyring."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What differs, and the repair: `writes` in words and in order, `plan` for the room that carries it out."""

    differences: tuple[Difference, ...]
    writes: tuple[str, ...]
    deletions: int = 0
    """Records and grants that the repair deletes: what a guard counts."""
    meanwhile: Memory
    """To be remembered before the first write."""
    settled: Memory
    """To be remembered once nothing differs."""
    plan: Any = None

    @property
    def is_in_sync(self) -> bool:
        return not self.differences


@dataclass(frozen=True, kw_only=True)
class Writer:
    """How a room writes: the session, the ownership check before each write, and bounds. `admin_password`: the central
    one, for the subcloud's keyring; None where it is not known."""

    session: SubcloudSession
    check_ownership: OwnershipCheck
    users_at_once: int
    admin_password: str | None = field(default=None, repr=False)


class AuditedEndpoint(ABC, Generic[Held]):
    """One audited endpoint type: how both sides are read, counted, compared and written. Holds no state."""

    endpoint_type: ClassVar[EndpointType]
    resource_types: ClassVar[tuple[str, ...]]
    """What is compared, by the names operators know; a repair may be restricted to some of them."""
    purpose: ClassVar[str]
    """One sentence for operators: what it means that this endpoint type is in-sync."""
    not_verified: ClassVar[Reason]
    """Why a repair failed whose writes were all taken."""
    carries_keys: ClassVar[bool] = False
    """Whether a rotation of the central fernet keys reaches subclouds through it; one endpoint type does."""

    # --- the central cloud ---

    @abstractmethod
    def central_fingerprint(self, central: CentralData) -> str:
        """A digest of what subclouds are given; a change of it makes every audit of the type due."""

    def central_events_fingerprint(self, central: CentralData) -> str:
        """The same of what changes all the time, and makes audits due once a minute at most."""
        return ""

    @abstractmethod
    def central_counts(self, central: CentralData) -> dict[str, int]:
        """How long each central list is, under the names operators know: a list that shrinks by half is refused."""

    # --- a subcloud ---

    @abstractmethod
    async def read(self, session: SubcloudSession) -> Held:
        """Everything that is compared. Raises CloudError."""

    def held_fingerprint(self, held: Held) -> str | None:
        """Kept in the row, where somebody asks which subclouds hold what; None where nobody does."""
        return None

    @abstractmethod
    def compare(self, central: CentralData, held: Held, scope: Scope) -> Comparison:
        """What differs and how it is repaired. Raises CloudError where no write could help."""

    def in_words(
        self, comparison: Comparison, *, central: CentralData, held: Held, only: Collection[str] | None
    ) -> tuple[str, ...]:
        """The differences of `only` these resource types (None: all) for a preview; never a secret."""
        return tuple(str(each) for each in comparison.differences if only is None or each.type in only)

    @abstractmethod
    async def repair(self, comparison: Comparison, *, central: CentralData, writer: Writer) -> Held | None:
        """Carry out the comparison's plan. Returns what was read back of the whole, None where the caller must read it
        again. Raises CloudError."""

    def is_planned(self, run: AuditRun, *, now: datetime) -> bool:
        """Whether a difference is expected at this time, and worth no alarm."""
        return False
