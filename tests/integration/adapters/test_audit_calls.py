"""What an audit asks of a cloud besides: grants, events, creations, deletions, passwords.

What goes over the wire, and what is made of answers that are not as they should be.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from dcsync.adapters.cloud.clouds import HttpClouds, HttpSubcloudSession
from dcsync.adapters.cloud.services import SERVICES
from dcsync.model.errors import CloudError
from dcsync.model.identity import ActorType, Assignment, ResourceType, record_from_body, revocation_event
from dcsync.model.reasons import Reason
from dcsync.model.subcloud import EndpointType
from tests.integration.adapters.scripted_site import (
    EVENT,
    GRANT,
    HASH,
    PASSWORD,
    TOKEN,
    USER,
    Behaviour,
    Clock,
    Site,
    a_subcloud,
    answer,
    assert_no_secret_in,
    sends,
    texts_of,
)
from tests.toy_endpoint import FirmwareApi

USERS, GROUPS, PROJECTS, ROLES = ResourceType
A_GRANT = Assignment("p1", ActorType.USER, "u1", "r1")
AN_EVENT = revocation_event(EVENT["revocation_event"])
ECHO = f"{TOKEN}-1 {HASH} {PASSWORD}"
NOT_FOUND = sends(answer(404, {"error": {"code": 404}}))
NO_CONTENT = sends(b"HTTP/1.1 204 No Content\r\n\r\n")


@pytest.fixture
async def session(clouds: HttpClouds, site: Site) -> AsyncIterator[HttpSubcloudSession]:
    async with clouds.subcloud(a_subcloud(), request_id="req-1") as found:
        site.requests.clear()
        yield found


def lines(site: Site) -> list[str]:
    return [f"{request.method} {request.path}" for request in site.requests]


# --- grants


async def test_grants_on_projects_are_read_for_users_and_groups(session: HttpSubcloudSession, site: Site) -> None:
    site.grants = [GRANT, {"scope": {"project": {"id": "p2"}}, "group": {"id": "g1"}, "role": {"id": "r2"}}]
    assert await session.keystone.assignments() == {A_GRANT, Assignment("p2", ActorType.GROUP, "g1", "r2")}
    assert lines(site) == ["GET /v3/role_assignments"]


@pytest.mark.parametrize(
    "scope",
    [
        {"system": {"all": True}},
        {"domain": {"id": "default"}},
        {"domain": {"id": "default"}, "OS-INHERIT:inherited_to": "projects"},
        {"project": {"id": "p1"}, "OS-INHERIT:inherited_to": "projects"},
    ],
)
async def test_grants_that_are_not_on_a_project_itself_are_left_out(
    session: HttpSubcloudSession, site: Site, scope: dict[str, Any]
) -> None:
    site.grants = [GRANT | {"scope": scope}]
    assert await session.keystone.assignments() == frozenset()


@pytest.mark.parametrize(
    "body",
    [
        [],
        {"cats": []},
        {"role_assignments": {}},
        {"role_assignments": [7]},
        {"role_assignments": [{"user": {"id": "u1"}, "role": {"id": "r1"}}]},
        {"role_assignments": [{"scope": {"project": {"id": "p1"}}, "role": {"id": "r1"}}]},
        {"role_assignments": [GRANT | {"role": {"id": 7}}]},
        {"role_assignments": [GRANT | {"role": {}}]},
        {"role_assignments": [GRANT | {"role": {"id": f"{TOKEN}\n"}}]},
        {"role_assignments": [GRANT | {"user": {"id": ".."}}]},
        {"role_assignments": [GRANT | {"scope": {"project": None}}]},
        {"role_assignments": [GRANT], "truncated": True},
    ],
)
async def test_a_list_of_grants_that_is_not_whole_or_not_one_is_a_bad_reply(
    session: HttpSubcloudSession, site: Site, body: Any
) -> None:
    site.behaviours["GET role_assignments"] = sends(answer(200, body))
    with pytest.raises(CloudError) as caught:
        await session.keystone.assignments()
    assert caught.value.reason is Reason.BAD_REPLY
    assert_no_secret_in(*texts_of(caught.value))


async def test_granting_and_revoking_name_everything_in_the_path(session: HttpSubcloudSession, site: Site) -> None:
    site.behaviours |= {"PUT projects": NO_CONTENT, "DELETE projects": NO_CONTENT}
    await session.keystone.grant(A_GRANT)
    await session.keystone.revoke(Assignment("p1", ActorType.GROUP, "g/1", "r1"))
    assert lines(site) == [
        "PUT /v3/projects/p1/users/u1/roles/r1",
        "DELETE /v3/projects/p1/groups/g%2F1/roles/r1",
    ]


# --- deletions: not there is fine, but only when a fresh token says so (K4)


@pytest.mark.parametrize("type_", ResourceType)
async def test_a_record_is_deleted_through_keystone(
    session: HttpSubcloudSession, site: Site, type_: ResourceType
) -> None:
    site.behaviours[f"DELETE {type_}"] = NO_CONTENT
    await session.keystone.delete(type_, "x 1")
    assert lines(site) == [f"DELETE /v3/{type_}/x%201"]


async def test_what_is_not_there_need_not_be_deleted_or_revoked(session: HttpSubcloudSession, site: Site) -> None:
    site.behaviours |= {"DELETE users": NOT_FOUND, "DELETE projects": NOT_FOUND}
    await session.keystone.delete(USERS, "u1")
    await session.keystone.revoke(A_GRANT)
    login = "tokens?nocatalog"
    assert [line.split("/")[-1] for line in lines(site)] == ["u1", login, "u1", "r1", login, "r1"]


async def test_a_404_of_a_token_that_died_is_not_taken_for_a_deletion(session: HttpSubcloudSession, site: Site) -> None:
    async def behave(request: Any, writer: asyncio.StreamWriter) -> None:
        stale = request.headers["x-auth-token"] == f"{TOKEN}-1"
        writer.write(answer(404) if stale else b"HTTP/1.1 204 No Content\r\n\r\n")

    site.behaviours["DELETE users"] = behave
    await session.keystone.delete(USERS, "u1")
    assert [line.split()[0] for line in lines(site)] == ["DELETE", "POST", "DELETE"]


# --- creations, events, passwords


async def test_a_record_is_created_at_its_collection_and_what_is_stored_is_answered(
    session: HttpSubcloudSession, site: Site
) -> None:
    record = record_from_body(USERS, USER)
    site.behaviours["POST users"] = sends(answer(201, USER | {"user_option": [{"user_id": "u1", "option_id": "1000"}]}))
    stored = await session.identity.create(record)
    assert lines(site) == ["POST /v1.0/identity/users/"]
    assert site.requests[0].json == record.body
    assert stored.body["user_option"] == [{"user_id": "u1", "option_id": "1000"}]


async def test_events_are_read_and_sent_without_their_automatic_id(session: HttpSubcloudSession, site: Site) -> None:
    site.behaviours["POST token-revocation-events"] = sends(answer(201, {}))
    (event,) = await session.identity.revocation_events()
    assert event == AN_EVENT
    await session.identity.create_revocation_event(event)
    assert lines(site) == [f"{verb} /v1.0/identity/token-revocation-events/" for verb in ("GET", "POST")]
    sent = site.requests[1].json["revocation_event"]
    assert sent == {column: value for column, value in EVENT["revocation_event"].items() if column != "id"}


@pytest.mark.parametrize(
    "body",
    [
        {},
        [7],
        [{}],
        [{"revocation_event": None}],
        [{"revocation_event": {}}],
        [{"revocation_event": {"user_id": 7}}],
        [{"revocation_event": {"user_id": f"{TOKEN}\0"}}],
        [{"revocation_event": {"user_id": "\ud800"}}],
        [{"revocation_event": {"user_id": ["u1"]}}],
    ],
)
async def test_a_list_of_events_that_is_none_is_a_bad_reply(
    session: HttpSubcloudSession, site: Site, body: Any
) -> None:
    site.behaviours["GET token-revocation-events"] = sends(answer(200, body))
    with pytest.raises(CloudError) as caught:
        await session.identity.revocation_events()
    assert caught.value.reason is Reason.BAD_REPLY
    assert_no_secret_in(*texts_of(caught.value))


async def test_a_password_is_set_in_plain_text_and_shown_nowhere(session: HttpSubcloudSession, site: Site) -> None:
    await session.keystone.set_password("u1", PASSWORD)
    assert lines(site) == ["PATCH /v3/users/u1"]
    assert site.requests[0].json == {"user": {"password": PASSWORD}}
    site.behaviours["PATCH users"] = sends(answer(400, {"error": {"message": f"too weak: {PASSWORD}"}}))
    with pytest.raises(CloudError) as caught:
        await session.keystone.set_password("u1", PASSWORD)
    assert caught.value.reason is Reason.REFUSED
    assert_no_secret_in(*texts_of(caught.value))


CALLS: dict[str, tuple[str, Callable[[HttpSubcloudSession], Awaitable[Any]]]] = {
    "creating": ("POST users", lambda session: session.identity.create(record_from_body(USERS, USER))),
    "listing grants": ("GET role_assignments", lambda session: session.keystone.assignments()),
    "granting": ("PUT projects", lambda session: session.keystone.grant(A_GRANT)),
    "revoking": ("DELETE projects", lambda session: session.keystone.revoke(A_GRANT)),
    "deleting": ("DELETE users", lambda session: session.keystone.delete(USERS, "u1")),
    "setting a password": ("PATCH users", lambda session: session.keystone.set_password("u1", PASSWORD)),
    "listing events": ("GET token-revocation-events", lambda session: session.identity.revocation_events()),
    "sending an event": (
        "POST token-revocation-events",
        lambda session: session.identity.create_revocation_event(AN_EVENT),
    ),
}
FAILURES: dict[str, tuple[Behaviour, Reason]] = {
    "forbids": (sends(answer(403, ECHO)), Reason.REFUSED),
    "fails": (sends(answer(500, ECHO)), Reason.SERVER_ERROR),
    "refuses every token": (sends(answer(401, ECHO)), Reason.AUTH_FAILED),
    "accepts without doing": (sends(answer(202, ECHO)), Reason.BAD_REPLY),
    "disconnects": (sends(b"", then="close"), Reason.UNREACHABLE),
}


@pytest.mark.parametrize("how", FAILURES)
@pytest.mark.parametrize("what", CALLS)
async def test_a_failure_has_its_reason_whatever_was_asked(
    session: HttpSubcloudSession, site: Site, what: str, how: str
) -> None:
    call, attempt = CALLS[what]
    site.behaviours[call], reason = FAILURES[how]
    with pytest.raises(CloudError) as caught:
        await attempt(session)
    assert caught.value.reason is reason
    assert_no_secret_in(*texts_of(caught.value))


@pytest.mark.parametrize("id_", ["", ".", "..", "a\nb", "ä", "x" * 256])
async def test_an_id_no_address_can_be_made_of_is_refused_before_anything_is_sent(
    session: HttpSubcloudSession, site: Site, id_: str
) -> None:
    with pytest.raises(ValueError, match="cannot be part of a URL"):
        await session.keystone.delete(USERS, id_)
    with pytest.raises(ValueError, match="cannot be part of a URL"):
        await session.keystone.set_password(id_, PASSWORD)
    for grant in (
        Assignment(id_, ActorType.USER, "u1", "r1"),
        Assignment("p1", ActorType.USER, id_, "r1"),
        Assignment("p1", ActorType.USER, "u1", id_),
    ):
        with pytest.raises(ValueError, match="cannot be part of a URL"):
            await session.keystone.grant(grant)
        with pytest.raises(ValueError, match="cannot be part of a URL"):
            await session.keystone.revoke(grant)
    assert site.requests == []


# --- the central cloud


async def test_what_only_audits_need_is_read_for_audits_only(clouds: HttpClouds, site: Site) -> None:
    data = await clouds.central_data()
    assert (data.assignments, data.revocation_events) == (frozenset(), frozenset())
    assert not site.sent("GET", "role_assignments") + site.sent("GET", "token-revocation-events")
    audit = await clouds.central_audit_data()
    assert (audit.assignments, audit.revocation_events) == ({A_GRANT}, {AN_EVENT})
    assert (audit.records, audit.keys, audit.identity_fingerprint) == (
        data.records, data.keys, data.identity_fingerprint,
    )  # fmt: skip
    assert site.logins == 1


@pytest.mark.parametrize("call", ["GET role_assignments", "GET token-revocation-events"])
async def test_a_central_cloud_that_hides_them_fails_audits_and_no_initial_sync(
    clouds: HttpClouds, site: Site, call: str
) -> None:
    site.behaviours[call] = sends(answer(403, ECHO))
    with pytest.raises(CloudError) as caught:
        await clouds.central_audit_data()
    assert caught.value.reason is Reason.CENTRAL_BAD_REPLY
    assert_no_secret_in(*texts_of(caught.value))
    assert await clouds.central_data()


async def test_a_fetch_for_audits_is_shared_and_serves_initial_syncs_while_it_is_young(
    clouds: HttpClouds, site: Site, clock: Clock
) -> None:
    found = await asyncio.gather(*(clouds.central_audit_data() for _ in range(50)))
    assert all(data is found[0] for data in found)
    assert await clouds.central_data() is found[0]
    assert len(site.sent("GET", "role_assignments")) == len(site.sent("GET", "users")) == 1
    clock.now += 5
    assert await clouds.central_data() is not found[0]
    assert await clouds.central_audit_data() is not found[0]
    assert len(site.sent("GET", "role_assignments")) == 2


async def test_who_must_have_newer_data_gets_it_and_shares_it(clouds: HttpClouds, site: Site, clock: Clock) -> None:
    old = await clouds.central_audit_data()
    clock.now += 1
    assert await clouds.central_audit_data(max_age=2) is old
    newer = await clouds.central_audit_data(max_age=0.5)
    assert newer is not old
    clock.now += 0.25
    assert await clouds.central_audit_data(max_age=0.5) is newer
    assert await clouds.central_audit_data() is newer
    assert len(site.sent("GET", "role_assignments")) == 2


async def test_an_empty_list_at_the_central_cloud_is_refused_for_audits_as_well(clouds: HttpClouds, site: Site) -> None:
    site.lists["users"] = []
    with pytest.raises(CloudError) as caught:
        await clouds.central_audit_data()
    assert caught.value.reason is Reason.CENTRAL_EMPTY


# --- an endpoint type with a service of its own


async def test_a_registered_service_is_read_of_both_clouds_and_written(
    clouds: HttpClouds, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SERVICES, EndpointType.FIRMWARE, FirmwareApi)
    site.behaviours["GET toy_images"] = sends(answer(200, {"bios": "2.1"}))
    central = await clouds.central_audit_data()
    assert central.others == {EndpointType.FIRMWARE: {"bios": "2.1"}}
    assert central.records.users
    async with clouds.subcloud(a_subcloud(), request_id="req-1") as session:
        assert await session.service(EndpointType.FIRMWARE).read() == {"bios": "2.1"}
        site.behaviours["PUT toy_images"] = sends(answer(200, {}))
        await session.service(EndpointType.FIRMWARE).put("bios", "2.2")
        with pytest.raises(KeyError):
            session.service(EndpointType.SOFTWARE)
    (put,) = site.sent("PUT", "toy_images")
    assert (put.json, put.headers["x-openstack-request-id"]) == ({"version": "2.2"}, "req-1")


async def test_a_registered_service_that_fails_fails_audits_and_no_initial_sync(
    clouds: HttpClouds, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SERVICES, EndpointType.FIRMWARE, FirmwareApi)
    site.behaviours["GET toy_images"] = sends(answer(200, ["not", "images"]))
    with pytest.raises(CloudError) as caught:
        await clouds.central_audit_data()
    assert caught.value.reason is Reason.CENTRAL_BAD_REPLY
    assert await clouds.central_data()
