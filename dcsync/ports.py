"""What the services ask of the world, as Protocols. Adapters fill them in; `tests/fakes.py` does so in memory.

Calls on a subcloud or the centre are coroutines and raise `CloudError`; store, locks and messenger are plain blocking
calls and raise `DatabaseUnreachable` or `BrokerUnreachable`. Where an answer can be "no", it is a value, not an error.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Protocol, TypeVar

from dcsync.errors import Reason
from dcsync.identity import (
    Assignment,
    CentralData,
    FernetKeys,
    KeySet,
    NewIds,
    Placed,
    Record,
    ResourceType,
    RevocationEvent,
)
from dcsync.lifecycle import Ending, Event, Failure
from dcsync.messages import AuditHint, Mark, SyncHint
from dcsync.subcloud import (
    AuditStatus,
    AvailabilityStatus,
    EndpointType,
    InitialSyncState,
    ManagementState,
    NewSubcloud,
    Step,
    Subcloud,
    SyncStatus,
)

T = TypeVar("T")

# --- the store ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Transition:
    """What one request of an operator or observer did to one subcloud; `event` is None where nothing changed."""

    region_name: str
    name: str
    event: Event | None
    state: InitialSyncState


class Inventory(Protocol):
    """Which subclouds there are, and what operators do to them, by `Subcloud.name`; each call is one transaction."""

    def add(self, subclouds: Sequence[NewSubcloud], *, now: datetime) -> None:
        """Store all of them or none; raises DuplicateSubcloud naming every name or region name that is taken."""

    def find(self, names: Sequence[str]) -> list[Subcloud]:
        """In the order asked for; raises UnknownSubcloud naming all that are missing."""

    def all(self) -> list[Subcloud]:
        """Every subcloud, by name."""

    def names_starting_with(self, prefix: str, *, limit: int) -> list[str]:
        """Up to `limit` names in order: what a shell completes."""

    def delete(self, name: str) -> Subcloud:
        """Remove the row with all that hangs on it, also in the middle of a run; raises UnknownSubcloud."""

    def set_management(
        self,
        names: Sequence[str] | None,
        state: ManagementState,
        *,
        now: datetime,
        by: str,
        online_only: bool = False,
    ) -> list[Transition]:
        """Manage or unmanage these (None: all) with the initial-sync transition that follows, in one transaction.

        With `online_only` raises RefusedByGuard (nothing stored) when one that would change is offline.
        """

    def request(self, names: Sequence[str] | None, *, now: datetime, by: str) -> list[Transition]:
        """Ask for an initial sync from the start; raises RefusedByGuard (nothing stored) unless all named are managed
        and online. None means every managed and online subcloud."""

    def history(self, name: str) -> list[RequestHistory]:
        """What was asked for and tried, newest request first; raises UnknownSubcloud."""


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


@dataclass(frozen=True)
class Run:
    """A claimed attempt: the one process that holds its run id may work on the subcloud and write its result."""

    run_id: str
    subcloud: Subcloud
    identity_fingerprint: str | None
    """Of the central identity data this subcloud was last given, None if never (or forgotten on unmanage)."""
    groups_to_refill: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Group id -> member ids of site-only groups an earlier attempt emptied and did not fill again."""


@dataclass(frozen=True)
class Standing:
    """Why a run may not go on, as its row says; see `RunStore.standing`."""

    ending: Ending
    detail: str


class RunStore(Protocol):
    """Rows as the sweep and the runs see them. Every write of a run is conditional on its run id."""

    def requeue_due(self, *, now: datetime) -> int:
        """failed -> requested for every row whose hold-off is over; how many."""

    def in_progress_since_before(self, moment: datetime) -> list[tuple[str, str, datetime]]:
        """(region name, run id, claimed at) of rows claimed before `moment` and still in progress."""

    def take_back(
        self, abandoned: Collection[tuple[str, str]], *, now: datetime, hold_off_until: datetime
    ) -> list[str]:
        """in-progress -> requested for these (region name, run id), where the run id still stands; the third time for
        one request -> failed (quarantined) until `hold_off_until`. Returns the region names changed."""

    def overtaken_attempts(self, *, started_before: datetime) -> list[tuple[str, str]]:
        """(region name, run id) of attempts without an end that own no row any more: unmanaged, or requested anew."""

    def end_overtaken(self, run_ids: Collection[str], *, now: datetime) -> None:
        """These attempts are over: their workers are gone, and can no longer write their end themselves."""

    def unstarted_hints(self) -> list[tuple[SyncHint, datetime]]:
        """Hints sent (and when) whose subcloud is still only requested."""

    def in_progress_count(self) -> int:
        """How many subclouds are being worked on."""

    def dispatch(self, *, room: int, lost: Collection[SyncHint], now: datetime) -> list[SyncHint]:
        """Mark up to `room` requested rows as dispatched, oldest request first: those never sent, and those whose hint
        is `lost`. Rows another sweep is marking at this moment are passed over."""

    def undo_dispatch(self, hints: Collection[SyncHint]) -> None:
        """The hints could not be sent: mark the rows unsent again."""

    def claim(self, *, region_name: str, generation: int, run_id: str, worker: str, now: datetime) -> Run | None:
        """requested -> in-progress if state and generation still match; None is an answer: somebody else moved it."""

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
        """Add this to what is on the subcloud from the centre, and to the grants among it what they become when these
        records take their new ids. False as in start_step."""

    def init_audit(self, run: Run, *, now: datetime) -> bool:
        """Reset the audit columns of platform and identity so that the first audit is due at once.

        Source: spec/initial-sync.md section 9. False as in start_step.
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

    def delete_history(self, *, ended_before: datetime, limit: int) -> int:
        """Remove up to `limit` old attempts (never a subcloud's latest), and as many old requests that have none (never
        its latest either); how many rows."""


# --- audits -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class AuditPart:
    """One endpoint type a run looks at: what was asked, and what earlier runs found there."""

    endpoint_type: EndpointType
    generation: int
    attempt: int = 1
    difference: str | None = None
    """A digest of what the last finished comparison found; None when that was nothing."""
    difference_repairs: int = 0
    """How often exactly this was repaired in a row."""
    deletes_allowed: bool = False
    resource_types: frozenset[str] | None = None
    """Repair these only (None: all); compared is everything."""
    requested_at: datetime | None = None
    """When it was asked for, by a central change or a person: what was read of the centre earlier will not do."""


@dataclass(frozen=True, kw_only=True)
class AuditRun:
    """A claimed audit of one subcloud: the endpoint types that were due, and what their comparison needs."""

    run_id: str
    subcloud: Subcloud
    parts: tuple[AuditPart, ...]
    placed: Placed
    groups_to_refill: Mapping[str, tuple[str, ...]]
    central_counts: Mapping[str, int]
    """How long the central lists were when the watch last accepted them; empty before it did."""
    keys_planned_until: datetime | None = None
    """Until then, differing keys are a planned rotation."""


SETTLED = frozenset({Reason.GUARD_REFUSED, Reason.NOT_CONVERGING})
"""Failures of an audit by which what was asked was done as far as it may be: the next look is at the usual time, or as
soon as something new is asked. All other failures are held off."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one run found out about one endpoint type, as its row keeps it."""

    endpoint_type: EndpointType
    generation: int
    result: SyncStatus | None
    """The state after the run; None when no comparison was finished."""
    reported: SyncStatus | None
    """What the state service is told; None when what it was told before stands."""
    is_observed: bool
    """Whether what was asked for is done with, as far as it may be done."""
    differences: tuple[str, ...] = ()
    difference: str | None = None
    difference_repairs: int = 0
    repaired: bool = False
    failure: Failure | None = None
    due_at: datetime
    keys_fingerprint: str | None = None
    """Of the keys the subcloud was last seen to hold in this run; None where nobody looked."""


@dataclass(frozen=True, kw_only=True)
class AuditRow:
    """What is known about one endpoint type of one subcloud, for operators."""

    name: str
    region_name: str
    endpoint_type: EndpointType
    is_eligible: bool
    generation: int
    observed_generation: int
    requested_at: datetime | None
    requested_by: str
    audit_status: AuditStatus
    due_at: datetime
    claimed_at: datetime | None
    attempt: int
    reason: Reason | None
    detail: str
    result: SyncStatus | None
    reported: SyncStatus | None
    last_audit_time: datetime | None
    last_good_at: datetime | None
    differences: tuple[str, ...]
    """What the last comparison that found anything found: names and fields, no values."""
    difference_at: datetime | None
    difference_repairs: int
    repaired_at: datetime | None


@dataclass(frozen=True, kw_only=True)
class CentralState:
    """The centre as the watch last accepted it; `kind` is the endpoint type it concerns."""

    kind: EndpointType
    fingerprint: str
    events_fingerprint: str
    """Of the revocation events, which change more often than the rest."""
    counts: Mapping[str, int]
    generation: int = 0
    changed_at: datetime | None = None
    refused: str | None = None
    shrink_allowed: bool = False


class AuditStore(Protocol):
    """Rows as audits see them, one per (subcloud, endpoint type). Eligible is managed, online and completed."""

    # What is asked.

    def request(
        self,
        names: Sequence[str] | None,
        endpoint_types: Collection[EndpointType],
        *,
        now: datetime,
        by: str,
        allow_deletes: bool = False,
        resource_types: Collection[str] | None = None,
    ) -> list[str]:
        """An operator asks for an audit of these (None: all), at once also after a failure, and with every difference
        to be repaired anew. Raises UnknownSubcloud. Those not eligible catch up when they are. The region names.
        With `resource_types` these alone are repaired, and what others have asked for and was not done yet.

        With `allow_deletes` for all, a central list that shrank is accepted as well."""

    def raise_generation(self, endpoint_type: EndpointType, *, now: datetime, by: str) -> int:
        """The centre changed: every row of that type is due, but those held off after a failure (SETTLED ones are not),
        and for everything, whatever it was restricted to; how many rows."""

    def take_follow_ups(self, *, now: datetime) -> int:
        """Turn the state service's requests for audits of ours into due rows; how many requests."""

    def audits(self, names: Sequence[str] | None) -> list[AuditRow]:
        """By name and endpoint type; raises UnknownSubcloud."""

    # The sweep.

    def in_progress_since_before(self, moment: datetime) -> list[tuple[str, str, datetime]]:
        """(region name, run id, claimed at) of runs claimed before `moment` and still in progress."""

    def take_back(
        self, abandoned: Collection[tuple[str, str]], *, now: datetime, hold_off_until: datetime
    ) -> list[str]:
        """Their rows are due again; the third time in a row they fail (quarantined) until `hold_off_until`."""

    def unstarted_hints(self) -> list[tuple[AuditHint, datetime]]:
        """Hints sent (and when) whose rows nobody has claimed since."""

    def in_progress_count(self) -> int:
        """How many subclouds are being audited."""

    def dispatch(
        self, *, room: int, lost: Collection[AuditHint], now: datetime, region_name: str | None = None
    ) -> list[AuditHint]:
        """Mark up to `room` due rows as dispatched, longest due first, and one hint for each subcloud among them:
        those never sent, and those whose hint is `lost`. `region_name`: of this subcloud only."""

    def undo_dispatch(self, hints: Collection[AuditHint]) -> None:
        """The hints could not be sent."""

    # One run.

    def claim(self, *, region_name: str, run_id: str, now: datetime) -> AuditRun | None:
        """Take what is due of an eligible subcloud; None when that is nothing."""

    def look(self, name: str) -> AuditRun:
        """The same for all endpoint types, taking nothing: for a comparison that writes nothing.
        Raises UnknownSubcloud."""

    def standing(self, run_ids: Collection[str]) -> dict[str, Standing | None]:
        """As RunStore.standing."""

    def remember_placed(self, run: AuditRun, placed: Placed) -> bool:
        """Keep what is on the subcloud from the centre; False when the rows are no longer its own."""

    def remember_groups(self, run: AuditRun, groups: Mapping[str, tuple[str, ...]]) -> bool:
        """As RunStore.remember_groups."""

    def settle(self, run: AuditRun, findings: Sequence[Finding], *, now: datetime) -> bool:
        """Record what was found, where a row is still the run's own; what was asked meanwhile leaves it due at once."""

    def release(self, run: AuditRun, *, now: datetime) -> bool:
        """The run ends without a finding: its rows are due again as if it had not been."""

    # The centre.

    def central_state(self, kind: EndpointType) -> CentralState | None:
        """None before the watch first looked."""

    def accept_central(self, state: CentralState, *, old: CentralState | None, now: datetime) -> int | None:
        """Keep this, where `old` is still kept, and (unless that is None) raise the generation of every row of its
        kind in the same transaction; how many rows, None when somebody else was faster."""

    def refuse_central(self, kind: EndpointType, *, why: str | None, now: datetime) -> None:
        """Note that the watch looked: what it found was refused, or (None) is what is kept. Then what an operator
        allowed is over, too: it was meant for what there was to see at that time."""


# --- key rotation --------------------------------------------------------------------------------------------------


class RotationState(StrEnum):
    """How far the rotation of the centre's keys is."""

    IDLE = "idle"
    ROTATING = "rotating"
    DISTRIBUTING = "distributing"


@dataclass(frozen=True, slots=True)
class Spread:
    """How far the centre's current keys have got, in numbers of sites that are managed, online and completed."""

    sites: int
    behind: int
    """Not seen to hold exactly these keys."""

    @property
    def share_behind(self) -> float:
        return self.behind / self.sites if self.sites else 0.0


@dataclass(frozen=True, kw_only=True)
class KeyRotationRow:
    """What is planned and what was done, as the one row says."""

    state: RotationState
    detail: str
    """Why the last try was refused or failed, or what became of it."""
    next_due_at: datetime | None
    last_rotated_at: datetime | None
    window_until: datetime | None
    """Until then differing keys are planned, and worth no alarm."""
    requested_at: datetime | None
    requested_by: str
    forced: bool
    max_in_flight: int | None
    before: KeySet | None
    """What an unfinished try found before it rotated."""

    def is_due(self, now: datetime) -> bool:
        return self.requested_at is not None or (self.next_due_at is not None and self.next_due_at <= now)


class KeyRotationStore(Protocol):
    """The one row of key rotation, and the sites' rows as far as their keys go."""

    def row(self) -> KeyRotationRow: ...

    def ask(self, *, now: datetime, by: str, forced: bool, max_in_flight: int | None) -> None:
        """An operator wants a rotation; one that is asked for already is asked for in this way now."""

    def schedule(self, due: datetime | None, *, was: datetime | None) -> None:
        """The next one is due then, if it was due at `was`."""

    def claim(self, *, run_id: str, now: datetime, stale_before: datetime) -> KeyRotationRow | None:
        """The right to rotate: when one is due and nobody rotates, or whoever does has not been heard of since
        `stale_before`. None is an answer: not due, or somebody else was faster."""

    def remember(self, *, run_id: str, before: KeySet, now: datetime) -> bool:
        """Keep what was found, right before it is rotated; False when the claim is lost, and then nothing may be."""

    def finish(
        self, *, run_id: str, current: KeySet, now: datetime, next_due_at: datetime | None, window_until: datetime
    ) -> bool:
        """Rotated: the centre is known with `current` from now on, which is distributed in waves; all of it in one
        transaction. False when the claim is lost."""

    def give_up(self, *, run_id: str, detail: str, now: datetime, retry_at: datetime, forget: bool) -> bool:
        """Not rotated: a request ends, a schedule that is due is put off until `retry_at`; with `forget` what was found
        before is, too. False when the claim is lost."""

    def spread(self, fingerprint: str) -> Spread:
        """How many sites hold the set with this fingerprint."""

    def next_wave(self, fingerprint: str, *, max_in_flight: int, asked_before: datetime, now: datetime) -> int:
        """Ask so many sites that lack this set to be audited that `max_in_flight` are being served, each once after
        `asked_before`; how many were asked. 0 as well while another process does the same."""

    def end_distribution(self, *, now: datetime, detail: str) -> bool:
        """The window closes; False when it is not open any more."""


class CentralKeys(Protocol):
    """The centre's fernet repository, read and written past every cache. Raises CloudError with a central-* reason."""

    async def central_keys(self) -> FernetKeys:
        """What it holds now, possibly nothing."""

    async def replace_central_keys(self, keys: FernetKeys) -> None:
        """Write the whole set; refuses an empty one."""


# --- what observers tell -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EndpointRow:
    """What is shown for one endpoint, and the report that made it so."""

    sync_status: SyncStatus
    alarmable: bool
    mark: Mark | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StateRow:
    """One subcloud with what observers told of it, its row locked until the transaction ends.

    `memory` is what `StateChanges.memories` last stored for it, plain JSON.
    """

    subcloud_id: int
    name: str
    region_name: str
    management_state: ManagementState
    initial_sync_state: InitialSyncState
    availability_status: AvailabilityStatus
    online_mark: Mark | None
    offline_mark: Mark | None
    fail_count: int
    fail_mark: Mark | None
    first_identity_sync_complete: bool
    endpoints: Mapping[EndpointType, EndpointRow]
    memory: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedColumns:
    """The columns of a subcloud's row that reports decide, all written together."""

    subcloud_id: int
    availability_status: AvailabilityStatus
    online_mark: Mark | None
    offline_mark: Mark | None
    fail_count: int
    fail_mark: Mark | None
    first_identity_sync_complete: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class AlarmRow:
    """An alarm to raise; with `cleared_at`, one that has come and gone already."""

    alarm_id: str
    entity: str
    subcloud_id: int
    endpoint_type: EndpointType | None
    severity: str
    reason_text: str
    raised_at: datetime
    cleared_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class RejectedReport:
    """A report that was put aside: which region it named, why, and its text."""

    region_name: str | None
    reason: str
    report: str


@dataclass(slots=True)
class StateChanges:
    """All that a batch of reports writes, gathered first and then written in a few statements."""

    columns: list[ObservedColumns] = field(default_factory=list)
    events: dict[Event, list[int]] = field(default_factory=dict)
    endpoints: list[tuple[int, EndpointType, EndpointRow]] = field(default_factory=list)
    added_endpoints: list[tuple[int, EndpointType, EndpointRow]] = field(default_factory=list)
    removed_endpoints: list[tuple[int, EndpointType]] = field(default_factory=list)
    memories: list[tuple[int, Mapping[str, Any]]] = field(default_factory=list)
    cleared_alarms: list[tuple[str, str, datetime]] = field(default_factory=list)
    """(alarm id, entity, cleared at); cleared before `raised_alarms` are raised."""
    raised_alarms: list[AlarmRow] = field(default_factory=list)
    audits: list[tuple[int | None, EndpointType, str]] = field(default_factory=list)
    """(subcloud or None for all, endpoint type, cause); one that is still asked for is not asked for again."""
    realigned: list[int] = field(default_factory=list)
    """Subclouds whose alarms are made to agree with their rows, after everything else was written."""
    rejected: list[RejectedReport] = field(default_factory=list)


class StateTransaction(Protocol):
    """One transaction over the rows of some subclouds."""

    def lock(
        self, region_names: Collection[str], *, endpoint_types: Collection[EndpointType] | None = None
    ) -> list[StateRow]:
        """These subclouds, locked in the order of their ids; unknown ones are left out. Of their endpoints, those of
        these types (None: all) are read."""

    def write(self, changes: StateChanges, *, now: datetime) -> None:
        """Raises BadReport when PostgreSQL refuses a value; then nothing of this transaction may be committed."""


class StateStore(Protocol):
    """The rows as the state service sees them."""

    def transaction(self) -> AbstractContextManager[StateTransaction]:
        """Committed when the block ends, rolled back when it raises."""

    def region_names(self, *, after: str, limit: int) -> list[str]:
        """Up to `limit` region names that follow `after`, in order: for what is said of all subclouds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlarmNotice:
    """An alarm as a sink is told of it: active, or cleared since."""

    alarm_id: str
    entity: str
    severity: str
    reason_text: str
    raised_at: datetime
    cleared_at: datetime | None


@dataclass(frozen=True, slots=True)
class AlarmPosition:
    """How far a sink was told; opaque."""

    xid: int
    row_id: int


@dataclass(frozen=True, slots=True)
class SinkTurn:
    """The right to tell one sink what comes after `position`, until `until`."""

    sink: str
    position: AlarmPosition
    attempt: int


class AlarmStore(Protocol):
    """Alarms as operators and sinks see them; that they are raised and cleared is `StateTransaction`'s."""

    def alarms(self, *, history: bool, limit: int) -> list[AlarmNotice]:
        """Active alarms, gravest and oldest first; with `history` cleared ones as well, newest first."""

    def take_turn(self, sink: str, *, now: datetime, until: datetime) -> SinkTurn | None:
        """None while another process tells this sink, or its hold-off lasts."""

    def changed_after(self, position: AlarmPosition, *, limit: int) -> tuple[list[AlarmNotice], AlarmPosition]:
        """Alarms raised or cleared after that position, in order, and the position reached."""

    def end_turn(self, turn: SinkTurn, *, reached: AlarmPosition, next_attempt_at: datetime, attempt: int) -> None:
        """Note how far the sink was told, and when it is told again at the earliest."""

    def reconcile(self, *, now: datetime) -> tuple[int, int]:
        """Make active alarms agree with rows; how many were raised and how many cleared."""

    def prune(self, *, cleared_before: datetime, rejected_kept: int) -> int:
        """Remove old history, and all but the newest rejected reports; how many rows went."""


class AlarmSink(Protocol):
    """Where alarms are told. Told at least once, in order; the same alarm may come again, always as it is then."""

    @property
    def name(self) -> str:
        """The key its position is stored under."""

    def tell(self, notices: Sequence[AlarmNotice]) -> None:
        """Raises TemporaryError when they were not, or perhaps not, taken."""


# --- probes ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ProbeTarget:
    """Where to look, and what its row said when the look began; `probes` numbers this probe among the subcloud's."""

    region_name: str
    management_ip: str
    availability_status: AvailabilityStatus
    fail_count: int
    probes: int


class ProbeStore(Protocol):
    """When each subcloud is probed, managed or not."""

    def take_due(self, *, now: datetime, interval: timedelta) -> list[str]:
        """Region names of those due for a probe, who then are due again after about `interval`, a little spread."""

    def targets(self, region_names: Sequence[str]) -> list[ProbeTarget]:
        """Those of them that exist."""


class Prober(Protocol):
    """Looks whether subclouds are there."""

    async def probe(self, targets: Sequence[ProbeTarget], *, tell: Callable[[ProbeTarget, str | None], None]) -> None:
        """Probe all of them, many at once; `tell` hears of each as soon as it is known: None is good, else why not."""


class ProbeMessenger(Protocol):
    """Asks for probes."""

    def send_probes(self, chunks: Sequence[Sequence[str]], *, expires_seconds: float) -> None:
        """One message for each list of region names; raises BrokerUnreachable."""


# --- locks and messages ------------------------------------------------------------------------------------------


class Locks(Protocol):
    """One lock per subcloud with an owner and a time to live; held locks are renewed until released."""

    def acquire(self, region_name: str, *, owner: str) -> bool:
        """False when somebody else holds it."""

    def release(self, region_name: str, *, owner: str) -> bool:
        """False when it was no longer ours: somebody else's lock is never removed."""

    def owners(self, region_names: Sequence[str]) -> dict[str, str | None]:
        """Who holds each lock now, None where nobody does; one round trip."""


class Owner(Protocol):
    """A run of whatever kind: its id is in the row and in the lock of its subcloud."""

    @property
    def run_id(self) -> str: ...

    @property
    def subcloud(self) -> Subcloud: ...


class Ownership(Protocol):
    """Whether a run still owns its subcloud, asked of row and lock together."""

    async def standing(self, run: Owner) -> Standing | None:
        """None while both the row and the lock are the run's own, else why it must stop. Raises DatabaseUnreachable or
        BrokerUnreachable when that cannot be found out; then nothing may be written either."""


class Messenger(Protocol):
    """Sends hints. A hint that cannot be sent raises BrokerUnreachable; the sweep makes it good."""

    def send_sync(self, hints: Sequence[SyncHint]) -> None:
        """One pipelined batch on the `sync` queue."""

    def send_sweep(self) -> None:
        """Ask for a sweep soon, without waiting for beat."""

    def waiting_sync_ids(self) -> set[str]:
        """Task ids of `sync` messages that no worker has taken yet."""

    def send_audits(self, hints: Sequence[AuditHint]) -> None:
        """One pipelined batch on the `audit` queue."""

    def send_audit_sweep(self) -> None:
        """Ask for a sweep of the audits soon."""

    def send_key_rotation(self) -> None:
        """Ask for a look at the key rotation soon."""

    def waiting_audit_ids(self) -> set[str]:
        """As waiting_sync_ids, of the `audit` queue."""


class AuditReports(Protocol):
    """Tells the state service what audits found; never raises, and keeps nobody waiting."""

    def __call__(
        self, region_name: str, endpoint_type: EndpointType, status: SyncStatus, *, alarmable: bool
    ) -> None: ...


class Progress(Protocol):
    """Who is told which step a run has reached, for display only; never raises."""

    def __call__(self, run: Run, step: Step) -> None: ...


class Loop(Protocol):
    """The event loop of this process, seen from a task's thread."""

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Wait for the coroutine; raises what it raised, or WorkerStopping once it was cancelled and has ended."""


# --- the clouds --------------------------------------------------------------------------------------------------


class IdentityService(Protocol):
    """dcdbsync of one subcloud, under one login."""

    async def list(self, type_: ResourceType) -> tuple[Record, ...]:
        """Everything of one type."""

    async def update(self, old_id: str, record: Record) -> Record:
        """PUT `record` over the record `old_id`; answers what is now stored."""

    async def create(self, record: Record) -> Record:
        """POST a record the subcloud does not have, under its own id; answers what is now stored."""

    async def revocation_events(self) -> frozenset[RevocationEvent]:
        """Every revocation event of the subcloud."""

    async def create_revocation_event(self, event: RevocationEvent) -> None:
        """POST an event the subcloud does not have."""


class KeystoneService(Protocol):
    """Keystone's own API of one subcloud, under one login: what must run through Keystone's cascades and hooks."""

    async def assignments(self) -> frozenset[Assignment]:
        """Roles granted on projects, to users and groups; grants on domains and the system are left out."""

    async def grant(self, assignment: Assignment) -> None:
        """A second call changes nothing."""

    async def revoke(self, assignment: Assignment) -> None:
        """No such grant is an answer, not an error."""

    async def delete(self, type_: ResourceType, id_: str) -> None:
        """Delete a user, group, project or role with what hangs on it; not there is an answer, not an error."""

    async def set_password(self, user_id: str, password: str) -> None:
        """PATCH a user's password, in plain text: the way that makes a subcloud update its keyring."""


class FernetRepo(Protocol):
    """sysinv's fernet_repo of one subcloud, under one login."""

    async def read(self) -> FernetKeys:
        """The keys now in use, possibly none."""

    async def replace(self, keys: FernetKeys) -> None:
        """Send the whole set; refuses an empty one, for an empty POST would reset the repository."""


class SubcloudSession(Protocol):
    """One subcloud, logged in. Closed by its context manager."""

    @property
    def identity(self) -> IdentityService: ...

    @property
    def keystone(self) -> KeystoneService: ...

    @property
    def fernet_repo(self) -> FernetRepo: ...

    async def login(self) -> None:
        """Log in anew and drop the token held so far."""


class Clouds(Protocol):
    """The way to the centre and to each subcloud."""

    async def central_data(self) -> CentralData:
        """Central records and keys, at most a few seconds old, shared by all runs of the process.

        Without assignments and revocation events: an initial sync gives none, and must not fail for want of them.
        Raises CloudError with a central-* reason; an empty list of users, projects, roles or keys is `central-empty`.
        """

    async def central_audit_data(self, *, max_age: float | None = None) -> CentralData:
        """The same with the centre's assignments and revocation events, all of one fetch and shared in the same way.

        `max_age`: seconds, for who must not be given what was read before something happened.
        """

    def subcloud(self, subcloud: Subcloud, *, request_id: str) -> AbstractAsyncContextManager[SubcloudSession]:
        """A session, logged in. Every request carries `X-Openstack-Request-Id: <request_id>`."""
