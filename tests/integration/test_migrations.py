"""The migrations make exactly the tables in `dcsync.adapters.postgres.tables`, and upgrading is safe to repeat."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from pytest_alembic.tests import (  # noqa: F401 - collected here
    test_model_definitions_match_ddl,
    test_single_head_revision,
    test_up_down_consistency,
    test_upgrade,
)
from sqlalchemy import Engine, text

from dcsync.adapters.postgres import database
from dcsync.adapters.postgres.database import (
    current_revision,
    database_errors,
    head_revision,
    make_engine,
    needs_upgrade,
    upgrade,
)
from dcsync.adapters.postgres.tables import metadata, subcloud
from dcsync.local.servers import EmbeddedPostgres
from dcsync.model.errors import DatabaseUnreachable, MisconfiguredError

CATALOG = {
    "constraints": """
        SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid)
        FROM pg_constraint WHERE connamespace = 'public'::regnamespace AND conrelid <> 0""",
    "indexes": "SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'",
    "columns": """
        SELECT table_name, column_name, data_type, character_maximum_length, is_nullable, column_default, is_identity
        FROM information_schema.columns WHERE table_schema = 'public'""",
    "table options": "SELECT relname, reloptions::text FROM pg_class WHERE relnamespace = 'public'::regnamespace",
}


@pytest.fixture
def alembic_config() -> Config:
    config = Config()
    config.set_main_option("script_location", "dcsync.adapters.postgres:migrations")
    return config


@pytest.fixture
def alembic_engine(empty_database_url: str) -> Iterator[Engine]:
    engine = make_engine(empty_database_url)
    yield engine
    engine.dispose()


def _catalog(engine: Engine) -> dict[str, set[tuple[object, ...]]]:
    with engine.connect() as connection:
        return {
            what: {tuple(row) for row in connection.execute(text(query)) if "alembic_version" not in str(row)}
            for what, query in CATALOG.items()
        }


def test_migrations_and_tables_agree(engine: Engine) -> None:
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        assert compare_metadata(context, metadata) == []


@pytest.mark.parametrize("what", sorted(CATALOG))
def test_migrated_database_equals_one_made_from_the_tables(engine: Engine, empty_database_url: str, what: str) -> None:
    made = make_engine(empty_database_url)
    try:
        metadata.create_all(made)
        assert _catalog(engine)[what] == _catalog(made)[what]
    finally:
        made.dispose()


def test_a_server_too_old_for_the_schema_is_named_before_anything_is_made(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Ubuntu 22.04's and RHEL 9's own are."""
    monkeypatch.setattr(database, "OLDEST_POSTGRESQL", 99)
    with pytest.raises(MisconfiguredError, match=r"PostgreSQL 99 or newer is needed, and this one is \d+"):
        upgrade(empty_database_url)
    assert current_revision(empty_database_url) is None


def test_upgrade_of_an_empty_database_and_again(empty_database_url: str) -> None:
    assert current_revision(empty_database_url) is None
    assert needs_upgrade(empty_database_url)
    assert upgrade(empty_database_url) == (None, head_revision())
    assert not needs_upgrade(empty_database_url)
    assert upgrade(empty_database_url) == (head_revision(), head_revision())


def test_two_upgrades_at_once_are_harmless(empty_database_url: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(upgrade, [empty_database_url] * 4))
    assert sorted(str(before) for before, _ in results) == sorted(["None", *[head_revision()] * 3])
    assert current_revision(empty_database_url) == head_revision()


def test_no_server_is_database_unreachable() -> None:
    url = "postgresql://someone:verysecret@127.0.0.1:1/dcsync"
    with pytest.raises(DatabaseUnreachable) as caught:
        current_revision(url)
    assert "verysecret" not in str(caught.value)


def test_wrong_password_is_database_unreachable_and_not_shown(database_url: str) -> None:
    head, _, tail = database_url.partition("@")
    with pytest.raises(DatabaseUnreachable, match="password authentication failed") as caught:
        current_revision(f"{head}wrong@{tail}")
    assert head.rpartition(":")[2] not in str(caught.value)


def test_missing_table_asks_for_an_upgrade(empty_database_url: str) -> None:
    engine = make_engine(empty_database_url)
    try:
        with pytest.raises(MisconfiguredError, match="dcsync db upgrade"), database_errors(), engine.begin() as rows:
            rows.execute(subcloud.select())
    finally:
        engine.dispose()


def test_statement_past_its_time_limit_is_database_unreachable(database_url: str) -> None:
    engine = make_engine(database_url, statement_seconds=0.05)
    try:
        with pytest.raises(DatabaseUnreachable), database_errors(), engine.begin() as rows:
            rows.execute(text("SELECT pg_sleep(5)"))
    finally:
        engine.dispose()


def test_fault_of_ours_is_not_dressed_up_as_an_outage(engine: Engine) -> None:
    with pytest.raises(Exception, match="syntax error") as caught, database_errors(), engine.begin() as rows:
        rows.execute(text("SELEKT"))
    assert not isinstance(caught.value, DatabaseUnreachable | MisconfiguredError)


def test_pool_replaces_connections_that_died_with_the_server(own_postgres: EmbeddedPostgres) -> None:
    engine = make_engine(own_postgres.url)
    try:
        with engine.begin() as rows:
            rows.execute(text("SELECT 1"))
        own_postgres.kill()
        with pytest.raises(DatabaseUnreachable), database_errors(), engine.begin() as rows:
            rows.execute(text("SELECT 1"))
        own_postgres.start()
        with engine.begin() as rows:
            assert rows.execute(text("SELECT 1")).scalar_one() == 1
    finally:
        engine.dispose()


@pytest.mark.parametrize("url", ["mysql://a:secret@b/c", "not a url at all:secret", "sqlite:///secret"])
def test_urls_of_other_databases_are_refused_without_being_shown(url: str) -> None:
    with pytest.raises(MisconfiguredError) as caught:
        make_engine(url)
    assert "secret" not in str(caught.value)
