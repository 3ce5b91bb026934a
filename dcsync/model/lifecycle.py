"""How `initial_sync_state` may change: one table of (state, event) -> state, and the questions around it.

Pure: values in, values out, the time is an argument. Every write of a state, whoever makes it, goes through
`next_state`; what the table does not hold must not happen. `docs/states.md` is drawn from TRANSITIONS.
Source: docs/upstream/initial-sync.md section 3 (T1-T10) and 3.1, with the differences named beside each event.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from dcsync.model.reasons import Reason
from dcsync.model.subcloud import AvailabilityStatus, InitialSyncState, ManagementState

NONE, REQUESTED, IN_PROGRESS, COMPLETED, FAILED = InitialSyncState


class Event(StrEnum):
    """What can happen to a subcloud, as far as its initial sync is concerned."""

    BECAME_ELIGIBLE = "became managed and online"
    LEFT = "left managed and online"
    ASKED = "operator asked"
    CLAIMED = "run claimed it"
    SUCCEEDED = "all steps read back"
    STEP_FAILED = "a step failed"
    RETRY_DUE = "hold-off over"
    ABANDONED = "its worker is gone"
    GIVEN_BACK = "its worker stops"
    QUARANTINED = "killed its worker too often"


TRANSITIONS: dict[tuple[InitialSyncState, Event], InitialSyncState] = {
    # T2, T3: the pair (management, availability) changed.
    **{(state, Event.BECAME_ELIGIBLE): REQUESTED for state in InitialSyncState},
    **{(state, Event.LEFT): NONE for state in InitialSyncState},
    # An operator's request starts anew from anywhere; only a managed and online subcloud may be asked for.
    **{(state, Event.ASKED): REQUESTED for state in InitialSyncState},
    # T4-T7.
    (REQUESTED, Event.CLAIMED): IN_PROGRESS,
    (IN_PROGRESS, Event.SUCCEEDED): COMPLETED,
    (IN_PROGRESS, Event.STEP_FAILED): FAILED,
    (FAILED, Event.RETRY_DUE): REQUESTED,
    # Instead of T8 and T9 (upstream resets every row when a process starts): a run is taken back when its lock is gone.
    (IN_PROGRESS, Event.ABANDONED): REQUESTED,
    (IN_PROGRESS, Event.GIVEN_BACK): REQUESTED,
    (IN_PROGRESS, Event.QUARANTINED): FAILED,
}

ABANDONED_LIMIT = 3
"""Runs of one request that may end with their worker's death before it is held off like a failure."""


def next_state(state: InitialSyncState, event: Event) -> InitialSyncState | None:
    """The state after `event`, or None where the table does not allow it."""
    return TRANSITIONS.get((state, event))


def states_before(event: Event) -> tuple[InitialSyncState, ...]:
    """The states in which `event` may happen: what a conditional UPDATE must find."""
    return tuple(state for state in InitialSyncState if (state, event) in TRANSITIONS)


def state_after(event: Event) -> InitialSyncState:
    """The one state `event` leads to; every event of the table has exactly one (a test holds it to that)."""
    (after,) = {after for (_, happened), after in TRANSITIONS.items() if happened is event}
    return after


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

    event: Event
    forget_subsequent_sync: bool


def pair_change(*, old: Pair, new: Pair) -> PairChange | None:
    """What a new pair means, None when it is the old one. Source: docs/upstream/initial-sync.md section 3.1."""
    if new == old:
        return None
    return PairChange(
        event=Event.BECAME_ELIGIBLE if new.is_eligible else Event.LEFT,
        forget_subsequent_sync=new.management_state is ManagementState.UNMANAGED,
    )


def hold_off(*, attempt: int, base: timedelta, cap: timedelta, jitter: float) -> timedelta:
    """How long to wait after failed attempt number `attempt` (1 is the first): base, doubling, never above cap.

    `jitter` in [0, 1) spreads retries over a fifth of the delay: upwards, so that no retry comes before its base
    delay, and at the cap downwards from it.
    """
    delay = min(base * 2 ** min(attempt - 1, 26), cap)  # A day doubled more often is more than a timedelta holds.
    return delay + min(delay * 0.2, cap - delay) * jitter if delay < cap else cap - cap * 0.2 * jitter


def is_abandoned(*, claimed_at: datetime, lock_is_gone: bool, now: datetime, lock_ttl: timedelta) -> bool:
    """In progress, its lock gone, claimed longer ago than one lock lifetime: nobody is working on it."""
    return lock_is_gone and now - claimed_at > lock_ttl


class Ending(StrEnum):
    """How an attempt ended; one end per attempt, in its history row."""

    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    SUPERSEDED = "superseded"
    LOCK_LOST = "lock-lost"
    ABANDONED = "abandoned"
    GIVEN_BACK = "given-back"


@dataclass(frozen=True)
class Failure:
    """Why an attempt failed: a reason from the closed list, and one line for people, without secrets.

    `retry_after`: seconds the cloud itself asked to be left alone; obeyed up to the longest hold-off.
    """

    reason: Reason
    detail: str
    retry_after: float | None = None


@dataclass(frozen=True)
class Transition:
    """What one request of an operator or observer did to one subcloud; `event` is None where nothing changed."""

    region_name: str
    name: str
    event: Event | None
    state: InitialSyncState
