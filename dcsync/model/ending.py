"""How a run may end, whatever its kind: the words of the history, and why it failed if it did."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from dcsync.model.reasons import Reason


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

    `retry_after`: seconds the cloud itself asked for as a pause; obeyed up to the longest hold-off.
    """

    reason: Reason
    detail: str
    retry_after: float | None = None
