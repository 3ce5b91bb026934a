"""What the services ask of the world, as Protocols. Adapters fill them in; `tests/fakes.py` does so in memory.

Calls on a subcloud or the centre are coroutines and raise `CloudError`; store, locks and messenger are plain blocking
calls and raise `DatabaseUnreachable` or `BrokerUnreachable`. Where an answer can be "no", it is a value, not an error.
"""

from __future__ import annotations

from collections.abc import Collection, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol, TypeVar

from dcsync.identity import Assignment, CentralData, FernetKeys, Record, ResourceType, RevocationEvent
from dcsync.lifecycle import Ending, Event, Failure
from dcsync.messages import Mark, SyncHint
from dcsync.subcloud import (
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
        self, names: Sequence[str] | None, state: ManagementState, *, now: datetime, by: str
    ) -> list[Transition]:
        """Manage or unmanage these (None: all) with the initial-sync transition that follows, in one transaction."""

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

    def init_audit(self, run: Run, *, now: datetime) -> bool:
        """Reset the audit columns of platform and identity so that the first audit is due at once.

        Source: spec/initial-sync.md section 9. False as in start_step.
        """

    def complete(self, run: Run, *, now: datetime) -> bool:
        """in-progress -> completed, and the attempt's end, in one transaction; False when the row is not its own."""

    def fail(self, run: Run, failure: Failure, *, now: datetime, retry_at: datetime) -> bool:
        """in-progress -> failed with reason and retry_at, and the attempt's end; False as in complete."""

    def give_back(self, run: Run, *, ending: Ending, detail: str, now: datetime) -> bool:
        """in-progress -> requested, for this worker stops or lost the lock; the attempt does not count against the
        subcloud. False as in complete."""

    def end_attempt(self, run: Run, ending: Ending, *, detail: str, now: datetime) -> None:
        """Close the history row of a run that may not touch the subcloud's row any more."""

    def delete_history(self, *, ended_before: datetime, limit: int) -> int:
        """Remove up to `limit` old attempts (never a subcloud's latest request); how many."""


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

    def lock(self, region_names: Collection[str]) -> list[StateRow]:
        """These subclouds, locked in the order of their ids; unknown ones are left out."""

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


# --- locks and messages ------------------------------------------------------------------------------------------


class Locks(Protocol):
    """One lock per subcloud with an owner and a time to live; held locks are renewed until released."""

    def acquire(self, region_name: str, *, owner: str) -> bool:
        """False when somebody else holds it."""

    def release(self, region_name: str, *, owner: str) -> bool:
        """False when it was no longer ours: somebody else's lock is never removed."""

    def owners(self, region_names: Sequence[str]) -> dict[str, str | None]:
        """Who holds each lock now, None where nobody does; one round trip."""


class Ownership(Protocol):
    """Whether a run still owns its subcloud, asked of row and lock together."""

    async def standing(self, run: Run) -> Standing | None:
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

    async def central_audit_data(self) -> CentralData:
        """The same with the centre's assignments and revocation events, all of one fetch and shared in the same way."""

    def subcloud(self, subcloud: Subcloud, *, request_id: str) -> AbstractAsyncContextManager[SubcloudSession]:
        """A session, logged in. Every request carries `X-Openstack-Request-Id: <request_id>`."""
