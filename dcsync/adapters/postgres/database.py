"""PostgreSQL connections: engines, schema upgrades, and the translation of errors. Rows are read by the stores."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psycopg2
from psycopg2 import errorcodes
from sqlalchemy import Connection, Engine, create_engine, event, exc, text
from sqlalchemy.pool import ConnectionPoolEntry

from dcsync.adapters.postgres import connections, privileges
from dcsync.adapters.postgres.connections import PING_SECONDS, STATEMENT_SECONDS, Limits, Opener, url_parameters
from dcsync.model.errors import DatabaseUnreachable, MisconfiguredError, RowLocked, SchemaOutOfDate

if TYPE_CHECKING:
    from alembic.config import Config

POOL_WAIT_SECONDS = 10
PING_AFTER_SECONDS = 2.0
BRIEF_LOCK_MILLISECONDS = 500
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

    A connection that is broken, unanswered, or leads to a server that takes no writes is discarded, and the whole pool
    with it. `statement_seconds` 0 means no limit. Raises MisconfiguredError for a URL of another database.
    """
    limits = Limits(statement=statement_seconds) if statement_seconds else Limits(statement=0, lock=0)
    opener = Opener(url_parameters(url), application_name, limits)
    engine = create_engine(
        "postgresql+psycopg2://",
        creator=opener.open,
        pool_size=pool_size,
        max_overflow=max_overflow,
        pool_timeout=POOL_WAIT_SECONDS,
        hide_parameters=True,
    )
    fitness = _Fitness(opener)
    event.listen(engine, "connect", fitness.note_opened)
    event.listen(engine, "checkin", fitness.keep_if_fit)
    event.listen(engine, "checkout", fitness.use_if_fit)
    return engine


@dataclass
class _Fitness:
    """Decides which connections stay in a pool. What discards one discards all that were opened before it was found:
    they lead to the same server."""

    opener: Opener
    distrusted_at: float = 0.0

    def note_opened(self, _: object, record: ConnectionPoolEntry) -> None:
        record.info["opened_at"] = time.monotonic()

    def keep_if_fit(self, connection: connections.Connection | None, record: ConnectionPoolEntry) -> None:
        record.info["idle_since"] = time.monotonic()
        if connection is not None and self._is_unfit(connection):
            self.distrusted_at = time.monotonic()
            record.invalidate()

    def _is_unfit(self, connection: connections.Connection) -> bool:
        return bool(connection.closed) or (self.opener.needs_primary and connection.takes_no_writes)

    def use_if_fit(self, connection: connections.Connection, record: ConnectionPoolEntry, _: object) -> None:
        """Tests a connection that was idle for PING_AFTER_SECONDS; the pool replaces it if it is broken.

        SQLAlchemy's `pool_pre_ping` tests at every checkout, which at a dozen short transactions per run is a fifth of
        the database load. A connection that breaks within those seconds makes one statement fail, and the whole pool is
        then replaced.
        """
        if record.info["opened_at"] < self.distrusted_at:
            raise exc.InvalidatePoolError
        idle_since = record.info.get("idle_since")
        if idle_since is None or time.monotonic() - idle_since < PING_AFTER_SECONDS:
            return
        usual, connection.answer_seconds = connection.answer_seconds, PING_SECONDS
        try:
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1")
            connection.rollback()
        except psycopg2.Error as error:
            raise exc.InvalidatePoolError from error
        finally:
            connection.answer_seconds = usual
        if self._is_unfit(connection):
            raise exc.InvalidatePoolError


@contextmanager
def database_errors() -> Iterator[None]:
    """Translates PostgreSQL's errors; used as `with database_errors():` or as the decorator `@database_errors()`.

    Temporary problems (no connection, time limit, deadlock, shutdown, a read-only standby) raise DatabaseUnreachable, a
    row locked for too long its subclass RowLocked; a missing table or column raises SchemaOutOfDate; a privilege that
    the role lacks raises MisconfiguredError. Any other error is a bug in dcsync and is raised unchanged.
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
        if code == errorcodes.LOCK_NOT_AVAILABLE:
            raise RowLocked("another session holds a lock on a row, see pg_stat_activity in PostgreSQL") from error
        if code == errorcodes.READ_ONLY_SQL_TRANSACTION:
            raise DatabaseUnreachable(f"the database is read-only: {_first_line(cause)}") from error
        if isinstance(cause, psycopg2.OperationalError | psycopg2.InterfaceError) or _is_disconnect(error):
            raise DatabaseUnreachable(_first_line(cause)) from error
        raise


def wait_briefly_for_locks(connection: Connection) -> None:
    """Makes this transaction raise RowLocked when a row is held for longer than transactions of dcsync usually take."""
    connection.execute(text(f"SET LOCAL lock_timeout = {BRIEF_LOCK_MILLISECONDS}"))


def _is_disconnect(error: Exception) -> bool:
    return isinstance(error, exc.DBAPIError) and error.connection_invalidated


def _first_line(cause: BaseException | None) -> str:
    """Returns the first line of the error, or those of all hosts that were tried; libpq names host, port, user and
    database, never a password."""
    lines = str(cause).strip().splitlines() or [type(cause).__name__]
    return "; ".join([line for line in lines if line.startswith("connection to server")] or lines[:1])


@database_errors()
def check(url: str, *, seconds: int) -> None:
    """Returns when the database answered; raises DatabaseUnreachable after about twice `seconds` at the latest."""
    limits = Limits(statement=seconds)
    parameters = url_parameters(url) | {"connect_timeout": str(seconds), "tcp_user_timeout": str(seconds * 1000)}
    connection = Opener(parameters, "dcsync service", limits).open()
    connection.answer_seconds = seconds
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
            _refuse_pooler(connection)
            # A session lock, because each revision commits; it is released when the engine closes the connection.
            connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": UPGRADE_LOCK})
            before = _revision(connection)
            connection.commit()
            config = _alembic_config()
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            privileges.grant(connection)
            return before, head_revision()
    finally:
        engine.dispose()


def _require_version(connection: Connection) -> None:
    number = connection.scalar(text("SELECT current_setting('server_version_num')::int"))
    if number // 10_000 < OLDEST_POSTGRESQL:
        raise MisconfiguredError(
            f"PostgreSQL {OLDEST_POSTGRESQL} or newer is required, this server is version {number // 10_000}"
        )


def _refuse_pooler(connection: Connection) -> None:
    """A pooler may give each transaction another session, and the lock of upgrades belongs to a session."""
    if getattr(connection.connection.dbapi_connection, "settings_per_transaction", ""):
        raise MisconfiguredError(
            "DCSYNC_DATABASE_URL leads to a pooler such as PgBouncer: run `dcsync db upgrade` with the"
            " address of PostgreSQL itself"
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
