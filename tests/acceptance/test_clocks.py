"""Wrong clocks, lost messages and an overloaded queue, with real processes: what is, is seen all the same."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from dcsync.adapters.broker.reporter import CeleryReports
from dcsync.adapters.host.clock import utc_now
from dcsync.adapters.postgres.alarms import SqlAlarmStore
from dcsync.fake_cloud.faults import Fault
from dcsync.model.messages import TaskName
from dcsync.model.reports import AvailabilityReport, Mark
from dcsync.model.states.initial_sync import InitialSyncState
from dcsync.model.subcloud import AvailabilityStatus
from tests.system import FAST, PATIENCE, System, open_system, redis_client

pytestmark = [pytest.mark.xdist_group("clocks"), pytest.mark.timeout(600)]

ONLINE, OFFLINE = AvailabilityStatus.ONLINE, AvailabilityStatus.OFFLINE
HOUR = 3600.0
PROBE_INTERVAL = 4.0
QUICK = FAST | {
    "DCSYNC_PROBE_INTERVAL": f"{PROBE_INTERVAL:g}",
    "DCSYNC_PROBE_TIMEOUT": "4",
    "DCSYNC_CENTRAL_WATCH_INTERVAL": "1",
    "DCSYNC_LOCK_TTL": "5",
}
DISCARDED = ("Discarding", "expired", "revoked")
"""What Celery says of a message it does not carry out."""


@contextmanager
def a_system(folder: Path, *, subclouds: int = 2, **settings: str) -> Iterator[System]:
    """No process runs yet."""
    with open_system(folder, subclouds=subclouds, settings=QUICK | settings) as system:
        yield system
        assert [word for word in DISCARDED if word in system.output()] == []


def added(system: System) -> str:
    name = system.take_new()
    system.cli("subcloud", "add", name, "--management-ip", system.address(name))
    return name


def until_seen(system: System, name: str, status: AvailabilityStatus, *, seconds: float = 120.0) -> None:
    system.until(lambda: system.row(name).availability_status is status, f"{name} {status}", seconds=seconds)


def outages(system: System, name: str) -> int:
    """How many were seen so far."""
    alarms = SqlAlarmStore(system.engine).alarms(history=True, limit=1000)
    return sum((alarm.alarm_id, alarm.entity) == ("280.001", f"subcloud={name}") for alarm in alarms)


def late(system: System) -> dict[str, int]:
    """How often each task was late."""
    with redis_client(system) as client:
        return {name: int(count) for name, count in client.hgetall("dcsync:late").items()}  # type: ignore[union-attr]


def ended_well(system: System) -> set[str]:
    """The tasks that have ended well so far."""
    with redis_client(system) as client:
        return {key.removeprefix("dcsync:ended:") for key in client.keys("dcsync:ended:*")}  # type: ignore[union-attr]


ALL_BUT_HOUSEKEEPING = {
    TaskName.SWEEP.value,
    TaskName.AUDIT_SWEEP.value,
    TaskName.AVAILABILITY_SWEEP.value,
    TaskName.WATCH_CENTRAL.value,
    TaskName.ROTATE_KEYS.value,
    TaskName.DELIVER_ALARMS.value,
}
"""And but for what comes once a minute: the tests end before."""


# --- row 4 -------------------------------------------------------------------------------------------------------


def test_an_outage_is_seen_while_all_threads_are_busy_and_the_control_queue_grows(tmp_path: Path) -> None:
    """Within three probe intervals and what two late looks take; nothing that was sent is discarded."""
    hanging = 8
    with a_system(tmp_path, subclouds=hanging + 1) as system:
        system.start_state_worker(ready=False)
        worker = system.start_sync_worker(threads=2)
        system.start_beat()
        names = [added(system) for _ in range(hanging)]
        there = added(system)
        system.cli("wait", "--for", "online", *names, there, *PATIENCE)
        for name in names:
            system.cloud.set_fault(name, Fault("hang", verb="POST"))
        system.manage(*names)
        with redis_client(system) as client:
            system.until(lambda: client.llen("control") >= 5, "messages wait, for all threads are busy")  # type: ignore[operator]
        system.cloud.set_fault(there, Fault("refuse"))
        began = time.monotonic()
        until_seen(system, there, OFFLINE, seconds=30)
        took = time.monotonic() - began
        assert took < 30, took
        system.cloud.set_fault(there, None)
        until_seen(system, there, ONLINE, seconds=30)
        assert late(system)[TaskName.AVAILABILITY_SWEEP.value] >= 1
        assert '"late, run here"' in worker.output()
        told = system.cli("service", "monitor", "--role", "state")
        assert TaskName.AVAILABILITY_SWEEP.value in told


# --- row 5 -------------------------------------------------------------------------------------------------------


def test_an_observer_whose_clock_is_an_hour_behind_is_believed(tmp_path: Path) -> None:
    with a_system(tmp_path) as system:
        system.start_dcsync()
        name = added(system)
        until_seen(system, name, ONLINE)
        system.running[0].kill()
        worker = system.start_sync_worker("behind", clock_ahead=-HOUR)
        system.cloud.set_fault(name, Fault("refuse"))
        until_seen(system, name, OFFLINE)
        assert outages(system, name) == 1
        system.cloud.set_fault(name, None)
        until_seen(system, name, ONLINE)
        assert "\"this host's clock differs from the database's" in worker.output()

        system.cli("state", "availability", "offline", name, "--no-wait", clock_ahead=-HOUR)
        system.until(lambda: outages(system, name) == 2, "what the operator reports has its effect")


def test_a_report_from_a_clock_that_is_ahead_changes_nothing_and_says_why(tmp_path: Path) -> None:
    with a_system(tmp_path, DCSYNC_PROBE_INTERVAL="0") as system:
        system.start_state_worker()
        name = added(system)
        system.cli("state", "availability", "online", name)
        with system.celery_app() as app:
            mark = Mark(utc_now() + timedelta(seconds=290), 1)
            region_name = system.row(name).region_name
            CeleryReports(app).send(
                [AvailabilityReport(region_name=region_name, mark=mark, availability_status=OFFLINE)]
            )
        reason = "in the future: the observer's clock is ahead of the database's"
        system.until(lambda: reason in system.cli("state", "rejected"), "it is rejected")
        assert (system.row(name).availability_status, outages(system, name)) == (ONLINE, 0)


def test_the_operators_word_counts_though_the_row_was_stamped_an_hour_ahead(tmp_path: Path) -> None:
    """By a release that still went by hosts' clocks, or a database whose clock was wrong."""
    with a_system(tmp_path, DCSYNC_PROBE_INTERVAL="0") as system:
        system.start_state_worker()
        name = added(system)
        system.cli("state", "availability", "online", name)
        with system.engine.begin() as rows:
            rows.exec_driver_sql("UPDATE subcloud SET online_observed_at = online_observed_at + interval '1 hour'")
        system.cli("state", "availability", "offline", name)
        assert (system.row(name).availability_status, outages(system, name)) == (OFFLINE, 1)


# --- row 6 -------------------------------------------------------------------------------------------------------


def test_a_run_of_a_worker_that_was_an_hour_ahead_and_is_killed_is_taken_back_in_the_usual_time(tmp_path: Path) -> None:
    with a_system(tmp_path) as system:
        system.start_state_worker()
        system.start_beat()
        worker = system.start_sync_worker("ahead", clock_ahead=HOUR)
        name = added(system)
        until_seen(system, name, ONLINE)
        system.cloud.set_fault(name, Fault("latency", verb="write", seconds=3))
        system.manage(name)
        system.until_state(InitialSyncState.IN_PROGRESS, name)
        worker.kill()
        system.cloud.set_fault(name, None)
        system.start_sync_worker("right")
        system.until_completed(name)
        system.assert_good(name)


# --- row 7 -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ahead", [-20.0, HOUR])
def test_all_that_a_beat_with_a_wrong_clock_sends_is_done(tmp_path: Path, ahead: float) -> None:
    with a_system(tmp_path) as system:
        system.start_beat(clock_ahead=ahead)
        system.start_sync_worker(ready=False)
        system.start_state_worker()
        name = added(system)
        until_seen(system, name, ONLINE)
        system.manage(name)
        system.until_completed(name)
        system.cloud.set_fault(name, Fault("refuse"))
        until_seen(system, name, OFFLINE)
        system.until(lambda: ended_well(system) >= ALL_BUT_HOUSEKEEPING, "all that beat sends has ended well")
        system.until(lambda: '"280.001"' in system.output(), "the alarm is delivered")


def test_without_any_beat_workers_do_it_all_and_count_it(tmp_path: Path) -> None:
    with a_system(tmp_path) as system:
        system.start_sync_worker(ready=False)
        system.start_state_worker()
        name = added(system)
        until_seen(system, name, ONLINE)
        system.manage(name)
        system.until_completed(name)
        system.until(lambda: set(late(system)) >= ALL_BUT_HOUSEKEEPING, "all of it was late, and done by workers")
        system.until(lambda: ended_well(system) >= ALL_BUT_HOUSEKEEPING, "and ended well")
