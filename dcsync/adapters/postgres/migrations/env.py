"""Alembic's environment: runs the migrations on the connection that `dcsync.adapters.postgres.database` passes."""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection

from dcsync.adapters.postgres.tables import metadata


def run() -> None:
    given = context.config.attributes["connection"]
    if isinstance(given, Connection):
        _run_on(given)
        return
    with given.connect() as connection:
        _run_on(connection)


def _run_on(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=metadata,
        compare_server_default=True,
        # A migration that must not hold its locks while it reads rows commits in between.
        transaction_per_migration=True,
    )
    with context.begin_transaction():
        context.run_migrations()


run()
