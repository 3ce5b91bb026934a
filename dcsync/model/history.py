"""The history of one subcloud: requests with their attempts and steps, audits that found something, operations.

A subcloud that was deleted keeps its history for a while; a name that is added again begins another life.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from dcsync.model.ending import Ending
from dcsync.model.subcloud import EndpointType, Step, SyncStatus

if TYPE_CHECKING:
    from dcsync.model.operation import Operation

NAMED_AT_MOST = 20
"""Names kept of each list; all are counted."""
LONGEST_NAME = 200
LONGEST_TEXT = 500


def cut(text: str, at_most: int = LONGEST_TEXT) -> str:
    """The text, its end replaced by dots where it is longer."""
    return text if len(text) <= at_most else f"{text[: at_most - 3]}..."


@dataclass(frozen=True)
class Named:
    """The first entries of a list, each cut to a length, and how many there were."""

    names: tuple[str, ...] = ()
    count: int = 0

    @classmethod
    def of(cls, entries: tuple[str, ...]) -> Named:
        return cls(tuple(cut(entry, LONGEST_NAME) for entry in entries[:NAMED_AT_MOST]), len(entries))


@dataclass(frozen=True)
class StepHistory:
    step: Step
    started_at: datetime
    ended_at: datetime | None
    outcome: str | None
    detail: str


@dataclass(frozen=True)
class AttemptHistory:
    run_id: str
    attempt: int
    """Numbered within its request, without repetition."""
    started_at: datetime
    ended_at: datetime | None
    ending: Ending | None
    reason: str | None
    detail: str
    worker: str
    steps: tuple[StepHistory, ...]


@dataclass(frozen=True)
class RequestHistory:
    generation: int
    requested_at: datetime
    requested_by: str
    cause: str
    attempts: tuple[AttemptHistory, ...]

    @property
    def at(self) -> datetime:
        return self.requested_at


@dataclass(frozen=True, kw_only=True)
class AuditHistory:
    """An audit of one endpoint type that found a difference, failed, or was the first to succeed after failures."""

    run_id: str
    endpoint_type: EndpointType
    worker: str
    started_at: datetime
    ended_at: datetime
    result: SyncStatus | None
    """The state after the audit; None when no comparison was finished."""
    reason: str | None
    detail: str
    differences: Named
    written: Named
    """Writes that were carried out, in order."""
    not_written: Named
    """Writes that were planned and not carried out: refused by a guard, or by the subcloud."""

    @property
    def at(self) -> datetime:
        return self.ended_at


@dataclass(frozen=True, kw_only=True)
class Life:
    """One subcloud from its addition to its deletion, and what happened to it, newest first."""

    subcloud_id: int
    name: str
    region_name: str
    added_at: datetime
    deleted_at: datetime | None
    entries: tuple[RequestHistory | AuditHistory | Operation, ...]

    @property
    def requests(self) -> list[RequestHistory]:
        return [entry for entry in self.entries if isinstance(entry, RequestHistory)]
