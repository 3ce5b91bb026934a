"""When each subcloud is probed next."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "subcloud_probe",
        sa.Column("subcloud_id", sa.BigInteger, nullable=False),
        sa.Column("next_probe_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("probes", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("subcloud_id", name=op.f("pk_subcloud_probe")),
        sa.ForeignKeyConstraint(
            ["subcloud_id"], ["subcloud.id"], name=op.f("fk_subcloud_probe_subcloud_id"), ondelete="CASCADE"
        ),
        prefixes=["UNLOGGED"],
        postgresql_with={"fillfactor": "50"},
    )


def downgrade() -> None:
    op.drop_table("subcloud_probe")
