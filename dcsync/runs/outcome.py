"""The outcome of a hint of any service, as plain values for the log and Flower."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from dcsync.model.ending import Ending
from dcsync.model.reasons import Reason


class Result(StrEnum):
    """The values of `Ending`, two for hints that led to no run, and one for audits whose endpoint types ended
    differently."""

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
    """The outcome of one hint. `shown`: additional values of this kind of run."""

    result: Result
    region_name: str
    run_id: str | None = None
    reason: Reason | None = None
    is_failure: bool = False
    shown: Mapping[str, object] = field(default_factory=dict)
    detail: str = ""
    seconds: float | None = None

    def as_dict(self) -> dict[str, object]:
        """Returns plain values, without empty ones."""
        own = {"result": self.result.value, "region_name": self.region_name}
        reason = None if self.reason is None else self.reason.value
        rest = {"run_id": self.run_id, "reason": reason, "detail": self.detail, "seconds": self.seconds}
        told = own | dict(self.shown) | rest
        return {name: value for name, value in told.items() if value not in (None, "")}
