"""Finds subclouds by their management IP, and keeps notices of alarms that a sink refused.

No two subclouds may share a management IP. Rows that do already are kept, and shown: the index is not unique.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_subcloud_management_ip", "subcloud", ["management_ip"])
    op.create_table(
        "refused_notice",
        sa.Column("id", sa.BigInteger, sa.Identity(), nullable=False),
        sa.Column("refused_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("sink", sa.Text, nullable=False),
        sa.Column("alarm_id", sa.Text, nullable=False),
        sa.Column("entity", sa.Text, nullable=False),
        sa.Column("why", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_refused_notice")),
    )
    op.create_index("ix_refused_notice_refused_at", "refused_notice", ["refused_at"])


def downgrade() -> None:
    op.drop_table("refused_notice")
    op.drop_index("ix_subcloud_management_ip", "subcloud")
