"""Real processes whose connections to PostgreSQL and Redis hang while runs are in progress, or meet a locked row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import text

from dcsync.fake_cloud.faults import Fault
from dcsync.model.ending import Ending
from tests.proxies import HOST, Proxy
from tests.system import FAST, System, open_system

SLOW = Fault("latency", verb="write", seconds=1)
RUN_DEADLINE = "40"
"""A statement is then waited for 15 s."""
GOES_ON_WITHIN = 60.0


@dataclass
class Hanging:
    system: System
    postgres: Proxy
    redis: Proxy


@pytest.fixture
def hanging(tmp_path: Path) -> Iterator[Hanging]:
    """A system that reaches both servers through proxies; the test itself does not."""
    settings = FAST | {"DCSYNC_RUN_DEADLINE": RUN_DEADLINE}
    with (
        open_system(tmp_path, subclouds=6, settings=settings) as system,
        Proxy(system.postgres.port) as postgres,
        Proxy(system.redis.port) as redis,
    ):
        for name, port in (("DCSYNC_DATABASE_URL", postgres.port), ("DCSYNC_REDIS_URL", redis.port)):
            login, _, rest = system.environ[name].rpartition("@")
            system.environ[name] = f"{login}@{HOST}:{port}/{rest.partition('/')[2]}"
        yield Hanging(system, postgres, redis)


@pytest.mark.parametrize("server", ["PostgreSQL", "Redis"])
def test_connections_that_hang_make_no_worker_deaf(hanging: Hanging, server: str) -> None:
    system = hanging.system
    system.start_dcsync()
    names = system.add_online(count=6)
    for name in names[:3]:
        system.cloud.set_fault(name, SLOW)
    system.manage(*names[:3])
    system.until(lambda: all(system.writes(name) for name in names[:3]), "the runs are in progress")
    (hanging.postgres if server == "PostgreSQL" else hanging.redis).swallow()
    for name in names[:3]:
        system.cloud.set_fault(name, None)
    system.manage(*names[3:])
    system.until_completed(*names, seconds=2 * GOES_ON_WITHIN)
    attempts = [attempt for name in names for attempt in system.all_attempts(name)]
    assert {attempt.ending for attempt in attempts} <= {Ending.COMPLETED, Ending.LOCK_LOST, Ending.ABANDONED}
    assert all(server in attempt.detail for attempt in attempts if attempt.ending is Ending.LOCK_LOST)
    first_new = min(system.attempts(name)[-1].started_at for name in names[3:])
    assert all((system.attempts(name)[-1].started_at - first_new).total_seconds() < GOES_ON_WITHIN for name in names)
    system.assert_good(*names)


def test_one_locked_row_stops_no_other_subcloud(tmp_path: Path) -> None:
    with open_system(tmp_path, subclouds=4, settings=FAST | {"DCSYNC_LOCK_TTL": "5"}) as system:
        system.start_dcsync()
        locked, *others = system.add_online(count=4)
        for name in (locked, *others):
            system.cloud.set_fault(name, SLOW)
        system.manage(locked, *others)
        system.until(lambda: all(system.writes(name) for name in (locked, *others)), "the runs are in progress")
        with system.engine.begin() as outsider:
            outsider.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
            outsider.execute(text("SELECT 1 FROM subcloud WHERE name = :name FOR UPDATE"), {"name": locked})
            system.running[0].kill()
            for name in (locked, *others):
                system.cloud.set_fault(name, None)
            system.start_sync_worker("second")
            system.until_completed(*others)
        system.until_completed(locked)
        system.assert_good(locked, *others)
