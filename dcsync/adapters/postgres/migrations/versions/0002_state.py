"""Tables of the state service: observation times, alarms and sink positions, audit requests, rejected reports."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# The values when this migration was written.
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


def upgrade() -> None:
    for what in ("online", "offline", "fail_count"):
        op.add_column("subcloud", _moment(f"{what}_observed_at"))
        op.add_column("subcloud", sa.Column(f"{what}_sequence", sa.BigInteger, nullable=False, server_default="0"))
    op.add_column("subcloud", sa.Column("audit_fail_count", sa.Integer, nullable=False, server_default="0"))
    op.add_column(
        "subcloud",
        sa.Column("first_identity_sync_complete", sa.Boolean, nullable=False, server_default=sa.false()),
    )
    op.add_column("endpoint_status", _moment("observed_at"))
    op.add_column("endpoint_status", sa.Column("sequence", sa.BigInteger, nullable=False, server_default="0"))
    op.add_column("endpoint_status", sa.Column("alarmable", sa.Boolean, nullable=False, server_default=sa.true()))
    op.create_table(
        "report_memory",
        sa.Column("subcloud_id", sa.BigInteger, nullable=False),
        sa.Column("memory", JSONB, nullable=False),
        sa.PrimaryKeyConstraint("subcloud_id", name=op.f("pk_report_memory")),
        _of_subcloud("report_memory", ondelete="CASCADE"),
        prefixes=["UNLOGGED"],
        postgresql_with={"fillfactor": "50"},
    )
    op.create_table(
        "alarm",
        sa.Column("id", sa.BigInteger, sa.Identity(), nullable=False),
        sa.Column("alarm_id", sa.Text, nullable=False),
        sa.Column("entity", sa.Text, nullable=False),
        sa.Column("subcloud_id", sa.BigInteger),
        _endpoint_type(nullable=True),
        sa.Column("severity", sa.Text, nullable=False),
        sa.Column("reason_text", sa.Text, nullable=False),
        _moment("raised_at", nullable=False),
        _moment("cleared_at"),
        sa.Column("changed_xid", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_alarm")),
        _of_subcloud("alarm", ondelete="SET NULL"),
        _known_endpoint_type("alarm"),
    )
    op.create_index(
        "uq_alarm_active", "alarm", ["entity", "alarm_id"], unique=True, postgresql_where=sa.text("cleared_at IS NULL")
    )
    op.create_index("ix_alarm_changed_xid_id", "alarm", ["changed_xid", "id"])
    op.create_index("ix_alarm_subcloud_id", "alarm", ["subcloud_id"])
    op.create_table(
        "alarm_sink",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("told_xid", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("told_id", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("attempt", sa.Integer, nullable=False, server_default="0"),
        _moment("next_attempt_at", nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_alarm_sink")),
    )
    op.create_table(
        "audit_request",
        sa.Column("id", sa.BigInteger, sa.Identity(), nullable=False),
        sa.Column("subcloud_id", sa.BigInteger),
        _endpoint_type(nullable=False),
        _moment("requested_at", nullable=False),
        sa.Column("cause", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_request")),
        _of_subcloud("audit_request", ondelete="CASCADE"),
        sa.UniqueConstraint(
            "subcloud_id",
            "endpoint_type",
            name=op.f("uq_audit_request_subcloud_id_endpoint_type"),
            postgresql_nulls_not_distinct=True,
        ),
        _known_endpoint_type("audit_request"),
    )
    op.create_table(
        "rejected_report",
        sa.Column("id", sa.BigInteger, sa.Identity(), nullable=False),
        _moment("received_at", nullable=False),
        sa.Column("region_name", sa.Text),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("report", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rejected_report")),
    )


def downgrade() -> None:
    for table in ("rejected_report", "audit_request", "alarm_sink", "alarm", "report_memory"):
        op.drop_table(table)
    for column in ("alarmable", "sequence", "observed_at"):
        op.drop_column("endpoint_status", column)
    op.drop_column("subcloud", "first_identity_sync_complete")
    op.drop_column("subcloud", "audit_fail_count")
    for what in ("fail_count", "offline", "online"):
        op.drop_column("subcloud", f"{what}_sequence")
        op.drop_column("subcloud", f"{what}_observed_at")


def _moment(name: str, *, nullable: bool = True) -> sa.Column[object]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)


def _endpoint_type(*, nullable: bool) -> sa.Column[object]:
    return sa.Column("endpoint_type", sa.String(64), nullable=nullable)


def _known_endpoint_type(table: str) -> sa.CheckConstraint:
    listed = ", ".join(f"'{word}'" for word in ENDPOINT_TYPES)
    return sa.CheckConstraint(f"endpoint_type IN ({listed})", name=op.f(f"ck_{table}_endpoint_type"))


def _of_subcloud(table: str, *, ondelete: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["subcloud_id"], ["subcloud.id"], name=op.f(f"fk_{table}_subcloud_id"), ondelete=ondelete
    )
