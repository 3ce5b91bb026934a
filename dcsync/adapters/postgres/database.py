"""PostgreSQL connections: engines, schema upgrades, and the translation of errors. Rows are read by the stores."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import psycopg2
import psycopg2.extensions
from psycopg2 import errorcodes
from sqlalchemy import Connection, Engine, create_engine, event, exc, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.pool import ConnectionPoolEntry

from dcsync.model.errors import DatabaseUnreachable, MisconfiguredError, SchemaOutOfDate

if TYPE_CHECKING:
    from alembic.config import Config

CONNECT_SECONDS = 5
STATEMENT_SECONDS = 30
IDLE_IN_TRANSACTION_SECONDS = 60
POOL_WAIT_SECONDS = 10
PING_AFTER_SECONDS = 2.0
OLDEST_POSTGRESQL = 15
"""The first major version with UNIQUE NULLS NOT DISTINCT, which the schema uses."""
UPGRADE_LOCK = 0x6463_7379_6E63
"""The advisory lock of schema upgrades: "dcsync" in ASCII."""

_OUT_OF_DATE = {errorcodes.UNDEFINED_TABLE, errorcodes.UNDEFINED_COLUMN}


def make_engine(
    url: str,
    *,
    application_name: str = "dcsync",
    pool_size: int = 5,
    max_overflow: int = 10,
    statement_seconds: float = STATEMENT_SECONDS,
) -> Engine:
    """Returns an engine for one process. It connects at first use, so it may be created before PostgreSQL is up.

    A broken connection is replaced when it is taken from the pool; one that hangs is ended by TCP keep-alives and by
    PostgreSQL's time limits. `statement_seconds` 0 means no limit. Raises MisconfiguredError for a URL of another
    database.
    """
    engine = create_engine(
        _psycopg2_url(url),
        pool_size=pool_size,
        max_overflow=max_overflow,
        pool_timeout=POOL_WAIT_SECONDS,
        hide_parameters=True,
        connect_args={
            "application_name": application_name,
            "connect_timeout": CONNECT_SECONDS,
            "options": f"-c statement_timeout={int(statement_seconds * 1000)}"
            f" -c idle_in_transaction_session_timeout={IDLE_IN_TRANSACTION_SECONDS * 1000} -c timezone=UTC",
            "keepalives": 1,
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 20_000,
        },
    )
    event.listen(engine, "checkin", _note_idle)
    event.listen(engine, "checkout", _ping_if_long_idle)
    return engine


def _note_idle(_: object, record: ConnectionPoolEntry) -> None:
    record.info["idle_since"] = time.monotonic()


def _ping_if_long_idle(connection: psycopg2.extensions.connection, record: ConnectionPoolEntry, _: object) -> None:
    """Tests a connection that was idle for PING_AFTER_SECONDS; the pool replaces it if it is broken.

    SQLAlchemy's `pool_pre_ping` tests at every checkout, which at a dozen short transactions per run is a fifth of the
    database load. A connection that breaks within those seconds makes one statement fail, and the whole pool is then
    replaced.
    """
    idle_since = record.info.get("idle_since")
    if idle_since is None or time.monotonic() - idle_since < PING_AFTER_SECONDS:
        return
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
        connection.rollback()
    except psycopg2.Error as error:
        raise exc.DisconnectionError from error


def _psycopg2_url(url: str) -> URL:
    """Returns the URL with an explicit driver, because SQLAlchemy's default driver differs between releases."""
    try:
        parsed = make_url(url)
    except (exc.ArgumentError, ValueError):
        raise MisconfiguredError("DCSYNC_DATABASE_URL: give postgresql://user:password@host/database") from None
    if parsed.get_backend_name() not in {"postgresql", "postgres"}:
        raise MisconfiguredError(f"DCSYNC_DATABASE_URL: {parsed.drivername} is not postgresql")
    return parsed.set(drivername="postgresql+psycopg2")


@contextmanager
def database_errors() -> Iterator[None]:
    """Translates PostgreSQL's errors; used as `with database_errors():` or as the decorator `@database_errors()`.

    Temporary problems (no connection, time limit, deadlock, shutdown, a read-only standby) raise DatabaseUnreachable; a
    missing table or column raises SchemaOutOfDate; a privilege that the role lacks raises MisconfiguredError. Any other
    error is a bug in dcsync and is raised unchanged.
    """
    try:
        yield
    except exc.TimeoutError as error:
        raise DatabaseUnreachable(f"no free database connection in {POOL_WAIT_SECONDS} s") from error
    except (exc.DBAPIError, psycopg2.Error) as error:
        cause = error.orig if isinstance(error, exc.DBAPIError) else error
        code = getattr(cause, "pgcode", None)
        if code in _OUT_OF_DATE:
            raise SchemaOutOfDate("the database schema is out of date: run `dcsync db upgrade`") from error
        if code == errorcodes.INSUFFICIENT_PRIVILEGE:
            raise MisconfiguredError(f"the database role lacks a privilege: {_first_line(cause)}") from error
        if code == errorcodes.READ_ONLY_SQL_TRANSACTION:
            raise DatabaseUnreachable(f"the database is read-only: {_first_line(cause)}") from error
        if isinstance(cause, psycopg2.OperationalError | psycopg2.InterfaceError) or _is_disconnect(error):
            raise DatabaseUnreachable(_first_line(cause)) from error
        raise


def _is_disconnect(error: Exception) -> bool:
    return isinstance(error, exc.DBAPIError) and error.connection_invalidated


def _first_line(cause: BaseException | None) -> str:
    """Returns the first line of the error; libpq names host, port, user and database, never a password."""
    return (str(cause).strip().splitlines() or [type(cause).__name__])[0]


@database_errors()
def check(url: str, *, seconds: int) -> None:
    """Returns when the database answered; raises DatabaseUnreachable after about twice `seconds` at the latest."""
    connection = psycopg2.connect(
        _psycopg2_url(url).set(drivername="postgresql").render_as_string(hide_password=False),
        connect_timeout=seconds,
        application_name="dcsync service",
        options=f"-c statement_timeout={seconds * 1000}",
        tcp_user_timeout=seconds * 1000,
    )
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    finally:
        connection.close()


# --- the schema's version: alembic is imported in these functions only, because its import is slow ----------------


@database_errors()
def upgrade(url: str) -> tuple[str | None, str]:
    """Upgrades the schema to the newest revision, one transaction each; returns (revision before, revision now).

    An interrupted upgrade is resumed when it is repeated. A concurrent upgrade waits for the first and then does
    nothing. Raises MisconfiguredError for a PostgreSQL that is too old for the schema.
    """
    from alembic import command

    engine = make_engine(url, application_name="dcsync db upgrade", statement_seconds=0)
    try:
        with engine.connect() as connection:
            _require_version(connection)
            # A session lock, because each revision commits; it is released when the engine closes the connection.
            connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": UPGRADE_LOCK})
            before = _revision(connection)
            connection.commit()
            config = _alembic_config()
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            return before, head_revision()
    finally:
        engine.dispose()


def _require_version(connection: Connection) -> None:
    number = connection.scalar(text("SELECT current_setting('server_version_num')::int"))
    if number // 10_000 < OLDEST_POSTGRESQL:
        raise MisconfiguredError(
            f"PostgreSQL {OLDEST_POSTGRESQL} or newer is required, this server is version {number // 10_000}"
        )


@database_errors()
def current_revision(url: str) -> str | None:
    """Returns the revision of the database; None when it is empty."""
    engine = make_engine(url, pool_size=1)
    try:
        with engine.connect() as connection:
            return _revision(connection)
    finally:
        engine.dispose()


def head_revision() -> str:
    """Returns the newest revision of this release."""
    from alembic.script import ScriptDirectory

    head = ScriptDirectory.from_config(_alembic_config()).get_current_head()
    if head is None:
        raise MisconfiguredError("dcsync is installed without its migrations")
    return head


def needs_upgrade(url: str) -> bool:
    """Returns whether the database is at another revision than the newest of this release."""
    return current_revision(url) != head_revision()


def _alembic_config() -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", "dcsync.adapters.postgres:migrations")
    return config


def _revision(connection: Connection) -> str | None:
    from alembic.runtime.migration import MigrationContext

    return MigrationContext.configure(connection).get_current_revision()
