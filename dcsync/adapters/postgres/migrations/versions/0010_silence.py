"""What the check for silence reads: since when a subcloud fails, and since when the central cloud cannot be read."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table in ("subcloud", "subcloud_sync"):
        op.add_column(table, _moment("failing_since"))
        op.add_column(table, sa.Column("failures", sa.Integer, nullable=False, server_default="0"))
    op.add_column("central_state", _moment("refused_since"))
    op.create_table(
        "silence",
        sa.Column("id", sa.SmallInteger, nullable=False, server_default="1", autoincrement=False),
        _moment("first_checked_at"),
        _moment("checked_at"),
        _moment("swept_at"),
        _moment("central_checked_at"),
        _moment("readable_since"),
        _moment("unreadable_since"),
        sa.Column("unreadable_reason", sa.Text),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_silence")),
        sa.CheckConstraint("id = 1", name=op.f("ck_silence_single_row")),
        sa.CheckConstraint(
            "(unreadable_since IS NULL) = (unreadable_reason IS NULL)", name=op.f("ck_silence_unreadable_has_reason")
        ),
    )
    # What fails or is refused already does so since now at the latest.
    op.execute("UPDATE subcloud SET failing_since = now(), failures = greatest(attempt, 1)"
               " WHERE initial_sync_state = 'failed'")  # fmt: skip
    op.execute("UPDATE subcloud_sync SET failing_since = now(), failures = greatest(attempt, 1)"
               " WHERE audit_status = 'failed' AND reason IS NOT NULL")  # fmt: skip
    op.execute("UPDATE central_state SET refused_since = checked_at WHERE refused IS NOT NULL")


def downgrade() -> None:
    op.drop_table("silence")
    op.drop_column("central_state", "refused_since")
    for table in ("subcloud_sync", "subcloud"):
        op.drop_column(table, "failures")
        op.drop_column(table, "failing_since")


def _moment(name: str) -> sa.Column[object]:
    return sa.Column(name, sa.DateTime(timezone=True))
