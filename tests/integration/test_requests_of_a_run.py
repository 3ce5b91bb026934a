"""How many requests an initial sync and its first audit cost a subcloud, counted by a fake cloud over HTTP."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

import pytest

from dcsync.adapters.cloud.clouds import HttpClouds
from dcsync.adapters.cloud.endpoints import CentralEndpoints, ServiceUrls
from dcsync.adapters.cloud.http import Limits
from dcsync.adapters.cloud.keystone import Credentials
from dcsync.fake_cloud.control import FakeCloud
from tests.builders import a_subcloud
from tests.one_run import OneWorker


@pytest.fixture
def fake() -> Iterator[FakeCloud]:
    """A central cloud whose every record has a namesake on its subcloud."""
    with FakeCloud.start(subclouds=1) as cloud:
        cloud.change_central("remove", type="users", name="central-only")
        cloud.change_central("remove", type="projects", name="central-lab")
        cloud.change_central("forget-events")
        yield cloud


@pytest.fixture
def worker(fake: FakeCloud) -> OneWorker:
    environ = fake.environment()
    clouds = HttpClouds(
        credentials=Credentials(
            username=environ["DCSYNC_USERNAME"],
            password=environ["DCSYNC_PASSWORD"],
            project_name=environ["DCSYNC_PROJECT_NAME"],
            user_domain_name="Default",
            project_domain_name="Default",
        ),
        central=CentralEndpoints(auth=environ["DCSYNC_CENTRAL_AUTH_URL"], region="RegionOne"),
        subcloud_templates=ServiceUrls(
            auth=environ["DCSYNC_SUBCLOUD_AUTH_URL"],
            dbsync=environ["DCSYNC_SUBCLOUD_DBSYNC_URL"],
            sysinv=environ["DCSYNC_SUBCLOUD_SYSINV_URL"],
        ),
        allowed_networks=[ipaddress.ip_network("127.0.0.0/8")],
        limits=Limits(connect_timeout=60, read_timeout=60, request_timeout=120),
        max_age=0,
    )
    (place,) = fake.subclouds()
    known = a_subcloud(name=place["name"], region_name=place["region_name"], management_ip=place["management_ip"])
    return OneWorker(clouds, known)


def counted(fake: FakeCloud, worker: OneWorker) -> tuple[int, int]:
    """Requests so far, and writes that were carried out."""
    state = fake.state(worker.region_name)
    return sum(state["requests"].values()), sum(state["carried_out"].values())


async def cost(fake: FakeCloud, worker: OneWorker) -> tuple[int, int]:
    """Requests and writes of the next run, which completes and finds everything in sync."""
    before = counted(fake, worker)
    await worker.run()
    assert worker.endings == [("initial sync", "completed"), ("audit", "done")]
    assert not worker.told[-1][1].is_failure
    requests, writes = counted(fake, worker)
    return requests - before[0], writes - before[1]


async def test_proof_costs_no_more_requests_than_an_initial_sync_and_an_audit_apart(
    fake: FakeCloud, worker: OneWorker
) -> None:
    """Apart, with a login and a reading for each, they cost 32, 12 and 19 requests, and a key set at each return."""
    assert await cost(fake, worker) == (30, 17), "a new subcloud"
    worker.returns()
    assert await cost(fake, worker) == (8, 0), "one that comes back unchanged"
    worker.asked_for()
    assert await cost(fake, worker) == (17, 4), "one whose sync an operator requested"
    state = fake.state(worker.region_name)
    assert (state["violations"], state["audited"]) == ({}, True)
