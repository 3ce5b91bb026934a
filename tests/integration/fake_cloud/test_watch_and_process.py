"""What the watchman counts over HTTP, changes and drift, and the process itself."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from dcsync.fake_cloud.control import FakeCloud
from dcsync.fake_cloud.faults import Fault
from tests.integration.fake_cloud.client import AT_ONCE, Client, Run, id_of
from tests.processes import wait_until

_DEADLINE = 60.0
_START_CPU_SECONDS = 2.0


def test_an_empty_post_resets_the_keys_and_is_counted(fake: FakeCloud, run: Run, region: str) -> None:
    before = run.site.fernet_keys()
    assert run.site.ask("POST", "/v1/fernet_repo").status == 201
    assert run.site.log_in().status == 201
    assert run.site.fernet_keys() != before
    assert fake.state(region)["violations"]["keys-reset"] == 1


def test_two_runs_in_turn_are_fine_and_in_between_are_not(
    fake: FakeCloud, region: str, begin: Callable[[str], Run]
) -> None:
    first, second = begin(region), begin(region)
    (vim_id, vim), (sysinv_id, sysinv) = (
        next(item for item in first.due("users") if item[1]["local_user"]["name"] == name) for name in ("vim", "sysinv")
    )
    assert first.site.put("users", vim_id, vim).status == 200
    assert second.site.put("users", sysinv_id, sysinv).status == 200
    assert fake.state(region)["violations"] == {}
    assert first.site.put("users", sysinv_id, sysinv).status == 200
    assert fake.state(region)["violations"] == {"overlapping-runs": 1}


def test_two_runs_writing_at_the_same_moment_are_counted(
    fake: FakeCloud, region: str, begin: Callable[[str], Run]
) -> None:
    first, second = begin(region), begin(region)
    due = [item for item in first.due("users") if item[1]["local_user"]["name"] in ("vim", "sysinv")]
    fake.set_fault(region, Fault("latency", verb="write", seconds=AT_ONCE))
    for run, item in zip((first, second), due, strict=True):
        run.site.send_put("users", *item)
    assert [run.site.answer().status for run in (first, second)] == [200, 200]
    assert fake.state(region)["violations"] == {"overlapping-runs": 1}


def test_a_write_after_the_keys_were_verified_is_counted(fake: FakeCloud, run: Run, region: str) -> None:
    run.whole()
    user_id, admin = next(item for item in run.due("users") if item[1]["local_user"]["name"] == "admin")
    assert run.site.put("users", user_id, admin).status == 200
    assert fake.state(region)["violations"] == {"write-after-completion": 1}


@pytest.mark.parametrize("name", ["sub-only", "fm"])
def test_a_write_to_a_record_that_is_the_sites_own_is_counted(
    fake: FakeCloud, run: Run, region: str, name: str
) -> None:
    record = run.site.records("users")[name]
    changed = record | {"user": record["user"] | {"extra": '{"touched": true}'}}
    assert run.site.put("users", id_of("users", record), changed).status == 200
    state = fake.state(region)
    assert state["violations"] == {"site-record-written": 1}
    assert not state["untouched"]
    assert f"user {name}: changed" in state["problems"]


@pytest.mark.parametrize(
    ("type_", "name"), [("users", "sub-only"), ("users", "vim"), ("groups", "ops"), ("projects", "site-lab")]
)
def test_deleting_what_is_not_or_is_still_the_centres_is_counted(
    fake: FakeCloud, run: Run, region: str, type_: str, name: str
) -> None:
    id_ = id_of(type_, run.site.records(type_)[name])
    assert run.site.ask("DELETE", f"/v3/{type_}/{id_}").status == 204
    assert fake.state(region)["violations"] == {"wrongly-deleted": 1}
    assert run.site.ask("DELETE", f"/v3/{type_}/{id_}").status == 404
    assert fake.state(region)["violations"] == {"wrongly-deleted": 1}


def test_deleting_and_revoking_what_the_central_cloud_gave_and_took_back_is_no_violation() -> None:
    with FakeCloud.start(subclouds=1) as cloud:
        run = Run.at(cloud, "subcloud1")
        run.whole()
        user_id, reader, admin = (
            id_of(type_, run.site.records(type_)[name])
            for type_, name in (("users", "operator1"), ("roles", "reader"), ("projects", "admin"))
        )
        path = f"/v3/projects/{admin}/users/{user_id}/roles/{reader}"
        again = Run.at(cloud, "subcloud1")
        assert again.site.ask("DELETE", path).status == 204
        assert again.site.ask("DELETE", path).status == 404
        assert cloud.state("subcloud1")["violations"] == {"wrongly-deleted": 1}
        assert again.site.ask("PUT", path).status == 204
        cloud.change_central("revoke", user="operator1", project="admin", role="reader")
        assert "assignment user operator1 admin reader: still there" in cloud.state("subcloud1")["differences"]
        assert again.site.ask("DELETE", path).status == 204
        cloud.change_central("remove", type="users", name="operator1")
        assert again.site.ask("DELETE", f"/v3/users/{user_id}").status == 204
        state = cloud.state("subcloud1")
        assert state["violations"] == {"wrongly-deleted": 1}
        assert (state["untouched"], state["assignments_kept"], state["audited"]) == (True, True, False)
        assert cloud.report()["differences"] == {"subcloud1": state["differences"]}
        run.close()
        again.close()


def test_requests_are_counted_and_remembered_with_their_run(fake: FakeCloud, run: Run, region: str) -> None:
    run.site.ask("GET", "/v1.0/identity/users/0123")
    state = fake.state(region)
    assert state["requests"] == {"POST keystone auth": 1, "GET dbsync users": 1}
    assert (state["recent"][-1]["status"], state["recent"][-1]["request_id"]) == (404, run.site.request_id)


def test_a_site_group_is_judged_by_its_members_names(fake: FakeCloud, run: Run, region: str) -> None:
    fake.drift(region, "set-members", group="site-ops", members=["sub-only"])
    assert fake.state(region)["untouched"]
    fake.drift(region, "set-members", group="site-ops", members=[])
    assert not fake.state(region)["untouched"]


def test_drift_is_seen_and_redeploying_undoes_everything(fake: FakeCloud, run: Run, region: str) -> None:
    run.whole()
    fake.drift(region, "move-id", type="users", name="barbican")
    fake.drift(region, "replace-keys")
    fake.drift(region, "revoke", user="barbican", project="services", role="admin")
    state = fake.state(region)
    assert (state["aligned"], state["keys_match"], state["assignments_kept"]) == (False, False, False)
    assert "user barbican: id differs" in state["problems"]
    fake.drift(region, "redeploy")
    assert fake.state(region)["untouched"]
    assert fake.state(region)["assignments_kept"]


def test_changes_of_the_central_cloud_show_at_every_subcloud() -> None:
    with FakeCloud.start(subclouds=2) as cloud:
        for region in ("subcloud1", "subcloud2"):
            run = Run.at(cloud, region)
            run.whole()
            run.close()
        assert cloud.report()["good"] == 2
        cloud.change_central("rotate-keys")
        cloud.change_central("set-password", user="barbican", password="New-pw-1!")
        report = cloud.report()
        assert (report["aligned"], report["keys_match"], report["untouched"], report["good"]) == (0, 0, 2, 0)
        central = Client(cloud.central_ip, cloud.port)
        assert central.log_in("barbican", "New-pw-1!").status == 201
        assert central.log_in().status == 201
        assert [row["id"] for row in central.fernet_keys()] == [0, 3, 4]
        cloud.change_central("hide", list="users")
        cloud.change_central("hide", list="keys")
        assert central.records("users") == {}
        assert central.fernet_keys() == []
        cloud.change_central("show")
        assert "barbican" in central.records("users")
        central.close()
        with pytest.raises(ValueError, match="unknown action"):
            cloud.change_central("paint")


def test_the_same_seed_gives_the_same_ids_and_another_seed_others() -> None:
    seen = []
    for seed in (5, 5, 6):
        with FakeCloud.start(subclouds=1, seed=seed) as cloud:
            run = Run.at(cloud, "subcloud1")
            seen.append({name: id_of("users", row) for name, row in run.site.records("users").items()})
            run.close()
    assert seen[0] == seen[1] != seen[2]


def test_a_thousand_subclouds_cost_little_to_start() -> None:
    with FakeCloud.start(subclouds=1000) as cloud:
        spent = psutil.Process(cloud.pid).cpu_times()
        assert spent.user + spent.system < _START_CPU_SECONDS
        last = cloud.subclouds()[-1]
        assert (last["name"], last["management_ip"]) == ("subcloud1000", "127.1.3.232")
        client = Client(last["management_ip"], cloud.port)
        assert client.log_in().status == 201
        client.close()


def test_two_fake_clouds_live_side_by_side(fake: FakeCloud) -> None:
    with FakeCloud.start(subclouds=2) as second:
        assert second.port != fake.port
        assert second.environment()["DCSYNC_CENTRAL_AUTH_URL"] == f"http://127.0.10.1:{second.port}/v3"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(number: signal.Signals) -> None:
    command = [sys.executable, "-m", "dcsync.fake_cloud", "--subclouds", "1"]
    root = str(Path(__file__).parents[3])
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=root)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(number)
    _, errors = process.communicate(timeout=_DEADLINE)
    assert (process.returncode, errors) == (0, b"")


def test_it_ends_when_who_started_it_is_killed() -> None:
    script = (
        "import sys, time; from dcsync.fake_cloud.control import FakeCloud; "
        "cloud = FakeCloud.start(subclouds=1); print(cloud.pid, flush=True); time.sleep(60)"
    )
    root = str(Path(__file__).parents[3])
    starter = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=root)
    assert starter.stdout is not None
    pid = int(starter.stdout.readline())
    starter.kill()
    starter.wait(_DEADLINE)
    starter.stdout.close()

    def is_gone() -> bool:
        try:
            return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    wait_until(is_gone, seconds=_DEADLINE, what="the fake cloud is gone")
