"""The three tables of states: what holds for each of them, and for the page that is drawn from them."""

from __future__ import annotations

import re
import runpy
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest

from dcsync.model.states.audit import AUDIT, AuditEvent, AuditStatus
from dcsync.model.states.initial_sync import INITIAL_SYNC, InitialSyncEvent, InitialSyncState
from dcsync.model.states.rotation import ROTATION, RotationEvent, RotationState
from dcsync.model.states.table import StateTable

ROOT = Path(__file__).parents[3]
DOCS, POSTGRES = ROOT / "docs", ROOT / "dcsync" / "adapters" / "postgres"
TABLES: dict[str, StateTable[Any, Any]] = {"initial sync": INITIAL_SYNC, "audit": AUDIT, "rotation": ROTATION}
EVENTS = [pytest.param(table, event, id=f"{name}, {event}") for name, table in TABLES.items() for event in table.events]
STATES = [pytest.param(table, state, id=f"{name}, {state}") for name, table in TABLES.items() for state in table.states]


def _specified_initial_sync() -> dict[tuple[InitialSyncState, InitialSyncEvent], InitialSyncState]:
    none, requested, in_progress, completed, failed = InitialSyncState
    return {
        # docs/upstream/initial-sync.md section 3, T2-T7, for each state it names as "any".
        **{(state, InitialSyncEvent.BECAME_ELIGIBLE): requested for state in InitialSyncState},
        **{(state, InitialSyncEvent.LEFT): none for state in InitialSyncState},
        (requested, InitialSyncEvent.CLAIMED): in_progress,
        (in_progress, InitialSyncEvent.SUCCEEDED): completed,
        (in_progress, InitialSyncEvent.STEP_FAILED): failed,
        (failed, InitialSyncEvent.RETRY_DUE): requested,
        # Ours: an operator's request, and a run that its worker did not bring to an end.
        **{(state, InitialSyncEvent.ASKED): requested for state in InitialSyncState},
        (in_progress, InitialSyncEvent.ABANDONED): requested,
        (in_progress, InitialSyncEvent.GIVEN_BACK): requested,
        (in_progress, InitialSyncEvent.QUARANTINED): failed,
    }


def _specified_audit() -> dict[tuple[AuditStatus, AuditEvent], AuditStatus]:
    none, in_progress, completed, failed = AuditStatus
    return {
        **{(state, AuditEvent.CLAIMED): in_progress for state in (none, completed, failed)},
        (in_progress, AuditEvent.SUCCEEDED): completed,
        (in_progress, AuditEvent.FAILED): failed,
        (in_progress, AuditEvent.RELEASED): none,
        (in_progress, AuditEvent.ABANDONED): failed,
        (in_progress, AuditEvent.QUARANTINED): failed,
        **{(state, AuditEvent.RESET): none for state in AuditStatus},
    }


def _specified_rotation() -> dict[tuple[RotationState, RotationEvent], RotationState]:
    idle, rotating, distributing = RotationState
    return {
        (idle, RotationEvent.CLAIMED): rotating,
        (distributing, RotationEvent.CLAIMED): rotating,
        (rotating, RotationEvent.TAKEN_OVER): rotating,
        (rotating, RotationEvent.ROTATED): distributing,
        (rotating, RotationEvent.GIVEN_UP): idle,
        (rotating, RotationEvent.RESUMED): distributing,
        (distributing, RotationEvent.WAVE_SENT): distributing,
        (distributing, RotationEvent.DISTRIBUTED): idle,
    }


SPECIFIED: dict[str, dict[Any, StrEnum]] = {
    "initial sync": {**_specified_initial_sync()},
    "audit": {**_specified_audit()},
    "rotation": {**_specified_rotation()},
}


@pytest.mark.parametrize("name", TABLES)
def test_exactly_the_specified_transitions_are_allowed(name: str) -> None:
    table = TABLES[name]
    allowed = {(s, e): table.next_state(s, e) for s in table.states for e in table.events if table.next_state(s, e)}
    assert allowed == SPECIFIED[name]


@pytest.mark.parametrize(("table", "event"), EVENTS)
def test_every_event_leads_to_one_state_from_wherever_it_may_happen(
    table: StateTable[Any, Any], event: StrEnum
) -> None:
    assert {table.next_state(before, event) for before in table.states_before(event)} == {table.state_after(event)}


@pytest.mark.parametrize(("table", "state"), STATES)
def test_every_state_has_an_exit_that_no_operator_is_needed_for(table: StateTable[Any, Any], state: StrEnum) -> None:
    by_itself = set(table.events) - {InitialSyncEvent.ASKED}
    assert {table.next_state(state, event) for event in by_itself} - {state, None}


@pytest.mark.parametrize(("table", "state"), STATES)
def test_every_state_can_be_reached_from_a_new_row(table: StateTable[Any, Any], state: StrEnum) -> None:
    assert state in _reached(table, table.first)


@pytest.mark.parametrize(
    ("table", "state", "wanted"),
    [
        *((INITIAL_SYNC, state, InitialSyncState.COMPLETED) for state in InitialSyncState),
        *((AUDIT, status, AuditStatus.COMPLETED) for status in AuditStatus),
        *((ROTATION, state, RotationState.DISTRIBUTING) for state in RotationState),
    ],
)
def test_what_is_wanted_can_be_reached_from_every_state(
    table: StateTable[Any, Any], state: StrEnum, wanted: StrEnum
) -> None:
    assert wanted in _reached(table, state)


def _reached(table: StateTable[Any, Any], state: StrEnum) -> set[StrEnum]:
    reached = {state}
    for _ in table.states:
        reached |= {after for (before, _), after in table.transitions.items() if before in reached}
    return reached


def test_the_page_of_states_is_drawn_from_the_tables() -> None:
    page = runpy.run_path(str(DOCS / "make_states.py"))["page"]
    assert (DOCS / "states.md").read_text(encoding="utf-8") == page(), "run: python docs/make_states.py"


@pytest.mark.parametrize("path", sorted(POSTGRES.glob("*.py")), ids=lambda path: str(path.name))
def test_no_statement_names_a_state_of_audits_or_rotations(path: Path) -> None:
    """It says which event it carries out; `dcsync/adapters/postgres/moves.py` knows what that means."""
    by_name = r"AuditStatus|RotationState|[\"']in-progress|audit_status=(?!row)[^,]*"
    words = re.findall(by_name, path.read_text(encoding="utf-8"))
    assert words == []
