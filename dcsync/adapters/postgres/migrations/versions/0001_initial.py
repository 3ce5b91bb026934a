"""Subclouds with their initial sync, their endpoints' statuses, their audit columns, and the history of requests."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# The values when this migration was written; they are changed by later migrations only, never by editing this file.
ENDPOINT_TYPES = (
    "platform",
    "identity",
    "dc-cert",
    "firmware",
    "kubernetes",
    "kube-rootca",
    "software",
    "identity_openstack",
)
INITIAL_SYNC_STATES = ("none", "requested", "in-progress", "completed", "failed")
STEPS = ("identity", "fernet-keys", "audit-init")
ENDINGS = ("completed", "failed", "cancelled", "superseded", "lock-lost", "abandoned", "given-back")


def upgrade() -> None:
    op.create_table(
        "subcloud",
        sa.Column("id", sa.BigInteger, sa.Identity(), nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("region_name", sa.Text, nullable=False),
        sa.Column("management_ip", sa.Text, nullable=False),
        sa.Column("software_version", sa.Text, nullable=False, server_default=""),
        _values("management_state", ("managed", "unmanaged"), nullable=False, server_default="unmanaged"),
        _values("availability_status", ("online", "offline"), nullable=False, server_default="offline"),
        _values("initial_sync_state", INITIAL_SYNC_STATES, nullable=False, server_default="none"),
        sa.Column("subsequent_sync", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("identity_fingerprint", sa.Text),
        sa.Column("groups_to_refill", JSONB, nullable=False, server_default=sa.text("'{}'::jsonb")),
        sa.Column("generation", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("attempt", sa.Integer, nullable=False, server_default="0"),
        sa.Column("abandoned", sa.Integer, nullable=False, server_default="0"),
        _moment("requested_at"),
        _moment("dispatched_at"),
        _moment("retry_at"),
        sa.Column("run_id", sa.Text),
        _moment("claimed_at"),
        _values("step", STEPS),
        sa.Column("reason", sa.Text),
        sa.Column("detail", sa.Text, nullable=False, server_default=""),
        _moment("created_at", nullable=False, server_default=sa.func.now()),
        _moment("updated_at", nullable=False, server_default=sa.func.now()),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_subcloud")),
        sa.UniqueConstraint("name", name=op.f("uq_subcloud_name")),
        sa.UniqueConstraint("region_name", name=op.f("uq_subcloud_region_name")),
        sa.CheckConstraint(
            "(initial_sync_state = 'in-progress') = (run_id IS NOT NULL)",
            name=op.f("ck_subcloud_run_id_while_in_progress"),
        ),
        sa.CheckConstraint(
            "initial_sync_state <> 'failed' OR (retry_at IS NOT NULL AND reason IS NOT NULL)",
            name=op.f("ck_subcloud_failed_has_reason_and_retry"),
        ),
        postgresql_with={"fillfactor": "70"},
    )
    _index_of_state("ix_subcloud_requested", "requested_at", state="requested")
    _index_of_state("ix_subcloud_in_progress", "claimed_at", state="in-progress")
    _index_of_state("ix_subcloud_failed", "retry_at", state="failed")

    op.create_table(
        "endpoint_status",
        *_of_subcloud("endpoint_status"),
        _values("endpoint_type", ENDPOINT_TYPES, nullable=False),
        _values("sync_status", ("unknown", "in-sync", "out-of-sync"), nullable=False, server_default="unknown"),
        _moment("changed_at"),
        sa.UniqueConstraint(
            "subcloud_id", "endpoint_type", name=op.f("uq_endpoint_status_subcloud_id_endpoint_type")
        ),
        postgresql_with={"fillfactor": "70"},
    )  # fmt: skip
    op.create_table(
        "subcloud_sync",
        *_of_subcloud("subcloud_sync"),
        _values("endpoint_type", ENDPOINT_TYPES, nullable=False),
        sa.Column("audit_status", sa.Text, nullable=False, server_default="none"),
        sa.Column("sync_status_reported", sa.Text, nullable=False, server_default="none"),
        _moment("sync_status_report_time"),
        _moment("last_audit_time"),
        sa.UniqueConstraint("subcloud_id", "endpoint_type", name=op.f("uq_subcloud_sync_subcloud_id_endpoint_type")),
    )

    op.create_table(
        "sync_request",
        *_of_subcloud("sync_request"),
        sa.Column("generation", sa.BigInteger, nullable=False),
        _moment("requested_at", nullable=False),
        sa.Column("requested_by", sa.Text, nullable=False),
        sa.Column("cause", sa.Text, nullable=False),
        sa.UniqueConstraint("subcloud_id", "generation", name=op.f("uq_sync_request_subcloud_id_generation")),
    )
    op.create_table(
        "sync_attempt",
        sa.Column("run_id", sa.Text, nullable=False),
        *_of_subcloud("sync_attempt"),
        sa.Column("generation", sa.BigInteger, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("worker", sa.Text, nullable=False),
        _moment("started_at", nullable=False),
        _moment("ended_at"),
        _values("ending", ENDINGS),
        sa.Column("reason", sa.Text),
        sa.Column("detail", sa.Text, nullable=False, server_default=""),
        sa.PrimaryKeyConstraint("run_id", name=op.f("pk_sync_attempt")),
    )
    op.create_index("ix_sync_attempt_subcloud_id_generation", "sync_attempt", ["subcloud_id", "generation"])
    op.create_index("ix_sync_attempt_ended_at", "sync_attempt", ["ended_at"])
    op.create_table(
        "sync_step",
        sa.Column("run_id", sa.Text, nullable=False),
        _values("step", STEPS, nullable=False),
        _moment("started_at", nullable=False),
        _moment("ended_at"),
        sa.Column("outcome", sa.Text),
        sa.Column("detail", sa.Text, nullable=False, server_default=""),
        sa.PrimaryKeyConstraint("run_id", "step", name=op.f("pk_sync_step")),
        sa.ForeignKeyConstraint(
            ["run_id"], ["sync_attempt.run_id"], name=op.f("fk_sync_step_run_id"), ondelete="CASCADE"
        ),
    )


def downgrade() -> None:
    for table in ("sync_step", "sync_attempt", "sync_request", "subcloud_sync", "endpoint_status", "subcloud"):
        op.drop_table(table)


def _values(name: str, words: tuple[str, ...], **options: object) -> sa.Column[object]:
    """Returns a text column with a CHECK that it contains one of these values, named ck_<table>_<column>."""
    type_ = sa.Enum(*words, name=name, native_enum=False, create_constraint=True, length=64)
    return sa.Column(name, type_, **options)  # type: ignore[arg-type]


def _moment(name: str, **options: object) -> sa.Column[object]:
    return sa.Column(name, sa.DateTime(timezone=True), **options)  # type: ignore[arg-type]


def _of_subcloud(table: str) -> tuple[sa.Column[object], sa.ForeignKeyConstraint]:
    """Returns the column of the subcloud a row belongs to, with which it is deleted."""
    return (
        sa.Column("subcloud_id", sa.BigInteger, nullable=False),
        sa.ForeignKeyConstraint(
            ["subcloud_id"], ["subcloud.id"], name=op.f(f"fk_{table}_subcloud_id"), ondelete="CASCADE"
        ),
    )


def _index_of_state(name: str, column: str, *, state: str) -> None:
    op.create_index(name, "subcloud", [column], postgresql_where=sa.text(f"initial_sync_state = '{state}'"))
