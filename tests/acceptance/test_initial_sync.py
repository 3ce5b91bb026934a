"""The main job over a fake cloud, driven and watched through the command line: from added to completed, and back."""

from __future__ import annotations

import pytest

from dcsync.fake_cloud.faults import Fault
from dcsync.model.reasons import Reason
from dcsync.model.states.audit import AuditStatus
from dcsync.model.subcloud import AvailabilityStatus, EndpointType
from tests.acceptance.conftest import Subclouds
from tests.system import PATIENCE, System

pytestmark = [pytest.mark.xdist_group("initial-sync"), pytest.mark.timeout(600)]

ONLINE, OFFLINE = AvailabilityStatus.ONLINE, AvailabilityStatus.OFFLINE
FIRMWARE = EndpointType.FIRMWARE

KEYS = "POST sysinv fernet_repo"
ALWAYS_WRITTEN = {"PUT dbsync users": 3}
"""admin, sysinv and dcmanager; everything else is written where it differs."""


def grown(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    """What was written in between, but for what only an audit brings: one follows each initial sync at once."""
    more = {what: count - before.get(what, 0) for what, count in after.items()}
    return {what: count for what, count in more.items() if count and what != "POST dbsync token-revocation-events"}


def a_completed_one(system: System, subclouds: Subclouds) -> str:
    """The audit that follows by itself is done as well, so what is written there from now on has another cause."""
    (name,) = subclouds(1)
    system.manage(name)
    system.until_at_rest(name)
    return name


def test_a_subcloud_goes_from_added_to_completed(system: System) -> None:
    name = system.take_new()
    system.cli("subcloud", "add", name, "--management-ip", system.address(name), "--software-version", "24.09")
    added = system.json("subcloud", "show", name)
    assert (added["management_state"], added["availability_status"]) == ("unmanaged", "offline")
    system.cli("subcloud", "manage", name, expect=5)
    assert system.json("subcloud", "show", name)["management_state"] == "unmanaged"
    assert system.requests(name) == {}

    system.report(ONLINE, name)
    system.manage(name)
    assert "completed" in system.cli("wait", "--for", "completed", name, *PATIENCE)

    system.until_at_rest(name)
    (listed,) = [known for known in system.json("subcloud", "list") if known["name"] == name]
    assert listed == system.json("subcloud", "show", name)
    assert (listed["initial_sync_state"], listed["subsequent_sync"], listed["attempt"]) == ("completed", True, 0)
    assert (listed["reason"], listed["retry_at"]) == (None, None)
    system.assert_good(name)


def test_history_names_who_asked_and_every_step_of_the_only_attempt(system: System, subclouds: Subclouds) -> None:
    name = a_completed_one(system, subclouds)
    (request,) = [each for each in system.json("history", name) if each["entry"] == "request"]
    (attempt,) = request["attempts"]
    assert request["requested_by"]
    assert (attempt["attempt"], attempt["ending"]) == (1, "completed")
    assert attempt["worker"].startswith("sync@")
    steps = [(step["step"], step["outcome"]) for step in attempt["steps"]]
    assert steps == [("identity", "done"), ("fernet-keys", "done"), ("audit-init", "done")]


def test_after_identity_come_keys_a_login_made_with_them_and_a_look_at_them(
    system: System, subclouds: Subclouds
) -> None:
    (name,) = subclouds(1)
    # The fake cloud remembers its newest requests only, so the audit that follows is kept from making many.
    system.cloud.set_fault(name, Fault("hang", path="/v3/role_assignments"))
    system.manage(name)
    system.until_completed(name)
    recent = system.cloud.state(name)["recent"]
    (attempt,) = system.attempts(name)
    calls = [(call["verb"], call["path"]) for call in recent if call["request_id"] == f"req-{attempt.run_id}"]
    keys = calls.index(("POST", "/v1/fernet_repo"))
    assert all(path.startswith("/v1.0/identity") for _, path in calls[:keys])
    assert {verb for verb, _ in calls[keys - 4 : keys]} == {"GET"}, "the ids are read back first"
    login = ("POST", "/v3/auth/tokens")
    assert calls[keys + 1 : keys + 3] == [login, ("GET", "/v1/fernet_repo")]
    assert login not in calls[keys + 3 :], "the audit goes on with the same login"


def test_unmanaged_between_completed_and_the_end_of_the_audit_is_not_written_any_more(
    system: System, subclouds: Subclouds
) -> None:
    (name,) = subclouds(1)
    system.cloud.set_fault(name, Fault("latency", path="/v3/role_assignments", seconds=3))
    system.manage(name)
    system.until(lambda: is_audited_now(system, name), f"{name} is completed and being audited")
    (attempt,) = system.attempts(name)
    assert attempt.ending == "completed"
    before = system.writes(name)
    system.unmanage(name)
    system.until_free(name)
    assert system.writes(name) == before
    assert not is_audited_now(system, name)
    assert system.all_attempts(name) == [attempt]
    assert (system.row(name).initial_sync_state, system.row(name).reason) == ("none", None)


def is_audited_now(system: System, name: str) -> bool:
    return any(row.audit_status is AuditStatus.IN_PROGRESS for row in system.audits.audits([name]))


def test_sync_runs_every_step_anew_and_waits_for_it(system: System, subclouds: Subclouds) -> None:
    name = a_completed_one(system, subclouds)
    before = system.carried_out(name)
    assert "1 subcloud completed" in system.cli("sync", name, "--wait", *PATIENCE)
    assert grown(before, system.carried_out(name)) == ALWAYS_WRITTEN | {KEYS: 1}
    requests = [each for each in system.json("history", name) if each["entry"] == "request"]
    assert [request["generation"] for request in requests] == [2, 1]
    system.assert_good(name)


def test_sync_of_all_runs_those_that_are_managed_and_online(system: System, subclouds: Subclouds) -> None:
    names = subclouds(3)
    managed, left_alone = names[:2], names[2]
    system.manage(*managed)
    system.until_completed(*managed)
    generation = {name: system.row(name).generation for name in names}
    system.cli("sync", "--all", "--yes", "--wait", *PATIENCE)
    assert [system.row(name).generation - generation[name] for name in managed] == [1, 1]
    assert system.row(left_alone).generation == generation[left_alone]
    assert system.requests(left_alone) == {}
    system.assert_good(*managed)


def test_a_subcloud_that_merely_comes_back_is_read_and_not_written(system: System, subclouds: Subclouds) -> None:
    name = a_completed_one(system, subclouds)
    before, read = system.carried_out(name), system.requests(name)
    system.report(OFFLINE, name)
    assert system.row(name).initial_sync_state == "none"
    assert system.row(name).subsequent_sync
    system.report(ONLINE, name)
    system.until_completed(name)
    assert grown(before, system.carried_out(name)) == {}
    lists = [f"GET dbsync {kind}" for kind in ("users", "groups", "projects", "roles")]
    more = grown(read, system.requests(name))
    assert all(more.get(what) for what in (*lists, "GET sysinv fernet_repo")), more
    assert [step.step for step in system.attempts(name)[0].steps] == ["identity", "fernet-keys", "audit-init"]
    system.assert_good(name)


def test_a_subcloud_that_was_reinstalled_while_away_gets_its_ids_before_its_keys(
    system: System, subclouds: Subclouds
) -> None:
    name = a_completed_one(system, subclouds)
    system.report(OFFLINE, name)
    system.cloud.drift(name, "redeploy")
    assert not system.cloud.state(name)["aligned"]
    system.report(ONLINE, name)
    system.until_completed(name)
    assert system.cloud.state(name)["aligned"]
    assert system.cloud.state(name)["keys_match"]
    system.assert_good(name)


def test_a_subcloud_that_comes_back_with_service_ids_of_its_own_fails_and_is_never_completed(
    system: System, subclouds: Subclouds
) -> None:
    name = a_completed_one(system, subclouds)
    before = system.writes(name)
    system.report(OFFLINE, name)
    system.cloud.drift(name, "move-id", type="users", name="admin")
    system.report(ONLINE, name)
    row = system.until_failed(name)
    assert row.reason is Reason.IDS_NOT_ALIGNED
    assert "user admin" in row.detail
    assert {attempt.ending for attempt in system.attempts(name)} <= {"failed", None}
    assert system.writes(name) == before
    assert system.cloud.state(name)["violations"] == {}


def test_what_changed_at_the_central_cloud_meanwhile_is_brought_to_who_comes_back(
    system: System, subclouds: Subclouds
) -> None:
    name = a_completed_one(system, subclouds)
    before = system.carried_out(name)
    system.report(OFFLINE, name)
    system.cloud.change_central("set-password", user="dcmanager", password="Peer-dcmanager-pw-1!")
    assert not system.cloud.state(name)["aligned"]
    system.report(ONLINE, name)
    system.until_completed(name)
    assert grown(before, system.carried_out(name)) == ALWAYS_WRITTEN | {KEYS: 1}
    system.assert_good(name)


def test_unmanage_stops_looking_after_it_and_manage_begins_anew(system: System, subclouds: Subclouds) -> None:
    name = a_completed_one(system, subclouds)
    system.unmanage(name)
    unmanaged = system.row(name)
    assert (unmanaged.initial_sync_state, unmanaged.subsequent_sync) == ("none", False)
    before = system.carried_out(name)
    system.manage(name)
    system.until_completed(name)
    assert grown(before, system.carried_out(name)) == ALWAYS_WRITTEN | {KEYS: 1}
    assert system.row(name).generation == unmanaged.generation + 1


def test_a_completed_subcloud_that_is_reported_once_more_is_left_alone(system: System, subclouds: Subclouds) -> None:
    name = a_completed_one(system, subclouds)
    before, row = system.carried_out(name), system.row(name)
    system.manage(name)
    system.report(ONLINE, name)
    # That was online before; what is reported after it is written down after it.
    system.cli("state", "endpoint", name, FIRMWARE, "out-of-sync", "--no-wait")
    system.until(lambda: system.row(name).sync_status.get(FIRMWARE) == "out-of-sync", "the reports are written down")
    assert system.row(name).initial_sync_state == "completed"
    assert system.row(name).generation == row.generation
    assert system.carried_out(name) == before


def test_answers_of_the_commands_are_exit_codes(system: System, subclouds: Subclouds) -> None:
    (name,) = subclouds(1)
    system.cli("sync", name, expect=5)
    system.cli("sync", "no-such-subcloud", expect=3)
    system.cli("history", "no-such-subcloud", expect=3)
    system.cli("wait", "--for", "completed", name, "--timeout", "0.2", expect=1)
    system.cli("sync", name, "--all", expect=2)
    assert system.row(name).generation == 0
