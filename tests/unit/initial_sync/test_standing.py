"""Why a run must stop, decided from its history and its subcloud's row."""

from __future__ import annotations

import pytest

from dcsync.initial_sync.standing import RunAndRow, standing_of
from dcsync.model.ending import Ending
from dcsync.model.states.initial_sync import InitialSyncState
from dcsync.runs.ports import Standing

NONE, REQUESTED, IN_PROGRESS = InitialSyncState.NONE, InitialSyncState.REQUESTED, InitialSyncState.IN_PROGRESS


def found(row_run_id: str | None, row_state: InitialSyncState, *, generation: int = 1) -> RunAndRow:
    return RunAndRow(
        run_id="run-1", run_generation=1, row_run_id=row_run_id, row_generation=generation, row_state=row_state
    )


def test_a_run_whose_id_the_row_carries_goes_on() -> None:
    assert standing_of(found("run-1", IN_PROGRESS)) is None


@pytest.mark.parametrize(
    ("row", "ending", "why"),
    [
        (None, Ending.CANCELLED, "deleted"),
        (found(None, NONE), Ending.CANCELLED, "no longer managed"),
        (found(None, NONE, generation=2), Ending.CANCELLED, "no longer managed"),
        (found(None, REQUESTED), Ending.SUPERSEDED, "taken back"),
        (found("run-2", IN_PROGRESS), Ending.SUPERSEDED, "taken back"),
        (found("run-2", IN_PROGRESS, generation=2), Ending.SUPERSEDED, "requested again"),
        (found(None, REQUESTED, generation=2), Ending.SUPERSEDED, "requested again"),
    ],
)
def test_any_other_run_stops_and_says_why(row: RunAndRow | None, ending: Ending, why: str) -> None:
    standing = standing_of(row)
    assert isinstance(standing, Standing)
    assert standing.ending is ending
    assert why in standing.detail
