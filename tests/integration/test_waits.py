"""A command that waits, while a real PostgreSQL is restarted."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import update

from dcsync.adapters.postgres.database import upgrade
from dcsync.adapters.postgres.tables import key_rotation, subcloud, subcloud_sync
from dcsync.cli import run
from dcsync.cli.operator import Operator
from dcsync.local.servers import EmbeddedPostgres
from dcsync.model.states.initial_sync import InitialSyncState
from dcsync.model.subcloud import NewSubcloud, SyncStatus
from tests.builders import NOON
from tests.requested_rows import requested_rows


class Patient(Operator):
    """`meanwhile[n]` is what others do in the n-th pause between two looks."""

    def __init__(self, *meanwhile: Callable[[], None]) -> None:
        super().__init__()
        self.meanwhile = iter(meanwhile)

    def sleep(self, seconds: float) -> None:
        next(self.meanwhile)()


@pytest.mark.parametrize("command", [("audit", "edge-1", "--wait"), ("keys", "rotate", "--yes", "--wait")])
def test_a_restart_of_postgresql_is_waited_for(
    own_postgres: EmbeddedPostgres,
    redis_url: str,
    command: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    upgrade(own_postgres.url)
    monkeypatch.setenv("DCSYNC_DATABASE_URL", own_postgres.url)
    monkeypatch.setenv("DCSYNC_REDIS_URL", redis_url)

    def finish() -> None:
        own_postgres.start()
        done = {"observed_generation": subcloud_sync.c.generation, "result": SyncStatus.IN_SYNC}
        audited = done | {"keys_fingerprint": ""}
        with operator.engine.begin() as connection:
            connection.execute(update(subcloud_sync).values(audited))
            connection.execute(update(key_rotation).values(requested_at=None, last_rotated_at=NOON))

    operator = Patient(own_postgres.kill, lambda: None, finish)
    requested_rows(operator.engine, [NewSubcloud(name="edge-1", region_name="edge-1", management_ip="10.10.0.5")])
    with operator.engine.begin() as connection:
        connection.execute(update(subcloud).values(initial_sync_state=InitialSyncState.COMPLETED))
    assert run(command, operator=operator) == 0
    told = capsys.readouterr().err
    assert told.count("the database does not answer") == 1
    assert "the database answers again" in told
