"""The real clouds are what they claim: Keystone behaves as recorded, and our endpoints on its tables as dcdbsync did.

Facts named K and R are those of docs/upstream/real-keystone.md sections 5 and 6. Each test gets a subcloud of its own.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tests.conftest import remove
from tests.processes import clean_environment, wait_until
from tests.real_cloud import content
from tests.real_cloud.by_hand import Operator
from tests.real_cloud.checks import before, is_refused, problems, records_by_name
from tests.real_cloud.clouds import Cloud, RealClouds, ask

pytestmark = [pytest.mark.keystone, pytest.mark.xdist_group("keystone")]

_numbers = itertools.count(1)


@pytest.fixture
def site(real_cloud: RealClouds) -> Cloud:
    return real_cloud.add_subcloud(f"site{next(_numbers)}")


@pytest.fixture
def central(real_cloud: RealClouds) -> Cloud:
    return real_cloud.central


@pytest.fixture
def operator(central: Cloud, site: Cloud) -> Operator:
    return Operator(central=central, site=site)


def running(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


# --- the clouds themselves


def test_deployment_aligned_the_ids_of_the_services_and_no_others(central: Cloud, site: Cloud) -> None:
    aligned = {
        kind: {name for name, id_ in site.ids(kind).items() if central.ids(kind).get(name) == id_}
        for kind in ("users", "groups", "projects", "roles")
    }
    assert aligned == {
        "users": set(content.ALIGNED_USERS),
        "projects": set(content.ALIGNED_PROJECTS),
        "groups": set(),
        "roles": set(),
    }


def test_the_central_catalog_names_dcdbsync_and_sysinv_for_region_one(central: Cloud) -> None:
    catalog = central.login("dcmanager").body["token"]["catalog"]
    endpoints = {
        (service["type"], endpoint["interface"]): endpoint["url"]
        for service in catalog
        for endpoint in service["endpoints"]
        if endpoint["region"] == content.CENTRAL_REGION
    }
    for interface in ("admin", "internal"):
        assert endpoints["dcorch-dbsync", interface] == central.urls["dbsync"]
        assert endpoints["platform", interface] == central.urls["sysinv"]


def test_the_checks_fail_before_the_sync_after_identity_alone_and_after_keys_alone(
    central: Cloud, site: Cloud, real_cloud: RealClouds, operator: Operator
) -> None:
    was = before(site)
    untouched = problems(central=central, site=site, was=was, patience=0)
    operator.align_identity()
    identity_alone = problems(central=central, site=site, was=was, patience=0)
    other = real_cloud.add_subcloud(f"site{next(_numbers)}")
    other_was = before(other)
    Operator(central=central, site=other).copy_keys()
    keys_alone = problems(central=central, site=other, was=other_was, patience=0)

    assert {"the key files differ", "the central password does not log in", "group members differ"} & set(untouched)
    assert "users barbican has the wrong id" in untouched
    assert "an old token of admin is still accepted" in untouched
    assert "the key files differ" in identity_alone
    assert "an old token of admin is still accepted" in identity_alone
    assert not any("wrong id" in problem for problem in identity_alone)
    assert "the key files differ" not in keys_alone
    assert "users barbican has the wrong id" in keys_alone
    assert "a central token of barbican is not accepted: 404" in keys_alone


def test_a_sync_by_hand_leaves_no_problem(central: Cloud, site: Cloud, operator: Operator) -> None:
    was = before(site)
    operator.align_identity()
    operator.copy_keys()
    assert problems(central=central, site=site, was=was) == []


def test_writes_are_seen_with_their_status_and_reads_are_not_among_them(site: Cloud, operator: Operator) -> None:
    operator.copy_keys()
    site.identity("GET", "users/")
    assert [(w.service, w.method, w.path, w.status) for w in site.writes()] == [
        ("sysinv", "POST", "/v1/fernet_repo", 201)
    ]


# --- Keystone: K1 to K8


def test_k1_keys_count_at_once_and_new_tokens_come_from_the_highest(
    central: Cloud, site: Cloud, operator: Operator
) -> None:
    old = site.token("fm")
    operator.copy_keys()
    assert is_refused(site, old)
    assert site.validate(site.token("fm")).status == 200
    assert site.keys() == central.keys()


def test_k2_after_the_sync_tokens_of_each_side_are_good_on_the_other(
    central: Cloud, site: Cloud, operator: Operator
) -> None:
    operator.align_identity()
    operator.copy_keys()
    theirs = site.validate(central.token("barbican"))
    assert theirs.status == 200
    assert {e["region"] for s in theirs.body["token"]["catalog"] for e in s["endpoints"]} == {site.region_name}
    ours = site.token("vim", central.password("vim"))
    assert central.validate(ours).status == 200


def test_k3_equal_keys_and_an_unknown_id_are_404_and_unequal_keys_401_or_404(
    central: Cloud, site: Cloud, operator: Operator
) -> None:
    token = central.token("barbican")
    assert site.validate(token, caller=token).status == 401
    assert site.validate(token).status == 404
    operator.copy_keys()
    answer = site.validate(token)
    assert answer.status == 404
    assert "Could not find user" in answer.body["error"]["message"]


def test_k4_and_k5_a_token_of_a_moved_user_is_404_until_the_keys_make_it_401(site: Cloud, operator: Operator) -> None:
    token = site.token("barbican")
    operator.align_identity()
    regions = f"{site.urls['keystone']}/regions"
    assert ask("GET", regions, token=token).status == 404
    operator.copy_keys()
    assert is_refused(site, token)


def test_k6_keys_alone_end_the_tokens_of_users_whose_ids_never_changed(site: Cloud, operator: Operator) -> None:
    token = site.token("admin", project="admin")
    operator.copy_keys()
    assert is_refused(site, token)


def test_k7_the_password_comes_with_the_record(central: Cloud, site: Cloud, operator: Operator) -> None:
    assert site.login("barbican", central.password("barbican")).status == 401
    operator.align_identity()
    operator.copy_keys()
    assert site.login("barbican", central.password("barbican")).status == 201
    assert site.login("barbican", site.password("barbican")).status == 401


def test_k8_and_k9_grants_follow_the_ids_and_a_new_role_id_breaks_no_token(site: Cloud, operator: Operator) -> None:
    grants = site.grants_by_name()
    token = site.token("dcmanager")
    for name in ("admin", "manager", "member", "reader"):
        assert operator.put("roles", name).status == 200
    assert site.grants_by_name() == grants
    assert site.validate(token).status == 200


def test_k12_five_wrong_passwords_lock_a_user_out(site: Cloud) -> None:
    for _ in range(5):
        assert site.login("vim", "Wrong-password-1!").status == 401
    assert site.login("vim").status == 401


# --- dcdbsync on real tables: R1 to R3, R7


def test_r1_without_aligned_ids_the_keys_cannot_be_delivered(central: Cloud, real_cloud: RealClouds) -> None:
    site = real_cloud.add_subcloud(f"unaligned{next(_numbers)}", aligned=False)
    assert site.fernet_repo(token=site.token("fm")).status == 200
    operator = Operator(central=central, site=site)
    assert operator.put("users", "sysinv").status == 200
    fresh = site.token("fm")
    assert site.validate(fresh).status == 200
    assert site.fernet_repo(token=fresh).status == 401
    keys = site.keys()
    assert site.fernet_repo("POST", token=fresh, body=central.fernet_repo().body["keys"]).status == 401
    assert site.keys() == keys


def test_r2_a_member_of_a_group_can_only_move_while_the_groups_are_empty(site: Cloud, operator: Operator) -> None:
    old_id = site.ids("users")["operator1"]
    refused = operator.put("users", "operator1")
    assert (refused.status, site.ids("users")["operator1"]) == (500, old_id)
    with_members = operator.put("groups", "ops")
    assert (with_members.status, site.members()["ops"]) == (500, {"admin", "operator1", "operator2"})
    assert operator.put("groups", "ops", local_user_ids=[]).status == 200
    assert operator.put("users", "operator1").status == 200


def test_r3_a_put_may_be_repeated_to_the_old_and_the_new_id(central: Cloud, site: Cloud, operator: Operator) -> None:
    for kind, name in (("users", "barbican"), ("projects", "lab"), ("roles", "reader")):
        old_id, body = site.ids(kind)[name], operator.wanted[kind][name]
        new_id = central.ids(kind)[name]
        statuses = [site.identity("PUT", f"{kind}/{id_}", body=body).status for id_ in (old_id, old_id, new_id)]
        assert statuses == [200, 200, 200]
        assert site.ids(kind)[name] == new_id


def test_r7_tied_roles_written_together_fail_sooner_or_later_and_a_repeat_mends_it(
    site: Cloud, operator: Operator
) -> None:
    """Back and forth between two sets of ids, all at once, until a 500 comes."""
    names = ("admin", "manager", "member", "reader")
    token, implied = operator.site_token, site.implied_roles()
    records = [operator.wanted["roles"], records_by_name(site, "roles", token=token)]

    def put(path: str, body: dict[str, object]) -> int:
        return site.identity("PUT", path, token=token, body=body).status

    seen: set[int] = set()
    deadline = time.monotonic() + 200
    with ThreadPoolExecutor(len(names)) as pool:
        for bodies in itertools.cycle(records):
            ids = site.ids("roles")
            paths = [f"roles/{ids[name]}" for name in names]
            seen |= set(pool.map(put, paths, [bodies[name] for name in names]))
            if 500 in seen or time.monotonic() > deadline:
                break
    assert seen == {200, 500}
    for name in names:
        assert operator.put("roles", name).status == 200
    assert site.implied_roles() == implied


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "users/0123456789abcdef", None, 404),
        ("GET", "cats/", None, 404),
        ("GET", "roles", None, 200),
        ("PUT", "users/", {"user": {}}, 400),
        ("PUT", "users/some-id", {}, 400),
        ("PUT", "users/some-id", {"user": {"id": "some-id"}}, 500),
        ("POST", "users/", {"user": {}, "local_user": {"name": ""}, "password": []}, 400),
        ("POST", "users/", {"user": {}}, 500),
        ("DELETE", "users/some-id", None, 404),
    ],
)
def test_dcdbsync_answers_with_the_recorded_status(
    real_cloud: RealClouds, method: str, path: str, body: object, status: int
) -> None:
    assert real_cloud["subcloud1"].identity(method, path, body=body).status == status


def test_dcdbsync_refuses_no_token_with_401_and_a_reader_who_writes_with_500(real_cloud: RealClouds) -> None:
    site = real_cloud["subcloud1"]
    reader = site.token("operator1", project="lab")
    role = {"role": {"id": "e" * 32, "name": "x", "extra": "{}", "domain_id": "<<null>>", "description": None}}
    assert site.identity("GET", "users/", token="nonsense").status == 401
    assert site.identity("GET", "roles/", token=reader).status == 200
    assert site.identity("POST", "roles/", token=reader, body=role).status == 500
    assert "x" not in site.ids("roles")


@pytest.mark.parametrize("change", [{"surprise": 1}, {"created_at": "no date"}])
def test_a_record_the_tables_refuse_is_500_and_changes_nothing(
    real_cloud: RealClouds, change: dict[str, object]
) -> None:
    site = real_cloud["subcloud1"]
    was = site.user_record("mtce")
    body = records_by_name(site, "users", token=site.token())["mtce"]
    refused = site.identity("PUT", f"users/{body['user']['id']}", body=body | {"user": body["user"] | change})
    assert (refused.status, site.user_record("mtce")) == (500, was)


# --- sysinv on the real key folder


def test_fernet_repo_takes_only_lists_of_keys_and_only_from_an_admin(site: Cloud) -> None:
    keys = site.keys()
    reader = site.token("operator1", project="admin")
    assert site.fernet_repo(token=reader).status == 200
    assert site.fernet_repo("PUT", token=reader, body=[{"id": 0, "key": "x"}]).status == 403
    assert site.fernet_repo("PUT", body={"keys": []}).status == 400
    assert site.fernet_repo("PUT", body=[{"id": "x", "key": "y"}]).status == 400
    assert site.keys() == keys


def test_a_post_without_keys_resets_the_repository(site: Cloud) -> None:
    keys = site.keys()
    assert site.fernet_repo("POST").status == 201
    assert site.keys().keys() == {"0", "1", "2"}
    assert not set(site.keys().values()) & set(keys.values())


def test_the_token_that_wrote_the_keys_is_dead_at_dcdbsync_and_sysinv_at_once(central: Cloud, site: Cloud) -> None:
    token = site.token("dcmanager")
    assert site.identity("GET", "roles/", token=token).status == 200
    assert site.fernet_repo("PUT", token=token, body=central.fernet_repo().body["keys"]).status == 202
    wait_until(
        lambda: {site.identity("GET", "roles/", token=token).status, site.fernet_repo(token=token).status} == {401},
        seconds=60,
        what="the token is refused",
    )


# --- leaving nothing behind


@pytest.fixture
def user_of_clouds(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has real clouds up and waits."""
    code = (
        "from tests.real_cloud.clouds import RealClouds\n"
        "import time\n"
        "with RealClouds(['one']) as clouds:\n"
        "    print(clouds.central.directory.parent, flush=True)\n"
        "    time.sleep(600)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=clean_environment(), cwd=tmp_path
    )
    yield process
    process.kill()
    process.wait()


@pytest.mark.usefixtures("real_cloud")
@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGKILL])
def test_killing_the_user_of_the_clouds_ends_them_and_removes_their_files(
    user_of_clouds: subprocess.Popen[str], signal_number: signal.Signals
) -> None:
    assert user_of_clouds.stdout is not None
    directory = Path(user_of_clouds.stdout.readline().strip())
    assert directory.is_dir()
    below = psutil.Process(user_of_clouds.pid).children(recursive=True)
    assert len(below) >= 4
    os.kill(user_of_clouds.pid, signal_number)
    wait_until(
        lambda: not any(map(running, below)) and not directory.exists(),
        seconds=60,
        what="everything is gone",
    )


@pytest.mark.usefixtures("real_cloud")
def test_killing_the_host_ends_its_children(user_of_clouds: subprocess.Popen[str]) -> None:
    assert user_of_clouds.stdout is not None
    directory = Path(user_of_clouds.stdout.readline().strip())
    (host,) = psutil.Process(user_of_clouds.pid).children()
    below = host.children(recursive=True)
    host.kill()
    wait_until(
        lambda: not any(map(running, below)),
        seconds=60,
        what="its children are gone",
    )
    user_of_clouds.terminate()
    user_of_clouds.wait(60)
    remove(directory)
