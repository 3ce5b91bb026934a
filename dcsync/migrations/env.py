"""What alembic runs: the migrations, on the connection it is handed, in the transaction that is open on it."""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection, Engine

from dcsync.adapters.database import make_engine
from dcsync.adapters.tables import metadata
from dcsync.settings import load


def run() -> None:
    """On the connection or engine of the caller; by the `alembic` command, on DCSYNC_DATABASE_URL."""
    given = context.config.attributes.get("connection")
    if isinstance(given, Connection):
        _run_on(given)
        return
    with (given or _engine_of_settings()).begin() as connection:
        _run_on(connection)


def _engine_of_settings() -> Engine:
    url = load().required("database_url").database_url
    assert url is not None
    return make_engine(url.get_secret_value(), statement_seconds=0)


def _run_on(connection: Connection) -> None:
    context.configure(connection=connection, target_metadata=metadata, compare_server_default=True)
    with context.begin_transaction():
        context.run_migrations()


run()
