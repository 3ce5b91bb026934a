"""Logging in, carrying the token, and what happens when it is not taken."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest

from dcsync.adapters.cloud.clouds import HttpClouds
from dcsync.adapters.cloud.http import open_http
from dcsync.adapters.cloud.keystone import Authenticated, PasswordLogin
from dcsync.adapters.cloud.tls import Trust
from dcsync.adapters.host.own_servers import OwnServers
from dcsync.adapters.host.refused_logins import ProcessRefusedLogins
from dcsync.model.errors import CloudError
from dcsync.model.identity import ResourceType, record_from_body
from dcsync.model.reasons import Reason
from tests.integration.adapters.scripted_site import (
    ADDRESS,
    CREDENTIALS,
    LIMITS,
    LISTS,
    PASSWORD,
    TOKEN,
    USER,
    Clock,
    Request,
    Site,
    a_subcloud,
    answer,
    assert_no_secret_in,
    sends,
)

A_USER = record_from_body(ResourceType.USERS, USER)


async def test_the_login_is_scoped_to_the_project_and_every_request_says_who_we_are(
    clouds: HttpClouds, site: Site
) -> None:
    async with clouds.subcloud(a_subcloud(), request_id="req-8c2d1c46") as session:
        await session.identity.list(ResourceType.USERS)
    login, listing = site.requests
    assert login.path == "/v3/auth/tokens?nocatalog"
    assert login.json["auth"] == {
        "identity": {
            "methods": ["password"],
            "password": {"user": {"name": "dcmanager", "domain": {"name": "Default"}, "password": PASSWORD}},
        },
        "scope": {"project": {"name": "services", "domain": {"name": "Default"}}},
    }
    assert "x-auth-token" not in login.headers
    assert listing.headers["x-auth-token"] == f"{TOKEN}-1"
    for request in site.requests:
        assert request.headers["x-openstack-request-id"] == "req-8c2d1c46"
        assert request.headers["user-header"] == "distcloud"
        assert request.headers["accept"] == "application/json"


@pytest.mark.parametrize(
    ("own_servers", "shares_ip_with", "told"),
    [
        (OwnServers([(ADDRESS, "the central cloud")]), None, f"{ADDRESS} is the address of the central cloud"),
        (OwnServers(), "edge-2", f"{ADDRESS} is the management IP of edge-2 as well"),
    ],
)
async def test_nobody_logs_in_at_the_address_of_another_cloud(
    make_clouds: Callable[..., HttpClouds], site: Site, own_servers: OwnServers, shares_ip_with: str | None, told: str
) -> None:
    known = replace(a_subcloud(), shares_ip_with=shares_ip_with)
    with pytest.raises(CloudError, match=told) as refused:
        async with make_clouds(own_servers=own_servers).subcloud(known, request_id="req-1"):
            pass
    assert refused.value.reason is Reason.ADDRESS_REFUSED
    assert site.requests == []


async def test_collections_are_asked_for_with_a_trailing_slash(clouds: HttpClouds, site: Site) -> None:
    async with clouds.subcloud(a_subcloud(), request_id="req-1") as session:
        for type_ in ResourceType:
            (record,) = await session.identity.list(type_)
            assert record.body == record_from_body(type_, LISTS[type_.value][0]).body
    assert [r.path for r in site.requests[1:]] == [f"/v1.0/identity/{type_.value}/" for type_ in ResourceType]


async def test_an_update_answers_what_is_stored(clouds: HttpClouds, site: Site) -> None:
    stored = USER | {"user": {"id": "other", "domain_id": "default"}}
    site.behaviours["PUT users"] = sends(answer(200, stored))
    async with clouds.subcloud(a_subcloud(), request_id="req-1") as session:
        assert (await session.identity.update("old", A_USER)).id == "other"
    (sent,) = site.sent("PUT", "users")
    assert sent.json == A_USER.body


def only(*numbers: int) -> Callable[[str], bool]:
    return lambda token: token in {f"{TOKEN}-{number}" for number in numbers}


async def test_a_token_refused_once_is_replaced_and_the_request_repeated(clouds: HttpClouds, site: Site) -> None:
    site.valid_token = only(2)
    async with clouds.subcloud(a_subcloud(), request_id="req-1") as session:
        assert await session.identity.list(ResourceType.ROLES)
        assert await session.identity.list(ResourceType.ROLES)
    assert site.logins == 2
    assert len(site.sent("GET", "roles")) == 3


async def test_a_storm_of_refusals_is_one_fresh_login(clouds: HttpClouds, site: Site) -> None:
    site.valid_token = only(2)
    async with clouds.subcloud(a_subcloud(), request_id="req-1") as session:
        await asyncio.gather(
            *(session.identity.list(type_) for type_ in ResourceType),
            *(session.identity.update(f"u{n}", A_USER) for n in range(4)),
        )
    assert site.logins == 2


async def test_a_second_refusal_is_auth_failed_after_one_fresh_login(clouds: HttpClouds, site: Site) -> None:
    site.valid_token = only()
    async with clouds.subcloud(a_subcloud(), request_id="req-1") as session:
        with pytest.raises(CloudError) as caught:
            await session.identity.list(ResourceType.USERS)
    assert caught.value.reason is Reason.AUTH_FAILED
    assert site.logins == 2
    assert len(site.sent("GET", "users")) == 2


async def test_a_storm_of_refusals_with_a_wrong_password_tries_it_once(clouds: HttpClouds, site: Site) -> None:
    async with clouds.subcloud(a_subcloud(), request_id="req-1") as session:
        site.valid_token = only()
        site.behaviours["POST tokens"] = sends(answer(401))
        ended = await asyncio.gather(
            *(session.identity.update(f"u{n}", A_USER) for n in range(4)), return_exceptions=True
        )
        assert {error.reason for error in ended if isinstance(error, CloudError)} == {Reason.AUTH_FAILED}
        assert len(site.sent("POST", "tokens")) == 2
        with pytest.raises(CloudError, match="not tried again with this password before"):
            await session.login()
        assert len(site.sent("POST", "tokens")) == 2, "nor does an explicit login"


async def test_a_token_answered_404_is_replaced_as_well(clouds: HttpClouds, site: Site) -> None:
    """docs/upstream/real-keystone.md K4: a token that names a rewritten user is answered 404, not 401."""

    async def rewritten(request: Request, writer: asyncio.StreamWriter) -> None:
        stale = request.headers["x-auth-token"] == f"{TOKEN}-1"
        writer.write(answer(404) if stale else answer(200, {"keys": site.keys}))

    site.behaviours["GET fernet_repo"] = rewritten
    async with clouds.subcloud(a_subcloud(), request_id="req-1") as session:
        assert (await session.fernet_repo.read()).keys
    assert site.logins == 2


async def test_a_login_on_demand_drops_the_token_held(clouds: HttpClouds, site: Site) -> None:
    async with clouds.subcloud(a_subcloud(), request_id="req-1") as session:
        await session.login()
        await session.identity.list(ResourceType.USERS)
    assert site.requests[-1].headers["x-auth-token"] == f"{TOKEN}-2"


async def test_a_token_is_renewed_before_it_expires(clouds: HttpClouds, site: Site, clock: Clock) -> None:
    async with clouds.subcloud(a_subcloud(), request_id="req-1") as session:
        clock.now += 3600 - 61
        await session.identity.list(ResourceType.USERS)
        assert site.logins == 1
        clock.now += 2
        await asyncio.gather(*(session.identity.list(type_) for type_ in ResourceType))
        assert site.logins == 2


@pytest.mark.parametrize("ahead", [timedelta(days=-400), timedelta(days=400)])
async def test_a_site_whose_clock_is_wrong_is_not_logged_in_to_for_every_request(
    clouds: HttpClouds, site: Site, clock: Clock, ahead: timedelta
) -> None:
    site.clock_ahead = ahead
    async with clouds.subcloud(a_subcloud(), request_id="req-1") as session:
        for _ in range(3):
            await session.identity.list(ResourceType.USERS)
        assert site.logins == 1


@pytest.mark.parametrize("life", [None, timedelta(seconds=30), timedelta(seconds=-5)])
async def test_a_token_without_a_believable_end_is_kept_until_it_is_refused(
    clouds: HttpClouds, site: Site, clock: Clock, life: timedelta | None
) -> None:
    site.token_life = life
    async with clouds.subcloud(a_subcloud(), request_id="req-1") as session:
        clock.now += 100_000
        await session.identity.list(ResourceType.USERS)
        assert site.logins == 1


@pytest.mark.parametrize(
    "dates",
    [
        {"issued_at": "2026-01-31T08:15:00.000000Z", "expires_at": "soon"},
        {"issued_at": "2026-01-31T08:15:00", "expires_at": "2026-01-31T09:15:00Z"},
        {"issued_at": 1, "expires_at": []},
        {},
    ],
)
async def test_malformed_dates_in_a_login_do_no_harm(clouds: HttpClouds, site: Site, dates: dict[str, object]) -> None:
    site.behaviours["POST tokens"] = sends(answer(201, {"token": dates}, X_Subject_Token=f"{TOKEN}-1"))
    async with clouds.subcloud(a_subcloud(), request_id="req-1") as session:
        assert await session.identity.list(ResourceType.USERS)


@pytest.mark.parametrize(
    "raw",
    [
        answer(201, {"token": {}}),
        answer(201, {"token": {}}, X_Subject_Token=""),
        answer(201, {"token": {}}, X_Subject_Token="\u00e9"),
        answer(201, {"token": []}, X_Subject_Token=TOKEN),
        answer(201, [], X_Subject_Token=TOKEN),
        answer(200, {"token": {}}, X_Subject_Token=TOKEN),
    ],
)
async def test_a_login_answered_in_another_shape_is_a_bad_reply(clouds: HttpClouds, site: Site, raw: bytes) -> None:
    site.behaviours["POST tokens"] = sends(raw)
    with pytest.raises(CloudError) as caught:
        async with clouds.subcloud(a_subcloud(), request_id="req-1"):
            pass
    assert caught.value.reason is Reason.BAD_REPLY
    assert TOKEN not in str(caught.value)


async def test_a_cancelled_request_leaves_the_login_to_the_others(clouds: HttpClouds, site: Site) -> None:
    site.valid_token = only(2, 3)
    asked, go = asyncio.Event(), asyncio.Event()

    async def slow_login(request: Request, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await go.wait()
        writer.write(site.login())

    async with clouds.subcloud(a_subcloud(), request_id="req-1") as session:
        site.behaviours["POST tokens"] = slow_login
        one = asyncio.create_task(session.identity.list(ResourceType.USERS))
        await asked.wait()
        other = asyncio.create_task(session.identity.list(ResourceType.ROLES))
        await asyncio.sleep(0)
        one.cancel()
        go.set()
        assert await other


async def test_a_central_token_never_goes_to_a_site(clouds: HttpClouds, site: Site) -> None:
    await clouds.central_data()
    async with clouds.subcloud(a_subcloud(), request_id="req-1") as session:
        await session.identity.list(ResourceType.USERS)
    assert site.requests[-1].headers["x-auth-token"] == f"{TOKEN}-2"


async def test_neither_password_nor_token_nor_answer_shows_in_a_repr(clouds: HttpClouds, site: Site) -> None:
    async with open_http(limits=LIMITS, trust=Trust(None), request_id="req-1") as http:
        password = PasswordLogin(CREDENTIALS, refused=ProcessRefusedLogins(), monotonic=Clock())
        login = Authenticated(http, auth_url=site.urls(ADDRESS).auth, login=password, monotonic=Clock())
        token = await login.login()
        reply = await login.request("GET", f"{site.urls(ADDRESS).dbsync}/identity/users/", expected=(200,))
        assert TOKEN in token.value
        assert_no_secret_in(repr(CREDENTIALS), repr(token), repr(reply), repr(login), repr(password), repr(http))
