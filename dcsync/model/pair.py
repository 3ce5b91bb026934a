"""Management state and availability status of a subcloud, and what a change of them means for its initial sync."""

from __future__ import annotations

from dataclasses import dataclass

from dcsync.model.states.initial_sync import InitialSyncEvent
from dcsync.model.subcloud import AvailabilityStatus, ManagementState


@dataclass(frozen=True)
class Pair:
    """Management state and availability status: together they decide whether a subcloud is synced at all."""

    management_state: ManagementState
    availability_status: AvailabilityStatus

    @property
    def is_eligible(self) -> bool:
        return self == Pair(ManagementState.MANAGED, AvailabilityStatus.ONLINE)


@dataclass(frozen=True)
class PairChange:
    """The event caused by a new pair, and whether the record of an earlier identity sync is dropped."""

    event: InitialSyncEvent
    forget_subsequent_sync: bool


def pair_change(*, old: Pair, new: Pair) -> PairChange | None:
    """Returns the change from the old pair to the new one, None when they are equal. Source:
    docs/upstream/initial-sync.md section 3.1."""
    if new == old:
        return None
    return PairChange(
        event=InitialSyncEvent.BECAME_ELIGIBLE if new.is_eligible else InitialSyncEvent.LEFT,
        forget_subsequent_sync=new.management_state is ManagementState.UNMANAGED,
    )
