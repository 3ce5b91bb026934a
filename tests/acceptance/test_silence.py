"""Processes that are stopped, and a central cloud that cannot be read: nothing is shown that was not seen lately, and
an alarm says so, raised and delivered by a process of another kind."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dcsync.fake_cloud.faults import Fault
from tests.processes import Running
from tests.system import FAST, PATIENCE, System, open_system

pytestmark = [pytest.mark.xdist_group("silence"), pytest.mark.timeout(900)]

SETTINGS = FAST | {
    "DCSYNC_PROBE_INTERVAL": "2",
    "DCSYNC_PROBE_TIMEOUT": "2",
    "DCSYNC_AVAILABILITY_WINDOW": "20",
    "DCSYNC_AUDIT_INTERVAL": "5",
    "DCSYNC_STATUS_WINDOW": "30",
    "DCSYNC_CENTRAL_WATCH_INTERVAL": "1",
    "DCSYNC_FAILING_AFTER": "10",
}
"""Windows of several intervals, so that a busy machine makes nothing stale."""


@contextmanager
def a_small_fleet(folder: Path) -> Iterator[tuple[System, list[str], Running, Running]]:
    """Two subclouds that are seen and in sync, a sync worker, and a state worker; beat besides."""
    with open_system(folder, subclouds=2, settings=SETTINGS) as system:
        sync = system.start_sync_worker()
        state = system.start_state_worker()
        system.start_beat()
        names = [system.take_new() for _ in range(2)]
        for name in names:
            system.cli("subcloud", "add", name, "--management-ip", system.address(name))
        system.cli("wait", "--for", "online", *names, *PATIENCE)
        system.manage(*names)
        system.cli("wait", "--for", "in-sync", *names, *PATIENCE)
        assert alarms(system) == {}
        yield system, names, sync, state


def alarms(system: System) -> dict[tuple[str, str], str]:
    """The active ones of this kind, with their texts."""
    return {
        (each["alarm_id"], each["entity"]): each["reason_text"]
        for each in system.json("alarm", "list")
        if each["alarm_id"].startswith("dcsync.")
    }


def shown(system: System, name: str) -> Any:
    (found,) = [each for each in system.json("subcloud", "list") if each["name"] == name]
    return found


def until_raised(system: System, alarm_id: str, entity: str) -> str:
    system.until(lambda: (alarm_id, entity) in alarms(system), lambda: f"{alarm_id} {entity}, not {alarms(system)}")
    return alarms(system)[alarm_id, entity]


def until_no_alarm(system: System) -> None:
    system.until(lambda: not alarms(system), lambda: f"no alarm, but {alarms(system)}")


def delivered(running: Running, alarm_id: str) -> bool:
    """Whether this process has logged the alarm, which is what the sink `log` does."""
    lines = [json.loads(line) for line in running.output().splitlines() if line.startswith("{")]
    return any(line.get("event") == "alarm" and line.get("alarm_id") == alarm_id for line in lines)


def assert_nothing_is_claimed(system: System, name: str) -> None:
    """Nothing is shown as seen, and no wait believes it."""

    def is_unknown() -> bool:
        found = shown(system, name)
        return found["availability_status"] == "unknown" and set(found["sync_status"].values()) == {"unknown"}

    system.until(is_unknown, lambda: f"{name} unknown, but {shown(system, name)}")
    system.cli("wait", "--for", "in-sync", name, "--timeout", "3", expect=1)
    system.cli("wait", "--for", "online", name, "--timeout", "3", expect=1)


def test_with_the_state_worker_stopped_a_subcloud_that_goes_away_is_not_shown_as_online(tmp_path: Path) -> None:
    with a_small_fleet(tmp_path) as (system, names, sync, state):
        state.signal(signal.SIGSTOP)
        system.cloud.set_fault(names[0], Fault("refuse"))
        told = until_raised(system, "dcsync.nobody-observes", "fleet.resource=availability")
        assert told.startswith("1 of 2 managed subclouds have no recent availability status (subcloud1)")
        until_raised(system, "dcsync.nobody-observes", "fleet.resource=identity")
        assert_nothing_is_claimed(system, names[0])
        system.until(lambda: delivered(sync, "dcsync.nobody-observes"), "the sync worker delivers it")
        system.cloud.set_fault(names[0], None)
        state.signal(signal.SIGCONT)
        until_no_alarm(system)
        system.cli("wait", "--for", "in-sync", *names, *PATIENCE)


def test_with_all_sync_workers_stopped_the_state_worker_raises_the_alarms(tmp_path: Path) -> None:
    with a_small_fleet(tmp_path) as (system, names, sync, state):
        sync.signal(signal.SIGSTOP)
        told = until_raised(system, "dcsync.nobody-observes", "fleet.resource=availability")
        assert told.startswith("2 of 2 managed subclouds")
        assert_nothing_is_claimed(system, names[0])
        until_raised(system, "dcsync.sweep-late", "fleet.resource=sweep")
        assert "was not checked since" in until_raised(system, "dcsync.central-unreadable", "central")
        system.until(lambda: delivered(state, "dcsync.sweep-late"), "the state worker delivers it")
        sync.signal(signal.SIGCONT)
        until_no_alarm(system)


def test_a_central_cloud_that_is_empty_and_then_unreachable_is_reported_until_it_can_be_read(tmp_path: Path) -> None:
    with a_small_fleet(tmp_path) as (system, names, _sync, _state):
        system.cloud.set_fault("central", Fault("empty-list", service="dbsync"))
        assert "central-empty" in until_raised(system, "dcsync.central-unreadable", "central")
        assert "unreadable for" in system.cli("central", expect=1)
        system.cloud.set_fault("central", Fault("reset"))
        system.until(
            lambda: "central-unreachable" in alarms(system)["dcsync.central-unreadable", "central"], "the text follows"
        )
        system.until(
            lambda: set(shown(system, names[0])["sync_reason"].values()) == {"stale"},
            lambda: f"stale, but {shown(system, names[0])}",
        )
        system.cli("wait", "--for", "in-sync", names[0], "--timeout", "3", expect=1)
        assert "unreadable" in system.cli("keys", "show")
        assert "the central cloud is unreadable" in system.cli("service", "monitor", "--role", "sync")
        assert not [each for each in alarms(system) if each[0] == "dcsync.sync-failing"], "one alarm, not one for each"
        system.cloud.set_fault("central", None)
        until_no_alarm(system)
        assert "readable" in system.cli("central")
        system.cli("wait", "--for", "in-sync", *names, *PATIENCE)


def test_a_subcloud_that_keeps_failing_is_reported_until_a_run_succeeds(tmp_path: Path) -> None:
    """Row 1: its sysinv answers 500, its initial sync is requested again."""
    with a_small_fleet(tmp_path) as (system, names, _sync, _state):
        system.cloud.set_fault(names[0], Fault("status", service="sysinv", status=500))
        system.cli("sync", names[0])
        told = until_raised(system, "dcsync.sync-failing", f"subcloud={names[0]}")
        # An audit that was due may have failed before the sync was requested: what fails longest is named.
        assert "has failed" in told or "have failed" in told
        assert "server-error" in told
        system.cli("wait", "--for", "in-sync", names[0], "--timeout", "3", expect=1)
        assert list(alarms(system)) == [("dcsync.sync-failing", f"subcloud={names[0]}")]
        system.cloud.set_fault(names[0], None)
        until_no_alarm(system)
        system.cli("wait", "--for", "in-sync", *names, *PATIENCE)
