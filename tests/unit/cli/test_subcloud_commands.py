"""`dcsync subcloud`: what is stored, what is printed, and the exit code."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from pathlib import Path

import pytest

from dcsync.model.reasons import Reason
from dcsync.model.states.initial_sync import InitialSyncState
from dcsync.model.subcloud import AvailabilityStatus, EndpointType, ManagementState, SyncStatus
from tests.builders import NOON, an_address
from tests.fake_rotation import FakeRotationRequests
from tests.fakes_audit import MemoryAuditStore
from tests.unit.cli.conftest import Shell

PINNED_KEYS = {
    "name", "region_name", "management_ip", "software_version", "management_state", "availability_status",
    "initial_sync_state", "subsequent_sync", "attempt", "retry_at", "reason", "sync_status",
}  # fmt: skip


def add(dcsync: Shell, *names: str) -> None:
    for name in names:
        assert dcsync("subcloud", "add", name, "--management-ip", an_address(name)).code == 0


def names(dcsync: Shell) -> list[str]:
    return [known.name for known in dcsync.inventory.all()]


def fail(dcsync: Shell, name: str) -> None:
    dcsync.inventory.put(
        name,
        management_state=ManagementState.MANAGED,
        availability_status=AvailabilityStatus.ONLINE,
        last_seen_at=NOON,
        initial_sync_state=InitialSyncState.FAILED,
        attempt=2,
        reason=Reason.TIMEOUT,
        detail="GET /v3/users took 30 s",
        retry_at=NOON + timedelta(seconds=40),
    )


# --- adding ---


def test_an_added_subcloud_is_stored_as_given(dcsync: Shell) -> None:
    told = dcsync(
        "subcloud",
        "add",
        "edge-1",
        "--management-ip",
        "fd00::0:5",
        "--region-name",
        "r1",
        "--software-version",
        "24.09",
    )
    assert (told.code, told.err) == (0, "")
    (stored,) = dcsync.inventory.all()
    assert (stored.name, stored.management_ip, stored.region_name, stored.software_version) == (
        "edge-1", "fd00::5", "r1", "24.09",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("address", "code"),
    [
        ("ten.0.0.1", 2),
        ("10.0.0.1/24", 2),
        ("fe80::1%eth0", 2),
        ("127.0.0.1", 5),
        ("::1", 5),
        ("169.254.169.254", 5),
        ("::ffff:127.0.0.1", 5),
        ("::ffff:169.254.169.254", 5),
        ("224.0.0.1", 5),
        ("0.0.0.0", 5),
    ],
)
def test_an_address_that_cannot_be_meant_is_not_stored(dcsync: Shell, address: str, code: int) -> None:
    told = dcsync("subcloud", "add", "edge-1", "--management-ip", address)
    assert (told.code, told.out) == (code, "")
    assert told.err.count("\n") == 1
    assert names(dcsync) == []


def test_an_address_outside_the_allowed_networks_is_refused(dcsync: Shell) -> None:
    dcsync.set(DCSYNC_ALLOWED_NETWORKS="10.10.0.0/16")
    told = dcsync("subcloud", "add", "edge-1", "--management-ip", "10.11.0.1")
    assert told.code == 5
    assert "10.10.0.0/16" in told.err
    assert names(dcsync) == []


def test_an_allowed_loopback_network_is_obeyed(dcsync: Shell) -> None:
    dcsync.set(DCSYNC_ALLOWED_NETWORKS="127.0.0.0/8")
    assert dcsync("subcloud", "add", "edge-1", "--management-ip", "127.0.1.1").code == 0


def test_a_taken_name_is_refused_and_named(dcsync: Shell) -> None:
    add(dcsync, "edge-1")
    told = dcsync("subcloud", "add", "edge-1", "--management-ip", "10.0.0.2")
    assert told.code == 1
    assert "edge-1" in told.err


@pytest.mark.parametrize("command", [("add", "edge-2"), ("update", "edge-1")])
@pytest.mark.parametrize(
    ("address", "told"),
    [
        (an_address("edge-0"), f"{an_address('edge-0')} is the management IP of edge-0; nothing was stored"),
        ("10.99.0.1", "10.99.0.1 is the address of the central cloud, which is no subcloud"),
        ("127.0.0.1", "127.0.0.1 is a loopback address"),
    ],
)
def test_the_address_of_another_cloud_is_refused_with_its_name(
    dcsync: Shell, command: tuple[str, str], address: str, told: str
) -> None:
    add(dcsync, "edge-0", "edge-1")
    answer = dcsync("subcloud", *command, "--management-ip", address)
    assert (answer.code, answer.out) == (5, "")
    assert told in answer.err
    assert {known.name: known.management_ip for known in dcsync.inventory.all()} == {
        name: an_address(name) for name in ("edge-0", "edge-1")
    }


def test_an_update_says_what_changed_and_what_follows(dcsync: Shell) -> None:
    add(dcsync, "a")
    told = dcsync("subcloud", "update", "a", "--software-version", "25.09")
    assert (told.code, told.out) == (0, "a: software version - -> 25.09\n")
    assert dcsync("subcloud", "update", "a", "--software-version", "25.09").out == "a was so already\n"
    assert dcsync.operator.queue.sweeps == 0
    dcsync.inventory.put("a", management_state=ManagementState.MANAGED, availability_status=AvailabilityStatus.ONLINE)
    told = dcsync("subcloud", "update", "a", "--management-ip", "10.9.0.1")
    assert told.out == f"a: management IP {an_address('a')} -> 10.9.0.1; initial sync requested\n"
    assert dcsync.operator.queue.sweeps == 1


@pytest.mark.parametrize(("arguments", "code"), [((), 2), (("--management-ip", "ten"), 2)])
def test_an_update_without_a_value_or_with_a_wrong_one_is_a_usage_error(
    dcsync: Shell, arguments: tuple[str, ...], code: int
) -> None:
    add(dcsync, "a")
    assert dcsync("subcloud", "update", "a", *arguments).code == code


def test_subclouds_that_share_a_management_ip_are_shown_with_what_to_do(dcsync: Shell) -> None:
    add(dcsync, "a", "b")
    dcsync.inventory.put("a", shares_ip_with="b")
    told = dcsync("subcloud", "list")
    assert "b has the same management IP: dcsync subcloud update a" in told.out
    assert "1 with a management IP that another subcloud has" in told.err
    assert f"management IP     {an_address('a')} (that of b as well)" in dcsync("subcloud", "show", "a").out
    assert dcsync("subcloud", "show", "a", "-o", "json").json["shares_ip_with"] == "b"


@pytest.mark.parametrize("name", ["-x", "a b", "a/b", "é", "", "a\x1b[31m", "a" * 256])
def test_a_name_that_cannot_be_a_key_is_refused_and_printed_harmlessly(dcsync: Shell, name: str) -> None:
    told = dcsync("subcloud", "add", "--management-ip", "10.0.0.1", "--", name)
    assert told.code == 2
    assert "\x1b" not in told.err
    assert names(dcsync) == []


# --- importing ---


def test_a_file_is_imported_whole(dcsync: Shell, tmp_path: Path) -> None:
    file = tmp_path / "subclouds.csv"
    file.write_text("name,management_ip\na,10.0.0.1\nb,10.0.0.2\n")
    told = dcsync("subcloud", "import", str(file))
    assert (told.code, told.out) == (0, "2 subclouds added, unmanaged\n")
    assert names(dcsync) == ["a", "b"]


@pytest.mark.parametrize(
    ("rows", "code", "words"),
    [
        ("a,10.0.0.1\nb,bad\n", 2, "line 3: 'bad' is not an IP address"),
        ("a,10.0.0.1\nb,127.0.0.1\n", 2, "line 3: 127.0.0.1 is a loopback address"),
        ("a,10.0.0.1\nedge-1,10.0.0.2\n", 1, "line 3: name edge-1 already exists"),
    ],
)
def test_nothing_of_a_file_is_stored_when_one_row_is_wrong(
    dcsync: Shell, tmp_path: Path, rows: str, code: int, words: str
) -> None:
    add(dcsync, "edge-1")
    file = tmp_path / "subclouds.csv"
    file.write_text(f"name,management_ip\n{rows}")
    told = dcsync("subcloud", "import", str(file))
    assert told.code == code
    assert words in told.err
    assert names(dcsync) == ["edge-1"]


def test_the_same_file_can_be_imported_again(dcsync: Shell, tmp_path: Path) -> None:
    file = tmp_path / "subclouds.csv"
    file.write_text("name,management_ip\na,10.0.0.1\nb,10.0.0.2\n")
    dcsync("subcloud", "import", str(file))
    file.write_text("name,management_ip\na,10.0.0.1\nb,10.0.0.9\nc,10.0.0.3\n")
    assert dcsync("subcloud", "import", str(file)).code == 1
    told = dcsync("subcloud", "import", "--skip-existing", str(file))
    assert (told.code, told.out) == (0, "1 subcloud added, unmanaged, 2 skipped\n")
    assert dcsync.inventory.find(["b"])[0].management_ip == "10.0.0.2"
    told = dcsync("subcloud", "import", "--update", str(file))
    assert (told.code, told.out) == (0, "1 changed, 2 unchanged\n")
    assert dcsync.inventory.find(["b"])[0].management_ip == "10.0.0.9"


def test_a_missing_file_is_a_usage_error(dcsync: Shell, tmp_path: Path) -> None:
    assert dcsync("subcloud", "import", str(tmp_path / "none.csv")).code == 2


# --- looking ---


def test_a_list_for_programs_has_the_pinned_keys(dcsync: Shell) -> None:
    add(dcsync, "edge-1", "edge-2")
    fail(dcsync, "edge-2")
    first, second = dcsync("subcloud", "list", "-o", "json").json
    assert set(first) >= PINNED_KEYS
    assert (first["retry_at"], first["reason"], first["subsequent_sync"]) == (None, None, False)
    assert first["sync_status"] == {"platform": "unknown", "identity": "unknown"}
    assert (second["initial_sync_state"], second["attempt"], second["reason"]) == ("failed", 2, "timeout")
    assert second["retry_at"] == "2026-01-31T12:00:40.000Z"
    assert "load" in second["advice"]


def test_an_empty_list_for_programs_is_an_empty_array(dcsync: Shell) -> None:
    assert dcsync("subcloud", "list", "-o", "json").json == []


def test_a_list_for_people_says_why_and_what_comes_next(dcsync: Shell) -> None:
    add(dcsync, "edge-1", "edge-2")
    fail(dcsync, "edge-2")
    told = dcsync("subcloud", "list")
    header, first, second = told.out.splitlines()
    assert header.split()[0] == "NAME"
    assert "dcsync subcloud manage edge-1" in first
    assert "timeout: GET /v3/users took 30 s; attempt 2, next try in 40 s" in second
    assert told.err == "2 subclouds: 1 failed, 1 none; 1 offline, 1 unmanaged\n"


def test_a_list_is_not_cut_and_carries_no_escapes_when_piped(dcsync: Shell) -> None:
    add(dcsync, "edge-" + "x" * 250)
    fail(dcsync, "edge-" + "x" * 250)
    dcsync.inventory.put("edge-" + "x" * 250, detail="a\x1b]0;owned\x07\u202eb\nc" + "y" * 300)
    told = dcsync("subcloud", "list")
    assert "\x1b" not in told.out
    assert "\u202e" not in told.out
    assert len(told.out.splitlines()) == 2
    assert "x" * 250 in told.out
    assert "y" * 300 in told.out


def test_a_list_can_be_narrowed_and_put_in_order(dcsync: Shell) -> None:
    add(dcsync, "a", "b", "c")
    fail(dcsync, "c")
    assert [k["name"] for k in dcsync("subcloud", "list", "-o", "json", "--state", "failed").json] == ["c"]
    assert [k["name"] for k in dcsync("subcloud", "list", "-o", "json", "--sort-by", "state").json] == ["c", "a", "b"]


def test_names_with_numbers_are_listed_as_people_count(dcsync: Shell) -> None:
    add(dcsync, "edge-10", "edge-9", "central", "edge-1a")
    assert [k["name"] for k in dcsync("subcloud", "list", "-o", "json").json] == [
        "central", "edge-1a", "edge-9", "edge-10",
    ]  # fmt: skip


def test_show_tells_reason_and_what_to_do(dcsync: Shell) -> None:
    add(dcsync, "edge-1")
    fail(dcsync, "edge-1")
    dcsync.inventory.put(
        "edge-1", sync_status={EndpointType.PLATFORM: SyncStatus.IN_SYNC, EndpointType.IDENTITY: SyncStatus.OUT_OF_SYNC}
    )
    told = dcsync("subcloud", "show", "edge-1")
    facts = dict(line.split("  ", 1) for line in told.out.splitlines())
    facts = {fact: value.strip() for fact, value in facts.items()}
    assert facts["reason"] == "timeout"
    assert "too slow" in facts["what to do"]
    assert facts["next try"] == "in 40 s"
    assert facts["identity"].startswith("unknown (timeout), verified 0.0 s ago; compared: users, groups, projects")
    assert facts["platform"] == "unknown (timeout), last in-sync 0.0 s ago; compared: the fernet keys"
    assert dcsync("subcloud", "show", "edge-1", "-o", "json").json["reason"] == "timeout"


@pytest.mark.parametrize(
    "command",
    [
        ("subcloud", "show"),
        ("subcloud", "delete"),
        ("subcloud", "manage"),
        ("subcloud", "unmanage"),
        ("sync",),
        ("history",),
        ("wait", "--for", "completed"),
        ("state", "availability", "online"),
    ],
)
def test_an_unknown_subcloud_is_exit_code_3(dcsync: Shell, command: tuple[str, ...]) -> None:
    told = dcsync(*command, "nowhere")
    assert (told.code, told.out) == (3, "")
    assert told.err == "dcsync: there is no subcloud named nowhere\n"


@pytest.mark.parametrize("group", [(), ("subcloud",), ("keys",)])
def test_a_group_without_a_command_shows_its_help_line_by_line(dcsync: Shell, group: tuple[str, ...]) -> None:
    told = dcsync(*group)
    assert told.code == 2
    assert told.err.splitlines()[0] == " ".join(["Usage: dcsync", *group, "[OPTIONS] COMMAND [ARGS]..."])
    assert "\\n" not in told.err


def test_an_error_in_json_mode_is_json(dcsync: Shell) -> None:
    told = dcsync("subcloud", "show", "nowhere", "-o", "json")
    assert told.out == ""
    assert json.loads(told.err) == {"error": "there is no subcloud named nowhere", "exit_code": 3}


@pytest.mark.parametrize(
    "arguments",
    [
        ("subcloud", "list", "--bogus", "-o", "json"),
        ("subcloud", "list", "-o", "json", "--bogus"),
        ("subcloud", "lost", "--output=json"),
        ("subcloud", "show", "--output", "json"),
    ],
)
def test_a_command_line_nobody_understands_is_answered_in_json(dcsync: Shell, arguments: tuple[str, ...]) -> None:
    told = dcsync(*arguments)
    assert (told.code, told.out) == (2, "")
    assert json.loads(told.err)["exit_code"] == 2


def test_a_usage_error_is_json_wherever_json_was_asked_for(dcsync: Shell) -> None:
    told = dcsync("subcloud", "list", "--state", "bogus", "-o", "json")
    assert (told.code, json.loads(told.err)["exit_code"]) == (2, 2)


# --- managing ---


def test_managing_wakes_the_workers_when_something_is_due(dcsync: Shell) -> None:
    add(dcsync, "a", "b")
    dcsync.inventory.put("a", availability_status=AvailabilityStatus.ONLINE)
    assert dcsync("subcloud", "manage", "--force", "a", "b").out.splitlines() == [
        "a is now managed; initial sync requested",
        "b is now managed; it is offline, its initial sync starts when it comes online",
    ]
    assert dcsync.operator.queue.sweeps == 1
    assert dcsync.inventory.history("a")[0].requests[0].requested_by == "eve"


@pytest.mark.parametrize("which", [("a", "b"), ("--all", "--yes")])
def test_an_offline_subcloud_is_not_managed_and_neither_are_the_others(dcsync: Shell, which: tuple[str, ...]) -> None:
    add(dcsync, "a", "b")
    dcsync.inventory.put("a", availability_status=AvailabilityStatus.ONLINE)
    told = dcsync("subcloud", "manage", *which)
    assert (told.code, told.out) == (5, "")
    assert re.fullmatch("dcsync: offline: b; nothing was changed: .* --force; .*\n", told.err)
    assert {known.management_state for known in dcsync.inventory.all()} == {ManagementState.UNMANAGED}
    assert dcsync.operator.queue.sweeps == 0


def test_offline_subclouds_that_are_managed_already_keep_nobody_from_being_managed(dcsync: Shell) -> None:
    add(dcsync, "a", "b")
    dcsync("subcloud", "manage", "--force", "b")
    dcsync.inventory.put("a", availability_status=AvailabilityStatus.ONLINE)
    assert dcsync("subcloud", "manage", "--all", "--yes").code == 0
    assert dcsync.inventory.find(["a"])[0].management_state is ManagementState.MANAGED


def test_managing_again_says_that_nothing_changed(dcsync: Shell) -> None:
    add(dcsync, "a")
    dcsync("subcloud", "manage", "a", "--force")
    told = dcsync("subcloud", "manage", "a")
    assert (told.code, told.out) == (0, "a was managed already\n")
    assert dcsync.operator.queue.sweeps == 0


def test_a_broker_that_is_away_after_the_commit_is_only_a_warning(dcsync: Shell) -> None:
    add(dcsync, "a")
    dcsync.inventory.put("a", availability_status=AvailabilityStatus.ONLINE)
    dcsync.operator.queue.is_away = True
    told = dcsync("subcloud", "manage", "a")
    assert told.code == 0
    assert "warning" in told.err
    assert dcsync.inventory.all()[0].initial_sync_state is InitialSyncState.REQUESTED


def test_a_large_fleet_is_told_in_counts(dcsync: Shell) -> None:
    add(dcsync, *(f"edge-{number}" for number in range(30)))
    for number in range(10):
        dcsync.inventory.put(f"edge-{number}", availability_status=AvailabilityStatus.ONLINE)
    dcsync("subcloud", "manage", "edge-29", "--force")
    assert dcsync("subcloud", "manage", "--all", "--force", "--yes").out == (
        "29 subclouds now managed, 1 managed already, 10 initial syncs requested, 19 wait to come online\n"
    )


@pytest.mark.parametrize("command", [("subcloud", "manage"), ("subcloud", "unmanage"), ("sync",)])
@pytest.mark.parametrize("arguments", [(), ("a", "--all")])
def test_names_and_all_exclude_each_other(dcsync: Shell, command: tuple[str, ...], arguments: tuple[str, ...]) -> None:
    add(dcsync, "a")
    assert dcsync(*command, *arguments).code == 2


def test_unmanaging_says_so(dcsync: Shell) -> None:
    add(dcsync, "a")
    dcsync("subcloud", "manage", "a", "--force")
    assert dcsync("subcloud", "unmanage", "a").out == "a is now unmanaged\n"


# --- asking back ---


def test_on_a_terminal_a_fleet_wide_command_asks_and_takes_no_for_an_answer(dcsync: Shell) -> None:
    add(dcsync, "a", "b")
    dcsync.at_a_terminal("n")
    told = dcsync("subcloud", "manage", "--all")
    assert told.code == 1
    assert "Manage 2 subclouds?" in told.err
    assert {known.management_state for known in dcsync.inventory.all()} == {ManagementState.UNMANAGED}


@pytest.mark.parametrize("yes", [True, False])
def test_a_delete_that_was_agreed_to_happens(dcsync: Shell, yes: bool) -> None:
    add(dcsync, "a")
    dcsync.at_a_terminal(*([] if yes else ["y"]))
    assert dcsync("subcloud", "delete", "a", *(["--yes"] if yes else [])).code == 0
    assert names(dcsync) == []


def test_a_question_that_nobody_answers_changes_nothing(dcsync: Shell) -> None:
    add(dcsync, "a")
    dcsync.at_a_terminal()
    assert dcsync("subcloud", "delete", "a").code == 130
    assert names(dcsync) == ["a"]


# --- where nobody can be asked ---

FLEET_WIDE = {
    "manage": ("subcloud", "manage", "--all", "--force"),
    "unmanage": ("subcloud", "unmanage", "--all"),
    "delete": ("subcloud", "delete", "a"),
    "sync": ("sync", "--all"),
    "audit": ("audit", "--all"),
    "sync-request": ("sync-request", "identity"),
    "availability": ("state", "availability", "offline", "--all"),
    "wait": ("wait", "--for", "in-sync", "--fresh"),
    "rotate": ("keys", "rotate", "--force"),
}


@pytest.mark.parametrize("command", FLEET_WIDE)
def test_what_concerns_the_fleet_or_destroys_needs_yes_where_nobody_can_be_asked(dcsync: Shell, command: str) -> None:
    dcsync.operator.audit_store = MemoryAuditStore()
    dcsync.operator.key_rotation_store = FakeRotationRequests()
    add(dcsync, "a", "b")
    before = (dcsync.inventory.all(), [], [*dcsync.inventory.operations])
    told = dcsync(*FLEET_WIDE[command])
    assert (told.code, told.out) == (2, "")
    assert "--yes" in told.err
    if command != "rotate":
        assert re.search(r"2 subclouds\?|Delete a ", told.err)
    assert (dcsync.inventory.all(), dcsync.operator.reports, dcsync.inventory.operations) == before


@pytest.mark.parametrize(
    ("command", "which"),
    [
        (("subcloud", "manage", "--all"), "edge-2 edge-10 / 2 subclouds would become managed, 1 already"),
        (("subcloud", "unmanage", "--all"), "edge-1 / 1 subcloud would become unmanaged, 2 already"),
        (("subcloud", "delete", "edge-10", "edge-2"), "edge-2 edge-10 / 2 subclouds would be deleted"),
        (("sync-request", "identity"), "edge-1 edge-2 edge-10 / 3 subclouds would be audited for identity"),
        (("state", "availability", "offline", "edge-1"), "edge-1 / 1 subcloud would be reported offline"),
        (("keys", "rotate", "--force"), "edge-1 / 1 subcloud would receive new keys"),
    ],
)
def test_a_dry_run_shows_how_many_and_which_and_changes_nothing(
    dcsync: Shell, command: tuple[str, ...], which: str
) -> None:
    dcsync.operator.audit_store = MemoryAuditStore()
    dcsync.operator.key_rotation_store = FakeRotationRequests()
    add(dcsync, "edge-10", "edge-2", "edge-1")
    dcsync.inventory.put(
        "edge-1",
        management_state=ManagementState.MANAGED,
        availability_status=AvailabilityStatus.ONLINE,
        initial_sync_state=InitialSyncState.COMPLETED,
    )
    before = dcsync.inventory.all()
    told = dcsync(*command, "--dry-run")
    assert told.code == 0
    assert f"{' '.join(told.out.split())} / {told.err.strip()}" == which
    assert (dcsync.inventory.all(), dcsync.operator.reports, dcsync.operator.queue.sweeps) == (before, [], 0)


def test_several_subclouds_are_deleted_or_none(dcsync: Shell) -> None:
    add(dcsync, "a", "b", "c")
    assert dcsync("subcloud", "delete", "a", "nowhere", "--yes").code == 3
    told = dcsync("subcloud", "delete", "b", "a", "--yes")
    assert (told.code, told.out.splitlines()) == (0, ["b deleted", "a deleted"])
    assert names(dcsync) == ["c"]


def test_the_status_of_several_subclouds_is_reported_at_once(dcsync: Shell) -> None:
    add(dcsync, "a", "b")
    told = dcsync("state", "endpoint", "a", "b", "firmware", "in-sync", "--no-wait")
    assert told.out.splitlines() == ["a: firmware reported in-sync", "b: firmware reported in-sync"]
    assert [report.region_name for report in dcsync.operator.reports] == ["a", "b"]
