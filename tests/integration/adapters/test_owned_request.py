"""The last check before a write's bytes leave: on real connections, and in processes that are stopped and continued."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from dcsync.adapters.cloud.http import Http, Limits, open_http
from dcsync.adapters.cloud.tls import Trust
from dcsync.runs.writing import depends_on, writing


class Subcloud:
    """A server that notes what reached it."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []
        self.url = ""

    async def answer(self, request: web.Request) -> web.Response:
        self.seen.append((request.method, await request.text()))
        return web.json_response({})


@pytest.fixture
async def subcloud() -> AsyncIterator[Subcloud]:
    made = Subcloud()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", made.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield made
    await runner.cleanup()


@pytest.fixture
async def http(subcloud: Subcloud) -> AsyncIterator[Http]:
    async with open_http(limits=Limits(), trust=Trust(None), request_id="req-1") as opened:
        yield opened


class NotMine(Exception):
    """What ends a run that owns nothing any more."""


class Owner:
    """Answers yes so many times, and counts."""

    def __init__(self, *, yes: int) -> None:
        self.yes = yes
        self.asked = 0

    async def recheck(self) -> None:
        self.asked += 1
        if self.asked > self.yes:
            raise NotMine


BODY = {"user": {"id": "x" * 40}}


@pytest.mark.parametrize("body", [BODY, None], ids=["with a body", "without"])
@pytest.mark.parametrize("method", ["PUT", "POST", "PATCH", "DELETE"])
@pytest.mark.parametrize("warm", [True, False], ids=["kept connection", "new connection"])
async def test_nothing_leaves_once_the_answer_is_no(
    subcloud: Subcloud, http: Http, method: str, body: object, warm: bool
) -> None:
    if warm:
        await http.send("GET", f"{subcloud.url}/v3")
        subcloud.seen.clear()
    depends_on(Owner(yes=0).recheck)
    with writing(), pytest.raises(NotMine):
        await http.send(method, f"{subcloud.url}/v3/users/1", body=body)
    await http.send("GET", f"{subcloud.url}/v3")
    assert subcloud.seen == [("GET", "")], "the connections are still good, and nothing was sent on them"


async def test_headers_wait_with_the_body_for_the_last_answer(subcloud: Subcloud, http: Http) -> None:
    """The body leaves in a turn of the loop of its own: the process may be stopped before it."""
    owner = Owner(yes=1)
    depends_on(owner.recheck)
    with writing(), pytest.raises(NotMine):
        await http.send("PUT", f"{subcloud.url}/v3/users/1", body=BODY)
    assert owner.asked == 2
    await http.send("GET", f"{subcloud.url}/v3")
    assert subcloud.seen == [("GET", "")]


async def test_what_a_run_reads_and_what_it_may_write_passes(subcloud: Subcloud, http: Http) -> None:
    depends_on(Owner(yes=0).recheck)
    assert (await http.send("GET", f"{subcloud.url}/v3")).status == 200
    depends_on(Owner(yes=2).recheck)
    with writing():
        assert (await http.send("PUT", f"{subcloud.url}/v3/users/1", body=BODY)).status == 200
    assert [method for method, _ in subcloud.seen] == ["GET", "PUT"]
