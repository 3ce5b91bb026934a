"""What the steps rely on when they talk to clouds through the ports of `runs.clouds`, held to by every backend.

A backend is clouds that run: the fake ones, and a real Keystone with our dcdbsync on its tables, both through
`HttpClouds`. To add one, write a module-scoped fixture that yields a `Backend` and put its name into `BACKENDS`.
The memory cloud of the unit tests stands beside them in every test that is not about HTTP, logins or tokens.

A backend must hold users barbican, operator1 (a member of group ops) and dcmanager, roles reader and member, with ids
of their own on each subcloud but for what deployment aligns. Only facts that hold on all backends stand here, so no
test asks a service's middleware about a dead token (it may serve it from its cache for minutes: R4), and an answer
that one stale thread of Keystone may delay (docs/upstream/recorded-traffic.md 13) is waited for with a deadline.
"""

from __future__ import annotations

import asyncio
import dataclasses
import ipaddress
import json
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import pytest

from dcsync.adapters.cloud.clouds import HttpClouds
from dcsync.adapters.cloud.endpoints import CentralEndpoints, ServiceUrls
from dcsync.adapters.cloud.http import Limits
from dcsync.adapters.cloud.keystone import Credentials
from dcsync.fake_cloud.control import FakeCloud
from dcsync.fake_cloud.deployment import ALIGNED
from dcsync.model.errors import CloudError
from dcsync.model.identity import (
    ActorType,
    Assignment,
    CentralData,
    FernetKeys,
    Record,
    ResourceType,
    RevocationEvent,
    fingerprint,
    record_from_body,
    revocation_event,
)
from dcsync.model.reasons import Reason
from dcsync.model.subcloud import Subcloud
from dcsync.planner.match import Cloud
from dcsync.planner.passwords import NOBODYS_HASH, created
from dcsync.runs.clouds import Clouds, FernetRepo, IdentityService, KeystoneService, SubcloudSession
from tests.builders import a_group as group_of
from tests.builders import a_role as role_of
from tests.builders import a_subcloud, central_data, records, some_keys
from tests.builders import a_user as user_of
from tests.contract.held import Held
from tests.memory_clouds import MemoryClouds, MemoryFernetRepo, MemoryKeystone, MemorySite
from tests.real_cloud.clouds import RealClouds

HELD = (
    Held(MemoryClouds, Clouds),
    Held(MemorySite, SubcloudSession, IdentityService),
    Held(MemoryKeystone, KeystoneService),
    Held(MemoryFernetRepo, FernetRepo),
)

BACKENDS = (
    "fake_backend",
    pytest.param("real_backend", marks=[pytest.mark.keystone, pytest.mark.xdist_group("keystone")]),
)
UNTOUCHED_SUBCLOUDS = 34
"""How many a backend must be able to hand out."""

USERS, GROUPS, PROJECTS, ROLES = ResourceType


class Backend(Protocol):
    """Running clouds."""

    def environment(self) -> Mapping[str, str]:
        """The DCSYNC_ variables of a dcsync that looks after them."""

    def untouched(self) -> tuple[str, str]:
        """Region name and management IP of a subcloud no test has written to; another one at each call."""

    def password(self, cloud: str, user: str) -> str:
        """What opened `user` on "central" or on a region before anything was written."""


class FakeBackend:
    def __init__(self, cloud: FakeCloud) -> None:
        self._cloud = cloud
        self._left = [(found["region_name"], found["management_ip"]) for found in cloud.subclouds()]

    def environment(self) -> Mapping[str, str]:
        return self._cloud.environment()

    def untouched(self) -> tuple[str, str]:
        return self._left.pop()

    def password(self, cloud: str, user: str) -> str:
        side = "Peer" if user in ALIGNED else "Central" if cloud == "central" else "Subcloud"
        return f"{side}-{user}-pw-1!"


@pytest.fixture(scope="module")
def fake_backend() -> Iterator[Backend]:
    with FakeCloud.start(subclouds=UNTOUCHED_SUBCLOUDS) as cloud:
        yield FakeBackend(cloud)


class RealBackend:
    def __init__(self, clouds: RealClouds) -> None:
        self._clouds = clouds

    def environment(self) -> Mapping[str, str]:
        return self._clouds.environment()

    def untouched(self) -> tuple[str, str]:
        site = self._clouds.add_subcloud(f"untouched{len(self._clouds.subclouds)}")
        return site.region_name, site.address

    def password(self, cloud: str, user: str) -> str:
        return self._clouds[cloud].password(user)


@pytest.fixture(scope="module")
def real_backend(real_cloud: RealClouds) -> Backend:
    return RealBackend(real_cloud)


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    found: Backend = request.getfixturevalue(request.param)
    return found


def clouds_of(
    backend: Backend, *, previous_password: Callable[[], str] | None = None, **credentials: str
) -> HttpClouds:
    environ = backend.environment()
    login = {
        "username": environ["DCSYNC_USERNAME"],
        "password": environ["DCSYNC_PASSWORD"],
        "project_name": environ["DCSYNC_PROJECT_NAME"],
    }
    return HttpClouds(
        credentials=Credentials(**login | credentials, user_domain_name="Default", project_domain_name="Default"),
        previous_password=previous_password,
        central=CentralEndpoints(auth=environ["DCSYNC_CENTRAL_AUTH_URL"], region="RegionOne"),
        subcloud_templates=ServiceUrls(
            auth=environ["DCSYNC_SUBCLOUD_AUTH_URL"],
            dbsync=environ["DCSYNC_SUBCLOUD_DBSYNC_URL"],
            sysinv=environ["DCSYNC_SUBCLOUD_SYSINV_URL"],
        ),
        allowed_networks=[ipaddress.ip_network("127.0.0.0/8")],
        limits=Limits(connect_timeout=60, read_timeout=60, request_timeout=120),
        max_age=600,
    )


@pytest.fixture
def http_clouds(backend: Backend) -> HttpClouds:
    return clouds_of(backend)


def memory_clouds() -> MemoryClouds:
    """A central cloud and one subcloud with what a backend must hold."""
    return MemoryClouds(
        central=_content("c", central_only="central-only"),
        site=MemorySite(_cloud(_content("s")), keys=some_keys("subcloud")),
    )


def _content(prefix: str, **more_users: str) -> CentralData:
    """What deployment aligns has the same id on either side; all else has an id of its own."""
    users = {name: user_of(name, f"{prefix}-{name}") for name in ("barbican", "vim", "operator1", *more_users.values())}
    of = records(
        users=tuple(users.values()),
        groups=(group_of("ops", f"{prefix}-ops", members=(users["operator1"].id,)),),
        roles=(role_of("reader", f"{prefix}-reader"), role_of("member", f"{prefix}-member")),
    )
    grants = {
        Assignment("project-services", ActorType.USER, "user-dcmanager", "role-admin"),
        Assignment("project-admin", ActorType.USER, users["operator1"].id, f"{prefix}-member"),
        Assignment("project-services", ActorType.GROUP, f"{prefix}-ops", f"{prefix}-member"),
    }
    return dataclasses.replace(central_data(of), assignments=frozenset(grants))


def _cloud(data: CentralData) -> Cloud:
    return Cloud(data.records, data.assignments, data.revocation_events)


@pytest.fixture(scope="module", params=("memory", *BACKENDS))
def running(request: pytest.FixtureRequest) -> Backend | None:
    """Clouds of any kind, for what the ports alone promise; None is the memory cloud, of which each test has its own.

    A test about HTTP, logins or tokens asks for `backend`, `http_clouds` or `site` instead: there it does not apply.
    """
    return None if request.param == "memory" else request.getfixturevalue(request.param)


@pytest.fixture
def clouds(running: Backend | None) -> Clouds:
    return memory_clouds() if running is None else clouds_of(running)


@pytest.fixture
def subcloud(running: Backend | None) -> Subcloud:
    return a_subcloud() if running is None else Site(running).subcloud


class Site:
    """An untouched subcloud, and its Keystone asked past our adapters."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.region_name, self.address = backend.untouched()
        template = backend.environment()["DCSYNC_SUBCLOUD_AUTH_URL"]
        self.auth_url = template.replace("{ip}", self.address)

    @property
    def subcloud(self) -> Subcloud:
        return a_subcloud(name=self.region_name, region_name=self.region_name, management_ip=self.address)

    def own_password(self, user: str) -> str:
        return self._backend.password(self.region_name, user)

    def central_password(self, user: str) -> str:
        return self._backend.password("central", user)

    def login(self, user: str, password: str) -> tuple[int, str]:
        """Status and token of a login scoped to project services."""
        return login_at(self.auth_url, user, password)

    def validated(self, token: str) -> int:
        """What Keystone says when a token asks about itself."""
        return ask("GET", f"{self.auth_url}/auth/tokens", {"X-Auth-Token": token, "X-Subject-Token": token})[0]

    async def says(self, status: int, token: str) -> None:
        """Wait until Keystone answers this token so."""
        deadline = time.monotonic() + 60
        while (found := self.validated(token)) != status:
            assert time.monotonic() < deadline, f"{found} instead of {status}"
            await asyncio.sleep(0.05)


def login_at(auth_url: str, user: str, password: str) -> tuple[int, str]:
    default = {"name": "Default"}
    identity = {"methods": ["password"], "password": {"user": {"name": user, "domain": default, "password": password}}}
    scope = {"project": {"name": "services", "domain": default}}
    status, headers = ask("POST", f"{auth_url}/auth/tokens", {}, {"auth": {"identity": identity, "scope": scope}})
    return status, headers.get("X-Subject-Token", "")


def ask(method: str, url: str, headers: dict[str, str], body: Any = None) -> tuple[int, Mapping[str, str]]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        url, data=data, headers=headers | {"Content-Type": "application/json"}, method=method
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, response.headers
    except urllib.error.HTTPError as exc:
        with exc:
            return exc.code, exc.headers


@pytest.fixture
def site(backend: Backend) -> Site:
    return Site(backend)


def named(records: tuple[Record, ...], name: str) -> Record:
    (found,) = [record for record in records if record.name == name]
    return found


async def central(clouds: Clouds, type_: ResourceType, name: str) -> Record:
    return named((await clouds.central_data()).records.of(type_), name)


async def held(session: SubcloudSession, type_: ResourceType, name: str) -> Record:
    return named(await session.identity.list(type_), name)


def request_id() -> str:
    return f"req-{uuid.uuid4()}"


async def test_the_central_cloud_gives_records_of_every_type_and_keys_that_are_keys(clouds: Clouds) -> None:
    data = await clouds.central_data()
    assert all(data.records.of(type_) for type_ in ResourceType)
    assert data.keys.problems() == []
    assert len(data.keys.keys) >= 2


async def test_the_fingerprint_is_the_same_each_time_though_logins_leave_traces(backend: Backend) -> None:
    first = await clouds_of(backend).central_data()
    second = await clouds_of(backend).central_data()
    assert first is not second
    assert first.identity_fingerprint == second.identity_fingerprint == fingerprint(second.records)


async def test_before_a_sync_only_what_deployment_aligned_has_the_central_id(
    clouds: Clouds, subcloud: Subcloud
) -> None:
    async with clouds.subcloud(subcloud, request_id=request_id()) as session:
        for name in ("admin", "sysinv", "dcmanager"):
            assert (await held(session, USERS, name)).id == (await central(clouds, USERS, name)).id
        for name in ("admin", "services"):
            assert (await held(session, PROJECTS, name)).id == (await central(clouds, PROJECTS, name)).id
        assert (await held(session, USERS, "barbican")).id != (await central(clouds, USERS, "barbican")).id
        keys = await session.fernet_repo.read()
    assert keys.problems() == []
    assert keys != (await clouds.central_data()).keys


async def test_a_wrong_password_is_auth_failed_on_either_side(backend: Backend, site: Site) -> None:
    clouds = clouds_of(backend, username="operator1", password="wrong")
    with pytest.raises(CloudError) as caught:
        async with clouds.subcloud(site.subcloud, request_id=request_id()):
            pass
    assert caught.value.reason is Reason.AUTH_FAILED
    with pytest.raises(CloudError) as caught:
        await clouds.central_data()
    assert caught.value.reason is Reason.CENTRAL_AUTH_FAILED


async def test_a_storm_with_a_wrong_password_does_not_lock_the_user_out(backend: Backend, site: Site) -> None:
    """Five refusals in a row would: docs/upstream/real-keystone.md K12."""
    clouds = clouds_of(backend, username="barbican", password="wrong")

    async def visit() -> None:
        async with clouds.subcloud(site.subcloud, request_id=request_id()):
            pass

    ended = await asyncio.gather(*(visit() for _ in range(20)), return_exceptions=True)
    assert {error.reason for error in ended if isinstance(error, CloudError)} == {Reason.AUTH_FAILED}
    assert len(ended) == 20
    assert site.login("barbican", site.own_password("barbican"))[0] == 201


PASSWORD_BEFORE = "Before-pw-1!"


def knows_previous(running: Backend | None, clouds: Clouds, password: str) -> Clouds:
    """The same clouds for a dcsync that knows this previous password."""
    if isinstance(clouds, MemoryClouds):
        clouds.previous_password = password
        return clouds
    assert running is not None
    return clouds_of(running, previous_password=lambda: password)


async def test_a_subcloud_with_the_previous_password_takes_the_new_hash_and_then_the_new_password(
    running: Backend | None, clouds: Clouds, subcloud: Subcloud
) -> None:
    own = await central(clouds, USERS, clouds.own_user)
    async with clouds.subcloud(subcloud, request_id=request_id()) as session:
        await session.keystone.set_password(own.id, PASSWORD_BEFORE)
    clouds = knows_previous(running, clouds, PASSWORD_BEFORE)
    for _ in range(2):
        with pytest.raises(CloudError) as caught:
            async with clouds.subcloud(subcloud, request_id=request_id()):
                pass
        assert caught.value.reason is Reason.AUTH_FAILED
    await deliver(clouds, subcloud, own)
    async with clouds.subcloud(subcloud, request_id=request_id()) as session:
        assert hashes(await held(session, USERS, clouds.own_user)) == hashes(own)


async def deliver(clouds: Clouds, subcloud: Subcloud, own: Record) -> None:
    """Setting a password ends every token of that second, also those issued after it: later ones are taken."""
    deadline = time.monotonic() + 60
    while True:
        try:
            async with clouds.with_previous_password(subcloud, request_id=request_id()) as session:
                assert session is not None
                await session.identity.update(own.id, own)
                return
        except CloudError as exc:
            if exc.reason is not Reason.AUTH_FAILED or time.monotonic() > deadline:
                raise
        await asyncio.sleep(0.05)


async def test_a_previous_password_that_is_wrong_is_auth_failed_and_none_is_no_session(
    running: Backend | None, clouds: Clouds, subcloud: Subcloud
) -> None:
    async with clouds.with_previous_password(subcloud, request_id=request_id()) as nothing:
        assert nothing is None
    with pytest.raises(CloudError) as caught:
        async with knows_previous(running, clouds, "wrong").with_previous_password(subcloud, request_id=request_id()):
            pass
    assert caught.value.reason is Reason.AUTH_FAILED


async def test_an_update_gives_the_record_its_new_id_and_may_be_repeated(clouds: Clouds, subcloud: Subcloud) -> None:
    """R3; docs/upstream/recorded-traffic.md 05: 4, 10, 11."""
    wanted = await central(clouds, USERS, "barbican")
    async with clouds.subcloud(subcloud, request_id=request_id()) as session:
        before = await held(session, USERS, "barbican")
        for old_id in (before.id, before.id, wanted.id):
            stored = await session.identity.update(old_id, wanted)
            assert (stored.id, stored.key) == (wanted.id, wanted.key)
            assert hashes(stored) == hashes(wanted)
        ids = {record.id for record in await session.identity.list(USERS)}
    assert wanted.id in ids
    assert before.id not in ids


def hashes(user: Record) -> list[str]:
    return sorted(row["password_hash"] for row in user.body["password"])


async def test_tokens_of_a_rewritten_user_are_answered_404_until_the_keys_come_and_401_after(
    http_clouds: HttpClouds, site: Site
) -> None:
    """K4, K5, K6, K7: the reason for the order identity, then keys, and for logging in anew on 404 as well as 401."""
    wanted = await central(http_clouds, USERS, "barbican")
    status, old = site.login("barbican", site.own_password("barbican"))
    assert status == 201
    _, untouched = site.login("dcmanager", site.own_password("dcmanager"))
    async with http_clouds.subcloud(site.subcloud, request_id=request_id()) as session:
        await session.identity.update((await held(session, USERS, "barbican")).id, wanted)
        await site.says(404, old)
        await site.says(200, untouched)
        assert site.login("barbican", site.own_password("barbican"))[0] == 401
        assert site.login("barbican", site.central_password("barbican"))[0] == 201
        await session.fernet_repo.replace((await http_clouds.central_data()).keys)
    await site.says(401, old)
    await site.says(401, untouched)
    assert site.login("barbican", site.central_password("barbican"))[0] == 201


async def test_keys_that_were_replaced_are_read_back_after_a_fresh_login(clouds: Clouds, subcloud: Subcloud) -> None:
    keys = (await clouds.central_data()).keys
    async with clouds.subcloud(subcloud, request_id=request_id()) as session:
        await session.fernet_repo.replace(keys)
        await session.login()
        assert await session.fernet_repo.read() == keys
        await session.fernet_repo.replace(keys)
        await session.login()
        assert await session.fernet_repo.read() == keys


async def test_an_empty_set_of_keys_is_refused_and_nothing_is_written(clouds: Clouds, subcloud: Subcloud) -> None:
    async with clouds.subcloud(subcloud, request_id=request_id()) as session:
        before = await session.fernet_repo.read()
        with pytest.raises(ValueError, match="empty"):
            await session.fernet_repo.replace(FernetKeys({}))
        assert await session.fernet_repo.read() == before


async def test_a_session_survives_the_death_of_its_own_token(http_clouds: HttpClouds, site: Site) -> None:
    """The token that pushed the keys is dead by its own success; four requests at once find out together."""
    async with http_clouds.subcloud(site.subcloud, request_id=request_id()) as session:
        await session.fernet_repo.replace((await http_clouds.central_data()).keys)
        lists = await asyncio.gather(*(session.identity.list(type_) for type_ in ResourceType))
    assert all(lists)


async def test_central_tokens_count_on_the_site_once_ids_and_keys_are_the_central_ones(
    backend: Backend, http_clouds: HttpClouds, site: Site
) -> None:
    """K2, for a user whose id deployment aligned."""
    auth_url = backend.environment()["DCSYNC_CENTRAL_AUTH_URL"]
    status, token = login_at(auth_url, "dcmanager", site.central_password("dcmanager"))
    assert status == 201
    assert site.validated(token) == 401, "not before"
    async with http_clouds.subcloud(site.subcloud, request_id=request_id()) as session:
        await session.fernet_repo.replace((await http_clouds.central_data()).keys)
    await site.says(200, token)


async def test_writing_what_nobody_has_is_refused(clouds: Clouds, subcloud: Subcloud) -> None:
    """docs/upstream/recorded-traffic.md 07: 10."""
    ghost = record_from_body(
        ROLES,
        {"role": {"id": "d" * 32, "name": "ghost", "extra": "{}", "domain_id": "<<null>>", "description": None}},
    )
    async with clouds.subcloud(subcloud, request_id=request_id()) as session:
        with pytest.raises(CloudError) as caught:
            await session.identity.update("deadbeef", ghost)
        assert caught.value.reason is Reason.REFUSED
        assert caught.value.detail.endswith("/identity/roles/deadbeef: 404")
        assert "ghost" not in {record.name for record in await session.identity.list(ROLES)}


async def test_a_name_that_is_taken_is_a_server_error_and_changes_nothing(clouds: Clouds, subcloud: Subcloud) -> None:
    """docs/upstream/recorded-traffic.md 07: 11."""
    async with clouds.subcloud(subcloud, request_id=request_id()) as session:
        before = await session.identity.list(ROLES)
        member = named(before, "member")
        taken = record_from_body(ROLES, {"role": {**member.body["role"], "name": "reader"}})
        with pytest.raises(CloudError) as caught:
            await session.identity.update(member.id, taken)
        assert caught.value.reason is Reason.SERVER_ERROR
        assert {r.key: r.id for r in await session.identity.list(ROLES)} == {r.key: r.id for r in before}


async def test_a_member_of_a_group_gets_a_new_id_only_while_the_group_is_empty(
    clouds: Clouds, subcloud: Subcloud
) -> None:
    """R2; docs/upstream/recorded-traffic.md 11."""
    wanted = await central(clouds, USERS, "operator1")
    async with clouds.subcloud(subcloud, request_id=request_id()) as session:
        old_id = (await held(session, USERS, "operator1")).id
        group = await held(session, GROUPS, "ops")
        assert old_id in group.member_ids
        with pytest.raises(CloudError) as caught:
            await session.identity.update(old_id, wanted)
        assert caught.value.reason is Reason.SERVER_ERROR
        emptied = await session.identity.update(group.id, with_members(group, []))
        assert emptied.member_ids == ()
        assert (await session.identity.update(old_id, wanted)).id == wanted.id
        members = sorted(wanted.id if member == old_id else member for member in group.member_ids)
        filled = await session.identity.update(group.id, with_members(group, members))
        assert filled.member_ids == tuple(members)
        assert (await held(session, GROUPS, "ops")).member_ids == tuple(members)


def with_members(group: Record, members: list[str]) -> Record:
    return dataclasses.replace(group, body={**group.body, "local_user_ids": members})


# --- what an audit asks for besides


def a_role(name: str) -> Record:
    row = {"id": uuid.uuid4().hex, "name": name, "extra": "{}", "domain_id": "<<null>>", "description": None}
    return record_from_body(ROLES, {"role": row})


def a_project(name: str, *, parent_id: str = "default") -> Record:
    row = {
        "id": uuid.uuid4().hex, "name": name, "extra": "{}", "description": "", "enabled": True, "domain_id": "default",
        "parent_id": parent_id, "is_domain": False,
    }  # fmt: skip
    return record_from_body(PROJECTS, {"project": row})


def a_group(name: str, *members: str) -> Record:
    row = {"id": uuid.uuid4().hex, "domain_id": "default", "name": name, "description": "", "extra": "{}"}
    return record_from_body(GROUPS, {"group": row, "local_user_ids": list(members)})


def ended_users(events: frozenset[RevocationEvent]) -> set[str | None]:
    return {event.body["user_id"] for event in events} - {None}


async def ids(session: SubcloudSession, type_: ResourceType) -> set[str]:
    return {record.id for record in await session.identity.list(type_)}


async def test_audits_get_the_centres_grants_and_events_besides_what_initial_syncs_get(clouds: Clouds) -> None:
    plain = await clouds.central_data()
    data = await clouds.central_audit_data()
    assert (data.identity_fingerprint, data.keys) == (plain.identity_fingerprint, plain.keys)
    of = {type_: {record.name: record.id for record in data.records.of(type_)} for type_ in ResourceType}
    actors = {ActorType.USER: of[USERS], ActorType.GROUP: of[GROUPS]}
    assert {grant.actor_type for grant in data.assignments} == set(ActorType)
    for grant in data.assignments:
        assert grant.project_id in of[PROJECTS].values(), "grants on the system or a domain are not there"
        assert grant.actor_id in actors[grant.actor_type].values()
        assert grant.role_id in of[ROLES].values()
    user, project, role = of[USERS]["dcmanager"], of[PROJECTS]["services"], of[ROLES]["admin"]
    assert Assignment(project, ActorType.USER, user, role) in data.assignments
    assert await clouds.central_data() is data, "what is fetched for audits serves initial syncs as well"


async def test_a_created_user_logs_in_with_the_central_password_once_it_has_a_role(
    http_clouds: HttpClouds, site: Site
) -> None:
    """docs/upstream/recorded-traffic.md 10: 1."""
    wanted = await central(http_clouds, USERS, "central-only")
    async with http_clouds.subcloud(site.subcloud, request_id=request_id()) as session:
        stored = await session.identity.create(wanted)
        assert (stored.id, stored.key, hashes(stored)) == (wanted.id, wanted.key, hashes(wanted))
        assert (await held(session, USERS, "central-only")).body == stored.body
        assert site.login("central-only", site.central_password("central-only"))[0] == 401
        services, reader = await held(session, PROJECTS, "services"), await held(session, ROLES, "reader")
        await session.keystone.grant(Assignment(services.id, ActorType.USER, stored.id, reader.id))
        assert site.login("central-only", site.central_password("central-only"))[0] == 201


async def test_a_lock_out_on_a_subcloud_outlasts_every_write_of_the_user(http_clouds: HttpClouds, site: Site) -> None:
    """K12. A PUT that brought the central `failed_auth_count` would lift it, or bring a central lock-out here."""
    wanted = await central(http_clouds, USERS, "barbican")
    async with http_clouds.subcloud(site.subcloud, request_id=request_id()) as session:
        await session.identity.update((await held(session, USERS, "barbican")).id, wanted)
        assert site.login("barbican", site.central_password("barbican"))[0] == 201
        for _ in range(5):
            assert site.login("barbican", "Wrong-password-1!")[0] == 401
        await session.identity.update(wanted.id, wanted)
        assert site.login("barbican", site.central_password("barbican"))[0] == 401


async def test_a_user_without_a_password_is_refused_and_may_be_left_without_one(
    clouds: Clouds, subcloud: Subcloud
) -> None:
    """docs/upstream/real-keystone.md R9: so a plan creates it with a placeholder, and then takes that away."""
    user = user_of("nobody", "e" * 32)
    bare = dataclasses.replace(user, body={**user.body, "password": []})
    async with clouds.subcloud(subcloud, request_id=request_id()) as session:
        with pytest.raises(CloudError) as caught:
            await session.identity.create(bare)
        assert caught.value.reason is Reason.SERVER_ERROR
        assert bare.id not in await ids(session, USERS)
        create, update = created(bare)
        stored = await session.identity.create(create.record)
        assert hashes(stored) == [NOBODYS_HASH]
        assert hashes(await session.identity.update(bare.id, update.record)) == []
        assert (await held(session, USERS, "nobody")).body["password"] == []


async def test_nobody_logs_in_with_the_placeholder_of_a_user_without_a_password(
    http_clouds: HttpClouds, site: Site
) -> None:
    barbican = await central(http_clouds, USERS, "barbican")
    create, _ = created(dataclasses.replace(barbican, body={**barbican.body, "password": []}))
    async with http_clouds.subcloud(site.subcloud, request_id=request_id()) as session:
        await session.identity.update((await held(session, USERS, "barbican")).id, create.record)
    for guess in (NOBODYS_HASH, "", site.central_password("barbican"), site.own_password("barbican")):
        assert site.login("barbican", guess)[0] == 401


async def test_a_project_with_a_tag_keeps_its_id(http_clouds: HttpClouds, site: Site) -> None:
    """docs/upstream/real-keystone.md R8."""
    project = a_project("lab-1")
    moved = a_project("lab-1")
    async with http_clouds.subcloud(site.subcloud, request_id=request_id()) as session:
        await session.identity.create(project)
        _, token = site.login("dcmanager", site.own_password("dcmanager"))
        tag = f"{site.auth_url}/projects/{project.id}/tags/blue"
        assert ask("PUT", tag, {"X-Auth-Token": token})[0] == 201
        await session.identity.update(project.id, project)
        with pytest.raises(CloudError) as caught:
            await session.identity.update(project.id, moved)
        assert caught.value.reason is Reason.SERVER_ERROR
        assert (await held(session, PROJECTS, "lab-1")).id == project.id
        assert ask("DELETE", tag, {"X-Auth-Token": token})[0] == 204
        assert (await session.identity.update(project.id, moved)).id == moved.id


async def test_records_of_every_other_type_are_created_under_their_own_id(clouds: Clouds, subcloud: Subcloud) -> None:
    """docs/upstream/recorded-traffic.md 10: 3-5."""
    async with clouds.subcloud(subcloud, request_id=request_id()) as session:
        member = await held(session, USERS, "vim")
        project = a_project("lab-1")
        for record in (
            a_role("auditor"),
            a_group("watch", member.id),
            project,
            a_project("lab-2", parent_id=project.id),
        ):
            assert (await session.identity.create(record)).body == record.body
            assert (await held(session, record.type, record.name)).body == record.body


async def test_creating_what_is_there_is_a_server_error_and_changes_nothing(clouds: Clouds, subcloud: Subcloud) -> None:
    """docs/upstream/recorded-traffic.md 10: 2."""
    async with clouds.subcloud(subcloud, request_id=request_id()) as session:
        for type_, name in ((USERS, "vim"), (PROJECTS, "services"), (ROLES, "reader"), (GROUPS, "ops")):
            before = await session.identity.list(type_)
            with pytest.raises(CloudError) as caught:
                await session.identity.create(named(before, name))
            assert caught.value.reason is Reason.SERVER_ERROR
            assert {record.id for record in before} == await ids(session, type_)


async def test_a_grant_and_its_revocation_may_be_repeated_for_users_and_groups(
    clouds: Clouds, subcloud: Subcloud
) -> None:
    async with clouds.subcloud(subcloud, request_id=request_id()) as session:
        services, reader = await held(session, PROJECTS, "services"), await held(session, ROLES, "reader")
        before = await session.keystone.assignments()
        assert {grant.actor_type for grant in before} == set(ActorType)
        for type_, name, kind in ((USERS, "vim", ActorType.USER), (GROUPS, "ops", ActorType.GROUP)):
            grant = Assignment(services.id, kind, (await held(session, type_, name)).id, reader.id)
            assert grant not in before
            for _ in range(2):
                await session.keystone.grant(grant)
                assert await session.keystone.assignments() == before | {grant}
            for _ in range(2):
                await session.keystone.revoke(grant)
                assert await session.keystone.assignments() == before


async def test_a_grant_to_or_of_what_is_not_there_is_refused(clouds: Clouds, subcloud: Subcloud) -> None:
    async with clouds.subcloud(subcloud, request_id=request_id()) as session:
        user = (await held(session, USERS, "vim")).id
        project, role = (await held(session, PROJECTS, "services")).id, (await held(session, ROLES, "reader")).id
        ghost = "d" * 32
        for ids_ in ((ghost, user, role), (project, ghost, role), (project, user, ghost)):
            with pytest.raises(CloudError) as caught:
                await session.keystone.grant(Assignment(ids_[0], ActorType.USER, ids_[1], ids_[2]))
            assert caught.value.reason is Reason.REFUSED
            await session.keystone.revoke(Assignment(ids_[0], ActorType.USER, ids_[1], ids_[2]))


async def test_a_deleted_user_takes_grants_and_memberships_along_and_its_tokens_end(
    clouds: Clouds, subcloud: Subcloud
) -> None:
    async with clouds.subcloud(subcloud, request_id=request_id()) as session:
        user = await held(session, USERS, "operator1")
        assert any(grant.actor_id == user.id for grant in await session.keystone.assignments())
        for _ in range(2):
            await session.keystone.delete(USERS, user.id)
            assert user.id not in await ids(session, USERS)
        assert not any(grant.actor_id == user.id for grant in await session.keystone.assignments())
        assert user.id not in (await held(session, GROUPS, "ops")).member_ids
        assert ended_users(await session.identity.revocation_events()) == {user.id}


async def test_groups_projects_and_roles_are_deleted_with_their_grants(clouds: Clouds, subcloud: Subcloud) -> None:
    async with clouds.subcloud(subcloud, request_id=request_id()) as session:
        user = await held(session, USERS, "vim")
        before = await session.keystone.assignments()
        group = await session.identity.create(a_group("watch", user.id))
        project = await session.identity.create(a_project("lab-1"))
        role = await session.identity.create(a_role("auditor"))
        await session.keystone.grant(Assignment(project.id, ActorType.GROUP, group.id, role.id))
        await session.keystone.grant(Assignment(project.id, ActorType.USER, user.id, role.id))
        for record in (group, project, role):
            await session.keystone.delete(record.type, record.id)
            assert record.id not in await ids(session, record.type)
            await session.keystone.delete(record.type, record.id)
        assert await session.keystone.assignments() == before
        assert user.id in await ids(session, USERS)
        assert user.id in ended_users(await session.identity.revocation_events())


async def test_a_project_is_put_only_under_one_that_is_there_and_follows_it(clouds: Clouds, subcloud: Subcloud) -> None:
    """What the order of a plan is for: an initial sync that writes a child first is refused at each try."""

    def under(parent_id: str, project: Record) -> Record:
        return record_from_body(PROJECTS, {"project": {**project.body["project"], "parent_id": parent_id}})

    parent, child = a_project("parent"), a_project("child")
    moved = a_project("parent")
    async with clouds.subcloud(subcloud, request_id=request_id()) as session:
        await session.identity.create(parent)
        await session.identity.create(under(parent.id, child))
        with pytest.raises(CloudError) as refusal:
            await session.identity.update(child.id, under(moved.id, child))
        assert refusal.value.reason is Reason.SERVER_ERROR
        await session.identity.update(parent.id, moved)
        assert (await held(session, PROJECTS, child.name)).body["project"]["parent_id"] == moved.id
        await session.identity.update(child.id, under(moved.id, child))


async def test_a_project_goes_only_after_those_below_it(clouds: Clouds, subcloud: Subcloud) -> None:
    async with clouds.subcloud(subcloud, request_id=request_id()) as session:
        above = await session.identity.create(a_project("lab-1"))
        below = await session.identity.create(a_project("lab-2", parent_id=above.id))
        with pytest.raises(CloudError) as caught:
            await session.keystone.delete(PROJECTS, above.id)
        assert caught.value.reason is Reason.REFUSED
        await session.keystone.delete(PROJECTS, below.id)
        await session.keystone.delete(PROJECTS, above.id)
        assert not {above.id, below.id} & await ids(session, PROJECTS)


async def test_a_password_that_was_set_opens_and_the_former_one_does_not(http_clouds: HttpClouds, site: Site) -> None:
    fresh = "Fresh-barbican-pw-9!"
    async with http_clouds.subcloud(site.subcloud, request_id=request_id()) as session:
        await session.keystone.set_password((await held(session, USERS, "barbican")).id, fresh)
    assert site.login("barbican", fresh)[0] == 201
    assert site.login("barbican", site.own_password("barbican"))[0] == 401


async def test_a_password_that_was_set_is_added_and_the_former_ones_stay_as_history(
    clouds: Clouds, subcloud: Subcloud
) -> None:
    """K7 the other way round: what a PATCH makes of the rows, before a PUT writes the central hashes over them."""
    fresh = "Fresh-barbican-pw-9!"
    async with clouds.subcloud(subcloud, request_id=request_id()) as session:
        before = await held(session, USERS, "barbican")
        await session.keystone.set_password(before.id, fresh)
        after = await held(session, USERS, "barbican")
        assert set(hashes(before)) < set(hashes(after))
        assert len(hashes(after)) == len(hashes(before)) + 1
        assert before.id in ended_users(await session.identity.revocation_events())
        with pytest.raises(CloudError) as caught:
            await session.keystone.set_password("d" * 32, fresh)
        assert caught.value.reason is Reason.REFUSED
        assert fresh not in str(caught.value)


async def test_a_token_ended_at_the_central_cloud_ends_on_the_site_with_the_event_that_names_it(
    backend: Backend, site: Site
) -> None:
    """K10; docs/upstream/recorded-traffic.md 10: 6-12."""
    auth_url = backend.environment()["DCSYNC_CENTRAL_AUTH_URL"]
    _, token = login_at(auth_url, "dcmanager", site.central_password("dcmanager"))
    earlier = (await clouds_of(backend).central_audit_data()).revocation_events
    assert ask("DELETE", f"{auth_url}/auth/tokens", {"X-Auth-Token": token, "X-Subject-Token": token})[0] == 204
    clouds = clouds_of(backend)
    data = await clouds.central_audit_data()
    events = sorted(data.revocation_events - earlier, key=lambda event: event.body["audit_id"] is None)
    assert [(event.body["audit_id"] is None, event.body["audit_chain_id"] is None) for event in events] == [
        (False, True), (True, False),
    ]  # fmt: skip
    async with clouds.subcloud(site.subcloud, request_id=request_id()) as session:
        await session.fernet_repo.replace(data.keys)
        await session.login()
        await site.says(200, token)
        for event in reversed(events):
            assert event not in await session.identity.revocation_events()
            await session.identity.create_revocation_event(event)
            assert event in await session.identity.revocation_events()
        await site.says(401, token)


async def test_an_event_may_be_sent_again(clouds: Clouds, subcloud: Subcloud) -> None:
    """An answer may be lost: the second one is stored beside the first and means the same."""
    event = revocation_event(
        {
            "domain_id": None, "project_id": None, "user_id": "d" * 32, "role_id": None, "trust_id": None,
            "consumer_id": None, "access_token_id": None, "issued_before": "2026-01-31 08:15:00", "expires_at": None,
            "revoked_at": "2026-01-31 08:15:00", "audit_id": None, "audit_chain_id": None,
        }
    )  # fmt: skip
    async with clouds.subcloud(subcloud, request_id=request_id()) as session:
        for _ in range(2):
            await session.identity.create_revocation_event(event)
            assert await session.identity.revocation_events() == {event}
