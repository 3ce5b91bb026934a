"""How `initial_sync_state` of a subcloud may change.

Source: docs/upstream/initial-sync.md section 3 (T1-T10) and 3.1, with the differences named beside each event.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from dcsync.model.states.table import StateTable


class InitialSyncState(StrEnum):
    """Source: docs/upstream/initial-sync.md section 3 (dcorch/common/consts.py INITIAL_SYNC_STATE_*)."""

    NONE = "none"
    REQUESTED = "requested"
    IN_PROGRESS = "in-progress"
    COMPLETED = "completed"
    FAILED = "failed"


NONE, REQUESTED, IN_PROGRESS, COMPLETED, FAILED = InitialSyncState


class InitialSyncEvent(StrEnum):
    """Events of the initial sync of a subcloud."""

    BECAME_ELIGIBLE = "became managed and online"
    LEFT = "left managed and online"
    ASKED = "operator asked"
    CLAIMED = "run claimed it"
    SUCCEEDED = "all steps read back"
    STEP_FAILED = "a step failed"
    RETRY_DUE = "hold-off over"
    ABANDONED = "its worker died"
    GIVEN_BACK = "its worker stops"
    QUARANTINED = "killed its worker too often"


INITIAL_SYNC = StateTable(
    states=InitialSyncState,
    events=InitialSyncEvent,
    first=NONE,
    transitions={
        # T2, T3: the pair (management, availability) changed.
        **{(state, InitialSyncEvent.BECAME_ELIGIBLE): REQUESTED for state in InitialSyncState},
        **{(state, InitialSyncEvent.LEFT): NONE for state in InitialSyncState},
        # An operator's request restarts the sync from any state; the subcloud must be managed and online.
        **{(state, InitialSyncEvent.ASKED): REQUESTED for state in InitialSyncState},
        # T4-T7.
        (REQUESTED, InitialSyncEvent.CLAIMED): IN_PROGRESS,
        (IN_PROGRESS, InitialSyncEvent.SUCCEEDED): COMPLETED,
        (IN_PROGRESS, InitialSyncEvent.STEP_FAILED): FAILED,
        (FAILED, InitialSyncEvent.RETRY_DUE): REQUESTED,
        # Instead of T8 and T9 (upstream resets every row when a process starts): a run is requeued when its lock has
        # expired.
        (IN_PROGRESS, InitialSyncEvent.ABANDONED): REQUESTED,
        (IN_PROGRESS, InitialSyncEvent.GIVEN_BACK): REQUESTED,
        (IN_PROGRESS, InitialSyncEvent.QUARANTINED): FAILED,
    },
)


@dataclass(frozen=True)
class Transition:
    """The effect of one request or report on one subcloud; `event` is None where nothing changed."""

    region_name: str
    name: str
    event: InitialSyncEvent | None
    state: InitialSyncState
