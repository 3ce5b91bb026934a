"""How a run of any service may end, and why it failed if it did."""

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

    `retry_after`: the pause in seconds that the cloud requested; respected up to the longest hold-off.
    """

    reason: Reason
    detail: str
    retry_after: float | None = None
