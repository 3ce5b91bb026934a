"""What the state service asks of its rows and its alarm sinks. Calls block and raise `DatabaseUnreachable`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from dcsync.model.reports import Mark
from dcsync.model.states.initial_sync import InitialSyncEvent, InitialSyncState
from dcsync.model.subcloud import AvailabilityStatus, EndpointType, ManagementState, SyncStatus


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
    unmanaged_at: datetime | None
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
    """A report that was rejected: which region it named, why, and its text."""

    region_name: str | None
    reason: str
    report: str


@dataclass(slots=True)
class StateChanges:
    """All that a batch of reports writes, gathered first and then written in a few statements."""

    columns: list[ObservedColumns] = field(default_factory=list)
    events: dict[InitialSyncEvent, list[int]] = field(default_factory=dict)
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

    def add_missing_endpoints(self, endpoint_types: Collection[EndpointType]) -> int:
        """Give each subcloud an `unknown` row for those of these types that it has none for, unless the type was
        reported as removed there; how many rows. A second call adds none."""


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
    """Alarms as sinks are told of them; that they are raised and cleared is `StateTransaction`'s."""

    def take_turn(self, sink: str, *, now: datetime, until: datetime) -> SinkTurn | None:
        """None while another process tells this sink, or its hold-off lasts."""

    def changed_after(self, position: AlarmPosition, *, limit: int) -> tuple[list[AlarmNotice], AlarmPosition]:
        """Alarms raised or cleared after that position, in order, and the position reached."""

    def end_turn(self, turn: SinkTurn, *, reached: AlarmPosition, next_attempt_at: datetime, attempt: int) -> None:
        """Note how far the sink was told, and when it is told again at the earliest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectedNotice:
    """A rejected report as an operator reads it. `report` is cut, plain ASCII, and shows a report's own fields only."""

    received_at: datetime
    region_name: str | None
    reason: str
    report: str


class RejectedReports(Protocol):
    """The newest of the reports that could not be used; that they are kept is `StateTransaction`'s."""

    def newest(self, *, limit: int) -> list[RejectedNotice]:
        """Newest first."""


class AlarmSink(Protocol):
    """Where alarms are told. Told at least once, in order; the same alarm may come again, always as it is then."""

    @property
    def name(self) -> str:
        """The key its position is stored under."""

    def tell(self, notices: Sequence[AlarmNotice]) -> None:
        """Raises TemporaryError when they were not, or perhaps not, taken."""


class SweepTrigger(Protocol):
    """Triggers a sweep of the initial syncs without waiting for beat."""

    def send_sweep(self) -> None:
        """Raises BrokerUnreachable; then the next tick does it."""
