"""Tables of the audit: requests and results per endpoint type, placed records, the last accepted central state."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for column in _audit_columns():
        op.add_column("subcloud_sync", column)
    op.create_index("ix_subcloud_sync_due_at", "subcloud_sync", ["due_at"])
    op.create_index(
        "ix_subcloud_sync_run_id", "subcloud_sync", ["run_id"], postgresql_where=sa.text("run_id IS NOT NULL")
    )
    op.create_table(
        "subcloud_placed",
        sa.Column("subcloud_id", sa.BigInteger, nullable=False),
        sa.Column("placed", JSONB, nullable=False),
        sa.PrimaryKeyConstraint("subcloud_id", name=op.f("pk_subcloud_placed")),
        sa.ForeignKeyConstraint(
            ["subcloud_id"], ["subcloud.id"], name=op.f("fk_subcloud_placed_subcloud_id"), ondelete="CASCADE"
        ),
    )
    op.create_table(
        "central_state",
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("fingerprint", sa.Text, nullable=False),
        sa.Column("events_fingerprint", sa.Text, nullable=False, server_default=""),
        sa.Column("counts", JSONB, nullable=False),
        sa.Column("generation", sa.BigInteger, nullable=False, server_default="0"),
        _moment("changed_at", nullable=False),
        _moment("checked_at", nullable=False),
        sa.Column("refused", sa.Text),
        sa.Column("shrink_allowed", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.PrimaryKeyConstraint("kind", name=op.f("pk_central_state")),
    )
    op.create_table(
        "key_rotation",
        sa.Column("id", sa.SmallInteger, nullable=False, server_default="1", autoincrement=False),
        _moment("next_due_at"),
        _moment("last_rotated_at"),
        _moment("window_until"),
        sa.Column("state", sa.Text, nullable=False, server_default="idle"),
        sa.Column("detail", sa.Text, nullable=False, server_default=""),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_key_rotation")),
        sa.CheckConstraint("id = 1", name=op.f("ck_key_rotation_single_row")),
    )


def downgrade() -> None:
    for table in ("key_rotation", "central_state", "subcloud_placed"):
        op.drop_table(table)
    op.drop_index("ix_subcloud_sync_run_id", "subcloud_sync")
    op.drop_index("ix_subcloud_sync_due_at", "subcloud_sync")
    for column in reversed(_audit_columns()):
        op.drop_column("subcloud_sync", column.name)


def _audit_columns() -> list[sa.Column[object]]:
    return [
        sa.Column("generation", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("observed_generation", sa.BigInteger, nullable=False, server_default="0"),
        _moment("requested_at"),
        sa.Column("requested_by", sa.Text, nullable=False, server_default=""),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        _moment("dispatched_at"),
        sa.Column("dispatches", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("run_id", sa.Text),
        _moment("claimed_at"),
        sa.Column("attempt", sa.Integer, nullable=False, server_default="0"),
        sa.Column("abandoned", sa.Integer, nullable=False, server_default="0"),
        sa.Column("reason", sa.Text),
        sa.Column("detail", sa.Text, nullable=False, server_default=""),
        _moment("last_good_at"),
        sa.Column("result", sa.Text),
        sa.Column("difference", sa.Text),
        sa.Column("difference_detail", JSONB, nullable=False, server_default=sa.text("'[]'::jsonb")),
        _moment("difference_at"),
        sa.Column("difference_repairs", sa.Integer, nullable=False, server_default="0"),
        _moment("repaired_at"),
        sa.Column("deletes_allowed", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("resource_types", JSONB),
    ]


def _moment(name: str, *, nullable: bool = True) -> sa.Column[object]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)
