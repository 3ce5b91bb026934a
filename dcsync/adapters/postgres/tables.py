"""The tables, as SQLAlchemy Core sees them. They are made by the migrations; a test holds the two together."""

from __future__ import annotations

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
from sqlalchemy.dialects.postgresql import JSONB

from dcsync.model.ending import Ending
from dcsync.model.states.audit import AUDIT
from dcsync.model.states.initial_sync import INITIAL_SYNC, InitialSyncState
from dcsync.model.states.rotation import ROTATION
from dcsync.model.subcloud import AvailabilityStatus, EndpointType, ManagementState, Step, SyncStatus

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _words(enum: type, name: str) -> Enum:
    """One of a closed set of words, stored as text with a check; read back as the enum's member."""
    return Enum(
        enum,
        name=name,
        native_enum=False,
        create_constraint=True,
        length=64,
        values_callable=lambda members: [member.value for member in members],
    )


class Word(TypeDecorator[Any]):
    """One of a closed set of words as the enum's member, in a column of text; `none`: the word that stands for None.

    For columns that were text before they had a check: the other type would rewrite the table.
    """

    impl = Text
    cache_ok = True

    def __init__(self, words: type[StrEnum], *, none: str | None = None) -> None:
        super().__init__()
        self.words, self.none = words, none

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return self.none if value is None else self.words(value).value

    def process_result_value(self, value: str | None, dialect: Dialect) -> StrEnum | None:
        return None if value is None or value == self.none else self.words(value)

    def check(self, name: str) -> CheckConstraint:
        """That the column of this name holds nothing else."""
        words = [*([self.none] if self.none else []), *self.words]
        return CheckConstraint(f"{name} IN ({', '.join(map(_quoted, words))})", name=name)


def _quoted(word: str) -> str:
    return f"'{word}'"


def _moment(name: str, *, nullable: bool = True) -> Column[object]:
    return Column(name, DateTime(timezone=True), nullable=nullable)


def _subcloud_id() -> Column[object]:
    return Column("subcloud_id", BigInteger, ForeignKey("subcloud.id", ondelete="CASCADE"), nullable=False)


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
    Column("management_state", _words(ManagementState, "management_state"), nullable=False,
           server_default=ManagementState.UNMANAGED.value),
    Column("availability_status", _words(AvailabilityStatus, "availability_status"), nullable=False,
           server_default=AvailabilityStatus.OFFLINE.value),
    Column("initial_sync_state", _words(InitialSyncState, "initial_sync_state"), nullable=False,
           server_default=INITIAL_SYNC.first.value),
    Column("subsequent_sync", Boolean, nullable=False, server_default=false()),
    Column("identity_fingerprint", Text),
    Column("groups_to_refill", JSONB, nullable=False, server_default=text("'{}'::jsonb")),
    # A request grows the generation; attempts count within it.
    Column("generation", BigInteger, nullable=False, server_default="0"),
    Column("attempt", Integer, nullable=False, server_default="0"),
    Column("abandoned", Integer, nullable=False, server_default="0"),
    _moment("requested_at"),
    _moment("dispatched_at"),
    _moment("retry_at"),
    # What observers told: when it was last seen to come online and to be offline, how many looks failed in a row.
    _moment("online_observed_at"),
    Column("online_sequence", BigInteger, nullable=False, server_default="0"),
    _moment("offline_observed_at"),
    Column("offline_sequence", BigInteger, nullable=False, server_default="0"),
    Column("audit_fail_count", Integer, nullable=False, server_default="0"),
    _moment("fail_count_observed_at"),
    Column("fail_count_sequence", BigInteger, nullable=False, server_default="0"),
    # What was observed of its endpoints before counts for nothing; those of dc-cert are kept all the same.
    _moment("unmanaged_at"),
    # The run that owns the row while it is in progress.
    Column("run_id", Text),
    _moment("claimed_at"),
    Column("step", _words(Step, "step")),
    Column("reason", Text),
    Column("detail", Text, nullable=False, server_default=""),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("updated_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    CheckConstraint(f"({_is(InitialSyncState.IN_PROGRESS)}) = (run_id IS NOT NULL)", name="run_id_while_in_progress"),
    CheckConstraint(f"initial_sync_state <> '{InitialSyncState.FAILED}' "
                    "OR (retry_at IS NOT NULL AND reason IS NOT NULL)", name="failed_has_reason_and_retry"),
    Index("ix_subcloud_requested", "requested_at", postgresql_where=text(_is(InitialSyncState.REQUESTED))),
    Index("ix_subcloud_in_progress", "claimed_at", postgresql_where=text(_is(InitialSyncState.IN_PROGRESS))),
    Index("ix_subcloud_failed", "retry_at", postgresql_where=text(_is(InitialSyncState.FAILED))),
    # Rows are rewritten often: room in each page keeps most updates away from the indexes.
    postgresql_with={"fillfactor": "70"},
)  # fmt: skip

endpoint_status = Table(
    "endpoint_status",
    metadata,
    _subcloud_id(),
    Column("endpoint_type", _words(EndpointType, "endpoint_type"), nullable=False),
    Column("sync_status", _words(SyncStatus, "sync_status"), nullable=False, server_default=SyncStatus.UNKNOWN.value),
    _moment("changed_at"),
    # The report that is shown, and whether it is worth an alarm.
    _moment("observed_at"),
    Column("sequence", BigInteger, nullable=False, server_default="0"),
    Column("alarmable", Boolean, nullable=False, server_default=true()),
    # The newest report that a comparison was made for, the newest that found no difference, and why it is unknown.
    _moment("verified_at"),
    _moment("last_good_at"),
    Column("reason", Text),
    UniqueConstraint("subcloud_id", "endpoint_type"),
    postgresql_with={"fillfactor": "70"},
)

report_memory = Table(
    "report_memory",
    metadata,
    # Reports that changed no row and still decide what a late one is worth; see `dcsync.state.rules`. Unlogged: it is
    # emptied by a crash of the server, and filled again by the observers' next round.
    Column("subcloud_id", BigInteger, ForeignKey("subcloud.id", ondelete="CASCADE"), primary_key=True),
    Column("memory", JSONB, nullable=False),
    prefixes=["UNLOGGED"],
    postgresql_with={"fillfactor": "50"},
)

subcloud_probe = Table(
    "subcloud_probe",
    metadata,
    # Apart from the subcloud's row, which others lock, and unlogged: emptied by a crash, all are simply due at once.
    Column("subcloud_id", BigInteger, ForeignKey("subcloud.id", ondelete="CASCADE"), primary_key=True),
    _moment("next_probe_at", nullable=False),
    Column("probes", BigInteger, nullable=False),
    # When an observer last found the subcloud online.
    _moment("seen_at"),
    prefixes=["UNLOGGED"],
    postgresql_with={"fillfactor": "50"},
)

alarm = Table(
    "alarm",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("alarm_id", Text, nullable=False),
    Column("entity", Text, nullable=False),
    # Survives its subcloud, so that sinks still learn that it was cleared.
    Column("subcloud_id", BigInteger, ForeignKey("subcloud.id", ondelete="SET NULL")),
    Column("endpoint_type", _words(EndpointType, "endpoint_type")),
    Column("severity", Text, nullable=False),
    Column("reason_text", Text, nullable=False),
    _moment("raised_at", nullable=False),
    _moment("cleared_at"),
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
    # How far it was told: everything up to this (changed_xid, alarm id).
    Column("told_xid", BigInteger, nullable=False, server_default="0"),
    Column("told_id", BigInteger, nullable=False, server_default="0"),
    Column("attempt", Integer, nullable=False, server_default="0"),
    _moment("next_attempt_at", nullable=False),
)

audit_request = Table(
    "audit_request",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    # None: of every subcloud.
    Column("subcloud_id", BigInteger, ForeignKey("subcloud.id", ondelete="CASCADE")),
    Column("endpoint_type", _words(EndpointType, "endpoint_type"), nullable=False),
    _moment("requested_at", nullable=False),
    Column("cause", Text, nullable=False),
    UniqueConstraint("subcloud_id", "endpoint_type", postgresql_nulls_not_distinct=True),
)

rejected_report = Table(
    "rejected_report",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    _moment("received_at", nullable=False),
    Column("region_name", Text),
    Column("reason", Text, nullable=False),
    Column("report", Text, nullable=False),
)

NOTHING_REPORTED = "none"
_AUDIT_STATUS, _RESULT = Word(AUDIT.states), Word(SyncStatus)
_REPORTED = Word(SyncStatus, none=NOTHING_REPORTED)

subcloud_sync = Table(
    "subcloud_sync",
    metadata,
    _subcloud_id(),
    Column("endpoint_type", _words(EndpointType, "endpoint_type"), nullable=False),
    Column("audit_status", _AUDIT_STATUS, nullable=False, server_default=AUDIT.first.value),
    Column("sync_status_reported", _REPORTED, nullable=False, server_default=NOTHING_REPORTED),
    _moment("sync_status_report_time"),
    _moment("last_audit_time"),
    # Asked and done: a request, and a change at the central cloud, grows the generation; a finished comparison observes
    # it.
    Column("generation", BigInteger, nullable=False, server_default="0"),
    Column("observed_generation", BigInteger, nullable=False, server_default="0"),
    _moment("requested_at"),
    Column("requested_by", Text, nullable=False, server_default=""),
    Column("due_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    _moment("dispatched_at"),
    Column("dispatches", BigInteger, nullable=False, server_default="0"),
    # The run that owns the row while its audit is in progress.
    Column("run_id", Text),
    _moment("claimed_at"),
    Column("attempt", Integer, nullable=False, server_default="0"),
    Column("abandoned", Integer, nullable=False, server_default="0"),
    Column("reason", Text),
    Column("detail", Text, nullable=False, server_default=""),
    # The last finished comparison, and the last that found a difference: its digest, and names without values.
    _moment("last_good_at"),
    Column("result", _RESULT),
    Column("difference", Text),
    Column("difference_detail", JSONB, nullable=False, server_default=text("'[]'::jsonb")),
    _moment("difference_at"),
    Column("difference_repairs", Integer, nullable=False, server_default="0"),
    _moment("repaired_at"),
    # For the next run only: deletions without limit; repair of these resource types alone.
    Column("deletes_allowed", Boolean, nullable=False, server_default=false()),
    Column("resource_types", JSONB(none_as_null=True)),
    # Of the keys the subcloud was last seen to hold, in its row of platform.
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
    # What the central cloud put on a subcloud, by id; see `dcsync.model.identity.Placed`.
    Column("subcloud_id", BigInteger, ForeignKey("subcloud.id", ondelete="CASCADE"), primary_key=True),
    Column("placed", JSONB, nullable=False),
)

central_state = Table(
    "central_state",
    metadata,
    # The central cloud as the watch last accepted it: kind is the endpoint type it concerns.
    Column("kind", Text, primary_key=True),
    Column("fingerprint", Text, nullable=False),
    Column("events_fingerprint", Text, nullable=False, server_default=""),
    Column("counts", JSONB, nullable=False),
    Column("generation", BigInteger, nullable=False, server_default="0"),
    _moment("changed_at", nullable=False),
    _moment("checked_at", nullable=False),
    Column("refused", Text),
    Column("shrink_allowed", Boolean, nullable=False, server_default=false()),
)

_ROTATION_STATE = Word(ROTATION.states)

key_rotation = Table(
    "key_rotation",
    metadata,
    Column("id", SmallInteger, primary_key=True, server_default="1", autoincrement=False),
    _moment("next_due_at"),
    _moment("last_rotated_at"),
    # While it lasts, differing keys are planned and worth no alarm.
    _moment("window_until"),
    Column("state", _ROTATION_STATE, nullable=False, server_default=ROTATION.first.value),
    Column("detail", Text, nullable=False, server_default=""),
    # What an operator asked for, until it is done or refused.
    _moment("requested_at"),
    Column("requested_by", Text, nullable=False, server_default=""),
    Column("forced", Boolean, nullable=False, server_default=false()),
    Column("max_in_flight", Integer),
    # Whoever rotates, and the fingerprints it found before: they tell whether a rotation that was cut short was done.
    Column("run_id", Text),
    _moment("claimed_at"),
    Column("before", JSONB(none_as_null=True)),
    CheckConstraint("id = 1", name="single_row"),
    _ROTATION_STATE.check("state"),
)

sync_request = Table(
    "sync_request",
    metadata,
    _subcloud_id(),
    Column("generation", BigInteger, nullable=False),
    _moment("requested_at", nullable=False),
    Column("requested_by", Text, nullable=False),
    Column("cause", Text, nullable=False),
    UniqueConstraint("subcloud_id", "generation"),
)

sync_attempt = Table(
    "sync_attempt",
    metadata,
    Column("run_id", Text, primary_key=True),
    _subcloud_id(),
    Column("generation", BigInteger, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("worker", Text, nullable=False),
    _moment("started_at", nullable=False),
    _moment("ended_at"),
    Column("ending", _words(Ending, "ending")),
    Column("reason", Text),
    Column("detail", Text, nullable=False, server_default=""),
    Index("ix_sync_attempt_subcloud_id_generation", "subcloud_id", "generation"),
    Index("ix_sync_attempt_ended_at", "ended_at"),
)

sync_step = Table(
    "sync_step",
    metadata,
    Column("run_id", Text, ForeignKey("sync_attempt.run_id", ondelete="CASCADE"), primary_key=True),
    Column("step", _words(Step, "step"), primary_key=True),
    _moment("started_at", nullable=False),
    _moment("ended_at"),
    Column("outcome", Text),
    Column("detail", Text, nullable=False, server_default=""),
)
