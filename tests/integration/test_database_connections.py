"""Connections to PostgreSQL that hang, lead to the wrong server, or pass a pooler."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from sqlalchemy import Engine, text

from dcsync.adapters.postgres import connections, database
from dcsync.adapters.postgres.database import check, database_errors, make_engine, upgrade
from dcsync.local.servers import EmbeddedPostgres
from dcsync.model.errors import DatabaseUnreachable, MisconfiguredError, RowLocked
from tests.conftest import data_folder
from tests.pgbouncer import is_installed, pgbouncer
from tests.processes import wait_until
from tests.proxies import HOST, Proxy

SECONDS = 60.0


@pytest.fixture
def make() -> Iterator[Callable[..., Engine]]:
    made: list[Engine] = []

    def make(url: str, **options: Any) -> Engine:
        made.append(make_engine(url, **options))
        return made[-1]

    yield make
    for engine in made:
        engine.dispose()


@pytest.fixture
def proxy(_postgres: EmbeddedPostgres) -> Iterator[Proxy]:
    with Proxy(_postgres.port) as proxy:
        yield proxy


def through(url: str, port: int) -> str:
    login, _, rest = url.rpartition("@")
    return f"{login}@{HOST}:{port}/{rest.partition('/')[2]}"


def ask(engine: Engine, statement: str = "SELECT 1") -> Any:
    with database_errors(), engine.begin() as connection:
        return connection.execute(text(statement)).scalar()


def fill_pool(engine: Engine, count: int = 3) -> None:
    taken = [engine.connect() for _ in range(count)]
    for connection in taken:
        connection.execute(text("SELECT 1"))
        connection.close()


# --- connections that hang ---


def test_a_swallowed_statement_ends_within_its_limit_and_names_postgresql(
    database_url: str, proxy: Proxy, make: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "TRAVEL_SECONDS", 1.0)
    engine = make(through(database_url, proxy.port), statement_seconds=1)
    fill_pool(engine)
    proxy.swallow()
    began = time.monotonic()
    with pytest.raises(DatabaseUnreachable, match="PostgreSQL did not answer in 2 s"):
        ask(engine)
    assert time.monotonic() - began < SECONDS
    assert ask(engine) == 1


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_swallowed_end_of_a_transaction_ends_within_its_limit(
    database_url: str, proxy: Proxy, make: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setattr(connections, "TRAVEL_SECONDS", 1.0)
    engine = make(through(database_url, proxy.port), statement_seconds=1)
    began = time.monotonic()

    @database_errors()
    def end_swallowed() -> None:
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))
            proxy.swallow()
            getattr(connection, end)()

    with pytest.raises(DatabaseUnreachable, match="did not answer"):
        end_swallowed()
    assert time.monotonic() - began < SECONDS
    assert ask(engine) == 1


def test_a_pool_whose_connections_all_hang_is_replaced_after_one_ping(
    database_url: str, proxy: Proxy, make: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other connections are not waited for one after another."""
    monkeypatch.setattr(database, "PING_SECONDS", 1.0)
    monkeypatch.setattr(database, "PING_AFTER_SECONDS", 0.0)
    engine = make(through(database_url, proxy.port))
    fill_pool(engine, 5)
    proxy.swallow()
    began = time.monotonic()
    assert ask(engine) == 1
    assert time.monotonic() - began < 5
    fill_pool(engine, 5)
    assert time.monotonic() - began < 5


def test_a_server_that_swallows_new_connections_as_well_is_given_up_within_seconds(
    database_url: str, proxy: Proxy, make: Callable[..., Engine]
) -> None:
    proxy.swallow_all()
    engine = make(through(database_url, proxy.port))
    began = time.monotonic()
    with pytest.raises(DatabaseUnreachable, match="timeout expired"):
        ask(engine)
    with pytest.raises(DatabaseUnreachable):
        check(through(database_url, proxy.port), seconds=2)
    assert time.monotonic() - began < SECONDS
    proxy.pass_new()
    assert ask(engine) == 1


def test_a_check_of_the_database_ends_within_its_seconds(database_url: str, proxy: Proxy) -> None:
    check(through(database_url, proxy.port), seconds=2)


# --- connections to a server that takes no writes ---


def set_read_only(server: EmbeddedPostgres, value: str) -> None:
    connection = psycopg2.connect(server.url)
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(f"ALTER SYSTEM SET default_transaction_read_only = {value}")
            cursor.execute("SELECT pg_reload_conf()")
    finally:
        connection.close()


def is_read_only(server: EmbeddedPostgres) -> bool:
    with psycopg2.connect(server.url) as connection, connection.cursor() as cursor:
        cursor.execute("SHOW default_transaction_read_only")
        found = cursor.fetchone()
    connection.close()
    return found == ("on",)


@pytest.fixture
def two_servers() -> Iterator[tuple[EmbeddedPostgres, EmbeddedPostgres]]:
    """Two servers with the same password, as after a failover."""
    with data_folder() as one, data_folder() as two, EmbeddedPostgres(one, fast=True) as old:
        new = EmbeddedPostgres(two, fast=True)
        new._saved_state = type(old._kept)(password=old._kept.password, port=new._read_saved_state().port)
        new._write_saved_state(new._saved_state)
        with new:
            for number, server in enumerate((old, new)):
                with psycopg2.connect(server.url) as connection, connection.cursor() as cursor:
                    cursor.execute("CREATE TABLE place (number int)")
                    cursor.execute("INSERT INTO place VALUES (%s)", (number,))
                connection.close()
            yield old, new


WRITE = "UPDATE place SET number = number RETURNING number"


def write_raw(engine: Engine) -> int:
    """Past SQLAlchemy, as batches of reports are written."""
    with database_errors(), engine.begin() as connection:
        dbapi_connection: Any = connection.connection.dbapi_connection
        with dbapi_connection.cursor() as cursor:
            cursor.execute(WRITE)
            (number,) = cursor.fetchone()
            return int(number)


def answers_until_moved(call: Callable[[], int]) -> list[int | str]:
    """What is answered until the new server answers, each different answer once. PostgreSQL's sessions learn a moment
    later that they are read-only."""
    answers: list[int | str] = []

    def is_moved() -> bool:
        try:
            answer: int | str = call()
        except DatabaseUnreachable as error:
            answers.append("failed" if "read-only" in str(error) else str(error))
            return False
        if answer not in answers:
            answers.append(answer)
        return answer == 1

    wait_until(is_moved, seconds=SECONDS, what="the new server answers")
    return answers


@pytest.mark.parametrize(
    "call",
    [
        lambda engine: ask(engine, WRITE),
        write_raw,
        lambda engine: ask(engine, "SELECT number FROM place"),
    ],
    ids=["write", "raw-write", "read"],
)
def test_an_address_that_moves_to_a_new_primary_costs_one_failure(
    two_servers: tuple[EmbeddedPostgres, EmbeddedPostgres],
    make: Callable[..., Engine],
    call: Callable[[Engine], int],
) -> None:
    """The old primary stays up, read-only, and sessions to it stay open."""
    old, new = two_servers
    with Proxy(old.port) as address:
        engine = make(through(old.url, address.port))
        fill_pool(engine, 4)
        assert call(engine) == 0
        set_read_only(old, "on")
        address.target = new.port
        answers = answers_until_moved(lambda: call(engine))
        assert answers in ([0, 1], [0, "failed", 1], ["failed", 1], [1])
        assert [ask(engine, WRITE) for _ in range(5)] == [1] * 5


def test_no_session_of_a_pool_stays_with_the_old_primary(
    two_servers: tuple[EmbeddedPostgres, EmbeddedPostgres], make: Callable[..., Engine]
) -> None:
    old, new = two_servers
    with Proxy(old.port) as address:
        engine = make(through(old.url, address.port))
        fill_pool(engine, 4)
        set_read_only(old, "on")
        address.target = new.port
        answers_until_moved(lambda: ask(engine, WRITE))
        taken = [engine.connect() for _ in range(4)]
        found = [connection.execute(text("SELECT number FROM place")).scalar() for connection in taken]
        for connection in taken:
            connection.close()
        assert found == [1] * 4


def test_a_url_with_two_hosts_leads_to_the_one_that_takes_writes(
    two_servers: tuple[EmbeddedPostgres, EmbeddedPostgres], make: Callable[..., Engine]
) -> None:
    old, new = two_servers
    login = old.url.rpartition("@")[0]
    url = f"{login}@{HOST}:{old.port},{HOST}:{new.port}/dcsync?target_session_attrs=read-write"
    engine = make(url)
    assert ask(engine, WRITE) == 0
    set_read_only(old, "on")
    assert answers_until_moved(lambda: ask(engine, WRITE)).count("failed") <= 1
    check(url, seconds=2)
    new.stop()
    with pytest.raises(DatabaseUnreachable, match="server closed the connection"):
        ask(engine, WRITE)
    with pytest.raises(DatabaseUnreachable, match=f"port {old.port} failed.*read-only.*port {new.port} failed"):
        ask(engine, WRITE)
    set_read_only(old, "off")
    wait_until(lambda: is_writable(engine), seconds=SECONDS, what="the first server takes writes")


def is_writable(engine: Engine) -> bool:
    try:
        return bool(ask(engine, WRITE) == 0)
    except DatabaseUnreachable:
        return False


def test_a_url_may_ask_for_any_server(own_postgres: EmbeddedPostgres, make: Callable[..., Engine]) -> None:
    set_read_only(own_postgres, "on")
    wait_until(lambda: is_read_only(own_postgres), seconds=SECONDS, what="new sessions are read-only")
    with pytest.raises(DatabaseUnreachable, match="read-only"):
        ask(make(own_postgres.url))
    engine = make(f"{own_postgres.url}?target_session_attrs=any")
    assert [ask(engine) for _ in range(2)] == [1, 1]
    assert engine.pool.status().startswith("Pool size: 5  Connections in pool: 1")


# --- limits ---


def test_a_locked_row_is_waited_for_within_a_bound(
    database_url: str, make: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "Limits", partial(connections.Limits, lock=0.2))
    engine = make(database_url)
    ask(
        engine,
        "INSERT INTO central_state (kind, fingerprint, counts, changed_at, checked_at)"
        " VALUES ('platform', 'a', '{}', now(), now()) RETURNING 1",
    )
    lock = "SELECT fingerprint FROM central_state FOR UPDATE"
    with engine.begin() as outsider:
        outsider.execute(text(lock))
        with pytest.raises(RowLocked, match="another session holds a lock"):
            ask(engine, lock)
    assert ask(engine, lock) == "a"


LIMITS = "SELECT string_agg(setting, ' ' ORDER BY name) FROM pg_settings WHERE name IN " + str(
    ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "TimeZone")
)
SET = "UTC 60000 10000 30000"


def test_sessions_have_their_limits(database_url: str, make: Callable[..., Engine]) -> None:
    assert ask(make(database_url), LIMITS) == SET


def test_options_of_the_url_are_kept(database_url: str, make: Callable[..., Engine]) -> None:
    engine = make(f"{database_url}?options=-c%20work_mem%3D5MB&application_name=mine")
    assert ask(engine, "SHOW work_mem") == "5MB"
    assert ask(engine, "SHOW application_name") == "mine"
    assert ask(engine, LIMITS) == SET


# --- PgBouncer ---


@pytest.fixture(params=["", "ignore_startup_parameters = extra_float_digits, options"], ids=["refused", "ignored"])
def pooled_url(request: pytest.FixtureRequest, database_url: str) -> Iterator[str]:
    with data_folder() as folder, pgbouncer(database_url, folder, options=request.param) as url:
        yield url


@is_installed
def test_limits_hold_in_every_transaction_behind_pgbouncer(pooled_url: str, make: Callable[..., Engine]) -> None:
    engine = make(pooled_url)
    assert [ask(engine, LIMITS) for _ in range(3)] == [SET] * 3
    with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as single:
        assert [single.execute(text(LIMITS)).scalar() for _ in range(3)] == [SET] * 3
        raw: Any = single.connection.dbapi_connection
        with raw.cursor() as cursor:
            cursor.execute(LIMITS.encode())
            assert cursor.fetchone() == (SET,)


@is_installed
def test_a_statement_behind_pgbouncer_is_ended_by_postgresql(pooled_url: str, make: Callable[..., Engine]) -> None:
    engine = make(pooled_url, statement_seconds=0.2)
    with pytest.raises(DatabaseUnreachable, match="statement timeout"):
        ask(engine, "SELECT pg_sleep(60)")
    assert ask(engine) == 1


@is_installed
def test_more_clients_than_sessions_share_them_behind_pgbouncer(pooled_url: str, make: Callable[..., Engine]) -> None:
    engine = make(pooled_url, pool_size=10)
    fill_pool(engine, 2)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE place (number int)"))
        found = connection.execute(text("INSERT INTO place VALUES (:n)"), [{"n": n} for n in range(5)])
        assert found.rowcount == 5
        assert connection.execute(text("SELECT count(*) FROM place")).scalar() == 5
    check(pooled_url, seconds=5)


@is_installed
def test_the_schema_is_not_upgraded_through_pgbouncer(pooled_url: str) -> None:
    with pytest.raises(MisconfiguredError, match="PgBouncer"):
        upgrade(pooled_url)


def test_a_process_that_ends_does_not_wait_for_deadlines(database_url: str, tmp_path: Path) -> None:
    code = (
        "from dcsync.adapters.postgres.database import make_engine\nfrom sqlalchemy import text\nimport sys\n"
        "with make_engine(sys.argv[1]).begin() as c: c.execute(text('SELECT 1'))"
    )
    done = subprocess.run([sys.executable, "-c", code, database_url], timeout=SECONDS, check=False)
    assert done.returncode == 0
