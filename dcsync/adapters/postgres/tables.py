"""The tables in SQLAlchemy Core. The migrations create them; a test compares the two."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Dialect,
    Enum,
    ForeignKey,
    Identity,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    false,
    func,
    text,
    true,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from dcsync.model.ending import Ending
from dcsync.model.operation import OperationOutcome
from dcsync.model.outside_text import LONGEST_DETAIL, cut
from dcsync.model.states.audit import AUDIT
from dcsync.model.states.initial_sync import INITIAL_SYNC, InitialSyncState
from dcsync.model.states.rotation import ROTATION
from dcsync.model.subcloud import AvailabilityStatus, EndpointType, ManagementState, Step, SyncStatus
from dcsync.model.written import as_written

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


class _WrittenEnum(TypeDecorator[Any]):
    """An enum's member, stored as text with a CHECK; a value of another release is read as it is written."""

    impl = Enum
    cache_ok = True

    def __init__(self, words: type[StrEnum], name: str) -> None:
        super().__init__(
            words,
            name=name,
            native_enum=False,
            create_constraint=True,
            length=64,
            values_callable=lambda members: [member.value for member in members],
        )
        self.words, self.name = words, name

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any]:
        return lambda value: None if value is None else as_written(self.words, value)


def _enum(enum: type[StrEnum], name: str) -> _WrittenEnum:
    """Returns the type of a closed set of values."""
    return _WrittenEnum(enum, name)


class EnumText(TypeDecorator[Any]):
    """An enum's member in a text column; `none` is the value stored for None.

    For columns that were text before they had a CHECK: the type of `_enum` would rewrite the table.
    """

    impl = Text
    cache_ok = True

    def __init__(self, words: type[StrEnum], *, none: str | None = None) -> None:
        super().__init__()
        self.words, self.none = words, none

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return self.none if value is None else self.words(value).value

    def process_result_value(self, value: str | None, dialect: Dialect) -> StrEnum | None:
        return None if value is None or value == self.none else as_written(self.words, value)

    def check(self, name: str) -> CheckConstraint:
        """Returns the CHECK that the column contains only these values."""
        words = [*([self.none] if self.none else []), *self.words]
        return CheckConstraint(f"{name} IN ({', '.join(map(_quoted, words))})", name=name)


class DetailText(TypeDecorator[str]):
    """A text that may contain texts from outside: cut, and without what PostgreSQL does not store, on every write."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else cut(value, at_most=LONGEST_DETAIL)


class DifferenceLines(TypeDecorator[list[str]]):
    """A JSON list of differences in words, each cut; of many the first, and how many more there are."""

    impl = JSONB
    cache_ok = True

    def process_bind_param(self, value: Sequence[str] | None, dialect: Dialect) -> list[str] | None:
        if value is None or len(value) <= MOST_LINES:
            return None if value is None else [cut(line, at_most=LONGEST_LINE) for line in value]
        more = len(value) - MOST_LINES
        return [*(cut(line, at_most=LONGEST_LINE) for line in value[:MOST_LINES]), f"and {more} more"]


MOST_LINES = 100
LONGEST_LINE = 500
"""In characters: a name of 255 and the names of all fields."""


def _quoted(word: str) -> str:
    return f"'{word}'"


def _timestamp(name: str, *, nullable: bool = True) -> Column[object]:
    return Column(name, DateTime(timezone=True), nullable=nullable)


def _subcloud_id() -> Column[object]:
    return Column("subcloud_id", BigInteger, ForeignKey("subcloud.id", ondelete="CASCADE"), nullable=False)


def _past_subcloud_id() -> Column[object]:
    """Of history, which outlives its subcloud: no foreign key."""
    return Column("subcloud_id", BigInteger, nullable=False)


def _is(state: InitialSyncState) -> str:
    return f"initial_sync_state = '{state}'"


subcloud = Table(
    "subcloud",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("region_name", Text, nullable=False, unique=True),
    Column("management_ip", Text, nullable=False),
    Column("software_version", Text, nullable=False, server_default=""),
    Column("management_state", _enum(ManagementState, "management_state"), nullable=False,
           server_default=ManagementState.UNMANAGED.value),
    Column("availability_status", _enum(AvailabilityStatus, "availability_status"), nullable=False,
           server_default=AvailabilityStatus.OFFLINE.value),
    Column("initial_sync_state", _enum(InitialSyncState, "initial_sync_state"), nullable=False,
           server_default=INITIAL_SYNC.first.value),
    Column("subsequent_sync", Boolean, nullable=False, server_default=false()),
    Column("identity_fingerprint", Text),
    Column("groups_to_refill", JSONB, nullable=False, server_default=text("'{}'::jsonb")),
    # A request increases the generation; attempts are counted within it.
    Column("generation", BigInteger, nullable=False, server_default="0"),
    Column("attempt", Integer, nullable=False, server_default="0"),
    # Numbers the runs of a generation; unlike attempts it also counts those that were given back.
    Column("runs_begun", Integer, nullable=False, server_default="0"),
    Column("abandoned", Integer, nullable=False, server_default="0"),
    _timestamp("requested_at"),
    _timestamp("dispatched_at"),
    _timestamp("retry_at"),
    # From observers: when it was last seen coming online and being offline, how many probes failed in a row.
    _timestamp("online_observed_at"),
    Column("online_sequence", BigInteger, nullable=False, server_default="0"),
    _timestamp("offline_observed_at"),
    Column("offline_sequence", BigInteger, nullable=False, server_default="0"),
    Column("audit_fail_count", Integer, nullable=False, server_default="0"),
    _timestamp("fail_count_observed_at"),
    Column("fail_count_sequence", BigInteger, nullable=False, server_default="0"),
    # Endpoint reports observed before this are ignored, except for dc-cert.
    _timestamp("unmanaged_at"),
    # The run that owns the row while it is in progress.
    Column("run_id", Text),
    _timestamp("claimed_at"),
    Column("step", _enum(Step, "step")),
    Column("reason", Text),
    Column("detail", DetailText, nullable=False, server_default=""),
    # Of the failures in a row of its initial sync: the first, and how many. Only a completed one ends them; those from
    # before it was last unmanaged do not count.
    _timestamp("failing_since"),
    Column("failures", Integer, nullable=False, server_default="0"),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("updated_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    CheckConstraint(f"({_is(InitialSyncState.IN_PROGRESS)}) = (run_id IS NOT NULL)", name="run_id_while_in_progress"),
    CheckConstraint(f"initial_sync_state <> '{InitialSyncState.FAILED}' "
                    "OR (retry_at IS NOT NULL AND reason IS NOT NULL)", name="failed_has_reason_and_retry"),
    # Not unique: rows that share one are older than the rule against it, and are shown.
    Index("ix_subcloud_management_ip", "management_ip"),
    Index("ix_subcloud_requested", "requested_at", postgresql_where=text(_is(InitialSyncState.REQUESTED))),
    Index("ix_subcloud_in_progress", "claimed_at", postgresql_where=text(_is(InitialSyncState.IN_PROGRESS))),
    Index("ix_subcloud_failed", "retry_at", postgresql_where=text(_is(InitialSyncState.FAILED))),
    # Rows are updated often: free space in each page lets most updates skip the indexes (HOT).
    postgresql_with={"fillfactor": "70"},
)  # fmt: skip

endpoint_status = Table(
    "endpoint_status",
    metadata,
    _subcloud_id(),
    Column("endpoint_type", _enum(EndpointType, "endpoint_type"), nullable=False),
    Column("sync_status", _enum(SyncStatus, "sync_status"), nullable=False, server_default=SyncStatus.UNKNOWN.value),
    _timestamp("changed_at"),
    # The report that is shown, and whether it may raise an alarm.
    _timestamp("observed_at"),
    Column("sequence", BigInteger, nullable=False, server_default="0"),
    Column("alarmable", Boolean, nullable=False, server_default=true()),
    # The newest report that a comparison was made for, the newest that found no difference, and why it is unknown.
    _timestamp("verified_at"),
    _timestamp("last_good_at"),
    Column("reason", Text),
    UniqueConstraint("subcloud_id", "endpoint_type"),
    postgresql_with={"fillfactor": "70"},
)

report_memory = Table(
    "report_memory",
    metadata,
    # Reports that changed no row and still decide whether a late one counts; see `dcsync.state.rules`. Unlogged: it is
    # emptied by a crash of the server, and filled again by the observers' next reports.
    Column("subcloud_id", BigInteger, ForeignKey("subcloud.id", ondelete="CASCADE"), primary_key=True),
    Column("memory", JSONB, nullable=False),
    prefixes=["UNLOGGED"],
    postgresql_with={"fillfactor": "50"},
)

subcloud_probe = Table(
    "subcloud_probe",
    metadata,
    # Separate from the subcloud's row, which others lock. Unlogged: after a crash of the server all probes are due.
    Column("subcloud_id", BigInteger, ForeignKey("subcloud.id", ondelete="CASCADE"), primary_key=True),
    _timestamp("next_probe_at", nullable=False),
    Column("probes", BigInteger, nullable=False),
    # When an observer last found the subcloud online.
    _timestamp("seen_at"),
    prefixes=["UNLOGGED"],
    postgresql_with={"fillfactor": "50"},
)

alarm = Table(
    "alarm",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("alarm_id", Text, nullable=False),
    Column("entity", Text, nullable=False),
    # Kept after its subcloud is deleted, so that sinks still receive the clearing.
    Column("subcloud_id", BigInteger, ForeignKey("subcloud.id", ondelete="SET NULL")),
    Column("endpoint_type", _enum(EndpointType, "endpoint_type")),
    Column("severity", Text, nullable=False),
    Column("reason_text", Text, nullable=False),
    _timestamp("raised_at", nullable=False),
    _timestamp("cleared_at"),
    # The transaction that raised or cleared it: sinks read up to the oldest transaction that is still open.
    Column("changed_xid", BigInteger, nullable=False),
    Index("uq_alarm_active", "entity", "alarm_id", unique=True, postgresql_where=text("cleared_at IS NULL")),
    Index("ix_alarm_changed_xid_id", "changed_xid", "id"),
    Index("ix_alarm_subcloud_id", "subcloud_id"),
)

alarm_sink = Table(
    "alarm_sink",
    metadata,
    Column("name", Text, primary_key=True),
    # The last alarm delivered, as (changed_xid, alarm id).
    Column("told_xid", BigInteger, nullable=False, server_default="0"),
    Column("told_id", BigInteger, nullable=False, server_default="0"),
    Column("attempt", Integer, nullable=False, server_default="0"),
    _timestamp("next_attempt_at", nullable=False),
)

refused_notice = Table(
    "refused_notice",
    metadata,
    # Notices of alarms that a sink refused for what is in them; kept as long as history.
    Column("id", BigInteger, Identity(), primary_key=True),
    _timestamp("refused_at", nullable=False),
    Column("sink", Text, nullable=False),
    Column("alarm_id", Text, nullable=False),
    Column("entity", Text, nullable=False),
    Column("why", Text, nullable=False),
    Index("ix_refused_notice_refused_at", "refused_at"),
)

audit_request = Table(
    "audit_request",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    # None: all subclouds.
    Column("subcloud_id", BigInteger, ForeignKey("subcloud.id", ondelete="CASCADE")),
    Column("endpoint_type", _enum(EndpointType, "endpoint_type"), nullable=False),
    _timestamp("requested_at", nullable=False),
    Column("cause", Text, nullable=False),
    UniqueConstraint("subcloud_id", "endpoint_type", postgresql_nulls_not_distinct=True),
)

rejected_report = Table(
    "rejected_report",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    _timestamp("received_at", nullable=False),
    Column("region_name", Text),
    Column("reason", Text, nullable=False),
    Column("report", Text, nullable=False),
)

NOTHING_REPORTED = "none"
_AUDIT_STATUS, _RESULT = EnumText(AUDIT.states), EnumText(SyncStatus)
_REPORTED = EnumText(SyncStatus, none=NOTHING_REPORTED)

subcloud_sync = Table(
    "subcloud_sync",
    metadata,
    _subcloud_id(),
    Column("endpoint_type", _enum(EndpointType, "endpoint_type"), nullable=False),
    Column("audit_status", _AUDIT_STATUS, nullable=False, server_default=AUDIT.first.value),
    Column("sync_status_reported", _REPORTED, nullable=False, server_default=NOTHING_REPORTED),
    _timestamp("sync_status_report_time"),
    _timestamp("last_audit_time"),
    # A request or a central change increases the generation; a finished comparison sets the observed one to it.
    Column("generation", BigInteger, nullable=False, server_default="0"),
    Column("observed_generation", BigInteger, nullable=False, server_default="0"),
    _timestamp("requested_at"),
    Column("requested_by", Text, nullable=False, server_default=""),
    Column("due_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    _timestamp("dispatched_at"),
    Column("dispatches", BigInteger, nullable=False, server_default="0"),
    # The run that owns the row while its audit is in progress.
    Column("run_id", Text),
    _timestamp("claimed_at"),
    Column("attempt", Integer, nullable=False, server_default="0"),
    Column("abandoned", Integer, nullable=False, server_default="0"),
    Column("reason", Text),
    Column("detail", DetailText, nullable=False, server_default=""),
    # As in `subcloud`, of its audits.
    _timestamp("failing_since"),
    Column("failures", Integer, nullable=False, server_default="0"),
    # The last finished comparison, and the last that found a difference: its digest, and names without values.
    _timestamp("last_good_at"),
    Column("result", _RESULT),
    Column("difference", DetailText),
    Column("difference_detail", DifferenceLines, nullable=False, server_default=text("'[]'::jsonb")),
    _timestamp("difference_at"),
    Column("difference_repairs", Integer, nullable=False, server_default="0"),
    _timestamp("repaired_at"),
    # For the next run only: deletions without limit; repair restricted to these resource types.
    Column("deletes_allowed", Boolean, nullable=False, server_default=false()),
    Column("resource_types", JSONB(none_as_null=True)),
    # Fingerprint of the keys last read from the subcloud, in its platform row.
    Column("keys_fingerprint", Text),
    UniqueConstraint("subcloud_id", "endpoint_type"),
    _AUDIT_STATUS.check("audit_status"),
    _REPORTED.check("sync_status_reported"),
    _RESULT.check("result"),
    Index("ix_subcloud_sync_due_at", "due_at"),
    Index("ix_subcloud_sync_sync_status_report_time", "sync_status_report_time"),
    Index("ix_subcloud_sync_run_id", "run_id", postgresql_where=text("run_id IS NOT NULL")),
)

subcloud_placed = Table(
    "subcloud_placed",
    metadata,
    # The ids of records the central cloud placed on a subcloud; see `dcsync.model.identity.Placed`.
    Column("subcloud_id", BigInteger, ForeignKey("subcloud.id", ondelete="CASCADE"), primary_key=True),
    Column("placed", JSONB, nullable=False),
)

central_state = Table(
    "central_state",
    metadata,
    # The central cloud as the watch last accepted it; `kind` is the endpoint type.
    Column("kind", Text, primary_key=True),
    Column("fingerprint", Text, nullable=False),
    Column("events_fingerprint", Text, nullable=False, server_default=""),
    Column("counts", JSONB, nullable=False),
    Column("generation", BigInteger, nullable=False, server_default="0"),
    _timestamp("changed_at", nullable=False),
    _timestamp("checked_at", nullable=False),
    Column("refused", DetailText),
    _timestamp("refused_since"),
    Column("shrink_allowed", Boolean, nullable=False, server_default=false()),
)

silence = Table(
    "silence",
    metadata,
    Column("id", SmallInteger, primary_key=True, server_default="1", autoincrement=False),
    # When it was first and last checked whether anybody observes, and when a sweep last ended as far as was seen.
    _timestamp("first_checked_at"),
    _timestamp("checked_at"),
    _timestamp("swept_at"),
    # When the watch last read, or tried to read, the central cloud, and since when it can or cannot.
    _timestamp("central_checked_at"),
    _timestamp("readable_since"),
    _timestamp("unreadable_since"),
    Column("unreadable_reason", Text),
    CheckConstraint("id = 1", name="single_row"),
    CheckConstraint("(unreadable_since IS NULL) = (unreadable_reason IS NULL)", name="unreadable_has_reason"),
)

_ROTATION_STATE = EnumText(ROTATION.states)

key_rotation = Table(
    "key_rotation",
    metadata,
    Column("id", SmallInteger, primary_key=True, server_default="1", autoincrement=False),
    _timestamp("next_due_at"),
    _timestamp("last_rotated_at"),
    # Until then differing keys are expected and raise no alarm.
    _timestamp("window_until"),
    Column("state", _ROTATION_STATE, nullable=False, server_default=ROTATION.first.value),
    Column("detail", DetailText, nullable=False, server_default=""),
    # An operator's request, until it is carried out or refused.
    _timestamp("requested_at"),
    Column("requested_by", Text, nullable=False, server_default=""),
    Column("forced", Boolean, nullable=False, server_default=false()),
    Column("max_in_flight", Integer),
    # The run that rotates, and the fingerprints it read before: they show whether an interrupted rotation was done.
    Column("run_id", Text),
    _timestamp("claimed_at"),
    Column("before", JSONB(none_as_null=True)),
    CheckConstraint("id = 1", name="single_row"),
    _ROTATION_STATE.check("state"),
)

sync_request = Table(
    "sync_request",
    metadata,
    _past_subcloud_id(),
    Column("generation", BigInteger, nullable=False),
    _timestamp("requested_at", nullable=False),
    Column("requested_by", Text, nullable=False),
    Column("cause", Text, nullable=False),
    UniqueConstraint("subcloud_id", "generation"),
)

sync_attempt = Table(
    "sync_attempt",
    metadata,
    Column("run_id", Text, primary_key=True),
    _past_subcloud_id(),
    Column("generation", BigInteger, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("worker", Text, nullable=False),
    _timestamp("started_at", nullable=False),
    _timestamp("ended_at"),
    Column("ending", _enum(Ending, "ending")),
    Column("reason", Text),
    Column("detail", DetailText, nullable=False, server_default=""),
    Index("ix_sync_attempt_subcloud_id_generation", "subcloud_id", "generation"),
    Index("ix_sync_attempt_ended_at", "ended_at"),
)

sync_step = Table(
    "sync_step",
    metadata,
    Column("run_id", Text, ForeignKey("sync_attempt.run_id", ondelete="CASCADE"), primary_key=True),
    Column("step", _enum(Step, "step"), primary_key=True),
    _timestamp("started_at", nullable=False),
    _timestamp("ended_at"),
    Column("outcome", Text),
    Column("detail", DetailText, nullable=False, server_default=""),
)

audit_history = Table(
    "audit_history",
    metadata,
    # Of audits that found a difference or failed. Each list as {"names": the first, "count": all}.
    Column("id", BigInteger, Identity(), primary_key=True),
    _past_subcloud_id(),
    Column("run_id", Text, nullable=False),
    Column("endpoint_type", _enum(EndpointType, "endpoint_type"), nullable=False),
    Column("worker", Text, nullable=False),
    _timestamp("started_at", nullable=False),
    _timestamp("ended_at", nullable=False),
    Column("result", _enum(SyncStatus, "result")),
    Column("reason", Text),
    Column("detail", DetailText, nullable=False),
    Column("differences", JSONB, nullable=False),
    Column("written", JSONB, nullable=False),
    Column("not_written", JSONB, nullable=False),
    Index("ix_audit_history_subcloud_id", "subcloud_id"),
    Index("ix_audit_history_ended_at", "ended_at"),
)

deleted_subcloud = Table(
    "deleted_subcloud",
    metadata,
    # Whose history is still kept.
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("name", Text, nullable=False),
    Column("region_name", Text, nullable=False),
    _timestamp("added_at", nullable=False),
    _timestamp("deleted_at", nullable=False),
    Index("ix_deleted_subcloud_name", "name"),
    Index("ix_deleted_subcloud_deleted_at", "deleted_at"),
)

operation = Table(
    "operation",
    metadata,
    # Append-only: a trigger refuses to change a row, and to delete one before `keep_until`; see migration 0009.
    Column("id", BigInteger, Identity(), primary_key=True),
    _timestamp("at", nullable=False),
    Column("who", Text, nullable=False),
    Column("host", Text, nullable=False),
    Column("command", Text, nullable=False),
    # The first names, the count of all, and the ids of all that exist.
    Column("names", ARRAY(Text), nullable=False),
    Column("count", Integer, nullable=False),
    Column("subcloud_ids", ARRAY(BigInteger), nullable=False),
    Column("reason", Text),
    Column("outcome", _enum(OperationOutcome, "outcome"), nullable=False),
    Column("detail", DetailText, nullable=False),
    _timestamp("keep_until", nullable=False),
    Index("ix_operation_at", "at"),
    Index("ix_operation_keep_until", "keep_until"),
    Index("ix_operation_names", "names", postgresql_using="gin"),
    Index("ix_operation_subcloud_ids", "subcloud_ids", postgresql_using="gin"),
)
