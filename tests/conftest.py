"""Fixtures for every tier: real servers, made when first asked for, one of each per test process.

database_url   a PostgreSQL database of the test's own, migrated and empty
redis_url      a Valkey that holds nothing
server_urls    both, as the environment of a dcsync process: {"DCSYNC_DATABASE_URL": ..., "DCSYNC_REDIS_URL": ...}
engine         a SQLAlchemy engine on `database_url`
redis_client   a client of `redis_url`
own_postgres, own_redis   a started server of the test's own, which it may kill, stop and start
own_data_dir   a folder for servers of the test's own
processes      starts real dcsync processes and leaves none behind, see `tests.processes`
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import redis
from hypothesis import HealthCheck, settings
from psycopg2 import errors, sql
from sqlalchemy import Engine

from dcsync.adapters.postgres.database import make_engine, upgrade
from dcsync.local.servers import EmbeddedPostgres, EmbeddedRedis
from tests.processes import Processes, wait_until

TEMPLATE = "dcsync_template"

# What an example costs says more of the machine than of the code. All else is as Hypothesis has it, here or in CI.
settings.register_profile("any-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any-machine")


def pytest_configure() -> None:
    """Whoever runs the tests in the background may have had SIGINT and SIGHUP ignored, and every process we start would
    inherit that and not hear the signals some tests send."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    # As Ctrl-C: fixtures end what they started, and remove their folders.
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@contextmanager
def data_folder() -> Iterator[Path]:
    """A folder that root's servers, who run as nobody, reach too; pytest's own tmp_path is closed to them."""
    folder = Path(tempfile.mkdtemp(prefix="dcsync-test-"))
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        remove(folder)


def remove(folder: Path) -> None:
    """Though the children of a PostgreSQL that a test has killed may still be writing their last."""

    def removed() -> bool:
        shutil.rmtree(folder, ignore_errors=True)
        return not folder.exists()

    wait_until(removed, seconds=60, what=f"{folder} is removed")


@pytest.fixture(scope="session")
def _postgres() -> Iterator[EmbeddedPostgres]:
    with data_folder() as folder, EmbeddedPostgres(folder, fast=True) as server:
        # Its transactions would now and then be the oldest open one, up to which sinks are told of alarms.
        _execute(server, sql.SQL("ALTER SYSTEM SET autovacuum = off"))
        _execute(server, sql.SQL("SELECT pg_reload_conf()"))
        yield server


@pytest.fixture(scope="session")
def _redis() -> Iterator[EmbeddedRedis]:
    with data_folder() as folder, EmbeddedRedis(folder, fast=True) as server:
        yield server


@pytest.fixture(scope="session")
def _template(_postgres: EmbeddedPostgres) -> str:
    _execute(_postgres, sql.SQL("CREATE DATABASE {}").format(sql.Identifier(TEMPLATE)))
    upgrade(_postgres.url_of(TEMPLATE))
    # The session of the upgrade ends a moment after its client, and nobody may be connected to what is copied.
    sessions = sql.SQL("SELECT count(*) FROM pg_stat_activity WHERE datname = {}").format(sql.Literal(TEMPLATE))
    wait_until(lambda: _execute(_postgres, sessions) == 0, seconds=60, what="nobody uses the template")
    return TEMPLATE


@pytest.fixture
def empty_database_url(_postgres: EmbeddedPostgres) -> Iterator[str]:
    """A database of the test's own without any tables."""
    with _database(_postgres, template="template0") as url:
        yield url


@pytest.fixture
def database_url(_postgres: EmbeddedPostgres, _template: str) -> Iterator[str]:
    with _database(_postgres, template=_template) as url:
        yield url


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = make_engine(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def redis_url(_redis: EmbeddedRedis) -> str:
    with redis.Redis.from_url(_redis.url) as client:
        client.flushall()
    return _redis.url


@pytest.fixture
def redis_client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        yield client


@pytest.fixture
def server_urls(database_url: str, redis_url: str) -> dict[str, str]:
    return {"DCSYNC_DATABASE_URL": database_url, "DCSYNC_REDIS_URL": redis_url}


@pytest.fixture
def own_data_dir() -> Iterator[Path]:
    with data_folder() as folder:
        yield folder


@pytest.fixture
def own_postgres(own_data_dir: Path) -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres(own_data_dir, fast=True) as server:
        yield server


@pytest.fixture
def own_redis(own_data_dir: Path) -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis(own_data_dir, fast=True) as server:
        yield server


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    with Processes(tmp_path) as started:
        yield started


@contextmanager
def _database(server: EmbeddedPostgres, *, template: str) -> Iterator[str]:
    name = f"test_{os.urandom(6).hex()}"
    _execute(
        server,
        sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template)),
    )
    try:
        yield server.url_of(name)
    finally:
        wait_until(lambda: _dropped(server, name), seconds=60, what=f"{name} is dropped")


def _dropped(server: EmbeddedPostgres, name: str) -> bool:
    """False where sessions that were told to end take longer to do so than PostgreSQL waits for them."""
    try:
        _execute(server, sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
    except errors.ObjectInUse:
        return False
    return True


def _execute(server: EmbeddedPostgres, statement: sql.Composable) -> Any:
    """The first value of what it answers, if it answers."""
    connection = psycopg2.connect(server.url)
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement)
            row = cursor.fetchone() if cursor.description else None
            return row[0] if row else None
    finally:
        connection.close()
