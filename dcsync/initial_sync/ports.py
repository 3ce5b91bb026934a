"""What the initial sync asks of the world. The store is a plain blocking call and raises `DatabaseUnreachable`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from dcsync.model.ending import Ending, Failure
from dcsync.model.identity import NewIds, Placed
from dcsync.model.messages import SyncHint
from dcsync.model.subcloud import Step, Subcloud
from dcsync.runs.dispatch import DueRows
from dcsync.runs.ports import Standing


@dataclass(frozen=True)
class Run:
    """A claimed attempt: the one process that holds its run id may work on the subcloud and write its result."""

    run_id: str
    subcloud: Subcloud
    identity_fingerprint: str | None
    """Of the central identity data this subcloud was last given, None if never (or forgotten on unmanage)."""
    groups_to_refill: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Group id -> member ids of subcloud-only groups an earlier attempt emptied and did not fill again."""


@dataclass(frozen=True)
class Claim:
    """A wish to own a subcloud's row for this run, as long as it is of this generation."""

    run_id: str
    region_name: str
    generation: int


class DueSyncs(DueRows[SyncHint], Protocol):
    """Rows as the sweep sees them."""

    def requeue_due(self, *, now: datetime) -> int:
        """failed -> requested for every row whose hold-off is over; how many."""

    def overtaken_attempts(self, *, started_before: datetime) -> list[tuple[str, str]]:
        """(region name, run id) of attempts without an end that own no row any more: unmanaged, or requested anew."""

    def end_overtaken(self, run_ids: Collection[str], *, now: datetime) -> None:
        """These attempts are over: their workers are gone, and can no longer write their end themselves."""


class RunStore(Protocol):
    """Rows as the runs see them. Every write of a run is conditional on its run id."""

    def claim(self, claims: Sequence[Claim], *, worker: str, now: datetime) -> list[Run]:
        """requested -> in-progress where state and generation still match; the others are left out: somebody else moved
        them."""

    def standing(self, run_ids: Collection[str]) -> dict[str, Standing | None]:
        """For each run: None while its row is still its own, else why it must stop."""

    def start_step(self, run: Run, step: Step, *, now: datetime) -> bool:
        """Note which step the run is in; False when the row is no longer its own."""

    def end_step(self, run: Run, step: Step, *, now: datetime, outcome: str, detail: str = "") -> None:
        """Note how a step ended, in its history row."""

    def record_identity(self, run: Run, *, fingerprint: str) -> bool:
        """The subcloud now carries this central identity data; sets subsequent_sync. False as in start_step."""

    def remember_groups(self, run: Run, groups: Mapping[str, tuple[str, ...]]) -> bool:
        """Keep the members of groups about to be emptied; an empty mapping forgets them. False as in start_step."""

    def remember_placed(self, run: Run, placed: Placed, new_ids: NewIds) -> bool:
        """Add this to what is on the subcloud from the central cloud, and to the grants among it what they become when
        these records take their new ids. False as in start_step."""

    def init_audit(self, run: Run, *, now: datetime) -> bool:
        """Reset the audit columns of platform and identity so that the first audit is due at once.

        Source: docs/upstream/initial-sync.md section 9. False as in start_step.
        """

    def complete(self, run: Run, *, now: datetime, audits_due_at: datetime) -> bool:
        """in-progress -> completed and the end of the attempt, together; its audits are due then, and those somebody
        has asked for at once. False when the row is not its own."""

    def fail(self, run: Run, failure: Failure, *, now: datetime, retry_at: datetime) -> bool:
        """in-progress -> failed with reason and retry_at, and the attempt's end; False as in complete."""

    def give_back(self, run: Run, *, ending: Ending, detail: str, now: datetime) -> bool:
        """in-progress -> requested, for this worker stops or lost the lock; the attempt does not count against the
        subcloud. False as in complete."""

    def end_attempt(self, run: Run, ending: Ending, *, detail: str, now: datetime) -> None:
        """Close the history row of a run that may not touch the subcloud's row any more."""


class Progress(Protocol):
    """Who is told which step a run has reached, for display only; never raises."""

    def __call__(self, run: Run, step: Step) -> None: ...


class SyncMessenger(Protocol):
    """Sends hints on the `sync` queue. One that cannot be sent raises BrokerUnreachable; the sweep sends it again."""

    def send_sync(self, hints: Sequence[SyncHint]) -> None:
        """One pipelined batch."""

    def waiting_sync_ids(self) -> set[str]:
        """Task ids of messages that no worker has taken yet."""
