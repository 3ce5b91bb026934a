"""What the central cloud gives: fetched once for all who ask at the same time, and never handed on when it cannot be
right."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from urllib.parse import parse_qsl

import pytest

from dcsync.adapters.cloud.clouds import HttpClouds
from dcsync.model.errors import CloudError
from dcsync.model.identity import FernetKeys, ResourceType, fingerprint
from dcsync.model.reasons import Reason
from tests.integration.adapters.scripted_site import (
    ADDRESS,
    KEYS,
    LISTS,
    TOKEN,
    Behaviour,
    Clock,
    Request,
    Site,
    answer,
    assert_no_secret_in,
    sends,
    texts_of,
)


class Gate:
    """Holds back an answer until it is opened."""

    def __init__(self, raw: bytes) -> None:
        self.asked, self.open, self._raw = asyncio.Event(), asyncio.Event(), raw

    async def __call__(self, request: Request, writer: asyncio.StreamWriter) -> None:
        self.asked.set()
        await self.open.wait()
        writer.write(self._raw)


def fetches(site: Site) -> int:
    return len(site.sent("GET", "roles"))


async def test_lists_keys_and_fingerprint_come_from_the_services_in_the_catalog(clouds: HttpClouds, site: Site) -> None:
    data = await clouds.central_data()
    assert {type_.value: len(data.records.of(type_)) for type_ in ResourceType} == dict.fromkeys(LISTS, 1)
    assert data.keys == FernetKeys(KEYS)
    assert data.identity_fingerprint == fingerprint(data.records)
    assert_no_secret_in(repr(data))


async def test_configured_addresses_come_before_the_catalog(make_clouds: Callable[..., HttpClouds], site: Site) -> None:
    base = f"http://{ADDRESS}:{site.port}"
    await make_clouds(dbsync=f"{base}/other/v1.0/", sysinv=f"{base}/own/v1").central_data()
    assert {r.path.split("/")[1] for r in site.requests[1:]} == {"other", "own"}


async def test_a_region_the_catalog_does_not_know_is_a_bad_central_reply(clouds: HttpClouds, site: Site) -> None:
    site.behaviours["GET endpoints"] = sends(answer(200, {"endpoints": [7, {}]}))
    with pytest.raises(CloudError) as caught:
        await clouds.central_data()
    assert caught.value.reason is Reason.CENTRAL_BAD_REPLY
    assert "dcorch-dbsync" in caught.value.detail
    assert "RegionOne" in caught.value.detail


async def test_lists_and_keys_are_asked_for_together(clouds: HttpClouds, site: Site) -> None:
    gates = {f"GET {kind}": Gate(answer(200, found)) for kind, found in LISTS.items()}
    gates["GET fernet_repo"] = Gate(answer(200, {"keys": site.keys}))
    site.behaviours |= gates
    waiting = asyncio.create_task(clouds.central_data())
    async with asyncio.timeout(60):
        for gate in gates.values():
            await gate.asked.wait()
    for gate in gates.values():
        gate.open.set()
    await waiting


async def test_everybody_who_asks_at_the_same_time_shares_one_fetch(clouds: HttpClouds, site: Site) -> None:
    found = await asyncio.gather(*(clouds.central_data() for _ in range(50)))
    assert all(data is found[0] for data in found)
    assert fetches(site) == 1


async def test_data_is_fetched_anew_when_it_is_too_old_and_the_token_is_kept(
    clouds: HttpClouds, site: Site, clock: Clock
) -> None:
    await clouds.central_data()
    clock.now += 4.9
    await clouds.central_data()
    assert fetches(site) == 1
    clock.now += 0.1
    await clouds.central_data()
    assert fetches(site) == 2
    assert site.logins == 1


async def test_age_counts_from_the_moment_the_fetch_began(clouds: HttpClouds, site: Site, clock: Clock) -> None:
    site.behaviours["GET users"] = gate = Gate(answer(200, LISTS["users"]))
    waiting = asyncio.create_task(clouds.central_data())
    await gate.asked.wait()
    clock.now += 5
    gate.open.set()
    await waiting
    await clouds.central_data()
    assert fetches(site) == 2


async def test_a_caller_that_goes_away_does_not_take_the_fetch_from_the_others(clouds: HttpClouds, site: Site) -> None:
    site.behaviours["GET users"] = gate = Gate(answer(200, LISTS["users"]))
    first = asyncio.create_task(clouds.central_data())
    await gate.asked.wait()
    second = asyncio.create_task(clouds.central_data())
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    gate.open.set()
    assert await second
    assert fetches(site) == 1


async def test_a_failure_is_shared_by_those_who_wait_and_not_remembered(clouds: HttpClouds, site: Site) -> None:
    site.behaviours["GET projects"] = sends(answer(500))
    ended = await asyncio.gather(*(clouds.central_data() for _ in range(3)), return_exceptions=True)
    assert [getattr(error, "reason", None) for error in ended] == [Reason.CENTRAL_UNREACHABLE] * 3
    assert len(site.sent("GET", "projects")) == 1
    del site.behaviours["GET projects"]
    assert await clouds.central_data()


async def test_a_token_of_the_central_cloud_that_is_refused_is_replaced_once_for_all_five_requests(
    clouds: HttpClouds, site: Site, clock: Clock
) -> None:
    await clouds.central_data()
    site.valid_token = lambda token: token == f"{TOKEN}-2"
    clock.now += 10
    await clouds.central_data()
    assert site.logins == 2


# --- where its services are ---


async def test_only_the_services_and_the_region_that_are_read_are_asked_for(clouds: HttpClouds, site: Site) -> None:
    await clouds.central_data()
    assert [r.path for r in site.requests[:5]] == [
        "/v3/auth/tokens?nocatalog",
        "/v3/services?type=dcorch-dbsync",
        "/v3/endpoints?service_id=id-dcorch-dbsync&region_id=RegionOne",
        "/v3/services?type=platform",
        "/v3/endpoints?service_id=id-platform&region_id=RegionOne",
    ]


async def test_nothing_is_looked_up_where_both_addresses_are_configured(
    make_clouds: Callable[..., HttpClouds], site: Site
) -> None:
    base = f"http://{ADDRESS}:{site.port}"
    await make_clouds(dbsync=f"{base}/v1.0", sysinv=f"{base}/v1").central_data()
    assert site.sent("GET", "services") == site.sent("GET", "endpoints") == []


async def test_a_user_who_may_not_list_endpoints_reads_the_whole_catalog(clouds: HttpClouds, site: Site) -> None:
    site.behaviours["GET services"] = sends(answer(403))
    assert await clouds.central_data()
    assert [r.path for r in site.sent("GET", "catalog")] == ["/v3/auth/catalog"]


async def test_an_address_with_placeholders_is_taken_from_the_catalog(clouds: HttpClouds, site: Site) -> None:
    row = {"service_id": "id-dcorch-dbsync", "interface": "admin", "region_id": "RegionOne", "url": "http://h/$(id)s"}
    site.behaviours["GET endpoints"] = sends(answer(200, {"endpoints": [row]}))
    assert await clouds.central_data()
    assert site.sent("GET", "catalog")


@pytest.mark.parametrize("raw", [answer(200, []), answer(200, {"services": {}}), answer(200, "no JSON")])
async def test_services_in_another_shape_are_a_bad_central_reply(clouds: HttpClouds, site: Site, raw: bytes) -> None:
    site.behaviours["GET services"] = sends(raw)
    with pytest.raises(CloudError) as caught:
        await clouds.central_data()
    assert caught.value.reason is Reason.CENTRAL_BAD_REPLY


async def test_disabled_services_and_endpoints_are_not_used(clouds: HttpClouds, site: Site) -> None:
    row = {"service_id": "id-dcorch-dbsync", "interface": "admin", "region_id": "RegionOne", "url": "http://192.0.2.1"}
    rows = [row | {"enabled": False}, *site.endpoints()]
    site.behaviours["GET endpoints"] = sends(answer(200, {"endpoints": rows}))
    assert await clouds.central_data()


async def test_addresses_are_kept_for_an_hour(clouds: HttpClouds, site: Site, clock: Clock) -> None:
    await clouds.central_data()
    clock.now += 3000
    await clouds.central_data()
    assert len(site.sent("GET", "endpoints")) == 2
    clock.now += 601
    await clouds.central_data()
    assert len(site.sent("GET", "endpoints")) == 4


async def test_an_address_that_serves_no_more_is_looked_up_at_once_and_the_data_read_there(
    clouds: HttpClouds, site: Site, clock: Clock
) -> None:
    await clouds.central_data()
    site.moved["dcorch-dbsync"] = f"http://{ADDRESS}:{site.port}/moved/v1.0"
    site.behaviours["GET users"] = at_the_new_place(site)
    clock.now += 10
    assert await clouds.central_data()
    assert site.logins == 1


async def test_a_service_that_fails_where_it_always_was_is_not_asked_twice(
    clouds: HttpClouds, site: Site, clock: Clock
) -> None:
    await clouds.central_data()
    site.behaviours["GET users"] = sends(answer(503))
    clock.now += 10
    with pytest.raises(CloudError):
        await clouds.central_data()
    assert len(site.sent("GET", "users")) == 2


async def test_keys_are_read_where_the_service_has_moved_to(clouds: HttpClouds, site: Site) -> None:
    await clouds.central_keys()
    site.moved["platform"] = f"http://{ADDRESS}:{site.port}/moved/v1"
    site.behaviours["GET fernet_repo"] = at_the_new_place(site)
    assert await clouds.central_keys()


def at_the_new_place(site: Site) -> Behaviour:
    async def behave(request: Request, writer: asyncio.StreamWriter) -> None:
        is_there = request.parts[1] == "moved"
        body = {"keys": site.keys} if "fernet_repo" in request.parts else LISTS["users"]
        writer.write(answer(200, body) if is_there else answer(503))

    return behave


async def test_5000_subclouds_in_the_catalog_cost_nothing(clouds: HttpClouds, site: Site) -> None:
    """What is read grows with the regions' own endpoints, not with the catalog: it is not asked for."""
    site.service_urls = lambda: {  # type: ignore[method-assign]
        **{f"service{number}": "http://192.0.2.1" for number in range(15_000)},
        "dcorch-dbsync": site.urls(ADDRESS).dbsync,
        "platform": site.urls(ADDRESS).sysinv,
    }

    async def filtered(request: Request, writer: asyncio.StreamWriter) -> None:
        query = dict(parse_qsl(request.path.partition("?")[2]))
        if "type" in query:
            writer.write(answer(200, {"services": [row for row in site.services() if row["type"] == query["type"]]}))
            return
        rows = [row for row in site.endpoints() if row["service_id"] == query["service_id"]]
        writer.write(answer(200, {"endpoints": rows}))

    site.behaviours |= {"GET services": filtered, "GET endpoints": filtered}
    assert await clouds.central_data()
    assert site.sent("GET", "catalog") == []


# --- what it gives when something is wrong ---


async def closes(request: Request, writer: asyncio.StreamWriter) -> None:
    writer.close()


FAILURES: dict[str, tuple[str, Behaviour, Reason]] = {
    "keystone is gone": ("POST tokens", closes, Reason.CENTRAL_UNREACHABLE),
    "keystone fails": ("POST tokens", sends(answer(500, TOKEN)), Reason.CENTRAL_UNREACHABLE),
    "keystone is something else": ("POST tokens", sends(answer(200, TOKEN)), Reason.CENTRAL_BAD_REPLY),
    "dcdbsync is gone": ("GET users", closes, Reason.CENTRAL_UNREACHABLE),
    "dcdbsync refuses every token": ("GET users", sends(answer(401, TOKEN)), Reason.CENTRAL_AUTH_FAILED),
    "dcdbsync is elsewhere": ("GET users", sends(answer(404, TOKEN)), Reason.CENTRAL_BAD_REPLY),
    "dcdbsync speaks HTML": ("GET users", sends(answer(200, f"<html>{TOKEN}")), Reason.CENTRAL_BAD_REPLY),
    "a list is too long": ("GET users", sends(answer(200, b" " * 60_000)), Reason.CENTRAL_BAD_REPLY),
    "no users": ("GET users", sends(answer(200, [])), Reason.CENTRAL_EMPTY),
    "no projects": ("GET projects", sends(answer(200, [])), Reason.CENTRAL_EMPTY),
    "no roles": ("GET roles", sends(answer(200, [])), Reason.CENTRAL_EMPTY),
    "no keys": ("GET fernet_repo", sends(answer(200, {"keys": []})), Reason.CENTRAL_EMPTY),
    "keys that are none": (
        "GET fernet_repo",
        sends(answer(200, {"keys": [{"id": 0, "key": TOKEN}]})),
        Reason.CENTRAL_KEYS_INVALID,
    ),
    "a negative key id": (
        "GET fernet_repo",
        sends(answer(200, {"keys": [{"id": -1, "key": KEYS[0]}]})),
        Reason.CENTRAL_KEYS_INVALID,
    ),
}


@pytest.mark.parametrize("what", FAILURES)
async def test_a_central_cloud_that_cannot_be_right_gives_nothing(clouds: HttpClouds, site: Site, what: str) -> None:
    call, behaviour, reason = FAILURES[what]
    site.behaviours[call] = behaviour
    with pytest.raises(CloudError) as caught:
        await clouds.central_data()
    assert caught.value.reason is reason
    assert_no_secret_in(*texts_of(caught.value))


async def test_no_groups_at_the_central_cloud_are_fine(clouds: HttpClouds, site: Site) -> None:
    site.lists["groups"] = []
    assert (await clouds.central_data()).records.groups == ()


async def test_a_fetch_leaves_no_connection_open(clouds: HttpClouds, site: Site) -> None:
    await clouds.central_data()
    async with asyncio.timeout(60):
        while site.connections:
            await asyncio.sleep(0)
