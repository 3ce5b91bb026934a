"""What is shown of a managed subcloud that fails, or that was reinstalled while it was away, with real Keystones.

dcsync knows one subcloud. Its address is moved to another cloud behind dcsync's back, which is what a reinstallation
looks like from the central cloud: the same row, and at the other end ids and keys of a new deployment.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import update

from dcsync.adapters.postgres.database import make_engine
from dcsync.adapters.postgres.tables import subcloud
from dcsync.local.servers import EmbeddedPostgres, EmbeddedRedis
from tests.acceptance.test_real_keystone import PATIENT, WAIT_SECONDS, output_of, start_dcsync, wait_for
from tests.conftest import data_folder
from tests.processes import Processes, Running, wait_until
from tests.real_cloud.checks import before, problems
from tests.real_cloud.clouds import Cloud, RealClouds

pytestmark = [pytest.mark.keystone, pytest.mark.xdist_group("keystone"), pytest.mark.timeout(900)]

NAME, REINSTALLED, UNALIGNED = "subcloud1", "subcloud2", "unaligned"


@dataclass(frozen=True)
class Managed:
    """One subcloud that a running dcsync has completed."""

    clouds: RealClouds
    processes: Processes
    environ: dict[str, str]
    running: list[Running]

    def cli(self, *arguments: str, expect: int = 0) -> str:
        return self.processes.cli(*arguments, environ=self.environ, expect=expect, seconds=WAIT_SECONDS + 60).stdout

    def shown(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.cli("subcloud", "show", NAME, "-o", "json"))
        return found

    def returns_as(self, site: Cloud) -> None:
        """It is reported offline, is another cloud from then on, and is reported online."""
        self.cli("state", "availability", "offline", NAME)
        engine = make_engine(self.environ["DCSYNC_DATABASE_URL"])
        with engine.begin() as connection:
            moved = update(subcloud).where(subcloud.c.name == NAME).values(management_ip=site.address)
            assert connection.execute(moved).rowcount == 1
        engine.dispose()
        assert self.shown()["subsequent_sync"]
        self.cli("state", "availability", "online", NAME)


@pytest.fixture(scope="module")
def managed(real_cloud: RealClouds, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Managed]:
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
            "DCSYNC_PROBE_INTERVAL": "0",
            "DCSYNC_CENTRAL_MAX_AGE": "1",
            # An audit, which adds what only the central cloud has, is made where a test requests it.
            "DCSYNC_AUDIT_INTERVAL": "0",
            "DCSYNC_HOLD_OFF": "1",
        }
        processes.cli("db", "upgrade", environ=environ, expect=0)
        managed = Managed(real_cloud, processes, environ, start_dcsync(processes, environ, folder))
        managed.cli("subcloud", "add", NAME, "--management-ip", real_cloud[NAME].address)
        managed.cli("state", "availability", "online", NAME)
        managed.cli("subcloud", "manage", NAME)
        wait_for(processes, environ, "completed", NAME)
        yield managed


def test_it_gets_its_ids_before_its_keys_and_is_completed(managed: Managed) -> None:
    site = managed.clouds[REINSTALLED]
    was = before(site)
    managed.returns_as(site)
    wait_for(managed.processes, managed.environ, "completed", NAME)
    assert problems(central=managed.clouds.central, site=site, was=was) == []
    services = [write.service for write in site.writes()]
    first_key = services.index("sysinv")
    assert services[:first_key] == ["dbsync"] * first_key
    assert first_key, "ids were written, and before the keys"
    assert site.keys() == managed.clouds.central.keys()


def test_what_was_asked_for_and_fails_is_not_in_sync(managed: Managed) -> None:
    """Its sysinv answers 500: what was asked for is not known to have arrived, whatever was known before."""
    site, patience = managed.clouds[NAME], ("--timeout", str(WAIT_SECONDS))
    managed.returns_as(site)
    managed.cli("wait", "--for", "completed", NAME, *patience)
    managed.cli("wait", "--for", "in-sync", NAME, "--fresh", *patience)
    before_it = managed.shown()["last_good_at"]
    site.fail_sysinv(True)
    managed.cli("sync", NAME)
    wait_until(
        lambda: managed.shown()["initial_sync_state"] == "failed",
        seconds=WAIT_SECONDS,
        what=lambda: f"the run fails:\n{output_of(managed.running)[-8000:]}",
    )
    shown = managed.shown()
    assert shown["sync_status"] == {"platform": "unknown", "identity": "unknown"}
    assert shown["last_good_at"] == before_it
    managed.cli("wait", "--for", "in-sync", NAME, "--timeout", "5", expect=1)
    assert set(managed.shown()["sync_status"].values()) == {"unknown"}
    site.fail_sysinv(False)
    managed.cli("wait", "--for", "completed", NAME, *patience)
    managed.cli("wait", "--for", "in-sync", NAME, "--fresh", *patience)
    assert set(managed.shown()["sync_status"].values()) == {"in-sync"}


def test_with_service_ids_of_its_own_it_fails_and_is_not_written(managed: Managed) -> None:
    site = managed.clouds.add_subcloud(UNALIGNED, aligned=False)
    keys = site.keys()
    managed.returns_as(site)
    wait_until(
        lambda: managed.shown()["initial_sync_state"] in ("failed", "completed"),
        seconds=WAIT_SECONDS,
        what=lambda: f"the run ends:\n{output_of(managed.running)[-8000:]}",
    )
    shown = managed.shown()
    assert (shown["initial_sync_state"], shown["reason"]) == ("failed", "ids-not-aligned")
    assert site.writes() == []
    assert site.keys() == keys
