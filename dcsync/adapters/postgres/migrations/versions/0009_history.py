"""History that outlives its subcloud: operations of operators, audits that found something, deleted subclouds.

The rows of requests and attempts lose their foreign key to the subcloud; what it removed is removed by housekeeping
when it is old. Each run of a request gets a number of its own.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

# The words as they were when this migration was written: a later one changes them, never an edit of this page.
ENDPOINT_TYPES = (
    "platform", "identity", "dc-cert", "firmware", "kubernetes", "kube-rootca", "software", "identity_openstack",
)  # fmt: skip
SYNC_STATUSES = ("unknown", "in-sync", "out-of-sync")
OUTCOMES = ("done", "refused", "failed")

PROTECT = """
    CREATE FUNCTION operation_is_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF TG_OP = 'DELETE' THEN
            IF OLD.keep_until <= clock_timestamp() THEN
                RETURN OLD;
            END IF;
            RAISE EXCEPTION 'operation % is kept until %', OLD.id, OLD.keep_until USING ERRCODE = 'restrict_violation';
        END IF;
        RAISE EXCEPTION 'rows of operation are never changed' USING ERRCODE = 'restrict_violation';
    END $$;
    CREATE TRIGGER operation_is_kept BEFORE DELETE ON operation
        FOR EACH ROW EXECUTE FUNCTION operation_is_append_only();
    CREATE TRIGGER operation_is_unchanged BEFORE UPDATE OR TRUNCATE ON operation
        FOR EACH STATEMENT EXECUTE FUNCTION operation_is_append_only();
"""


def upgrade() -> None:
    op.create_table(
        "operation",
        sa.Column("id", sa.BigInteger, sa.Identity(), nullable=False),
        _moment("at"),
        _text("who"),
        _text("host"),
        _text("command"),
        sa.Column("names", ARRAY(sa.Text), nullable=False),
        sa.Column("count", sa.Integer, nullable=False),
        sa.Column("subcloud_ids", ARRAY(sa.BigInteger), nullable=False),
        sa.Column("reason", sa.Text),
        _words("outcome", OUTCOMES, nullable=False),
        _text("detail"),
        _moment("keep_until"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_operation")),
    )
    op.create_index("ix_operation_at", "operation", ["at"])
    op.create_index("ix_operation_keep_until", "operation", ["keep_until"])
    op.create_index("ix_operation_names", "operation", ["names"], postgresql_using="gin")
    op.create_index("ix_operation_subcloud_ids", "operation", ["subcloud_ids"], postgresql_using="gin")
    op.execute(PROTECT)

    op.create_table(
        "deleted_subcloud",
        sa.Column("id", sa.BigInteger, autoincrement=False, nullable=False),
        _text("name"),
        _text("region_name"),
        _moment("added_at"),
        _moment("deleted_at"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_deleted_subcloud")),
    )
    op.create_index("ix_deleted_subcloud_name", "deleted_subcloud", ["name"])
    op.create_index("ix_deleted_subcloud_deleted_at", "deleted_subcloud", ["deleted_at"])

    op.create_table(
        "audit_history",
        sa.Column("id", sa.BigInteger, sa.Identity(), nullable=False),
        sa.Column("subcloud_id", sa.BigInteger, nullable=False),
        _text("run_id"),
        _words("endpoint_type", ENDPOINT_TYPES, nullable=False),
        _text("worker"),
        _moment("started_at"),
        _moment("ended_at"),
        _words("result", SYNC_STATUSES),
        sa.Column("reason", sa.Text),
        _text("detail"),
        sa.Column("differences", JSONB, nullable=False),
        sa.Column("written", JSONB, nullable=False),
        sa.Column("not_written", JSONB, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_history")),
    )
    op.create_index("ix_audit_history_subcloud_id", "audit_history", ["subcloud_id"])
    op.create_index("ix_audit_history_ended_at", "audit_history", ["ended_at"])

    for table in ("sync_request", "sync_attempt"):
        op.drop_constraint(op.f(f"fk_{table}_subcloud_id"), table)
    op.add_column("subcloud", sa.Column("runs_begun", sa.Integer, nullable=False, server_default="0"))
    op.execute(
        """
        UPDATE subcloud AS s SET runs_begun = begun.number
        FROM (SELECT subcloud_id, generation, greatest(max(attempt), count(*)) AS number
              FROM sync_attempt GROUP BY subcloud_id, generation) AS begun
        WHERE begun.subcloud_id = s.id AND begun.generation = s.generation
        """
    )


def downgrade() -> None:
    op.drop_column("subcloud", "runs_begun")
    for table in ("sync_request", "sync_attempt"):
        op.execute(f"DELETE FROM {table} WHERE subcloud_id NOT IN (SELECT id FROM subcloud)")  # noqa: S608 - two names
        op.create_foreign_key(
            op.f(f"fk_{table}_subcloud_id"), table, "subcloud", ["subcloud_id"], ["id"], ondelete="CASCADE"
        )
    for table in ("audit_history", "deleted_subcloud", "operation"):
        op.drop_table(table)
    op.execute("DROP FUNCTION operation_is_append_only()")


def _words(name: str, words: tuple[str, ...], *, nullable: bool = True) -> sa.Column[object]:
    return sa.Column(
        name, sa.Enum(*words, name=name, native_enum=False, create_constraint=True, length=64), nullable=nullable
    )


def _text(name: str) -> sa.Column[object]:
    return sa.Column(name, sa.Text, nullable=False)


def _moment(name: str) -> sa.Column[object]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=False)
