"""CHECK constraints on the states of audits and key rotation, like those of the initial sync.

A constraint is added without validating rows, so that its lock is held only briefly. The lock is released before rows
are repaired and validated, while other transactions read and write them. An interrupted upgrade can be repeated.
"""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

# The values when this migration was written; they are changed by later migrations only, never by editing this file.
CHECKS = {
    ("subcloud_sync", "audit_status"): ("none", "in-progress", "completed", "failed"),
    ("subcloud_sync", "sync_status_reported"): ("none", "unknown", "in-sync", "out-of-sync"),
    ("subcloud_sync", "result"): ("unknown", "in-sync", "out-of-sync"),
    ("key_rotation", "state"): ("idle", "rotating", "distributing"),
}
# A row in an unknown state is owned by no run. One UPDATE per table, because the constraints already apply to updates.
REPAIRS = """
    UPDATE subcloud_sync SET
        run_id = CASE WHEN {audit_status} THEN run_id END,
        claimed_at = CASE WHEN {audit_status} THEN claimed_at END,
        audit_status = CASE WHEN {audit_status} THEN audit_status ELSE 'none' END,
        sync_status_reported = CASE WHEN {sync_status_reported} THEN sync_status_reported ELSE 'none' END,
        result = CASE WHEN {result} THEN result END
    WHERE NOT ({audit_status} AND {sync_status_reported} AND {result});
    UPDATE key_rotation SET state = 'idle', run_id = NULL, claimed_at = NULL WHERE NOT {state}
"""


def upgrade() -> None:
    for table, column in CHECKS:
        op.execute(f"ALTER TABLE {table} DROP CONSTRAINT IF EXISTS {_name(table, column)}")
        op.execute(
            f"ALTER TABLE {table} ADD CONSTRAINT {_name(table, column)} CHECK {_is_one(table, column)} NOT VALID"
        )
    with op.get_context().autocommit_block():
        op.execute(REPAIRS.format(**{column: _is_one(table, column) for table, column in CHECKS}))
        for table, column in CHECKS:
            op.execute(f"ALTER TABLE {table} VALIDATE CONSTRAINT {_name(table, column)}")


def downgrade() -> None:
    for table, column in CHECKS:
        op.drop_constraint(_name(table, column), table)


def _name(table: str, column: str) -> str:
    return op.f(f"ck_{table}_{column}")


def _is_one(table: str, column: str) -> str:
    words = ", ".join(f"'{word}'" for word in CHECKS[table, column])
    return f"({column} IN ({words}))"
