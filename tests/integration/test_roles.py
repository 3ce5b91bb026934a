"""What the roles of PostgreSQL and the user of Redis may do: their work, and nothing beside it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg2
import psycopg2.errors
import pytest
import redis

from dcsync.adapters.broker import acl
from dcsync.adapters.postgres import privileges
from dcsync.adapters.postgres.database import current_revision, head_revision, make_engine, upgrade
from dcsync.adapters.postgres.inventory import SqlInventory
from dcsync.local.binaries import find_postgres
from dcsync.local.servers import EmbeddedPostgres, EmbeddedRedis
from dcsync.model.errors import MisconfiguredError
from dcsync.model.messages import TaskName
from dcsync.model.subcloud import new_subcloud
from tests.builders import NOON
from tests.conftest import data_folder
from tests.processes import Processes, wait_until

Denied = psycopg2.errors.InsufficientPrivilege


@pytest.fixture(scope="module")
def postgres() -> Iterator[EmbeddedPostgres]:
    with data_folder() as folder, EmbeddedPostgres(folder, fast=True) as server:
        upgrade(server.owner_url)
        engine = make_engine(server.app_url)
        new = new_subcloud(name="a", management_ip="10.0.0.1", region_name="a", software_version=None)
        SqlInventory(engine).add([new], now=NOON)
        engine.dispose()
        run(server.url, "INSERT INTO sync_request SELECT id, 1, now(), 'operator', 'asked' FROM subcloud")
        run(server.url, "INSERT INTO sync_attempt SELECT 'run', id, 1, 1, 'worker', now() FROM subcloud")
        yield server


def run(url: str, statement: str) -> list[tuple[object, ...]]:
    with closing(psycopg2.connect(url)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchall() if cursor.description else []


@pytest.mark.parametrize("role", [privileges.OWNER, privileges.APP, privileges.READER])
def test_no_role_is_a_superuser_or_makes_others(postgres: EmbeddedPostgres, role: str) -> None:
    url = postgres.url_of("dcsync", role=role)

    (flags,) = run(
        url,
        "SELECT rolsuper, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls FROM pg_roles"
        " WHERE rolname = current_user",
    )

    assert not any(flags)


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE mine (a int)",
        "CREATE SCHEMA mine",
        "CREATE TEMPORARY TABLE mine (a int)",
        "DROP TABLE alarm",
        "ALTER TABLE alarm ADD COLUMN a int",
        "TRUNCATE alarm",
        "UPDATE alembic_version SET version_num = '0001'",
        "UPDATE sync_request SET requested_by = 'somebody else'",
        "UPDATE sync_attempt SET worker = 'another'",
        "UPDATE sync_attempt SET started_at = now()",
        "UPDATE rejected_report SET reason = ''",
        "CREATE ROLE another SUPERUSER",
        "COPY alarm TO PROGRAM 'true'",
        "SELECT pg_read_file('/etc/passwd')",
        "SET ROLE dcsync_owner",
    ],
)
def test_the_app_role_neither_changes_the_schema_nor_what_happened(postgres: EmbeddedPostgres, statement: str) -> None:
    with pytest.raises(Denied):
        run(postgres.app_url, statement)


def test_the_app_role_ends_attempts_and_deletes_old_ones(postgres: EmbeddedPostgres) -> None:
    run(postgres.app_url, "UPDATE sync_attempt SET ended_at = now(), ending = 'failed', reason = 'timeout'")
    run(postgres.app_url, "DELETE FROM sync_attempt WHERE ended_at < now() - interval '30 days'")


def test_the_app_role_sees_the_revision_and_cannot_upgrade(postgres: EmbeddedPostgres) -> None:
    assert current_revision(postgres.app_url) == head_revision()
    upgrade(postgres.app_url)  # nothing to do, so nothing is refused
    with data_folder() as folder, EmbeddedPostgres(folder, fast=True) as empty, pytest.raises(MisconfiguredError):
        upgrade(empty.app_url)


@pytest.mark.parametrize(
    "statement",
    ["INSERT INTO alarm_sink (name) VALUES ('x')", "UPDATE subcloud SET name = 'x'", "DELETE FROM subcloud"],
)
def test_the_reader_role_reads_every_table_and_writes_none(postgres: EmbeddedPostgres, statement: str) -> None:
    url = postgres.url_of("dcsync", role=privileges.READER)
    tables = run(url, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    assert len(tables) >= 16
    for (table,) in tables:
        run(url, f"SELECT count(*) FROM {table}")

    with pytest.raises(Denied):
        run(url, statement)


def test_the_owner_takes_over_a_schema_that_another_role_made(own_postgres: EmbeddedPostgres) -> None:
    """Of a folder from before there were roles."""
    upgrade(own_postgres.url)
    own_postgres.stop()
    own_postgres.start()

    owners = run(own_postgres.url, "SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public'")
    assert owners == [(privileges.OWNER,)]
    upgrade(own_postgres.owner_url)
    assert run(own_postgres.app_url, "SELECT count(*) FROM subcloud") == [(0,)]


def test_psql_runs_the_roles_file_as_the_documentation_says(own_postgres: EmbeddedPostgres, tmp_path: Path) -> None:
    psql = find_postgres().folder / "psql"
    if not psql.exists():
        pytest.skip("this PostgreSQL has no psql")
    for name in ("owner", "app", "reader"):
        (tmp_path / name).write_text(f"it's \\ {name}")
    script = "".join(f"\\set {name}_password `cat {tmp_path}/{name}`\n" for name in ("owner", "app", "reader"))
    for _ in range(2):
        done = subprocess.run(
            [psql, "-v", "ON_ERROR_STOP=1", own_postgres.url],
            input=f"{script}\\i {privileges.ROLES_FILE}\n",
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    host = own_postgres.url.partition("@")[2].partition(":")[0]
    psycopg2.connect(
        host=host, port=own_postgres.port, user=privileges.APP, password="it's \\ app", dbname="dcsync"
    ).close()


def test_no_history_table_is_forgotten(postgres: EmbeddedPostgres) -> None:
    """What is added to a table of history later must be decided on here, too."""
    named = {name for (name,) in run(postgres.url, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'")}
    likely = {name for name in named if name.startswith(("sync_", "rejected_", "operation", "deleted_"))}
    likely |= {name for name in named if name.endswith("_history")}

    assert likely <= privileges.HISTORY.keys()


# --- Redis -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    ["CONFIG GET *", "FLUSHALL", "FLUSHDB", "KEYS *", "SHUTDOWN", "ACL LIST", "MONITOR", "SAVE",
     "REPLICAOF NO ONE", "CLIENT KILL ID 1", "SCRIPT FLUSH", "SET other 1", "GET other", "PUBLISH other 1",
     "SUBSCRIBE other", "MODULE LIST", "SWAPDB 0 1"],
)  # fmt: skip
def test_the_user_of_redis_has_our_keys_and_the_commands_we_use_only(own_redis: EmbeddedRedis, command: str) -> None:
    with (
        redis.Redis.from_url(own_redis.app_url) as client,
        pytest.raises(redis.exceptions.NoPermissionError, match=r"(?i)no permissions|NOPERM"),
    ):
        client.execute_command(*command.split())


def _answers(processes: Processes, environ: dict[str, str]) -> bool:
    """Within a few seconds: the command waits for so long whoever answers."""
    inspect = processes.celery("inspect", "ping", "--timeout", "4", environ=environ)
    inspect.wait()
    return "1 node online" in inspect.output()


def test_workers_beat_and_remote_control_need_nothing_else(
    processes: Processes, own_postgres: EmbeddedPostgres, own_redis: EmbeddedRedis
) -> None:
    upgrade(own_postgres.owner_url)
    environ = {
        "DCSYNC_DATABASE_URL": own_postgres.app_url,
        "DCSYNC_REDIS_URL": own_redis.app_url,
        "DCSYNC_CENTRAL_AUTH_URL": "http://127.0.0.1:9/v3",
        "DCSYNC_PASSWORD": "secret",
        "DCSYNC_SWEEP_INTERVAL": "1",
    }
    worker = processes.celery("worker", "-P", "threads", "-c", "4", "-E", environ=environ, ready="ready.")
    processes.celery("beat", "--schedule", str(processes.folder / "schedule"), environ=environ)
    with redis.Redis.from_url(own_redis.url, decode_responses=True) as administrator:
        wait_until(
            lambda: administrator.get(f"dcsync:ended:{TaskName.SWEEP.value}"), seconds=180, what="a sweep has ended"
        )
        wait_until(lambda: _answers(processes, environ), seconds=180, what="the worker answers to remote control")
        denied = {(each["reason"], each["object"]) for each in administrator.acl_log()}
    assert denied - {("command", "client|setinfo")} == set(), "redis-py tries it, and does without"
    assert "NoPermission" not in worker.output()
    assert "lacks a right" not in worker.output()  # of PostgreSQL; Celery warns of the privileges of root


def test_the_rules_are_those_of_the_secrets_script() -> None:
    script = (Path(__file__).resolve().parents[2] / "deploy/make-secrets.sh").read_text(encoding="utf-8")

    assert f"redis_rules='{acl.RULES}'" in script
