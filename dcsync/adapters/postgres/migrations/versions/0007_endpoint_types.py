"""Removes rows of endpoint types that an installation does not have, and audits of types dcsync does not audit.

Deletes status rows that never had a report, audit requests and audit rows of types that are not audited, and an unused
column; adds the time a subcloud was last unmanaged.

The table of subclouds is locked first, as in every transaction that writes to the other tables: nothing can deadlock,
and writers wait until the deletion has ended (20,000 subclouds, 100,000 rows: half a second).
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.drop_column("subcloud", "first_identity_sync_complete")
    op.add_column("subcloud", sa.Column("unmanaged_at", sa.DateTime(timezone=True)))
    # The first report that changes the status sets `changed_at`. Unmanaging sets `observed_at` of every row as well.
    op.execute(
        """
        DELETE FROM endpoint_status AS e
        WHERE endpoint_type NOT IN ('platform', 'identity') AND sync_status = 'unknown' AND changed_at IS NULL
          AND NOT EXISTS (SELECT FROM report_memory AS m WHERE m.subcloud_id = e.subcloud_id
                          AND m.memory #> ARRAY['endpoints', e.endpoint_type::text] IS NOT NULL)
        """
    )
    op.execute("DELETE FROM audit_request WHERE endpoint_type NOT IN ('platform', 'identity')")
    op.execute("DELETE FROM subcloud_sync WHERE endpoint_type NOT IN ('platform', 'identity')")


def downgrade() -> None:
    op.drop_column("subcloud", "unmanaged_at")
    op.add_column(
        "subcloud", sa.Column("first_identity_sync_complete", sa.Boolean, nullable=False, server_default=sa.false())
    )
    op.execute(
        """
        INSERT INTO endpoint_status (subcloud_id, endpoint_type)
        SELECT id, type FROM subcloud
        CROSS JOIN unnest(ARRAY['dc-cert', 'firmware', 'kubernetes', 'kube-rootca', 'software']) AS type
        ON CONFLICT DO NOTHING
        """
    )
    op.execute(
        """
        INSERT INTO subcloud_sync (subcloud_id, endpoint_type)
        SELECT subcloud_id, endpoint_type FROM endpoint_status WHERE endpoint_type = 'identity_openstack'
        """
    )
