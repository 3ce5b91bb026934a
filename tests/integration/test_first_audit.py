"""An initial sync and the audit after it, over a fake cloud's HTTP: they agree on what is in line."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping

import pytest

from dcsync.adapters.cloud.clouds import HttpClouds
from dcsync.adapters.cloud.endpoints import CentralEndpoints, ServiceUrls
from dcsync.adapters.cloud.http import Limits
from dcsync.adapters.cloud.keystone import Credentials
from dcsync.fake_cloud.control import FakeCloud
from dcsync.initial_sync.steps import align_identity
from dcsync.model.identity import CentralData, NewIds, Placed
from dcsync.planner.match import Cloud
from dcsync.planner.plan import ALWAYS_WRITTEN_USERS, IdentityPlan, plan_audit
from dcsync.runs.delivery import read_cloud, replace_fernet_keys
from tests.builders import a_subcloud

LEVELS = ("country", "city", "district", "street")


@pytest.fixture
def fake() -> Iterator[FakeCloud]:
    """A central cloud whose every record has a namesake on its subcloud."""
    with FakeCloud.start(subclouds=1) as cloud:
        cloud.change_central("remove", type="users", name="central-only")
        cloud.change_central("remove", type="projects", name="central-lab")
        cloud.change_central("forget-events")
        yield cloud


@pytest.fixture
def clouds(fake: FakeCloud) -> HttpClouds:
    environ = fake.environment()
    return HttpClouds(
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


async def no_objection() -> None:
    return


async def first_audit(clouds: HttpClouds, place: Mapping[str, str]) -> IdentityPlan:
    """What an audit would write right after a completed initial sync."""
    central = await clouds.central_audit_data()
    kept: list[Placed] = []

    async def remember_placed(placed: Placed, new_ids: NewIds) -> None:
        kept.append(placed)

    async def remember_groups(groups: Mapping[str, tuple[str, ...]]) -> None:
        return

    known = a_subcloud(name=place["name"], region_name=place["region_name"], management_ip=place["management_ip"])
    async with clouds.subcloud(known, request_id="req-1") as session:
        await align_identity(
            session=session,
            central=central.records,
            region_name=known.region_name,
            groups_to_refill={},
            remember_groups=remember_groups,
            remember_placed=remember_placed,
            check_ownership=no_objection,
            users_at_once=4,
            always=ALWAYS_WRITTEN_USERS,
        )
        await replace_fernet_keys(session=session, keys=central.keys, check_ownership=no_objection)
        return plan_audit(
            central=_audited(central),
            subcloud=await read_cloud(session),
            region_name=known.region_name,
            placed=kept[-1],
        )


def _audited(central: CentralData) -> Cloud:
    return Cloud(central.records, central.assignments, central.revocation_events)


async def test_the_first_audit_of_a_new_subcloud_writes_nothing(fake: FakeCloud, clouds: HttpClouds) -> None:
    """Columns differ as they do in the field: what each deployment wrote into its own projects, and a user's state."""
    (place,) = fake.subclouds()
    name = place["name"]
    for project in ("admin", "services"):
        fake.drift(name, "set-column", type="projects", name=project, column="description", value=f"made by {name}")
    fake.drift(name, "set-enabled", user="vim", enabled=False)
    fake.drift(name, "set-column", type="groups", name="ops", column="description", value="ours")
    found = await first_audit(clouds, place)
    assert [str(each) for each in found.differences] == []
    assert found.words == ()


async def test_a_tree_of_projects_listed_children_first_is_given_its_ids_and_the_first_audit_writes_nothing(
    fake: FakeCloud, clouds: HttpClouds
) -> None:
    (place,) = fake.subclouds()
    name = place["name"]
    for project, parent in zip(LEVELS, (None, *LEVELS), strict=False):
        fake.change_central("add-project", project=project, parent=parent)
        fake.drift(name, "add-project", project=project, parent=parent)
    for project in reversed(LEVELS):  # Whatever takes an id moves to the end of the list.
        fake.drift(name, "move-id", type="projects", name=project)
    found = await first_audit(clouds, place)
    assert found.words == ()


async def test_what_the_subcloud_lacks_is_all_the_first_audit_creates(fake: FakeCloud, clouds: HttpClouds) -> None:
    (place,) = fake.subclouds()
    fake.change_central("add-user", user="newcomer", password="Newcomer-pw-1!")
    found = await first_audit(clouds, place)
    assert found.words == ("POST users newcomer",)
