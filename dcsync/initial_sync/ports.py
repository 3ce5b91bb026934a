"""Ports of the initial sync. Store calls block and raise `DatabaseUnreachable`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

from dcsync.model.ending import Ending, Failure
from dcsync.model.identity import NewIds, Placed
from dcsync.model.messages import SyncHint
from dcsync.model.subcloud import Step, Subcloud
from dcsync.runs.dispatch import DueRows
from dcsync.runs.ports import Standing


@dataclass(frozen=True)
class Run:
    """A claimed attempt: only the process with its run id may work on the subcloud and write its result."""

    run_id: str
    subcloud: Subcloud
    identity_fingerprint: str | None
    """Fingerprint of the central identity data last given to the subcloud; None if never, or since unmanaged."""
    groups_to_refill: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Group id -> member ids of subcloud-only groups that an earlier attempt emptied and did not refill."""


@dataclass(frozen=True)
class Claim:
    """A request to own a subcloud's row for this run, if its generation still matches."""

    run_id: str
    region_name: str
    generation: int


class DueSyncs(DueRows[SyncHint], Protocol):
    """Rows for the sweep."""

    def requeue_due(self, *, now: datetime, longest: timedelta) -> int:
        """Moves rows whose hold-off is over, or longer than `longest`, from failed to requested; returns the number of
        rows."""

    def unowned_attempts(self, *, started_before: datetime, now: datetime) -> list[tuple[str, str]]:
        """Returns (region name, run id) of unended attempts that no longer own a row: unmanaged or requested again.

        They were started before that moment, or in the future.
        """

    def end_unowned(self, run_ids: Collection[str], *, now: datetime) -> None:
        """Ends attempts whose workers died before they recorded the end themselves."""


class RunStore(Protocol):
    """Rows for runs. Every write of a run is conditional on its run id."""

    def claim(self, claims: Sequence[Claim], *, worker: str, now: datetime) -> list[Run]:
        """Moves rows from requested to in-progress where state and generation still match; others are left out."""

    def standing(self, run_ids: Collection[str]) -> dict[str, Standing | None]:
        """Returns for each run None while it owns its row, else why it must stop."""

    def start_step(self, run: Run, step: Step, *, now: datetime) -> bool:
        """Records the run's current step; False when the run no longer owns its row."""

    def end_step(self, run: Run, step: Step, *, now: datetime, outcome: str, detail: str = "") -> None:
        """Records how a step ended in its history row."""

    def record_identity(self, run: Run, *, fingerprint: str | None) -> bool:
        """Records that the subcloud has this central identity data and the keys that were sent with it; sets
        subsequent_sync. None: its ids are about to change, so that nothing is known to be there. False as in
        start_step."""

    def remember_groups(self, run: Run, groups: Mapping[str, tuple[str, ...]]) -> bool:
        """Stores the members of groups to be emptied; an empty mapping clears them. False as in start_step."""

    def remember_placed(self, run: Run, placed: Placed, new_ids: NewIds) -> bool:
        """Adds these records to those placed on the subcloud, and the grants placed there as they will be with
        the new ids. False as in start_step."""

    def init_audit(self, run: Run, *, now: datetime) -> bool:
        """Resets the audit columns of platform and identity so that the first audit is due at once.

        Source: docs/upstream/initial-sync.md section 9. False as in start_step.
        """

    def complete(self, run: Run, *, now: datetime, audits_due_at: datetime) -> bool:
        """Moves the row from in-progress to completed and ends the attempt in one transaction. Audits are due at
        `audits_due_at`, requested ones at once. False as in start_step."""

    def fail(self, run: Run, failure: Failure, *, now: datetime, retry_at: datetime) -> bool:
        """Moves the row from in-progress to failed and ends the attempt; False as in start_step."""

    def give_back(self, run: Run, *, ending: Ending, detail: str, now: datetime) -> bool:
        """Moves the row from in-progress to requested because the worker stops or lost the lock; the attempt is not
        counted. False as in start_step."""

    def end_attempt(self, run: Run, ending: Ending, *, detail: str, now: datetime) -> None:
        """Ends the history row of a run that no longer owns the subcloud's row."""


class Progress(Protocol):
    """Receives the step a run has reached, for display only; never raises."""

    def __call__(self, run: Run, step: Step) -> None: ...


class SyncMessenger(Protocol):
    """Sends hints on the `sync` queue. One that cannot be sent raises BrokerUnreachable; the sweep sends it again."""

    def send_sync(self, hints: Sequence[SyncHint]) -> None:
        """Sends the hints in one pipelined batch."""

    def waiting_sync_ids(self) -> set[str]:
        """Returns the task ids of messages that no worker has received yet."""
