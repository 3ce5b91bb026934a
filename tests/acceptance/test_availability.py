"""The probe as a whole, with real processes over the fake cloud: who is online, and what follows from it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from dcsync.adapters.store.alarms import SqlAlarmStore
from dcsync.fake_cloud.faults import Fault
from dcsync.subcloud import AvailabilityStatus, InitialSyncState
from tests.system import FAST, System, open_system

pytestmark = [pytest.mark.xdist_group("availability")]

ONLINE, OFFLINE = AvailabilityStatus.ONLINE, AvailabilityStatus.OFFLINE
INTERVAL = 1.0
PROBED = {"DCSYNC_PROBE_INTERVAL": f"{INTERVAL:g}", "DCSYNC_PROBE_TIMEOUT": "1"}
SUBCLOUDS = 12


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    folder = tmp_path_factory.mktemp("availability")
    with open_system(folder, subclouds=SUBCLOUDS, settings=FAST | PROBED) as system:
        system.start_dcsync()
        yield system


def added(system: System, *faults: Fault) -> str:
    """A subcloud of the test's own, which has these faults."""
    name = system.take_new()
    system.cloud.set_fault(name, *faults)
    system.cli("subcloud", "add", name, "--management-ip", system.address(name))
    return name


def until_seen(system: System, name: str, status: AvailabilityStatus) -> None:
    system.until(lambda: system.row(name).availability_status is status, f"{name} {status}")


def completed(system: System) -> str:
    name = added(system)
    system.cli("wait", "--for", "online", name, "--timeout", "60")
    system.manage(name)
    system.until_completed(name)
    return name


def offline_alarms(system: System, name: str, *, history: bool = False) -> list[Any]:
    alarms = SqlAlarmStore(system.engine).alarms(history=history, limit=1000)
    return [alarm for alarm in alarms if (alarm.alarm_id, alarm.entity) == ("280.001", f"subcloud={name}")]


def test_a_subcloud_that_answers_comes_online_by_itself_and_only_then_may_be_managed(system: System) -> None:
    name = added(system, Fault("refuse"))
    system.cli("subcloud", "manage", name, expect=5)
    assert system.row(name).management_state == "unmanaged"
    assert system.row(name).availability_status is OFFLINE

    system.cloud.set_fault(name, None)
    system.cli("wait", "--for", "online", name, "--timeout", "60")
    system.manage(name)
    system.until_completed(name)
    system.assert_good(name)
    assert offline_alarms(system, name, history=True) == [], "one that was never there is not missed"


def test_one_that_is_managed_by_force_is_synced_when_it_answers(system: System) -> None:
    name = added(system, Fault("refuse"))
    assert "offline" in system.cli("subcloud", "manage", "--force", name)
    assert system.row(name).initial_sync_state is InitialSyncState.NONE
    system.cloud.set_fault(name, None)
    system.until_completed(name)


def test_one_bad_probe_is_only_counted_and_forgotten_at_the_next_good_one(system: System) -> None:
    name = completed(system)
    before = system.row(name)
    system.cloud.set_fault(name, Fault("status", verb="GET", path="/v3", status=503, times=1))
    system.until(lambda: fail_count(system, name) == 1, "one bad probe is counted")
    system.until(lambda: fail_count(system, name) == 0, "the count is forgotten")
    after = system.row(name)
    assert (after.availability_status, after.generation) == (ONLINE, before.generation)
    assert offline_alarms(system, name, history=True) == []


def fail_count(system: System, name: str) -> int:
    with system.engine.connect() as rows:
        found: int = rows.exec_driver_sql(f"SELECT audit_fail_count FROM subcloud WHERE name = '{name}'").scalar_one()
        return found


@pytest.mark.parametrize("kind", ["refuse", "hang"])
def test_an_outage_raises_one_alarm_and_the_return_clears_it_and_syncs_again(system: System, kind: str) -> None:
    name = completed(system)
    generation = system.row(name).generation
    system.cloud.set_fault(name, Fault(kind))
    until_seen(system, name, OFFLINE)
    gone = system.row(name)
    assert gone.initial_sync_state is InitialSyncState.NONE
    assert set(gone.sync_status.values()) == {"unknown"}
    assert len(offline_alarms(system, name)) == 1
    system.until(lambda: fail_count(system, name) >= 4, "more probes fail")
    assert len(offline_alarms(system, name, history=True)) == 1

    system.cloud.set_fault(name, None)
    system.until_completed(name)
    assert offline_alarms(system, name) == []
    assert system.row(name).generation == generation + 1
    system.assert_good(name)


def test_a_running_sync_is_cancelled_when_its_subcloud_goes_away_and_done_on_its_return(system: System) -> None:
    name = added(system)
    until_seen(system, name, ONLINE)
    slow = Fault("latency", verb="write", seconds=3.5)
    system.cloud.set_fault(name, slow)
    system.manage(name)
    system.until_state(InitialSyncState.IN_PROGRESS, name)
    system.cloud.set_fault(name, slow, Fault("status", path="/v3", verb="GET"))
    until_seen(system, name, OFFLINE)
    assert system.row(name).initial_sync_state is InitialSyncState.NONE
    system.until(lambda: system.endings(name)[0], "the run has ended")
    system.cloud.set_fault(name, None)
    system.until_completed(name)
    system.assert_good(name)
    (first, *_, last) = [attempt.ending for attempt in system.all_attempts(name)]
    assert (first, last) == ("cancelled", "completed")


def test_dead_sites_delay_nobody(system: System) -> None:
    dead = [added(system, Fault("hang")) for _ in range(2)]
    began = time.monotonic()
    names = [added(system) for _ in range(2)]
    for name in names:
        until_seen(system, name, ONLINE)
    assert all(system.row(name).availability_status is OFFLINE for name in dead)
    assert time.monotonic() - began < 30
