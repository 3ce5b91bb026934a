"""The history of one subcloud: initial sync requests, their attempts, and the steps of each attempt."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from dcsync.model.ending import Ending
from dcsync.model.subcloud import Step


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
