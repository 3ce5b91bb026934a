"""Redis and PostgreSQL go away and come back during runs: nothing must be restarted for all to complete."""

from __future__ import annotations

import shutil

import pytest

from dcsync.lifecycle import Ending
from dcsync.subcloud import InitialSyncState
from tests.faults.conftest import BrokenSystem
from tests.faults.test_workers_die import assert_all_is_well, be_quick, begin_slow_runs
from tests.system import System, redis_client, wall_clock

pytestmark = [pytest.mark.timeout(300)]

AWAY_SECONDS = 3.0


def until_noticed(system: System, since: float) -> None:
    """Long enough for the runs to ask whether they may write."""
    system.until(lambda: wall_clock() - since > AWAY_SECONDS, "the server was away for a while")


def assert_still_serving(system: System, *names: str) -> None:
    """The same processes as before take a new request, through all queues."""
    assert all(running.alive for running in system.running), system.last_lines()
    system.cli("state", "availability", "offline", "--no-wait", *names)
    system.until_state(InitialSyncState.NONE, *names)
    system.cli("state", "availability", "online", "--no-wait", *names)
    system.until_completed(*names)
    assert_all_is_well(system, *names)


@pytest.mark.parametrize("keeps", ["its data", pytest.param("nothing", marks=pytest.mark.faults)])
def test_redis_is_killed_and_comes_back(broken_system: BrokenSystem, keeps: str) -> None:
    system = broken_system(subclouds=6, DCSYNC_LOCK_TTL="3")
    system.start_dcsync()
    names = system.add_online(count=6)
    begin_slow_runs(system, *names[:3])
    system.redis.kill()
    until_noticed(system, wall_clock())
    if keeps == "nothing":
        shutil.rmtree(system.redis.folder / "appendonlydir")
    system.redis.start()
    be_quick(system, *names[:3])
    system.until_completed(*names[:3], seconds=90)
    system.manage(*names[3:])
    system.until_completed(*names, seconds=90)
    assert_all_is_well(system, *names)
    assert_still_serving(system, *names)


@pytest.mark.faults
def test_redis_is_away_for_less_than_a_lock_lives_and_no_write_is_made_meanwhile(broken_system: BrokenSystem) -> None:
    system = broken_system(subclouds=2, DCSYNC_LOCK_TTL="30")
    system.start_dcsync()
    names = system.add_online(count=2)
    begin_slow_runs(system, *names)
    system.redis.kill()
    until_noticed(system, wall_clock())
    written = [system.writes(name) for name in names]
    until_noticed(system, wall_clock())
    assert [system.writes(name) for name in names] == written
    system.redis.start()
    be_quick(system, *names)
    system.until_completed(*names, seconds=90)
    for name in names:
        assert set(system.endings(name)) <= {Ending.LOCK_LOST, Ending.ABANDONED, Ending.COMPLETED}
    assert_all_is_well(system, *names)


@pytest.mark.faults
def test_postgresql_is_killed_and_comes_back(broken_system: BrokenSystem) -> None:
    system = broken_system(subclouds=6, DCSYNC_LOCK_TTL="3")
    system.start_dcsync()
    names = system.add_online(count=6)
    begin_slow_runs(system, *names[:3])
    system.postgres.kill()
    until_noticed(system, wall_clock())
    system.postgres.start()
    be_quick(system, *names[:3])
    system.until_completed(*names[:3], seconds=90)
    system.manage(*names[3:])
    system.until_completed(*names, seconds=90)
    assert_all_is_well(system, *names)
    assert_still_serving(system, *names)


@pytest.mark.faults
def test_both_are_killed_and_come_back(broken_system: BrokenSystem) -> None:
    system = broken_system(subclouds=3, DCSYNC_LOCK_TTL="3")
    system.start_dcsync()
    names = system.add_online(count=3)
    begin_slow_runs(system, *names)
    system.postgres.kill()
    system.redis.kill()
    until_noticed(system, wall_clock())
    system.postgres.start()
    system.redis.start()
    be_quick(system, *names)
    system.until_completed(*names, seconds=90)
    assert_all_is_well(system, *names)
    assert_still_serving(system, *names)


@pytest.mark.faults
def test_connections_to_redis_are_cut_and_nothing_runs_twice(broken_system: BrokenSystem) -> None:
    system = broken_system(subclouds=3)
    system.start_dcsync()
    names = system.add_online(count=3)
    begin_slow_runs(system, *names)
    with redis_client(system) as client:
        client.client_kill_filter(_type="normal", skipme=True)
        client.client_kill_filter(_type="pubsub")
    be_quick(system, *names)
    system.until_completed(*names)
    assert [system.endings(name) for name in names] == [[Ending.COMPLETED]] * 3
    assert_still_serving(system, *names)
