"""Decides why an audit must stop that no longer owns rows of an eligible subcloud."""

from __future__ import annotations

from dcsync.model.ending import Ending
from dcsync.runs.ports import Standing

_CANCELLED = Standing(Ending.CANCELLED, "the subcloud is no longer managed, online and completed")
_SUPERSEDED = Standing(Ending.SUPERSEDED, "its rows were taken back, or the subcloud was deleted")


def standing_of(*, owns_rows: bool, is_eligible: bool) -> Standing | None:
    """Returns None while the run owns rows and their subcloud is eligible, else why it must stop."""
    if not owns_rows:
        return _SUPERSEDED
    return None if is_eligible else _CANCELLED
