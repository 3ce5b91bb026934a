"""Tables of the key rotation: its request, run and earlier keys; which keys each subcloud has."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("subcloud_sync", sa.Column("keys_fingerprint", sa.Text))
    for column in _rotation_columns():
        op.add_column("key_rotation", column)


def downgrade() -> None:
    for column in reversed(_rotation_columns()):
        op.drop_column("key_rotation", column.name)
    op.drop_column("subcloud_sync", "keys_fingerprint")


def _rotation_columns() -> list[sa.Column[object]]:
    return [
        sa.Column("requested_at", sa.DateTime(timezone=True)),
        sa.Column("requested_by", sa.Text, nullable=False, server_default=""),
        sa.Column("forced", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("max_in_flight", sa.Integer),
        sa.Column("run_id", sa.Text),
        sa.Column("claimed_at", sa.DateTime(timezone=True)),
        sa.Column("before", JSONB),
    ]
