"""The migrations make exactly the tables in `dcsync.adapters.postgres.tables`, and upgrading is safe to repeat."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from pytest_alembic.runner import MigrationContext as MigrationContextRunner
from pytest_alembic.tests import (  # noqa: F401 - collected here
    test_model_definitions_match_ddl,
    test_single_head_revision,
    test_up_down_consistency,
    test_upgrade,
)
from sqlalchemy import Engine, text
from sqlalchemy.exc import IntegrityError

from dcsync.adapters.postgres import database
from dcsync.adapters.postgres.audits import SqlAuditStore
from dcsync.adapters.postgres.database import (
    current_revision,
    database_errors,
    head_revision,
    make_engine,
    needs_upgrade,
    upgrade,
)
from dcsync.adapters.postgres.inventory import SqlInventory
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
    with pytest.raises(MisconfiguredError, match=r"PostgreSQL 99 or newer is required, this server is version \d+"):
        upgrade(empty_database_url)
    assert current_revision(empty_database_url) is None


def test_upgrade_of_an_empty_database_and_again(empty_database_url: str) -> None:
    assert current_revision(empty_database_url) is None
    assert needs_upgrade(empty_database_url)
    assert upgrade(empty_database_url) == (None, head_revision())
    assert not needs_upgrade(empty_database_url)
    assert upgrade(empty_database_url) == (head_revision(), head_revision())


WORDS = """
    SELECT s.region_name, t.audit_status, t.sync_status_reported, t.result, t.run_id
    FROM subcloud_sync AS t JOIN subcloud AS s ON s.id = t.subcloud_id ORDER BY s.region_name"""


ROWS_OF_0005 = """
    WITH new AS (
        INSERT INTO subcloud (name, region_name, management_ip)
        VALUES ('a', 'a', '10.0.0.1'), ('b', 'b', '10.0.0.2'), ('c', 'c', '10.0.0.3') RETURNING id, name)
    INSERT INTO subcloud_sync (subcloud_id, endpoint_type, audit_status, sync_status_reported, result, run_id)
    SELECT new.id, 'identity', w.audit_status, w.reported, w.result, w.run_id
    FROM new JOIN (VALUES
        ('a', 'completed', 'in-sync', 'in-sync', NULL),
        ('b', 'started', '', 'odd', 'run-1'),
        ('c', 'in-progress', 'none', 'odd', 'run-3')
    ) AS w (name, audit_status, reported, result, run_id) ON w.name = new.name"""


def _rows_of_0005(engine: Engine) -> None:
    """An audit that is completed, two rows written to by hand, and a rotation in a state nobody knows."""
    with engine.begin() as rows:
        rows.execute(text(ROWS_OF_0005))
        rows.execute(text("INSERT INTO key_rotation (state, run_id, detail) VALUES ('odd', 'run-2', 'kept')"))


def _migrated(engine: Engine) -> tuple[list[tuple[object, ...]], tuple[object, ...]]:
    with engine.connect() as rows:
        rotation = rows.execute(text("SELECT state, run_id, detail FROM key_rotation")).one()
        return [tuple(row) for row in rows.execute(text(WORDS))], tuple(rotation)


@pytest.mark.parametrize("cut_short", [False, True])
def test_words_that_no_table_of_states_knows_are_mended_before_they_are_checked(
    alembic_runner: MigrationContextRunner, alembic_engine: Engine, cut_short: bool
) -> None:
    alembic_runner.migrate_up_to("0005")
    _rows_of_0005(alembic_engine)
    if cut_short:  # after the checks were added, before the rows were looked at
        with alembic_engine.begin() as rows:
            rows.execute(
                text(
                    "ALTER TABLE subcloud_sync ADD CONSTRAINT ck_subcloud_sync_result CHECK (result IN ('in-sync'))"
                    " NOT VALID"
                )
            )
    alembic_runner.migrate_up_to("0006")
    assert _migrated(alembic_engine) == (
        [
            ("a", "completed", "in-sync", "in-sync", None),
            ("b", "none", "none", None, None),
            ("c", "in-progress", "none", None, "run-3"),
        ],
        ("idle", None, "kept"),
    )
    with alembic_engine.connect() as rows:
        unchecked = text("SELECT conname FROM pg_constraint WHERE contype = 'c' AND NOT convalidated")
        assert rows.execute(unchecked).all() == []
    for table, column in (("subcloud_sync", "audit_status"), ("subcloud_sync", "result"), ("key_rotation", "state")):
        with pytest.raises(IntegrityError, match=f"ck_{table}_{column}"), alembic_engine.begin() as rows:
            rows.execute(text(f"UPDATE {table} SET {column} = 'odd'"))
    alembic_runner.migrate_down_to("0005")
    with alembic_engine.begin() as rows:
        rows.execute(text("UPDATE subcloud_sync SET audit_status = 'odd'"))
    alembic_runner.migrate_up_to("0006")
    assert {row[1] for row in _migrated(alembic_engine)[0]} == {"none"}


def test_two_upgrades_at_once_are_harmless(empty_database_url: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(upgrade, [empty_database_url] * 4))
    assert sorted(str(before) for before, _ in results) == sorted(["None", *[head_revision()] * 3])
    assert current_revision(empty_database_url) == head_revision()


def test_rows_nobody_needs_are_removed_and_those_with_something_to_show_are_kept(
    alembic_runner: MigrationContextRunner, alembic_engine: Engine
) -> None:
    """As the release before left them. The second subcloud was unmanaged once, which marks every row but dc-cert's."""
    alembic_runner.migrate_up_to("0005")
    with alembic_engine.begin() as rows:
        rows.execute(text(BEFORE_ENDPOINT_TYPES))
    alembic_runner.migrate_up_to("0007")
    with alembic_engine.connect() as rows:
        kept = rows.execute(text("SELECT subcloud_id, endpoint_type FROM endpoint_status"))
        assert sorted(tuple(row) for row in kept) == [
            (1, "dc-cert"), (1, "firmware"), (1, "identity"), (1, "kubernetes"), (1, "platform"),
            (2, "identity"), (2, "platform"),
        ]  # fmt: skip
        for table, types in (("audit_request", ["identity"]), ("subcloud_sync", ["identity", "platform"])):
            found = rows.scalars(text(f"SELECT DISTINCT endpoint_type FROM {table} ORDER BY 1"))
            assert (table, list(found)) == (table, types)
    alembic_runner.migrate_down_to("0006")
    with alembic_engine.connect() as rows:
        assert rows.scalar(text("SELECT count(*) FROM endpoint_status")) == 2 * 7


def test_attempts_go_on_being_numbered_where_they_were(
    alembic_runner: MigrationContextRunner, alembic_engine: Engine
) -> None:
    """As the release before left them: of three runs of one request two were given back."""
    alembic_runner.migrate_up_to(BEFORE_HISTORY)
    with alembic_engine.begin() as rows:
        rows.execute(text(THREE_RUNS))
    alembic_runner.migrate_up_to("0009")
    with alembic_engine.begin() as rows:
        numbers = rows.execute(text("SELECT name, runs_begun FROM subcloud ORDER BY name"))
        assert [tuple(row) for row in numbers] == [("a", 3), ("b", 0)]
        rows.execute(text("DELETE FROM subcloud WHERE name = 'a'"))
        assert rows.scalar(text("SELECT count(*) FROM sync_attempt")) == 4
    alembic_runner.migrate_down_to(BEFORE_HISTORY)
    with alembic_engine.connect() as rows:
        assert rows.scalar(text("SELECT count(*) FROM sync_attempt")) == 0


def test_subclouds_that_share_a_management_ip_survive_the_upgrade_and_are_named(
    alembic_runner: MigrationContextRunner, alembic_engine: Engine
) -> None:
    alembic_runner.migrate_up_before("0011")
    with alembic_engine.begin() as rows:
        rows.execute(
            text(
                "INSERT INTO subcloud (name, region_name, management_ip)"
                " VALUES ('a', 'a', '10.0.0.1'), ('b', 'b', '10.0.0.1'), ('c', 'c', '10.0.0.2')"
            )
        )
    alembic_runner.migrate_up_to("heads")
    inventory = SqlInventory(alembic_engine)
    shared = {known.name: known.shares_ip_with for known in inventory.all()}
    assert shared == {"a": "b", "b": "a", "c": None}
    assert SqlAuditStore(alembic_engine).read_run("a").subcloud.shares_ip_with == "b"


BEFORE_HISTORY = "0008"
THREE_RUNS = """
INSERT INTO subcloud (name, region_name, management_ip, generation, attempt) VALUES
    ('a', 'a', '10.0.0.1', 2, 1), ('b', 'b', '10.0.0.2', 0, 0);
INSERT INTO sync_request (subcloud_id, generation, requested_at, requested_by, cause) VALUES (1, 2, now(), 'eve', '');
INSERT INTO sync_attempt (run_id, subcloud_id, generation, attempt, worker, started_at)
    SELECT 'run-' || n, 1, CASE WHEN n = 0 THEN 1 ELSE 2 END, 1, 'w', now() FROM generate_series(0, 3) AS n;
"""

BEFORE_ENDPOINT_TYPES = """
INSERT INTO subcloud (name, region_name, management_ip) VALUES ('a', 'a', '10.0.0.1'), ('b', 'b', '10.0.0.2');
INSERT INTO endpoint_status (subcloud_id, endpoint_type) SELECT id, type FROM subcloud, unnest(ARRAY[
    'platform', 'identity', 'dc-cert', 'firmware', 'kubernetes', 'kube-rootca', 'software']) AS type;
UPDATE endpoint_status SET sync_status = 'in-sync', observed_at = now(), changed_at = now()
    WHERE subcloud_id = 1 AND endpoint_type = 'dc-cert';
UPDATE endpoint_status SET observed_at = now(), changed_at = now()
    WHERE subcloud_id = 1 AND endpoint_type = 'firmware';
UPDATE endpoint_status SET observed_at = now() WHERE subcloud_id = 2 AND endpoint_type <> 'dc-cert';
INSERT INTO report_memory VALUES (1, '{"endpoints": {"kubernetes": ["in-sync", true, "2026-01-31T12:00:00Z", 0]}}');
INSERT INTO subcloud_sync (subcloud_id, endpoint_type) SELECT id, type FROM subcloud, unnest(ARRAY[
    'platform', 'identity', 'identity_openstack']) AS type;
INSERT INTO audit_request (subcloud_id, endpoint_type, requested_at, cause) SELECT 1, type, now(), '' FROM unnest(ARRAY[
    'identity', 'dc-cert', 'firmware']) AS type;
INSERT INTO audit_request (endpoint_type, requested_at, cause) VALUES ('software', now(), '');
"""


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
