"""What became of a hint, whatever its kind: shown in the log and in Flower, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from dcsync.model.ending import Ending
from dcsync.model.reasons import Reason


class Result(StrEnum):
    """The words of `Ending`, two more for hints that led to no run, and one for audits, whose parts end each its own
    way."""

    BUSY = "busy"
    STALE = "stale"
    DONE = "done"
    COMPLETED = Ending.COMPLETED.value
    FAILED = Ending.FAILED.value
    CANCELLED = Ending.CANCELLED.value
    SUPERSEDED = Ending.SUPERSEDED.value
    LOCK_LOST = Ending.LOCK_LOST.value
    GIVEN_BACK = Ending.GIVEN_BACK.value
    ABANDONED = Ending.ABANDONED.value


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """`shown`: what this kind of run has to say beside the rest."""

    result: Result
    region_name: str
    run_id: str | None = None
    reason: Reason | None = None
    is_failure: bool = False
    shown: Mapping[str, object] = field(default_factory=dict)
    detail: str = ""
    seconds: float | None = None

    def as_dict(self) -> dict[str, object]:
        """Plain values, without those that say nothing."""
        own = {"result": self.result.value, "region_name": self.region_name}
        reason = None if self.reason is None else self.reason.value
        rest = {"run_id": self.run_id, "reason": reason, "detail": self.detail, "seconds": self.seconds}
        told = own | dict(self.shown) | rest
        return {name: value for name, value in told.items() if value not in (None, "")}
