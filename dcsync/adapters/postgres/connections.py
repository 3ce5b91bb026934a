"""One connection to PostgreSQL: which server it reaches, the limits of its statements, how long an answer may take.

PostgreSQL limits a statement, TCP limits what is sent and not acknowledged, and neither sees a connection whose traffic
something between the two swallows. So each call has a deadline of this process, too, after which its socket is shut
down. `database` keeps connections in a pool.
"""

from __future__ import annotations

import os
import re
import socket
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import psycopg2
import psycopg2.extensions
from psycopg2 import errorcodes, sql

from dcsync.model.errors import MisconfiguredError

CONNECT_SECONDS = 5
"""For each host of the URL."""
STATEMENT_SECONDS = 30.0
LOCK_SECONDS = 10.0
"""How long a statement waits for a row that another session has locked."""
IDLE_IN_TRANSACTION_SECONDS = 60.0
TRAVEL_SECONDS = 5.0
"""How much longer than PostgreSQL's own limit this process waits for the answer."""
PING_SECONDS = 5.0

_CHECKED_EVERY_SECONDS = 0.5
_REFUSES_SETTINGS = re.compile("unsupported startup parameter|command-line options")
"""PgBouncer, and Amazon's RDS Proxy."""
_SCHEME = re.compile(r"(postgresql|postgres)(\+\w+)?://")


@dataclass(frozen=True)
class Limits:
    """Seconds; 0: no limit, for schema upgrades."""

    statement: float = STATEMENT_SECONDS
    lock: float = LOCK_SECONDS
    idle_in_transaction: float = IDLE_IN_TRANSACTION_SECONDS

    @property
    def answer(self) -> float | None:
        return self.statement + TRAVEL_SECONDS if self.statement else None

    @property
    def settings(self) -> dict[str, str]:
        """Returns PostgreSQL's settings, in milliseconds."""
        return {
            "statement_timeout": str(int(self.statement * 1000)),
            "lock_timeout": str(int(self.lock * 1000)),
            "idle_in_transaction_session_timeout": str(int(self.idle_in_transaction * 1000)),
        }


class Connection(psycopg2.extensions.connection):
    """A connection whose calls end within `answer_seconds`."""

    answer_seconds: float | None = None
    settings_per_transaction = ""
    """Statements that precede the first of each transaction, in the same message: behind a pooler that gives every
    transaction another session. They cost no round trip."""
    was_cut = False
    has_refused_writes = False

    def __init__(self, dsn: str, async_: int = 0) -> None:
        super().__init__(dsn, async_)  # type: ignore[call-arg]  # the stubs know no arguments
        # A descriptor of its own, so that the watch never shuts down a socket that was closed and whose number belongs
        # to another connection by now.
        self._socket = socket.socket(fileno=os.dup(self.fileno()))

    def cut(self) -> None:
        """Ends the call in progress, from another thread."""
        self.was_cut = True
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # closed already

    def close(self) -> None:
        super().close()
        self._socket.close()

    def commit(self) -> None:
        with _Answer(self):
            super().commit()

    def rollback(self) -> None:
        """Does nothing on a closed connection, whose transaction PostgreSQL has rolled back: the error that closed it
        says more than another one."""
        if self.closed:
            return
        with _Answer(self):
            super().rollback()

    @property
    def takes_no_writes(self) -> bool:
        """Returns whether the server has refused a write, or reported itself read-only, which it does unasked."""
        if self.has_refused_writes:
            return True
        reported = (self.get_parameter_status(name) for name in ("in_hot_standby", "default_transaction_read_only"))
        return "on" in reported


class Cursor(psycopg2.extensions.cursor):
    """A cursor whose statements end within their connection's limit; it reads the whole result at once."""

    connection: Connection

    def execute(self, query: Any, vars: Any = None) -> None:
        connection = self.connection
        if connection.settings_per_transaction and _begins_transaction(connection):
            query = _preceded(connection.settings_per_transaction, query, connection)
        with _Answer(connection):
            super().execute(query, vars)

    def executemany(self, query: Any, vars_list: Any) -> None:
        connection = self.connection
        if connection.settings_per_transaction:
            query = _preceded(connection.settings_per_transaction, query, connection)
        with _Answer(connection):
            super().executemany(query, vars_list)


def _begins_transaction(connection: Connection) -> bool:
    return connection.info.transaction_status == psycopg2.extensions.TRANSACTION_STATUS_IDLE


def _preceded(settings: str, query: Any, connection: Connection) -> Any:
    if isinstance(query, bytes):
        return settings.encode() + query
    return settings + (query.as_string(connection) if isinstance(query, sql.Composable) else query)


class _Answer:
    """The time in which a call waits for its answer."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        seconds = self._connection.answer_seconds
        if seconds is not None:
            _watch.begin(self._connection, time.monotonic() + seconds)

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        connection = self._connection
        _watch.end(connection)
        if not isinstance(error, psycopg2.Error):
            return
        if connection.was_cut:
            connection.close()
            raise psycopg2.OperationalError(f"PostgreSQL did not answer in {connection.answer_seconds:g} s") from error
        connection.has_refused_writes |= error.pgcode == errorcodes.READ_ONLY_SQL_TRANSACTION


class _Watch:
    """Cuts calls that are overdue, in one thread of this process."""

    def __init__(self) -> None:
        self._calls: dict[Connection, float] = {}
        self._guard = threading.Lock()
        self._thread: threading.Thread | None = None
        os.register_at_fork(after_in_child=self._forget)

    def begin(self, connection: Connection, deadline: float) -> None:
        self._calls[connection] = deadline
        if self._thread is None:
            self._start()

    def end(self, connection: Connection) -> None:
        self._calls.pop(connection, None)

    def _start(self) -> None:
        with self._guard:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="database-deadlines", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            time.sleep(_CHECKED_EVERY_SECONDS)
            now = time.monotonic()
            for connection, deadline in list(self._calls.items()):
                if deadline < now:
                    connection.cut()

    def _forget(self) -> None:
        """Calls in progress belong to the parent process, and so does the thread."""
        self._calls, self._guard, self._thread = {}, threading.Lock(), None


_watch = _Watch()


@dataclass
class Opener:
    """Opens connections of one process to the first host of the URL that takes writes.

    PgBouncer refuses a connection that asks for session settings, or ignores them; they are then set in each
    transaction.
    """

    parameters: dict[str, str]
    application_name: str
    limits: Limits = Limits()
    is_pooler: bool | None = field(default=None, init=False)
    """Whether session settings do not hold; None until the first connection."""

    @property
    def needs_primary(self) -> bool:
        return self.parameters.get("target_session_attrs", "read-write") in ("read-write", "primary")

    def open(self) -> Connection:
        """Returns a connection; raises psycopg2.OperationalError after CONNECT_SECONDS per host at the latest."""
        if self.is_pooler:
            return self._open_through_pooler()
        try:
            connection = self._connect(options=self._session_options())
        except psycopg2.OperationalError as error:
            if not _REFUSES_SETTINGS.search(str(error)):
                raise
            self.is_pooler = True
            return self._open_through_pooler()
        if self.is_pooler is None:
            self.is_pooler = not self._settings_hold(connection)
        return self._open_through_pooler(connection) if self.is_pooler else connection

    def _session_options(self) -> str:
        own = {**self.limits.settings, "timezone": "UTC"}
        given = self.parameters.get("options", "")
        return " ".join([*(f"-c {name}={value}" for name, value in own.items()), given]).strip()

    def _settings_hold(self, connection: Connection) -> bool:
        with connection.cursor() as cursor:
            cursor.execute("SELECT setting FROM pg_settings WHERE name = 'idle_in_transaction_session_timeout'")
            found = cursor.fetchone()
        connection.rollback()
        return found == (self.limits.settings["idle_in_transaction_session_timeout"],)

    def _open_through_pooler(self, connection: Connection | None = None) -> Connection:
        connection = connection or self._connect()
        if connection.get_parameter_status("TimeZone") != "UTC":
            # PgBouncer carries this setting from session to session.
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute("SET timezone TO 'UTC'")
            connection.autocommit = False
        settings = self.limits.settings.items()
        connection.settings_per_transaction = "".join(f"SET LOCAL {name} = {value}; " for name, value in settings)
        return connection

    def _connect(self, **more: str) -> Connection:
        given = {
            "target_session_attrs": "read-write",
            "application_name": self.application_name,
            "connect_timeout": str(CONNECT_SECONDS),
            "keepalives": "1",
            "keepalives_idle": "10",
            "keepalives_interval": "5",
            "keepalives_count": "3",
            "tcp_user_timeout": "20000",
        }
        given |= {name: value for name, value in self.parameters.items() if name != "options"} | more
        connection: Connection = psycopg2.connect(connection_factory=Connection, cursor_factory=Cursor, **given)
        connection.answer_seconds = self.limits.answer
        return connection


def url_parameters(url: str) -> dict[str, str]:
    """Returns libpq's parameters of a URL, which may name several hosts; raises MisconfiguredError, without the URL."""
    if not (scheme := _SCHEME.match(url)):
        raise MisconfiguredError("DCSYNC_DATABASE_URL: give postgresql://user:password@host/database")
    try:
        parsed: dict[str, str] = psycopg2.extensions.parse_dsn("postgresql://" + url[scheme.end() :])
    except psycopg2.Error:
        raise MisconfiguredError("DCSYNC_DATABASE_URL: give postgresql://user:password@host/database") from None
    return parsed
