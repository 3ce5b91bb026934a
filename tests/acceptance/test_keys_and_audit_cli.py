"""Audits, previews and key rotation as an operator has them: real processes, a fake cloud that tells what was done."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from dcsync.adapters.broker.locks import RedisLocks
from dcsync.fake_cloud.faults import Fault
from tests.system import FAST, PATIENCE, System, open_system, redis_client

pytestmark = [pytest.mark.xdist_group("audit-cli"), pytest.mark.timeout(600)]

SETTINGS = FAST | {
    "DCSYNC_AUDIT_INTERVAL": "86400",
    "DCSYNC_CENTRAL_WATCH_INTERVAL": "1",
    "DCSYNC_TOKEN_LIFETIME": "0",
}
"""Audits come round once a day: whatever is repaired here was asked for, or the central cloud changed."""
WAIT = ("--wait", *PATIENCE)


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with open_system(tmp_path_factory.mktemp("audited"), subclouds=12, settings=SETTINGS) as system:
        system.start_dcsync()
        names = system.add_online(count=6)
        system.manage(*names)
        system.until_at_rest(*names)
        yield system


@pytest.fixture
def name(system: System) -> str:
    """A subcloud that is as the central cloud wants it, at a time when nobody works on any."""
    chosen = "subcloud1"
    system.cloud.set_fault(chosen, None)
    system.until_central_cloud_is_seen()
    system.cli("audit", "--all", "--yes", *WAIT, "--allow-deletes")
    system.until_at_rest(*managed(system))
    assert system.cloud.state(chosen)["audited"]
    return chosen


def managed(system: System) -> list[str]:
    return [row.name for row in system.inventory.all() if row.management_state == "managed"]


def answer(system: System, *arguments: str) -> tuple[int, Any]:
    """Exit code, and what was printed as JSON."""
    done = call(system, *arguments, "-o", "json")
    return done.returncode, json.loads(done.stdout)


def call(system: System, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return system.processes.cli(*arguments, environ=system.environ | environ, expect=None)


# --- audit ---


def test_an_audit_repairs_what_it_finds_and_then_finds_nothing(system: System, name: str) -> None:
    system.cloud.drift(name, "set-password", user="barbican", password="Wrong-pw-1!")
    code, rows = answer(system, "audit", name, *WAIT)
    assert code == 0
    assert system.cloud.state(name)["audited"]
    (identity,) = [row for row in rows if row["endpoint_type"] == "identity"]
    assert identity["result"] == "in-sync"
    assert any("barbican" in difference and "password" in difference for difference in identity["differences"])
    again = call(system, "audit", name, *WAIT)
    assert (again.returncode, again.stdout) == (0, "1 subcloud in-sync, nothing was changed\n")


def test_a_partial_audit_repairs_its_part_only(system: System, name: str) -> None:
    system.cloud.drift(name, "set-password", user="barbican", password="Wrong-pw-1!")
    system.cloud.drift(name, "swap-keys")
    assert call(system, "audit", name, "--endpoint-type", "platform", *WAIT).returncode == 0
    left = system.cloud.state(name)["differences"]
    assert left
    assert all("barbican" in each for each in left)


def test_a_usage_error_names_types_that_do_not_fit(system: System) -> None:
    done = call(system, "audit", "subcloud1", "--endpoint-type", "platform", "--resource-type", "users")
    assert done.returncode == 2
    assert "users: not of endpoint type platform" in done.stderr


def test_a_request_for_one_endpoint_type_leaves_the_other_alone(system: System, name: str) -> None:
    system.cloud.drift(name, "swap-keys")
    assert call(system, "sync-request", "identity", "--all", "--yes", *WAIT).returncode == 0
    assert system.cloud.state(name)["differences"] == ["keys differ"]
    assert call(system, "sync-request", "platform", name, *WAIT).returncode == 0
    assert system.cloud.state(name)["audited"]


def test_an_unknown_subcloud_is_not_found(system: System) -> None:
    for command in (("audit", "nowhere"), ("diff", "nowhere"), ("sync-request", "identity", "nowhere")):
        assert call(system, *command).returncode == 3


def test_many_deletions_stop_for_an_explicit_yes(system: System, name: str) -> None:
    users = [f"passing-{number}" for number in range(6)]
    for user in users:
        system.cloud.change_central("add-user", user=user, password="Passing-pw-1!")
    assert call(system, "audit", "--all", "--yes", *WAIT).returncode == 0
    system.cloud.set_fault(name, Fault(kind="refuse"))  # until all are gone: else it would follow one by one
    for user in users:
        system.cloud.change_central("remove", type="users", name=user)
    system.cloud.set_fault(name, None)
    refused = call(system, "audit", name, *WAIT)
    assert refused.returncode == 5
    assert "guard-refused" in refused.stdout
    system.until_free(name)
    assert call(system, "diff", name).stdout.count("deleted centrally") == 6
    assert call(system, "audit", "--all", "--yes", "--allow-deletes", *WAIT).returncode == 0
    assert system.cloud.report()["audited"] >= 6


# --- seeing before acting ---


def test_a_diff_names_users_and_fields_and_no_secret_and_writes_nothing(system: System, name: str) -> None:
    assert call(system, "diff", name).returncode == 0
    system.cloud.drift(name, "set-password", user="barbican", password="Wrong-pw-1!")
    system.cloud.drift(name, "swap-keys")
    writes = system.writes(name)
    code, told = answer(system, "diff", name)
    assert (code, told["differs"], system.writes(name)) == (1, True, writes)
    (password,) = told["parts"]["identity"]["differences"]
    assert password.startswith("users barbican: password (")
    assert told["parts"]["identity"]["writes"] == ["PUT users barbican"]
    assert told["parts"]["platform"]["writes"] == ["POST fernet_repo"]
    text = call(system, "diff", name).stdout
    assert "$2" not in text + json.dumps(told), "a password hash begins so"
    assert "=" not in text, "a key ends so"
    code, told = answer(system, "diff", name, "--resource-type", "groups")
    assert (code, list(told["parts"])) == (0, ["identity"])


def test_a_dry_run_of_all_tells_each_and_writes_nothing(system: System, name: str) -> None:
    system.cloud.drift(name, "swap-keys")
    before = sum(system.cloud.report()["requests"].values()), system.writes(name)
    code, told = answer(system, "audit", "--all", "--dry-run")
    assert code == 1
    assert [each["name"] for each in told if each["differs"]] == [name]
    assert len(told) == 6
    assert system.writes(name) == before[1]


def test_a_sync_can_be_planned_before_it_is_done(system: System) -> None:
    (new,) = system.add_online(count=1)
    code, (told,) = answer(system, "sync", new, "--dry-run")
    assert code == 1
    assert any("barbican: user.id" in each for each in told["parts"]["initial sync"]["differences"])
    assert told["parts"]["initial sync"]["writes"][-1] == "POST fernet_repo"
    assert (told["differs"], told["writes"]) == (True, told["parts"]["initial sync"]["writes"])
    assert system.writes(new) == 0
    system.manage(new)
    try:
        system.until_at_rest(new)
        code, (told,) = answer(system, "sync", new, "--dry-run")
        assert (code, told["differs"], told["parts"]["initial sync"]["differences"]) == (1, True, [])
        before = system.writes(new)
        system.cli("sync", new, "--wait", *PATIENCE)
        system.until_at_rest(new)
        assert system.writes(new) - before == len(told["writes"]) == 4
    finally:
        system.unmanage(new)


def test_a_subcloud_that_is_being_worked_on_is_not_looked_at(system: System, name: str) -> None:
    with another_run_at(system, name):
        done = call(system, "diff", name)
    assert done.returncode == 5
    assert "run in progress" in done.stderr
    assert call(system, "diff", name).returncode == 0


@contextmanager
def another_run_at(system: System, name: str) -> Iterator[None]:
    with redis_client(system) as client:
        locks = RedisLocks(client, ttl_seconds=300)
        assert locks.acquire({"another run": name})
        try:
            yield
        finally:
            was_ours = locks.release({"another run": name})
            locks.close()
        assert was_ours, "the lock was not taken over"


def test_a_subcloud_that_does_not_answer_is_neither_equal_nor_different(system: System, name: str) -> None:
    system.cloud.set_fault(name, Fault(kind="refuse"))
    try:
        code, told = answer(system, "diff", name)
    finally:
        system.cloud.set_fault(name, None)
    assert (code, told["differs"]) == (4, None)
    assert "unreachable" in told["error"]


def test_a_diff_without_central_credentials_names_the_setting(system: System) -> None:
    environ = {name: value for name, value in system.environ.items() if name != "DCSYNC_PASSWORD"}
    done = system.processes.cli("diff", "subcloud1", environ=environ, expect=2)
    assert "DCSYNC_PASSWORD" in done.stderr


# --- keys ---


def test_a_rotation_reaches_every_site(system: System, name: str) -> None:
    before = answer(system, "keys", "show")[1]
    code, told = answer(system, "keys", "rotate", "--yes", "--max-in-flight", "2", *WAIT)
    assert code == 0
    assert told["fingerprint"] != before["fingerprint"]
    assert (told["state"], told["behind"], told["sites"]) == ("idle", 0, before["sites"])
    assert all(system.cloud.state(each)["keys_match"] for each in managed(system))
    shown = call(system, "keys", "show").stdout
    assert told["fingerprint"] in shown
    assert "=" not in shown


def test_a_second_rotation_within_the_life_of_a_token_is_refused(system: System, name: str) -> None:
    assert call(system, "keys", "rotate", "--yes", *WAIT).returncode == 0
    at_once = call(system, "keys", "rotate", "--yes", DCSYNC_TOKEN_LIFETIME="3600")
    assert at_once.returncode == 5
    assert "--force" in at_once.stderr


def test_a_central_change_arrives_by_itself(system: System, name: str) -> None:
    system.cloud.change_central("set-password", user="barbican", password="Newer-pw-1!")
    everybody = managed(system)
    system.until(lambda: all(system.cloud.state(each)["audited"] for each in everybody), "all have the new password")
