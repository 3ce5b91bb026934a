"""Management state and availability status of a subcloud, and what a change of the two means for its initial sync."""

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
    """What follows from a new pair: the event, and whether the memory of an earlier identity sync is dropped."""

    event: InitialSyncEvent
    forget_subsequent_sync: bool


def pair_change(*, old: Pair, new: Pair) -> PairChange | None:
    """What a new pair means, None when it is the old one. Source: docs/upstream/initial-sync.md section 3.1."""
    if new == old:
        return None
    return PairChange(
        event=InitialSyncEvent.BECAME_ELIGIBLE if new.is_eligible else InitialSyncEvent.LEFT,
        forget_subsequent_sync=new.management_state is ManagementState.UNMANAGED,
    )
