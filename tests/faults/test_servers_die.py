"""Redis and PostgreSQL go away and come back during runs: nothing must be restarted for all to complete."""

from __future__ import annotations

import shutil
import time

import pytest

from dcsync.local.servers import Server
from dcsync.model.ending import Ending
from dcsync.model.errors import LocalProcessFailed
from dcsync.model.states.initial_sync import InitialSyncState
from dcsync.model.subcloud import AvailabilityStatus
from tests.faults.conftest import BrokenSystem
from tests.faults.test_workers_die import LOCK_TTL, USERS_AT_ONCE, assert_all_is_well, be_quick, begin_slow_runs
from tests.system import System, redis_client

pytestmark = [pytest.mark.timeout(900)]

AWAY_SECONDS = 5.0


def a_while_passes() -> None:
    """Long enough for the runs to ask whether they may write, and for what they had sent by then to arrive."""
    time.sleep(AWAY_SECONDS)


def bring_back(system: System, *servers: Server) -> None:
    """As a supervisor does: again where one does not come up while the children of the last one are still going."""

    def is_up(server: Server) -> bool:
        try:
            server.start()
        except LocalProcessFailed:
            return False
        return True

    for server in servers:
        system.until(lambda server=server: is_up(server), f"{server.name} is back")


def assert_still_serving(system: System, *names: str) -> None:
    """The same processes as before take a new request, through all queues."""
    assert all(running.alive for running in system.running), system.last_lines()
    system.report(AvailabilityStatus.OFFLINE, *names)
    system.until_state(InitialSyncState.NONE, *names)
    system.report(AvailabilityStatus.ONLINE, *names)
    system.until_completed(*names)
    assert_all_is_well(system, *names)


@pytest.mark.parametrize("keeps", ["its data", pytest.param("nothing", marks=pytest.mark.faults)])
def test_redis_is_killed_and_comes_back(broken_system: BrokenSystem, keeps: str) -> None:
    system = broken_system(subclouds=6, DCSYNC_LOCK_TTL=LOCK_TTL)
    system.start_dcsync()
    names = system.add_online(count=6)
    begin_slow_runs(system, *names[:3])
    system.redis.kill()
    a_while_passes()
    if keeps == "nothing":
        shutil.rmtree(system.redis.folder / "appendonlydir")
    bring_back(system, system.redis)
    be_quick(system, *names[:3])
    system.until_completed(*names[:3])
    system.manage(*names[3:])
    system.until_completed(*names)
    assert_all_is_well(system, *names)
    assert_still_serving(system, *names)


@pytest.mark.faults
def test_redis_is_away_for_less_than_a_lock_lives_and_no_write_is_made_meanwhile(broken_system: BrokenSystem) -> None:
    """Users go four at a time, and each of the four may have been allowed just before."""
    system = broken_system(subclouds=2, DCSYNC_LOCK_TTL="30")
    system.start_dcsync()
    names = system.add_online(count=2)
    begin_slow_runs(system, *names)
    system.redis.kill()
    at_the_end = [system.writes(name) for name in names]
    system.until(lambda: all(system.endings(name)[-1] for name in names), "the runs have ended")
    a_while_passes()
    written = [system.writes(name) for name in names]
    assert all(now <= then + USERS_AT_ONCE for now, then in zip(written, at_the_end, strict=True))
    bring_back(system, system.redis)
    be_quick(system, *names)
    system.until_completed(*names)
    for name in names:
        assert set(system.endings(name)) <= {Ending.LOCK_LOST, Ending.ABANDONED, Ending.COMPLETED}
    assert_all_is_well(system, *names)


@pytest.mark.faults
def test_postgresql_is_killed_and_comes_back(broken_system: BrokenSystem) -> None:
    system = broken_system(subclouds=6, DCSYNC_LOCK_TTL=LOCK_TTL)
    system.start_dcsync()
    names = system.add_online(count=6)
    begin_slow_runs(system, *names[:3])
    system.postgres.kill()
    a_while_passes()
    bring_back(system, system.postgres)
    be_quick(system, *names[:3])
    system.until_completed(*names[:3])
    system.manage(*names[3:])
    system.until_completed(*names)
    assert_all_is_well(system, *names)
    assert_still_serving(system, *names)


@pytest.mark.faults
def test_both_are_killed_and_come_back(broken_system: BrokenSystem) -> None:
    system = broken_system(subclouds=3, DCSYNC_LOCK_TTL=LOCK_TTL)
    system.start_dcsync()
    names = system.add_online(count=3)
    begin_slow_runs(system, *names)
    system.postgres.kill()
    system.redis.kill()
    a_while_passes()
    bring_back(system, system.postgres, system.redis)
    be_quick(system, *names)
    system.until_completed(*names)
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
