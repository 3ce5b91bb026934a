"""Finds subclouds by their management IP, which no two may share. Rows that do already are kept, and shown."""

from __future__ import annotations

from alembic import op

revision = "0012"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_subcloud_management_ip", "subcloud", ["management_ip"])


def downgrade() -> None:
    op.drop_index("ix_subcloud_management_ip", "subcloud")
