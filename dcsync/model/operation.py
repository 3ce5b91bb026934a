"""What operators do: one append-only record per action, with who, where, what and how it ended."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from dcsync.model.history import NAMED_AT_MOST, cut
from dcsync.model.natural_order import in_natural_order


class OperationOutcome(StrEnum):
    """How an operator's action ended."""

    DONE = "done"
    REFUSED = "refused"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One action of an operator, as it is kept."""

    at: datetime
    who: str
    host: str
    command: str
    """Subcommand and options, without the subclouds' names and without any secret."""
    names: tuple[str, ...]
    """The first subclouds concerned; `count` counts all of them."""
    count: int
    reason: str | None = None
    outcome: OperationOutcome
    detail: str = ""
    keep_until: datetime


@dataclass(frozen=True, kw_only=True)
class Intent:
    """What an operator is about to do, before its outcome is known."""

    who: str
    host: str
    command: str
    keep: timedelta
    """How long the operation is kept."""

    def done(self, names: Collection[str], *, now: datetime, detail: str = "") -> Operation:
        """Returns the operation that was carried out on these subclouds."""
        return self.ended(OperationOutcome.DONE, names, now=now, detail=detail)

    def ended(self, outcome: OperationOutcome, names: Collection[str], *, now: datetime, detail: str) -> Operation:
        """Returns the operation with this outcome."""
        in_order: Sequence[str] = sorted(names, key=in_natural_order)
        return Operation(
            at=now,
            who=self.who,
            host=self.host,
            command=cut(self.command),
            names=tuple(in_order[:NAMED_AT_MOST]),
            count=len(in_order),
            outcome=outcome,
            detail=cut(detail),
            keep_until=now + self.keep,
        )
