"""The one table of states, and the questions around it."""

from __future__ import annotations

import runpy
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcsync.model.lifecycle import (
    TRANSITIONS,
    Event,
    Pair,
    hold_off,
    is_abandoned,
    next_state,
    pair_change,
    state_after,
    states_before,
)
from dcsync.model.subcloud import AvailabilityStatus, InitialSyncState, ManagementState
from tests.builders import NOON

DOCS = Path(__file__).parents[2] / "docs"

NONE, REQUESTED, IN_PROGRESS, COMPLETED, FAILED = InitialSyncState
MANAGED, UNMANAGED = ManagementState
ONLINE, OFFLINE = AvailabilityStatus

SPECIFIED = {
    # docs/upstream/initial-sync.md section 3, T2-T7, for each state it names as "any".
    **{(state, Event.BECAME_ELIGIBLE): REQUESTED for state in InitialSyncState},
    **{(state, Event.LEFT): NONE for state in InitialSyncState},
    (REQUESTED, Event.CLAIMED): IN_PROGRESS,
    (IN_PROGRESS, Event.SUCCEEDED): COMPLETED,
    (IN_PROGRESS, Event.STEP_FAILED): FAILED,
    (FAILED, Event.RETRY_DUE): REQUESTED,
    # Ours: DESIGN sections 3 and 5.
    **{(state, Event.ASKED): REQUESTED for state in InitialSyncState},
    (IN_PROGRESS, Event.ABANDONED): REQUESTED,
    (IN_PROGRESS, Event.GIVEN_BACK): REQUESTED,
    (IN_PROGRESS, Event.QUARANTINED): FAILED,
}


@pytest.mark.parametrize("state", InitialSyncState)
@pytest.mark.parametrize("event", Event)
def test_exactly_the_specified_transitions_are_allowed(state: InitialSyncState, event: Event) -> None:
    assert next_state(state, event) == SPECIFIED.get((state, event))


@pytest.mark.parametrize("event", Event)
def test_every_event_leads_to_one_state_from_wherever_it_may_happen(event: Event) -> None:
    assert {TRANSITIONS[before, event] for before in states_before(event)} == {state_after(event)}


@pytest.mark.parametrize("state", InitialSyncState)
def test_every_state_has_an_exit_that_no_operator_is_needed_for(state: InitialSyncState) -> None:
    by_itself = set(Event) - {Event.ASKED}
    assert any(
        after is not state for (before, event), after in TRANSITIONS.items() if before is state and event in by_itself
    )


@pytest.mark.parametrize("state", InitialSyncState)
def test_completed_can_be_reached_from_every_state(state: InitialSyncState) -> None:
    reached = {state}
    for _ in InitialSyncState:
        reached |= {after for (before, _), after in TRANSITIONS.items() if before in reached}
    assert COMPLETED in reached


def test_the_page_of_states_is_drawn_from_the_table() -> None:
    page = runpy.run_path(str(DOCS / "make_states.py"))["page"]
    assert (DOCS / "states.md").read_text(encoding="utf-8") == page(), "run: python docs/make_states.py"


PAIRS = [Pair(management, availability) for management in ManagementState for availability in AvailabilityStatus]


@pytest.mark.parametrize("old", PAIRS)
@pytest.mark.parametrize("new", PAIRS)
def test_a_changed_pair_means_what_the_decision_table_says(old: Pair, new: Pair) -> None:
    change = pair_change(old=old, new=new)
    if old == new:
        assert change is None
        return
    assert change is not None
    assert change.event is (Event.BECAME_ELIGIBLE if new == Pair(MANAGED, ONLINE) else Event.LEFT)
    assert change.forget_subsequent_sync is (new.management_state is UNMANAGED)


BASE, CAP = timedelta(seconds=60), timedelta(seconds=900)


@pytest.mark.parametrize(
    ("attempt", "seconds"), [(1, 60), (2, 120), (3, 240), (4, 480), (5, 900), (6, 900), (9999, 900)]
)
def test_the_hold_off_doubles_to_its_cap(attempt: int, seconds: float) -> None:
    assert hold_off(attempt=attempt, base=BASE, cap=CAP, jitter=0) == timedelta(seconds=seconds)


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True))
def test_no_retry_comes_before_its_base_delay_or_after_the_cap(attempt: int, jitter: float) -> None:
    delay = hold_off(attempt=attempt, base=BASE, cap=CAP, jitter=jitter)
    assert BASE <= delay <= CAP
    assert delay >= min(BASE * 2 ** min(attempt - 1, 10), CAP * 0.8)


@pytest.mark.parametrize("attempt", [1, 34, 10_000])
def test_the_longest_hold_off_that_can_be_set_is_never_more_than_a_delay_can_be(attempt: int) -> None:
    day = timedelta(days=1)
    assert hold_off(attempt=attempt, base=day, cap=day, jitter=0) == day


def test_only_a_run_without_its_lock_and_older_than_a_lock_is_abandoned() -> None:
    ttl = timedelta(seconds=30)
    assert is_abandoned(claimed_at=NOON, lock_is_gone=True, now=NOON + timedelta(seconds=31), lock_ttl=ttl)
    assert not is_abandoned(claimed_at=NOON, lock_is_gone=True, now=NOON + timedelta(seconds=30), lock_ttl=ttl)
    assert not is_abandoned(claimed_at=NOON, lock_is_gone=False, now=NOON + timedelta(hours=1), lock_ttl=ttl)
