"""How the rotation of the central fernet keys proceeds."""

from __future__ import annotations

from enum import StrEnum

from dcsync.model.states.table import StateTable


class RotationState(StrEnum):
    """Progress of the rotation of the central keys."""

    IDLE = "idle"
    ROTATING = "rotating"
    DISTRIBUTING = "distributing"


IDLE, ROTATING, DISTRIBUTING = RotationState


class RotationEvent(StrEnum):
    """Events of the rotation. A request or a schedule is not an event: it makes the row due."""

    CLAIMED = "process claimed it"
    TAKEN_OVER = "claim older than its lifetime"
    ROTATED = "keys rotated"
    GIVEN_UP = "refused or failed"
    RESUMED = "refused or failed during a distribution"
    WAVE_SENT = "wave of subclouds asked for their audit"
    DISTRIBUTED = "all subclouds hold the keys, or the window is over"


ROTATION = StateTable(
    states=RotationState,
    events=RotationEvent,
    first=IDLE,
    transitions={
        (IDLE, RotationEvent.CLAIMED): ROTATING,
        (DISTRIBUTING, RotationEvent.CLAIMED): ROTATING,
        (ROTATING, RotationEvent.TAKEN_OVER): ROTATING,
        (ROTATING, RotationEvent.ROTATED): DISTRIBUTING,
        (ROTATING, RotationEvent.GIVEN_UP): IDLE,
        (ROTATING, RotationEvent.RESUMED): DISTRIBUTING,
        (DISTRIBUTING, RotationEvent.WAVE_SENT): DISTRIBUTING,
        (DISTRIBUTING, RotationEvent.DISTRIBUTED): IDLE,
    },
)
