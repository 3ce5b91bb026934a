"""What a site may do to us, and what an operator then reads. Each case also looks for secrets in the error."""

from __future__ import annotations

import asyncio
import gzip
import pickle
import socket
import zlib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from dcsync.adapters.cloud.clouds import HttpClouds, HttpSubcloudSession
from dcsync.adapters.cloud.http import LONGEST_RETRY_AFTER
from dcsync.model.errors import CloudError
from dcsync.model.identity import FernetKeys, ResourceType, record_from_body
from dcsync.model.reasons import Reason
from tests.integration.adapters.scripted_site import (
    ADDRESS,
    HASH,
    KEYS,
    LISTS,
    TOKEN,
    USER,
    Behaviour,
    Request,
    Site,
    a_moment,
    a_subcloud,
    answer,
    assert_no_secret_in,
    sends,
    texts_of,
)

Attempt = Callable[[HttpSubcloudSession], Awaitable[Any]]


async def at_once() -> None:
    await asyncio.sleep(0)


def endless(head: bytes, piece: bytes, *, between: Callable[[], Awaitable[None]] = at_once) -> Behaviour:
    async def behave(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        while True:
            writer.write(piece)
            await writer.drain()
            await between()

    return behave


async def disconnects(request: Request, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def resets(request: Request, writer: asyncio.StreamWriter) -> None:
    raw = writer.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    writer.transport.abort()


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
UNTIL_CLOSED = b"HTTP/1.1 200 OK\r\n\r\n"
ECHO = f"{TOKEN}-1 {HASH} {KEYS[0]}"
BOMB = gzip.compress(b"[" + b" " * 5_000_000 + b"]")
DEFLATED = zlib.compress(b"[" + b" " * 5_000_000 + b"]")

FAILURES: dict[str, tuple[Behaviour, Reason]] = {
    "says nothing": (sends(b"", then="last"), Reason.TIMEOUT),
    "hangs in the middle of a body": (sends(answer(200, LISTS["users"])[:-10], then="last"), Reason.TIMEOUT),
    "drips for ever": (endless(answer(200, Content_Length="40000"), b" ", between=a_moment), Reason.TIMEOUT),
    "drips headers for ever": (endless(b"HTTP/1.1 200 OK\r\n", b"A: b\r\n", between=a_moment), Reason.TIMEOUT),
    "breaks off in the middle of a body": (sends(answer(200, ECHO)[:-10], then="close"), Reason.BAD_REPLY),
    "disconnects": (disconnects, Reason.UNREACHABLE),
    "resets the connection": (resets, Reason.UNREACHABLE),
    "fails": (sends(answer(500, f"<html>{ECHO}</html>")), Reason.SERVER_ERROR),
    "is away behind its proxy": (sends(answer(503)), Reason.SERVER_ERROR),
    "fails and hangs": (sends(answer(500, Content_Length="99"), then="hang"), Reason.SERVER_ERROR),
    "refuses every token": (sends(answer(401, f"<html>{ECHO}</html>")), Reason.AUTH_FAILED),
    "forbids": (sends(answer(403, ECHO)), Reason.REFUSED),
    "is asked too much": (sends(answer(429, ECHO)), Reason.TOO_MANY_REQUESTS),
    "does not know the path": (sends(answer(404, ECHO)), Reason.REFUSED),
    "finds the request wrong": (sends(answer(400, {"error_message": ECHO})), Reason.REFUSED),
    "answers without content": (sends(answer(204)), Reason.BAD_REPLY),
    "answers with nothing": (sends(answer(200)), Reason.BAD_REPLY),
    "answers in HTML": (sends(answer(200, f"<html>{ECHO}</html>", Content_Type="text/html")), Reason.BAD_REPLY),
    "answers with half a JSON text": (sends(answer(200, f'[{{"{ECHO}')), Reason.BAD_REPLY),
    "answers in bytes that are no text": (sends(answer(200, b'["\xff\xfe"]')), Reason.BAD_REPLY),
    "nests without end": (sends(answer(200, "[" * 49_000)), Reason.BAD_REPLY),
    "answers with null": (sends(answer(200, "null")), Reason.BAD_REPLY),
    "answers with a number": (sends(answer(200, "1")), Reason.BAD_REPLY),
    "answers with a list of numbers": (sends(answer(200, [1])), Reason.BAD_REPLY),
    "answers with an error in JSON": (sends(answer(200, {"code": 500, "description": ECHO})), Reason.BAD_REPLY),
    "announces more than we read": (sends(answer(200, Content_Length="50001"), then="hang"), Reason.REPLY_TOO_LARGE),
    "never stops sending chunks": (endless(CHUNKED, b"400\r\n" + b" " * 1024 + b"\r\n"), Reason.REPLY_TOO_LARGE),
    "never stops sending": (endless(UNTIL_CLOSED, b" " * 1024), Reason.REPLY_TOO_LARGE),
    "sends a gzip bomb": (sends(answer(200, BOMB, Content_Encoding="gzip")), Reason.BAD_REPLY),
    "sends a deflate bomb": (sends(answer(200, DEFLATED, Content_Encoding="deflate")), Reason.BAD_REPLY),
    "sends brotli": (sends(answer(200, "[]", Content_Encoding="br")), Reason.BAD_REPLY),
    "names an encoding twice": (sends(answer(200, BOMB, Content_Encoding="identity, gzip")), Reason.BAD_REPLY),
    "sends a gzip bomb as a transfer coding": (
        sends(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(BOMB), BOMB)),
        Reason.BAD_REPLY,
    ),
    "continues without end": (endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000), Reason.REPLY_TOO_LARGE),
    "gives early hints without end": (
        endless(b"", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 1000),
        Reason.REPLY_TOO_LARGE,
    ),
    "drips interim replies for ever": (
        endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n", between=a_moment),
        Reason.TIMEOUT,
    ),
    "extends a chunk without end": (endless(CHUNKED + b"1;", b"x" * 60_000), Reason.REPLY_TOO_LARGE),
    "extends every chunk": (endless(CHUNKED, b"1;" + b"x" * 60_000 + b"\r\n \r\n"), Reason.REPLY_TOO_LARGE),
    "sends a flood of headers": (endless(b"HTTP/1.1 200 OK\r\n", b"A: b\r\n" * 1000), Reason.BAD_REPLY),
    "sends a flood of trailers": (endless(CHUNKED + b"2\r\n[]\r\n0\r\n", b"A: b\r\n" * 1000), Reason.BAD_REPLY),
    "switches protocols": (
        sends(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"),
        Reason.BAD_REPLY,
    ),
    "answers with a status nobody knows": (sends(answer(999)), Reason.SERVER_ERROR),
    "gives a reason without end": (endless(b"HTTP/1.1 500 ", b"x" * 60_000), Reason.BAD_REPLY),
    "answers with another length than it sends": (sends(answer(200, "[]", Content_Length="-1")), Reason.BAD_REPLY),
    "answers with NaN": (sends(answer(200, "[NaN]")), Reason.BAD_REPLY),
    "answers in UTF-16": (sends(answer(200, "[]".encode("utf-16"))), Reason.BAD_REPLY),
    "is no HTTP server": (sends(f"SSH-2.0-{ECHO}\r\n\r\n".encode(), then="close"), Reason.BAD_REPLY),
    "sends a broken header": (sends(f"HTTP/1.1 200 OK\r\nX\x01: {ECHO}\r\n\r\n".encode()), Reason.BAD_REPLY),
    "sends a broken length": (sends(answer(200, Content_Length=ECHO)), Reason.BAD_REPLY),
    "sends a header without end": (sends(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000), Reason.BAD_REPLY),
    "sends a broken chunk": (sends(CHUNKED + ECHO.encode() + b"\r\n"), Reason.BAD_REPLY),
    "redirects": (sends(answer(302, Location="/v1.0/identity/roles/")), Reason.BAD_REPLY),
    "redirects for good": (sends(answer(308, Location="/v1.0/identity/roles/")), Reason.BAD_REPLY),
}


async def list_projects(session: HttpSubcloudSession) -> None:
    await session.identity.list(ResourceType.PROJECTS)


async def list_users(session: HttpSubcloudSession) -> None:
    await session.identity.list(ResourceType.USERS)


async def update_a_user(session: HttpSubcloudSession) -> None:
    await session.identity.update("old", record_from_body(ResourceType.USERS, USER))


async def read_keys(session: HttpSubcloudSession) -> None:
    await session.fernet_repo.read()


async def send_keys(session: HttpSubcloudSession) -> None:
    await session.fernet_repo.replace(FernetKeys(KEYS))


async def failure_of(clouds: HttpClouds, attempt: Attempt | None = None) -> CloudError:
    """The error of one attempt, after it was looked through for secrets."""

    async def run() -> None:
        async with clouds.subcloud(a_subcloud(), request_id="req-1") as session:
            assert attempt is not None, "the login was to fail"
            await attempt(session)

    with pytest.raises(CloudError) as caught:
        await run()
    assert_no_secret_in(*texts_of(caught.value), repr(clouds))
    assert pickle.loads(pickle.dumps(caught.value)).reason == caught.value.reason
    return caught.value


CALLS = {
    "GET users": (list_users, "GET {base}/v1.0/identity/users/: "),
    "PUT users": (update_a_user, "PUT {base}/v1.0/identity/users/old: "),
    "GET fernet_repo": (read_keys, "GET {base}/v1/fernet_repo: "),
}


@pytest.mark.parametrize("what", FAILURES)
@pytest.mark.parametrize("call", CALLS)
async def test_a_site_that_misbehaves_fails_with_the_reason_and_the_call(
    clouds: HttpClouds, site: Site, what: str, call: str
) -> None:
    site.behaviours[call], reason = FAILURES[what]
    attempt, begins = CALLS[call]
    error = await failure_of(clouds, attempt)
    assert error.reason is reason
    assert error.detail.startswith(begins.format(base=f"http://{ADDRESS}:{site.port}"))
    assert len(error.detail) < 200
    assert not site.sent("GET", "roles"), "a redirect was followed"


@pytest.mark.parametrize("what", sorted(set(FAILURES) - {"does not know the path"}))
async def test_a_keystone_that_misbehaves_fails_the_login(clouds: HttpClouds, site: Site, what: str) -> None:
    site.behaviours["POST tokens"], reason = FAILURES[what]
    error = await failure_of(clouds)
    assert error.reason is reason
    assert error.detail.startswith(f"POST http://{ADDRESS}:{site.port}/v3/auth/tokens?nocatalog: ")
    assert len(site.requests) == 1, "a failed login is not repeated: wrong passwords lock the user out"


@pytest.mark.parametrize("status", [400, 401, 403, 404, 500])
async def test_keys_that_are_not_taken_are_a_failure(clouds: HttpClouds, site: Site, status: int) -> None:
    site.behaviours["POST fernet_repo"] = sends(answer(status, ECHO))
    error = await failure_of(clouds, send_keys)
    assert str(status) in error.detail


@pytest.mark.parametrize("status", [200, 201, 202])
async def test_keys_go_out_as_one_array_and_any_of_three_statuses_is_success(
    clouds: HttpClouds, site: Site, status: int
) -> None:
    site.behaviours["POST fernet_repo"] = sends(answer(status))
    async with clouds.subcloud(a_subcloud(), request_id="req-1") as session:
        await session.fernet_repo.replace(FernetKeys(KEYS))
    (sent,) = site.sent("POST", "fernet_repo")
    assert sent.json == [{"id": 1, "key": KEYS[1]}, {"id": 0, "key": KEYS[0]}]


async def test_an_empty_set_of_keys_is_never_sent(clouds: HttpClouds, site: Site) -> None:
    async with clouds.subcloud(a_subcloud(), request_id="req-1") as session:
        with pytest.raises(ValueError, match="empty"):
            await session.fernet_repo.replace(FernetKeys({}))
    assert not site.sent("POST", "fernet_repo")


@pytest.mark.parametrize(
    "answered",
    [
        [],
        {"keys": {"0": KEYS[0]}},
        {"keys": [KEYS[0]]},
        {"keys": [{"id": "0", "key": KEYS[0]}]},
        {"keys": [{"id": True, "key": KEYS[0]}]},
        {"keys": [{"id": 0, "key": None}]},
        {"keys": [{"id": 0, "key": "\ud800"}]},
        {"keys": [{"id": 0, "key": KEYS[0]}, {"id": 0, "key": KEYS[1]}]},
    ],
)
async def test_keys_of_another_shape_are_a_bad_reply(clouds: HttpClouds, site: Site, answered: Any) -> None:
    site.behaviours["GET fernet_repo"] = sends(answer(200, answered))
    assert (await failure_of(clouds, read_keys)).reason is Reason.BAD_REPLY


@pytest.mark.parametrize("id_", ["", ".", "..", "a\0b", "a\nb", "é", "x" * 256, 7, None])
async def test_an_id_that_cannot_stand_in_an_address_is_a_bad_reply(clouds: HttpClouds, site: Site, id_: Any) -> None:
    site.lists["users"] = [USER | {"user": USER["user"] | {"id": id_}}]  # type: ignore[operator]
    assert (await failure_of(clouds, list_users)).reason is Reason.BAD_REPLY


@pytest.mark.parametrize("parent_id", [["p1"], {"id": "p1"}, 7])
async def test_a_project_under_something_that_is_no_id_is_a_bad_reply(
    clouds: HttpClouds, site: Site, parent_id: Any
) -> None:
    site.lists["projects"] = [{"project": LISTS["projects"][0]["project"] | {"parent_id": parent_id}}]
    assert (await failure_of(clouds, list_projects)).reason is Reason.BAD_REPLY


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "x" * 256])
async def test_a_name_no_table_can_hold_is_a_bad_reply(clouds: HttpClouds, site: Site, name: str) -> None:
    site.lists["users"] = [USER | {"local_user": USER["local_user"] | {"name": name}}]  # type: ignore[operator]
    assert (await failure_of(clouds, list_users)).reason is Reason.BAD_REPLY


async def test_an_id_is_quoted_so_that_it_stays_one_piece_of_the_path(clouds: HttpClouds, site: Site) -> None:
    async with clouds.subcloud(a_subcloud(), request_id="req-1") as session:
        await session.identity.update("../a?b<<c>>", record_from_body(ResourceType.USERS, USER))
        with pytest.raises(ValueError, match="URL"):
            await session.identity.update("..", record_from_body(ResourceType.USERS, USER))
    (sent,) = site.sent("PUT", "users")
    assert sent.path == "/v1.0/identity/users/..%2Fa%3Fb%3C%3Cc%3E%3E"


async def test_a_port_where_nobody_listens_is_unreachable(clouds: HttpClouds, site: Site) -> None:
    with socket.socket() as reserved:
        reserved.bind((ADDRESS, 0))
        clouds._templates = Site(port=reserved.getsockname()[1]).urls()
        error = await failure_of(clouds)
    assert error.reason is Reason.UNREACHABLE
    assert "refused" in error.detail.lower()


async def test_an_address_outside_the_allowed_networks_is_not_dialled(clouds: HttpClouds, site: Site) -> None:
    with pytest.raises(CloudError) as caught:
        async with clouds.subcloud(a_subcloud("192.0.2.1"), request_id="req-1"):
            pass
    assert caught.value.reason is Reason.ADDRESS_REFUSED
    assert "192.0.2.1" in caught.value.detail


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("120", 120),
        ("Wed, 21 Oct 2026 07:28:00 GMT", None),
        ("-5", None),
        ("9" * 17, LONGEST_RETRY_AFTER),
        ("9" * 400, LONGEST_RETRY_AFTER),
    ],
    ids=["seconds", "date", "nonsense", "more days than a date can hold", "more than a float can hold"],
)
async def test_how_long_a_site_asks_to_be_left_alone_is_heard(
    clouds: HttpClouds, site: Site, header: str, seconds: float | None
) -> None:
    site.behaviours["GET users"] = sends(answer(429, Retry_After=header))
    error = await failure_of(clouds, list_users)
    assert (error.reason, error.retry_after) == (Reason.TOO_MANY_REQUESTS, seconds)


async def test_a_proxy_named_in_the_environment_is_not_used(
    clouds: HttpClouds, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.18.0.2:9")
    async with clouds.subcloud(a_subcloud(), request_id="req-1") as session:
        await list_users(session)
    assert site.sent("GET", "users")


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("says nothing", "no data for 60 s"),
        ("drips for ever", "no complete reply within 100 s"),
        ("sends a gzip bomb", "200, compressed although not requested"),
        ("fails", "users/: 500"),
        ("announces more than we read", "more than 50000 bytes announced"),
    ],
)
async def test_the_detail_says_what_an_operator_can_look_for(
    clouds: HttpClouds, site: Site, what: str, words: str
) -> None:
    site.behaviours["GET users"], _ = FAILURES[what]
    assert words in (await failure_of(clouds, list_users)).detail


async def test_leaving_a_session_closes_its_sockets(clouds: HttpClouds, site: Site) -> None:
    async with clouds.subcloud(a_subcloud(), request_id="req-1") as session:
        await asyncio.gather(*(session.identity.list(type_) for type_ in ResourceType))
        assert site.connections
    async with asyncio.timeout(60):
        while site.connections:
            await asyncio.sleep(0)


async def test_a_dead_site_does_not_delay_another(clouds: HttpClouds, site: Site) -> None:
    site.behaviours["GET users"] = sends(b"", then="hang")
    async with clouds.subcloud(a_subcloud(), request_id="req-1") as dead:
        waiting = asyncio.create_task(dead.identity.list(ResourceType.USERS))
        while not site.sent("GET", "users"):
            await asyncio.sleep(0)
        async with clouds.subcloud(a_subcloud("127.18.0.1"), request_id="req-2") as healthy:
            await healthy.identity.list(ResourceType.ROLES)
        assert not waiting.done()
        waiting.cancel()
