"""The whole of dcsync against a real Keystone: real workers, beat and command line, a central cloud and its subclouds.

One dcsync brings them in line once, in `synced`; the tests then look at what is there, from all sides. What must hold
is `tests.real_cloud.checks`; that those checks fail on a subcloud not synced is shown in
`tests/integration/test_real_cloud.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dcsync.local.servers import EmbeddedPostgres, EmbeddedRedis
from tests.conftest import data_folder
from tests.processes import Processes, Running, wait_until
from tests.real_cloud import content
from tests.real_cloud.checks import Before, before, is_refused, problems
from tests.real_cloud.clouds import Cloud, RealClouds

pytestmark = [pytest.mark.keystone, pytest.mark.xdist_group("keystone"), pytest.mark.timeout(900)]

SUBCLOUDS = ("subcloud1", "subcloud2")
PATIENT = {
    "DCSYNC_PROBE_INTERVAL": "30",
    "DCSYNC_PROBE_TIMEOUT": "30",
    "DCSYNC_READ_TIMEOUT": "60",
    "DCSYNC_REQUEST_TIMEOUT": "60",
    "DCSYNC_RUN_DEADLINE": "240",
}
"""Three real Keystones on a busy machine take their time to answer, and one attempt is to be enough."""
WAIT_SECONDS = 240
UNALIGNED = "unaligned"


@dataclass(frozen=True)
class Synced:
    """Clouds after dcsync was there: what each subcloud was, and what dcsync says of it now."""

    clouds: RealClouds
    was: dict[str, Before]
    unaligned_keys: dict[str, str]
    listed: dict[str, dict[str, Any]]
    histories: dict[str, list[dict[str, Any]]]
    output: str


@pytest.fixture(scope="module")
def synced(real_cloud: RealClouds, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Synced]:
    """Two subclouds as deployment leaves them and one whose ids were never aligned, managed by an operator."""
    real_cloud.add_subcloud(UNALIGNED, aligned=False)
    was = {cloud.name: before(cloud) for cloud in real_cloud.subclouds}
    unaligned_keys = real_cloud[UNALIGNED].keys()
    folder = tmp_path_factory.mktemp("dcsync")
    with (
        data_folder() as servers,
        EmbeddedPostgres(servers, fast=True) as postgres,
        EmbeddedRedis(servers, fast=True) as redis,
        Processes(folder) as processes,
    ):
        environ = {
            **real_cloud.environment(),
            "DCSYNC_DATABASE_URL": postgres.url,
            "DCSYNC_REDIS_URL": redis.url,
            "DCSYNC_SWEEP_INTERVAL": "1",
            **PATIENT,
            # What an initial sync leaves, and not what the first audit makes of it: test_real_keystone_audit.py.
            "DCSYNC_AUDIT_INTERVAL": "0",
        }
        processes.cli("db", "upgrade", environ=environ, expect=0)
        running = start_dcsync(processes, environ, folder)
        manage(processes, environ, real_cloud)
        wait_for(processes, environ, "completed", *SUBCLOUDS)
        wait_until(
            lambda: listed(processes, environ)[UNALIGNED]["initial_sync_state"] == "failed",
            seconds=WAIT_SECONDS,
            what=lambda: f"the unaligned subcloud fails:\n{output_of(running)}",
        )
        histories = {
            name: json.loads(processes.cli("history", name, "-o", "json", environ=environ, expect=0).stdout)
            for name in (*SUBCLOUDS, UNALIGNED)
        }
        yield Synced(
            clouds=real_cloud,
            was=was,
            unaligned_keys=unaligned_keys,
            listed=listed(processes, environ),
            histories=histories,
            output=output_of(running),
        )


def start_dcsync(processes: Processes, environ: dict[str, str], folder: Path) -> list[Running]:
    """Workers for everything and one for state, as in production, and a beat."""
    common = ("-P", "threads", "-c", "8", "--without-gossip", "--without-mingle")
    sync = ("-Q", "control,sync,audit", "-n", "sync@%h", *common)
    state = ("-Q", "state", "-n", "state@%h", *common)
    return [
        processes.celery("worker", *sync, environ=environ, name="sync-worker", ready="ready."),
        processes.celery("worker", *state, environ=environ, name="state-worker", ready="ready."),
        processes.celery("beat", "-s", str(folder / "beat"), environ=environ, name="beat"),
    ]


def manage(processes: Processes, environ: dict[str, str], clouds: RealClouds) -> None:
    """Add them, and manage them once the probe has seen them."""
    for cloud in clouds.subclouds:
        where = ("--management-ip", cloud.address, "--region-name", cloud.region_name)
        processes.cli("subcloud", "add", cloud.name, *where, environ=environ, expect=0)
    names = [cloud.name for cloud in clouds.subclouds]
    wait_for(processes, environ, "online", *names)
    processes.cli("subcloud", "manage", *names, environ=environ, expect=0)


def wait_for(processes: Processes, environ: dict[str, str], goal: str, *names: str) -> None:
    """`dcsync wait --for GOAL`, which tells what keeps them from it."""
    patience = ("--timeout", str(WAIT_SECONDS))
    processes.cli("wait", "--for", goal, *names, *patience, environ=environ, seconds=WAIT_SECONDS + 60, expect=0)


def listed(processes: Processes, environ: dict[str, str]) -> dict[str, dict[str, Any]]:
    found = json.loads(processes.cli("subcloud", "list", "-o", "json", environ=environ, expect=0).stdout)
    return {entry["name"]: entry for entry in found}


def output_of(running: list[Running]) -> str:
    return "\n".join(f"--- {process.name}\n{process.output()}" for process in running)


@pytest.fixture(params=SUBCLOUDS)
def site(request: pytest.FixtureRequest, synced: Synced) -> Cloud:
    return synced.clouds[request.param]


@pytest.fixture
def was(site: Cloud, synced: Synced) -> Before:
    return synced.was[site.name]


def test_a_managed_subcloud_goes_from_added_to_completed(synced: Synced, site: Cloud) -> None:
    assert synced.listed[site.name]["initial_sync_state"] == "completed"
    assert synced.listed[site.name]["reason"] is None


def test_everything_that_must_hold_after_a_sync_holds(synced: Synced, site: Cloud, was: Before) -> None:
    assert problems(central=synced.clouds.central, site=site, was=was) == []


def test_tokens_of_the_subcloud_issued_before_are_refused(site: Cloud, was: Before) -> None:
    assert [user for user, token in was.tokens.items() if not is_refused(site, token)] == []


def test_a_user_logs_in_with_the_central_password_and_not_with_the_old_one(synced: Synced, site: Cloud) -> None:
    central = synced.clouds.central
    for user, project in (("vim", "services"), ("operator1", "lab")):
        assert site.login(user, central.password(user), project=project).status == 201
    assert site.login("vim").status == 401


def test_a_token_of_the_central_cloud_is_good_on_the_subcloud_and_the_other_way_round(
    synced: Synced, site: Cloud
) -> None:
    central = synced.clouds.central
    assert site.validate(central.token("barbican")).status == 200
    assert central.validate(site.token("barbican", central.password("barbican"))).status == 200


def test_a_role_still_lets_its_user_do_what_it_did(synced: Synced, site: Cloud) -> None:
    """barbican is admin in project services; central-only has no place here and gets none."""
    token = site.token("barbican", synced.clouds.central.password("barbican"))
    assert site.identity("GET", "roles/", token=token).status == 200
    assert site.fernet_repo(token=token).status == 200
    assert content.CENTRAL_USER not in site.ids("users")


def test_grants_by_name_and_ties_between_roles_are_as_before(site: Cloud, was: Before) -> None:
    assert site.grants_by_name() == was.grants
    assert site.implied_roles() == was.implied_roles


def test_a_member_whose_id_changed_is_still_in_its_groups(site: Cloud, was: Before) -> None:
    assert site.ids("users")["operator2"] != was.ids["users"]["operator2"]
    assert site.members() == was.members


def test_users_that_are_not_the_centres_business_are_untouched(site: Cloud, was: Before) -> None:
    for user, record in was.kept_users.items():
        assert site.user_record(user) == record, user


def test_the_key_files_are_the_centres_and_no_others(synced: Synced, site: Cloud) -> None:
    assert site.keys() == synced.clouds.central.keys()


def test_identity_is_written_before_keys_and_nothing_is_written_to_the_central_cloud(
    synced: Synced, site: Cloud
) -> None:
    services = [write.service for write in site.writes()]
    assert services.index("sysinv") > max(at for at, service in enumerate(services) if service == "dbsync")
    assert {write.status for write in site.writes()} <= {200, 201, 202}
    assert synced.clouds.central.writes() == []


def test_all_requests_of_a_run_carry_its_run_id(synced: Synced, site: Cloud) -> None:
    (attempt,) = synced.histories[site.name][0]["attempts"]
    assert {write.request_id for write in site.writes()} == {f"req-{attempt['run_id']}"}


def test_history_tells_the_steps_in_order(synced: Synced, site: Cloud) -> None:
    (attempt,) = synced.histories[site.name][0]["attempts"]
    assert [step["step"] for step in attempt["steps"]][:2] == ["identity", "fernet-keys"]


def test_an_unaligned_subcloud_fails_with_that_reason_and_nothing_is_written(synced: Synced) -> None:
    site, was = synced.clouds[UNALIGNED], synced.was[UNALIGNED]
    assert synced.listed[UNALIGNED]["initial_sync_state"] == "failed"
    assert synced.listed[UNALIGNED]["reason"] == "ids-not-aligned"
    assert site.writes() == []
    assert {kind: site.ids(kind) for kind in was.ids} == was.ids
    assert site.keys() == synced.unaligned_keys
    assert site.validate(was.tokens["barbican"]).status == 200


def test_no_password_key_hash_or_token_is_in_anything_dcsync_printed(synced: Synced) -> None:
    clouds = (synced.clouds.central, *synced.clouds.subclouds)
    secrets = {
        *(key for cloud in clouds for key in cloud.keys().values()),
        *(hash_ for cloud in clouds for hashes in cloud.password_hashes().values() for hash_ in hashes),
        *(cloud.password(user) for cloud in clouds for user in cloud.ids("users")),
        *(token for was in synced.was.values() for token in was.tokens.values()),
    }
    said = synced.output + json.dumps(synced.histories) + json.dumps(synced.listed)
    assert not [secret for secret in secrets if secret in said]
    assert "gAAAA" not in said
