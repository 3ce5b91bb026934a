"""Ports of the state service: rows and alarm sinks. Store calls block and raise `DatabaseUnreachable`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Protocol

from dcsync.model.errors import PermanentError
from dcsync.model.reasons import Reason
from dcsync.model.reports import Mark
from dcsync.model.states.initial_sync import InitialSyncEvent, InitialSyncState
from dcsync.model.subcloud import AvailabilityStatus, EndpointType, ManagementState, SyncStatus


@dataclass(frozen=True, slots=True)
class EndpointRow:
    """The sync status shown for one endpoint, and the mark of the report that set it."""

    sync_status: SyncStatus
    alarmable: bool
    mark: Mark | None
    reason: str | None = None
    """Why it is unknown, if that was reported."""
    verified_at: datetime | None = None
    last_good_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StateRow:
    """One subcloud with what was reported of it, its row locked until the transaction ends.

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
    unmanaged_at: datetime | None
    added_at: datetime | None
    endpoints: Mapping[EndpointType, EndpointRow]
    memory: Mapping[str, Any]
    audited: frozenset[EndpointType] = frozenset()
    """The endpoint types that dcsync audits itself, once its initial sync is completed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedColumns:
    """The columns of a subcloud's row that are set from reports, written together."""

    subcloud_id: int
    availability_status: AvailabilityStatus
    online_mark: Mark | None
    offline_mark: Mark | None
    fail_count: int
    fail_mark: Mark | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AlarmRow:
    """An alarm to raise; with `cleared_at`, one that is already cleared again."""

    alarm_id: str
    entity: str
    subcloud_id: int | None
    """None: an alarm of the whole fleet."""
    endpoint_type: EndpointType | None
    severity: str
    reason_text: str
    raised_at: datetime
    cleared_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class RejectedReport:
    """A rejected report: the region it names, why it was rejected, and its text."""

    region_name: str | None
    reason: str
    report: str


@dataclass(slots=True)
class StateChanges:
    """Everything a batch of reports writes, collected first and then written in a few statements."""

    columns: list[ObservedColumns] = field(default_factory=list)
    events: dict[InitialSyncEvent, list[int]] = field(default_factory=dict)
    endpoints: list[tuple[int, EndpointType, EndpointRow]] = field(default_factory=list)
    added_endpoints: list[tuple[int, EndpointType, EndpointRow]] = field(default_factory=list)
    removed_endpoints: list[tuple[int, EndpointType]] = field(default_factory=list)
    seen: list[tuple[int, datetime]] = field(default_factory=list)
    """(subcloud, when it was last observed as online)."""
    memories: list[tuple[int, Mapping[str, Any]]] = field(default_factory=list)
    cleared_alarms: list[tuple[str, str, datetime]] = field(default_factory=list)
    """(alarm id, entity, cleared at); cleared before `raised_alarms` are raised."""
    raised_alarms: list[AlarmRow] = field(default_factory=list)
    audits: list[tuple[int | None, EndpointType, str]] = field(default_factory=list)
    """(subcloud or None for all, endpoint type, cause); an audit that is already requested is not requested again."""
    realigned: list[int] = field(default_factory=list)
    """Subclouds whose alarms are realigned with their rows after everything else is written."""
    rejected: list[RejectedReport] = field(default_factory=list)


class StateTransaction(Protocol):
    """One transaction over the rows of some subclouds."""

    def lock(
        self, region_names: Collection[str], *, endpoint_types: Collection[EndpointType] | None = None
    ) -> list[StateRow]:
        """Locks these subclouds in the order of their ids and returns them with their endpoints of these types
        (None: all); unknown subclouds are left out."""

    def write(self, changes: StateChanges, *, now: datetime) -> None:
        """Raises BadReport when PostgreSQL rejects a value; the transaction must then be rolled back."""


class StateStore(Protocol):
    """The rows as the state service sees them."""

    def transaction(self) -> AbstractContextManager[StateTransaction]:
        """Returns a transaction that is committed when the block ends and rolled back when it raises."""

    def region_names(self, *, after: str, limit: int) -> list[str]:
        """Returns up to `limit` region names after `after`, in order; used for reports on all subclouds."""

    def add_missing_endpoints(self, endpoint_types: Collection[EndpointType]) -> int:
        """Adds an `unknown` row for each subcloud and type that has none, unless the type was reported as removed
        there; returns the number of rows added. A second call adds none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlarmNotice:
    """An alarm as it is sent to a sink: active, or cleared since."""

    alarm_id: str
    entity: str
    severity: str
    reason_text: str
    raised_at: datetime
    cleared_at: datetime | None


@dataclass(frozen=True, slots=True)
class AlarmPosition:
    """The position of the last notice a sink received; opaque."""

    xid: int
    row_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedNotice:
    """A notice that a sink refused for what is in it, and that is not sent again."""

    refused_at: datetime
    sink: str
    alarm_id: str
    entity: str
    why: str


@dataclass(frozen=True, slots=True)
class RefusedNotices:
    """How many are kept, and the newest of them, newest first."""

    total: int = 0
    newest: tuple[RefusedNotice, ...] = ()


class NoticesRefused(PermanentError):
    """A sink refused notices for what is in them, and would refuse them again; others it may accept."""


@dataclass(frozen=True, slots=True)
class SinkTurn:
    """The right to send one sink the notices after `position`, for a limited time."""

    sink: str
    position: AlarmPosition
    attempt: int


class AlarmStore(Protocol):
    """Alarms to send to sinks; they are raised and cleared through `StateTransaction`."""

    def take_turn(self, sink: str, *, now: datetime, until: datetime, longest: timedelta) -> SinkTurn | None:
        """Takes the turn to send to this sink; None while another process has it or the sink's hold-off lasts, at most
        for `longest`."""

    def changed_after(self, position: AlarmPosition, *, limit: int) -> tuple[list[AlarmNotice], AlarmPosition]:
        """Returns the alarms raised or cleared after that position, in order, and the position reached."""

    def end_turn(
        self,
        turn: SinkTurn,
        *,
        reached: AlarmPosition,
        next_attempt_at: datetime,
        attempt: int,
        refused: Sequence[RefusedNotice] = (),
    ) -> None:
        """Stores the position the sink has reached, the notices up to there that it refused, and the earliest time of
        the next attempt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectedNotice:
    """A rejected report as shown to operators. `report` is truncated plain ASCII with known fields only."""

    received_at: datetime
    region_name: str | None
    reason: str
    report: str


class RejectedReports(Protocol):
    """Reads rejected reports; they are stored through `StateTransaction`."""

    def newest(self, *, limit: int) -> list[RejectedNotice]:
        """Returns rejected reports, newest first."""


class AlarmSink(Protocol):
    """A destination of alarms. Each is sent at least once, in order; a repeated notice has the current state."""

    @property
    def name(self) -> str:
        """Returns the key its position is stored under."""

    def send(self, notices: Sequence[AlarmNotice]) -> None:
        """Raises TemporaryError when the notices were not, or possibly not, accepted, and NoticesRefused when one of
        them at least never will be."""


class SweepTrigger(Protocol):
    """Triggers a sweep of the initial syncs without waiting for beat."""

    def send_sweep(self) -> None:
        """Raises BrokerUnreachable; the next periodic sweep then finds the same rows."""


# --- the check for silence ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedFacts:
    """How many subclouds have a recent status of one resource.

    Counted are managed subclouds, for endpoint types only online ones. Without a completed initial sync, a status
    is as old as the request; one that fails is not counted, because another alarm reports it.
    """

    endpoint_type: EndpointType | None
    """None: the availability."""
    subclouds: int
    stale: int
    """How many have none that is inside its window."""
    names: tuple[str, ...] = ()
    """Some of the stale ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FailingFacts:
    """A managed subcloud whose initial sync, or audit of one endpoint type, failed at its last run."""

    subcloud_id: int
    name: str
    is_online: bool
    online_since: datetime | None
    endpoint_type: EndpointType | None
    """None: the initial sync."""
    since: datetime
    """The first of the failures in a row."""
    failures: int
    reason: Reason | None
    """Of the last failure; None: none since it was last requested."""
    detail: str


@dataclass(frozen=True, slots=True)
class RefusedFacts:
    """Central data that the watch could read and refused."""

    endpoint_type: EndpointType
    since: datetime
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CentralFacts:
    """What the watch recorded of the central cloud."""

    checked_at: datetime | None = None
    readable_since: datetime | None = None
    unreadable_since: datetime | None = None
    unreadable_reason: str = ""
    refused: tuple[RefusedFacts, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class KeysFacts:
    """How far the current central keys got, over managed, online and completed subclouds."""

    changed_at: datetime | None = None
    """When the central keys last changed, by a rotation or otherwise; None: they were never read."""
    window_until: datetime | None = None
    subclouds: int = 0
    behind: int = 0
    """Not seen to hold these keys, although their initial sync was requested before `SilenceCutoffs.requested`."""
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SilenceFacts:
    """Everything the check for silence decides from."""

    first_checked_at: datetime
    """The first check of all: what never happened has not happened since then."""
    swept_at: datetime | None = None
    observed: tuple[ObservedFacts, ...] = ()
    failing: tuple[FailingFacts, ...] = ()
    central: CentralFacts = CentralFacts()
    keys: KeysFacts = KeysFacts()
    active: frozenset[tuple[str, str]] = frozenset()
    """(alarm id, entity) of the alarms of this kind that are active."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SilenceCutoffs:
    """What is older than this is stale, or was requested long enough ago."""

    availability: datetime
    audited: datetime
    reported: datetime
    requested: datetime
    future: datetime
    """What is recorded later than this is void."""


class SilenceStore(Protocol):
    """The rows that show whether anybody observes. No call keeps a lock while the caller does something else, so a
    process that is stopped between two calls delays no other."""

    def begin_check(self, *, now: datetime, swept_at: datetime | None, unless_since: datetime) -> bool:
        """Takes the turn to check and records when a sweep last ended, if that is news. False if another process has
        taken one since `unless_since`."""

    def facts(self, cutoffs: SilenceCutoffs, *, now: datetime) -> SilenceFacts: ...

    def settle(self, expected: Sequence[AlarmRow], *, checked_at: datetime, now: datetime) -> tuple[int, int] | None:
        """Makes the active alarms of this kind agree with `expected`, in one transaction, if the turn of `checked_at`
        is still the latest; (raised, cleared), or None if it is not. The text of an active alarm follows, of which
        sinks are not notified."""
