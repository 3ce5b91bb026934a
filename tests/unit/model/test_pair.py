"""What a change of management state and availability status means."""

from __future__ import annotations

import pytest

from dcsync.model.pair import Pair, pair_change
from dcsync.model.states.initial_sync import InitialSyncEvent
from dcsync.model.subcloud import AvailabilityStatus, ManagementState

MANAGED, UNMANAGED = ManagementState
ONLINE, OFFLINE = AvailabilityStatus

PAIRS = [Pair(management, availability) for management in ManagementState for availability in AvailabilityStatus]


@pytest.mark.parametrize("old", PAIRS)
@pytest.mark.parametrize("new", PAIRS)
def test_a_changed_pair_means_what_the_decision_table_says(old: Pair, new: Pair) -> None:
    change = pair_change(old=old, new=new)
    if old == new:
        assert change is None
        return
    assert change is not None
    assert change.event is (InitialSyncEvent.BECAME_ELIGIBLE if new == Pair(MANAGED, ONLINE) else InitialSyncEvent.LEFT)
    assert change.forget_subsequent_sync is (new.management_state is UNMANAGED)
