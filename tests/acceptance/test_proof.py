"""Nothing is shown, waited for or counted that was not seen, and seen recently: real processes over a fake cloud."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from sqlalchemy import text

from dcsync.fake_cloud.faults import Fault
from dcsync.model.reasons import Reason, Unproven
from dcsync.model.states.initial_sync import InitialSyncState
from dcsync.model.subcloud import EndpointType, SyncStatus
from tests.acceptance.conftest import Subclouds
from tests.system import FAST, PATIENCE, System, open_system

pytestmark = [pytest.mark.xdist_group("proof"), pytest.mark.timeout(600)]

PLATFORM, IDENTITY, FIRMWARE = EndpointType.PLATFORM, EndpointType.IDENTITY, EndpointType.FIRMWARE
IN_SYNC, UNKNOWN = "in-sync", "unknown"
SETTINGS = FAST | {"DCSYNC_CENTRAL_WATCH_INTERVAL": "1", "DCSYNC_AUDIT_INTERVAL": "3600", "DCSYNC_HOLD_OFF": "1"}


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with open_system(tmp_path_factory.mktemp("system"), subclouds=20, settings=SETTINGS) as system:
        system.start_dcsync()
        system.add_online(count=20)
        yield system


def in_sync(system: System, subclouds: Subclouds, count: int = 1) -> list[str]:
    """So many that are managed and proven in-sync, with nothing under way."""
    system.until_central_cloud_is_seen()
    names = subclouds(count)
    system.manage(*names)
    system.cli("wait", "--for", "in-sync", *names, *PATIENCE)
    system.until_at_rest(*names)
    return names


def shown(system: System, name: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = system.json("subcloud", "show", name)
    return found


def line_of(system: System, name: str) -> str:
    (line,) = [line for line in system.cli("subcloud", "list").splitlines() if line.split()[0] == name]
    return line


@pytest.mark.parametrize("service", ["sysinv", "dbsync"])
def test_what_was_asked_for_and_fails_is_not_in_sync(system: System, subclouds: Subclouds, service: str) -> None:
    """Row 1: on a subcloud whose services answer 500, also one that was wiped."""
    (name,) = in_sync(system, subclouds)
    system.cloud.set_fault(name, Fault("status", service=service, status=500))
    system.cli("sync", name)
    system.until_failed(name)
    seen = shown(system, name)
    assert seen["sync_status"] == {"platform": UNKNOWN, "identity": UNKNOWN}
    assert set(seen["sync_reason"].values()) <= {Unproven.ASKED, Unproven.IN_PROGRESS, Reason.SERVER_ERROR}
    assert seen["last_good_at"]["platform"] is not None
    system.cli("wait", "--for", "in-sync", name, "--timeout", "5", expect=1)
    assert shown(system, name)["sync_status"] == {"platform": UNKNOWN, "identity": UNKNOWN}
    assert "unknown (" in line_of(system, name)
    system.cloud.set_fault(name, None)
    system.cli("wait", "--for", "in-sync", name, *PATIENCE)
    assert shown(system, name)["sync_status"] == {"platform": IN_SYNC, "identity": IN_SYNC}


def test_a_request_makes_unknown_at_once_and_only_its_end_makes_in_sync(system: System, subclouds: Subclouds) -> None:
    (name,) = in_sync(system, subclouds)
    before = shown(system, name)
    system.cloud.set_fault(name, Fault("latency", seconds=5))
    system.cli("sync", name)
    seen = shown(system, name)
    assert set(seen["sync_status"].values()) == {UNKNOWN}
    assert set(seen["sync_reason"].values()) <= {Unproven.ASKED, Unproven.IN_PROGRESS}
    system.cloud.set_fault(name, None)
    system.cli("wait", "--for", "in-sync", name, *PATIENCE)
    after = shown(system, name)
    assert after["verified_at"]["platform"] > before["verified_at"]["platform"]
    assert after["requested_at"] < after["verified_at"]["platform"]


def test_the_column_sync_is_the_worst_of_all_endpoint_types_and_names_it(system: System, subclouds: Subclouds) -> None:
    """Row 10: it said in-sync while an alarm was active for another endpoint type."""
    (name,) = in_sync(system, subclouds)
    assert " in-sync " in line_of(system, name)
    system.cli("state", "endpoint", name, "firmware", "out-of-sync")
    assert "out-of-sync (firmware)" in line_of(system, name)
    active = [alarm["entity"] for alarm in system.json("alarm", "list")]
    assert f"subcloud={name}.resource=firmware" in active
    system.cli("wait", "--for", "in-sync", name, "--timeout", "0", expect=1)
    system.cli("state", "endpoint", name, "firmware", "in-sync")
    system.cli("wait", "--for", "in-sync", name, "--timeout", "0")


def test_every_status_says_why_it_is_unknown_or_how_old_it_is(system: System, subclouds: Subclouds) -> None:
    """Rows 11 and 14."""
    (new,) = subclouds(1)
    assert set(shown(system, new)["sync_reason"].values()) == {Unproven.UNMANAGED}
    (name,) = in_sync(system, subclouds)
    seen = shown(system, name)
    assert seen["sync_reason"] == {"platform": None, "identity": None}
    assert all(seen["verified_at"].values())
    assert seen["last_seen_at"] is not None
    told = system.cli("subcloud", "show", name)
    assert "compared: the fernet keys" in told
    assert "in-sync, verified " in told


def test_a_report_that_is_lost_is_made_again_by_the_sweep(system: System, subclouds: Subclouds) -> None:
    """Row 12: its row stayed unknown for a whole audit interval while the audit's row said in-sync."""
    (name,) = in_sync(system, subclouds)
    with system.engine.begin() as connection:
        connection.execute(
            text(
                "UPDATE endpoint_status SET sync_status = 'unknown', observed_at = NULL, verified_at = NULL,"
                " last_good_at = NULL WHERE endpoint_type = 'platform'"
                " AND subcloud_id = (SELECT id FROM subcloud WHERE name = :name)"
            ),
            {"name": name},
        )
        connection.execute(
            text(
                "UPDATE subcloud_sync SET sync_status_report_time = now() - interval '10 s' WHERE subcloud_id ="
                " (SELECT id FROM subcloud WHERE name = :name)"
            ),
            {"name": name},
        )
    system.until(lambda: system.row(name).sync_status[PLATFORM] is SyncStatus.IN_SYNC, "platform reported again")
    audit = next(row for row in system.audits.audits([name]) if row.endpoint_type is PLATFORM)
    assert audit.observed_generation == audit.generation


def test_a_wait_that_prints_json_prints_the_end(system: System, subclouds: Subclouds) -> None:
    """Row 16: it was printed before the wait, and always said requested."""
    names = in_sync(system, subclouds, 2)
    told = json.loads(system.cli("sync", *names, "--wait", *PATIENCE, "-o", "json"))
    assert [(each["name"], each["initial_sync_state"]) for each in told] == [
        (name, InitialSyncState.COMPLETED) for name in sorted(names)
    ]
    told = json.loads(system.cli("audit", names[0], "--wait", *PATIENCE, "-o", "json"))
    assert {each["result"] for each in told} == {IN_SYNC}


def test_a_wait_over_those_that_cannot_get_there_is_no_at_once(system: System, subclouds: Subclouds) -> None:
    """Row 8."""
    (name,) = in_sync(system, subclouds)
    (left,) = subclouds(1)
    for command in (
        ("wait", "--for", "in-sync", name, left),
        ("wait", "--for", "completed", left),
        ("audit", name, left, "--wait"),
        ("sync-request", "platform", left, "--wait"),
    ):
        done = system.processes.cli(*command, environ=system.environ, expect=1)
        assert f"{left}: " in done.stderr, command
        assert "unmanaged" in done.stderr, command


def test_fresh_proof_is_what_is_found_from_now_on(system: System, subclouds: Subclouds) -> None:
    (name,) = in_sync(system, subclouds)
    before = shown(system, name)["verified_at"]
    system.cli("wait", "--for", "in-sync", name, "--fresh", *PATIENCE)
    after = shown(system, name)["verified_at"]
    assert all(after[type_] > before[type_] for type_ in before)
    system.cloud.set_fault(name, Fault("hang"))
    system.cli("wait", "--for", "in-sync", name, "--fresh", "--timeout", "3", expect=1)


def test_what_was_seen_of_an_earlier_subcloud_is_not_shown_of_its_successor(
    system: System, subclouds: Subclouds
) -> None:
    """Deleted and added again while reports on it wait: the new one was "last seen" before it existed."""
    (name,) = subclouds(1)
    state_worker = system.running[1]
    state_worker.signal(signal.SIGSTOP)
    try:
        system.cli("state", "availability", "online", "--no-wait", name)
        system.cli("subcloud", "delete", name, "--yes")
        system.cli("subcloud", "add", name, "--management-ip", system.address(name))
    finally:
        state_worker.signal(signal.SIGCONT)
    system.until(
        lambda: any("before the subcloud was added" in each["reason"] for each in system.json("state", "rejected")),
        "the report is rejected",
    )
    seen = shown(system, name)
    assert (seen["availability_status"], seen["last_seen_at"]) == ("offline", None)


def test_what_could_not_be_read_is_neither_audited_nor_counted(system: System, subclouds: Subclouds) -> None:
    """An audit that fails showed the result of an earlier one, and keys that were replaced counted as held."""
    (name,) = in_sync(system, subclouds)
    had = system.json("keys", "show")["subclouds"]["have"]
    system.cloud.drift(name, "replace-keys")
    system.cloud.set_fault(name, Fault("status", service="sysinv", status=500))
    command = ("audit", name, "--endpoint-type", "platform", "--timeout", "5")
    told = system.processes.cli(*command, environ=system.environ, expect=1)
    assert "in-sync" not in told.stdout
    assert Reason.SERVER_ERROR in told.stdout
    (row,) = json.loads(system.cli(*command, "-o", "json", expect=1))
    assert (row["result"], row["last_result"]) == (None, IN_SYNC)
    assert system.json("keys", "show")["subclouds"]["have"] == had - 1
    system.cloud.set_fault(name, None)
    system.cli("audit", name, "--wait", *PATIENCE)
    assert system.json("keys", "show")["subclouds"]["have"] == had


def test_a_wait_for_all_is_not_over_because_nobody_is_left(system: System, subclouds: Subclouds) -> None:
    """It was a yes over none when all were unmanaged meanwhile."""
    names = in_sync(system, subclouds, 2)
    system.cloud.set_fault(names[0], Fault("status", service="sysinv", status=500))
    system.cli("sync", names[0])
    command = [sys.executable, "-m", "dcsync.cli", "wait", "--for", "in-sync", "--all", *PATIENCE]
    wait = system.processes.start(*command, environ=system.environ, name="wait")
    wait.wait_for("unknown")
    system.unmanage(*names)
    assert wait.wait() == 1
    assert "unmanaged: dcsync subcloud manage" in wait.output()
