"""Decides why a run must stop whose row is no longer its own."""

from __future__ import annotations

from dataclasses import dataclass

from dcsync.model.ending import Ending
from dcsync.model.states.initial_sync import InitialSyncState
from dcsync.runs.ports import Standing


@dataclass(frozen=True, kw_only=True)
class RunAndRow:
    """A run by its history, and its subcloud's row as it is now."""

    run_id: str
    run_generation: int
    row_run_id: str | None
    row_generation: int
    row_state: InitialSyncState


def standing_of(found: RunAndRow | None) -> Standing | None:
    """Returns None while the row carries the run's id, else why the run must stop; `found` is None where the subcloud
    was deleted, and the run's history with it."""
    if found is None:
        return Standing(Ending.CANCELLED, "the subcloud was deleted")
    if found.row_run_id == found.run_id:
        return None
    if found.row_state is InitialSyncState.NONE:
        return Standing(Ending.CANCELLED, "the subcloud is no longer managed and online")
    if found.row_generation == found.run_generation:
        return Standing(Ending.SUPERSEDED, "the run was taken back because its lock was missing")
    return Standing(Ending.SUPERSEDED, "the subcloud was requested again")
