"""Every status has an age: when it was verified, when it was last good, why it is unknown; when a subcloud was seen.

A status that was reported before counts as verified when it was observed.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_REPORT_TIME = "ix_subcloud_sync_sync_status_report_time"


def upgrade() -> None:
    for name in ("verified_at", "last_good_at"):
        op.add_column("endpoint_status", sa.Column(name, sa.DateTime(timezone=True)))
    op.add_column("endpoint_status", sa.Column("reason", sa.Text))
    op.add_column("subcloud_probe", sa.Column("seen_at", sa.DateTime(timezone=True)))
    op.create_index(_REPORT_TIME, "subcloud_sync", ["sync_status_report_time"])
    op.execute(
        """
        UPDATE endpoint_status SET verified_at = observed_at,
            last_good_at = CASE WHEN sync_status = 'in-sync' THEN observed_at END
        WHERE sync_status <> 'unknown'
        """
    )


def downgrade() -> None:
    op.drop_index(_REPORT_TIME, "subcloud_sync")
    op.drop_column("subcloud_probe", "seen_at")
    for name in ("verified_at", "last_good_at", "reason"):
        op.drop_column("endpoint_status", name)
