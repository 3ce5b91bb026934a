"""A wrong password costs few tries, whoever tries it: runs, the watch, rotation, previews, in one or many processes."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable
from dataclasses import replace

import pytest

from dcsync.adapters.broker.redis_client import make_client
from dcsync.adapters.broker.refused_logins import RedisRefusedLogins
from dcsync.adapters.cloud.clouds import HttpClouds
from dcsync.adapters.cloud.endpoints import CentralEndpoints
from dcsync.adapters.host.refused_logins import ProcessRefusedLogins
from dcsync.model.errors import CloudError
from dcsync.model.identity import FernetKeys
from dcsync.model.reasons import Reason
from dcsync.runs.logins import RefusedLogins
from tests.integration.adapters.scripted_site import (
    ADDRESS,
    CREDENTIALS,
    KEYS,
    LIMITS,
    PASSWORD,
    Clock,
    Request,
    Site,
    a_subcloud,
    answer,
    sends,
)

NEW = f"{PASSWORD}-new"


class Keystone:
    """Takes one password; notes what it was sent."""

    def __init__(self, site: Site, password: str) -> None:
        self.password = password
        self.tried: list[str] = []
        self._site = site
        site.behaviours["POST tokens"] = self._answer

    @property
    def refused(self) -> list[str]:
        return [each for each in self.tried if each != self.password]

    async def _answer(self, request: Request, writer: asyncio.StreamWriter) -> None:
        self.tried.append(request.json["auth"]["identity"]["password"]["user"]["password"])
        writer.write(self._site.login() if self.tried[-1] == self.password else answer(401))


class WallClock:
    now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def wall() -> WallClock:
    return WallClock()


@pytest.fixture
def process(site: Site, wall: WallClock) -> Callable[..., HttpClouds]:
    """The clouds of one process; they share a memory where they are given one."""

    def make(
        refused: RefusedLogins | None = None,
        *,
        password: Callable[[], str] | None = None,
        previous: Callable[[], str] | None = None,
    ) -> HttpClouds:
        return HttpClouds(
            credentials=CREDENTIALS,
            password=password,
            previous_password=previous,
            refused_logins=refused or ProcessRefusedLogins(now=wall),
            central=CentralEndpoints(auth=site.urls(ADDRESS).auth, region="RegionOne"),
            subcloud_templates=site.urls(),
            allowed_networks=[ipaddress.ip_network("127.0.0.0/8")],
            limits=LIMITS,
            max_age=0,
            monotonic=Clock(),
        )

    return make


async def visit(clouds: HttpClouds) -> None:
    async with clouds.subcloud(a_subcloud(), request_id="req-1"):
        pass


async def reasons(*calls: object) -> set[Reason]:
    ended = await asyncio.gather(*calls, return_exceptions=True)  # type: ignore[call-overload]
    assert all(isinstance(error, CloudError) for error in ended), ended
    return {error.reason for error in ended}


async def test_a_storm_of_eight_processes_tries_a_wrong_password_once(
    process: Callable[..., HttpClouds], site: Site, redis_url: str
) -> None:
    keystone = Keystone(site, NEW)
    workers = [process(RedisRefusedLogins(make_client(redis_url))) for _ in range(8)]
    for _ in range(3):
        found = await reasons(
            *(worker.central_data() for worker in workers),
            *(worker.central_audit_data(max_age=0) for worker in workers),
            *(worker.central_keys() for worker in workers),
            *(worker.replace_central_keys(FernetKeys(KEYS)) for worker in workers),
            *(visit(worker) for worker in workers),
        )
        assert found == {Reason.CENTRAL_AUTH_FAILED, Reason.AUTH_FAILED}
    assert len(keystone.tried) == 1, "the site and the central cloud are the same host here"


async def test_the_reason_says_when_it_is_tried_again_and_stays_the_same_until_then(
    process: Callable[..., HttpClouds], site: Site, wall: WallClock
) -> None:
    Keystone(site, NEW)
    clouds = process()
    await reasons(clouds.central_data())
    texts = set()
    for _ in range(3):
        wall.now += 10
        with pytest.raises(CloudError) as caught:
            await clouds.central_audit_data(max_age=0)
        texts.add(caught.value.detail)
    (text,) = texts
    assert text.startswith(f"POST http://{ADDRESS}:{site.port}/v3/auth/tokens: 401 at 2027-01-15T08:00:00Z; ")
    assert "not tried again with this password before 2027-01-15T08:05" in text


async def test_a_new_password_is_tried_at_once(process: Callable[..., HttpClouds], site: Site) -> None:
    keystone = Keystone(site, NEW)
    current = [PASSWORD]
    clouds = process(password=lambda: current[0])
    await reasons(clouds.central_data(), visit(clouds))
    current[0] = NEW
    assert await clouds.central_data()
    await visit(clouds)
    assert keystone.refused == [PASSWORD]


async def test_in_ten_minutes_of_runs_at_most_three_logins_are_refused(
    process: Callable[..., HttpClouds], site: Site, wall: WallClock
) -> None:
    keystone = Keystone(site, "canary-password-nobody-knows")
    words = iter(f"{PASSWORD}-{number}" for number in range(1000))
    clouds = process(password=lambda: next(words))
    for _ in range(60):
        await reasons(visit(clouds), clouds.central_data())
        wall.now += 9.9
    assert len(keystone.refused) == 3
    wall.now += 10
    await reasons(visit(clouds))
    assert len(keystone.refused) == 4


async def test_the_same_password_is_tried_again_after_its_hold_off(
    process: Callable[..., HttpClouds], site: Site, wall: WallClock
) -> None:
    keystone = Keystone(site, NEW)
    clouds = process()
    await reasons(visit(clouds))
    keystone.password = PASSWORD
    await reasons(visit(clouds))
    wall.now += 361
    await visit(clouds)
    assert keystone.tried == [PASSWORD] * 2


async def test_a_cloud_that_fails_or_does_not_answer_has_refused_nothing(
    process: Callable[..., HttpClouds], site: Site
) -> None:
    clouds = process()
    for behaviour in (sends(answer(500)), sends(b"", then="close"), sends(answer(403))):
        site.behaviours["POST tokens"] = behaviour
        for _ in range(3):
            await reasons(visit(clouds))
    del site.behaviours["POST tokens"]
    await visit(clouds)


async def test_a_login_waits_for_the_one_in_progress_and_then_obeys_its_refusal(
    process: Callable[..., HttpClouds], site: Site
) -> None:
    asked, go, tried = asyncio.Event(), asyncio.Event(), []

    async def slow(request: Request, writer: asyncio.StreamWriter) -> None:
        tried.append(request)
        asked.set()
        await go.wait()
        writer.write(answer(401))

    site.behaviours["POST tokens"] = slow
    shared = ProcessRefusedLogins()
    first = asyncio.create_task(visit(process(shared)))
    await asked.wait()
    others = [asyncio.create_task(visit(process(shared))) for _ in range(5)]
    await asyncio.sleep(0)
    go.set()
    assert await reasons(first, *others) == {Reason.AUTH_FAILED}
    assert len(tried) == 1


async def test_a_login_that_is_cancelled_lets_the_next_one_in(process: Callable[..., HttpClouds], site: Site) -> None:
    asked = asyncio.Event()

    async def silent(request: Request, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await asyncio.Event().wait()

    site.behaviours["POST tokens"] = silent
    clouds = process()
    cancelled = asyncio.create_task(visit(clouds))
    await asked.wait()
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    del site.behaviours["POST tokens"]
    await visit(clouds)


async def test_a_login_that_is_in_progress_for_too_long_is_a_timeout(site: Site) -> None:
    impatient = HttpClouds(
        credentials=CREDENTIALS,
        central=CentralEndpoints(auth=site.urls(ADDRESS).auth, region="RegionOne"),
        subcloud_templates=site.urls(),
        allowed_networks=[ipaddress.ip_network("127.0.0.0/8")],
        limits=replace(LIMITS, request_timeout=0.2),
    )
    site.behaviours["POST tokens"] = sends(b"", then="hang")
    ended = await reasons(visit(impatient), visit(impatient))
    assert ended == {Reason.TIMEOUT}


# --- the password before the last change ---


async def test_after_the_new_hash_was_delivered_the_new_password_is_tried_at_once(
    process: Callable[..., HttpClouds], site: Site
) -> None:
    keystone = Keystone(site, PASSWORD)
    clouds = process(password=lambda: NEW, previous=lambda: PASSWORD)
    await reasons(visit(clouds))
    async with clouds.with_previous_password(a_subcloud(), request_id="req-1") as session:
        assert session is not None
        keystone.password = NEW
    await visit(clouds)
    assert keystone.tried == [NEW, PASSWORD, NEW]


async def test_where_the_delivery_fails_the_new_password_stays_held_back(
    process: Callable[..., HttpClouds], site: Site
) -> None:
    keystone = Keystone(site, PASSWORD)
    clouds = process(password=lambda: NEW, previous=lambda: PASSWORD)
    await reasons(visit(clouds))
    with pytest.raises(CloudError):
        async with clouds.with_previous_password(a_subcloud(), request_id="req-1"):
            raise CloudError(Reason.SERVER_ERROR, "PUT users: 500")
    await reasons(visit(clouds))
    assert keystone.tried == [NEW, PASSWORD]


async def test_a_previous_password_that_is_refused_is_tried_once_an_hour(
    process: Callable[..., HttpClouds], site: Site, wall: WallClock
) -> None:
    keystone = Keystone(site, "canary-password-nobody-knows")
    clouds = process(password=lambda: NEW, previous=lambda: PASSWORD)
    for _ in range(40):
        with pytest.raises(CloudError):
            async with clouds.with_previous_password(a_subcloud(), request_id="req-1"):
                pass
        wall.now += 60
    assert keystone.tried == [PASSWORD]
