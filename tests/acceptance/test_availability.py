"""The probe as a whole, with real processes over the fake cloud: who is online, and what follows from it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import update

from dcsync.adapters.host.clock import utc_now
from dcsync.adapters.postgres.alarms import SqlAlarmStore
from dcsync.adapters.postgres.tables import subcloud_probe
from dcsync.fake_cloud.faults import Fault
from dcsync.model.states.initial_sync import InitialSyncState
from dcsync.model.subcloud import AvailabilityStatus
from tests.system import FAST, PATIENCE, System, open_system

pytestmark = [pytest.mark.xdist_group("availability"), pytest.mark.timeout(600)]

ONLINE, OFFLINE = AvailabilityStatus.ONLINE, AvailabilityStatus.OFFLINE
PROBE_TIMEOUT = 10.0
PROBED = {
    "DCSYNC_PROBE_INTERVAL": f"{PROBE_TIMEOUT:g}",
    "DCSYNC_PROBE_TIMEOUT": f"{PROBE_TIMEOUT:g}",
    "DCSYNC_CENTRAL_WATCH_INTERVAL": "1",
}
"""Long enough for whoever is there to answer also on a busy machine. A test does not wait for the next probe."""
SUBCLOUDS = 12


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    folder = tmp_path_factory.mktemp("availability")
    with open_system(folder, subclouds=SUBCLOUDS, settings=FAST | PROBED) as system:
        system.start_dcsync()
        system.until_central_cloud_is_seen()  # the first look makes every audit due
        yield system


def added(system: System, *faults: Fault) -> str:
    """A subcloud of the test's own, which has these faults."""
    name = system.take_new()
    system.cloud.set_fault(name, *faults)
    system.cli("subcloud", "add", name, "--management-ip", system.address(name))
    return name


def until_seen(system: System, name: str, status: AvailabilityStatus) -> None:
    system.until(lambda: system.row(name).availability_status is status, f"{name} {status}")


def probe_now(system: System, name: str) -> None:
    """Its next probe is due; the sweep that sends it comes every two seconds."""
    own = subcloud_probe.c.subcloud_id == system.row(name).id
    with system.engine.begin() as connection:
        connection.execute(update(subcloud_probe).where(own).values(next_probe_at=utc_now()))


def until_bad_probes(system: System, name: str, count: int) -> None:
    """One after the other, until so many in a row were counted."""
    while (so_far := fail_count(system, name)) < count:
        probe_now(system, name)
        system.until(lambda so_far=so_far: fail_count(system, name) > so_far, f"bad probe number {so_far + 1}")


def completed(system: System) -> str:
    """One that is completed and audited, so that nothing but probes is on its way."""
    name = added(system)
    system.cli("wait", "--for", "online", name, *PATIENCE)
    system.manage(name)
    system.until_at_rest(name)
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
    system.cli("wait", "--for", "online", name, *PATIENCE)
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
    # Good and bad by turns: whoever looks away while a bad one is counted sees the next but one.
    system.cloud.set_fault(name, Fault("status", verb="GET", path="/v3", status=503, every=2))
    good = system.requests(name)["GET keystone"]
    probe_now(system, name)
    system.until(lambda: system.requests(name)["GET keystone"] > good, "a good probe")
    probe_now(system, name)
    system.until(lambda: fail_count(system, name) == 1, "one bad probe is counted")
    probe_now(system, name)
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
    until_bad_probes(system, name, 2)
    until_seen(system, name, OFFLINE)
    gone = system.row(name)
    assert gone.initial_sync_state is InitialSyncState.NONE
    assert set(gone.sync_status.values()) == {"unknown"}
    assert len(offline_alarms(system, name)) == 1
    until_bad_probes(system, name, 3)
    assert len(offline_alarms(system, name, history=True)) == 1

    system.cloud.set_fault(name, None)
    probe_now(system, name)
    system.until_completed(name)
    assert offline_alarms(system, name) == []
    assert system.row(name).generation == generation + 1
    system.assert_good(name)


def test_a_running_sync_is_cancelled_when_its_subcloud_goes_away_and_done_on_its_return(system: System) -> None:
    name = added(system)
    until_seen(system, name, ONLINE)
    slow = Fault("latency", verb="write", seconds=5)  # it writes a dozen times
    system.cloud.set_fault(name, slow)
    system.manage(name)
    system.until_state(InitialSyncState.IN_PROGRESS, name)
    system.cloud.set_fault(name, slow, Fault("status", path="/v3", verb="GET"))
    until_bad_probes(system, name, 2)
    until_seen(system, name, OFFLINE)
    assert system.row(name).initial_sync_state is InitialSyncState.NONE
    system.until(lambda: system.endings(name)[0], "the run has ended")
    system.cloud.set_fault(name, None)
    probe_now(system, name)
    system.until_completed(name)
    system.assert_good(name)
    (first, *_, last) = [attempt.ending for attempt in system.all_attempts(name)]
    assert (first, last) == ("cancelled", "completed")


def test_dead_sites_delay_nobody(system: System) -> None:
    """All are first probed with one message: those that answer are not asked when the dead ones were given up."""
    dead, alive = [[system.take_new() for _ in range(2)] for _ in range(2)]
    for name in dead:
        system.cloud.set_fault(name, Fault("hang"))
    places = [{"name": name, "management_ip": system.address(name)} for name in (*dead, *alive)]
    system.cli("subcloud", "import", "-", stdin=json.dumps(places))
    for name in alive:
        until_seen(system, name, ONLINE)
    assert all(system.row(name).availability_status is OFFLINE for name in dead)
    first_asked = [system.cloud.state(name)["recent"][0]["at"] for name in (*dead, *alive)]
    assert max(first_asked) - min(first_asked) < PROBE_TIMEOUT
