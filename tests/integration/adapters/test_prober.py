"""Probing sites over real HTTP: what counts as good, and what one probe may cost."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable

import pytest

from dcsync.adapters.cloud.endpoints import ServiceUrls
from dcsync.adapters.cloud.prober import HttpProber
from dcsync.adapters.cloud.tls import Trust
from dcsync.adapters.host.own_servers import OwnServers
from dcsync.fake_cloud.control import FakeCloud
from dcsync.fake_cloud.faults import Fault
from dcsync.model.subcloud import AvailabilityStatus
from dcsync.probe.ports import ProbeTarget
from tests.integration.adapters.scripted_site import ADDRESS, Behaviour, Site, answer, sends
from tests.loop_time import time_passes

Probe = Callable[..., HttpProber]
TIMEOUT = 60


@pytest.fixture
def make_prober(site: Site) -> Probe:
    def make(**changes: object) -> HttpProber:
        values: dict[str, object] = {
            "subcloud_templates": site.urls(),
            "allowed_networks": [ipaddress.ip_network("127.0.0.0/8")],
            "trust": Trust(None),
            "timeout_seconds": TIMEOUT,
        }
        return HttpProber(**(values | changes))  # type: ignore[arg-type]

    return make


def a_target(address: str = ADDRESS, region_name: str = "r1") -> ProbeTarget:
    return ProbeTarget(region_name, address, AvailabilityStatus.OFFLINE, 0, 1)


async def probed(prober: HttpProber, *targets: ProbeTarget) -> dict[str, str | None]:
    """In the order in which they were told."""
    told: dict[str, str | None] = {}
    await prober.probe(targets, on_result=lambda target, problem: told.update({target.region_name: problem}))
    return told


VERSION = {"version": {"id": "v3.14", "status": "stable"}}


async def test_keystones_version_document_is_good_and_is_asked_for_without_a_secret(
    site: Site, make_prober: Probe
) -> None:
    site.behaviours["GET "] = sends(answer(200, VERSION))
    assert await probed(make_prober(), a_target()) == {"r1": None}
    (request,) = site.requests
    assert (request.method, request.body, "x-auth-token" in {name.lower() for name in request.headers}) == (
        "GET", b"", False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("behaviour", "problem"),
    [
        (sends(answer(503)), "503"),
        (sends(answer(302, Location="http://127.0.0.1/v3")), "302"),
        (sends(answer(200, b"<html>log in to the hotel's network</html>")), "JSON"),
        (sends(answer(200, {"version": {"id": "v2.0"}})), "version document"),
        (sends(answer(200, [])), "version document"),
        (sends(answer(200, b" " * 100_000)), "bytes"),
        (sends(b"", then="close"), "reply"),
        (sends(b"", then="last"), f"{TIMEOUT} s"),
        (sends(b"nonsense\r\n\r\n", then="close"), "HTTP"),
        (sends(b"HTTP/1.1 100 Continue\r\n\r\n" * 20_000, then="hang"), "lost"),
    ],
)
async def test_anything_else_is_bad_and_says_why(
    site: Site, make_prober: Probe, behaviour: Behaviour, problem: str
) -> None:
    site.behaviours["GET "] = behaviour
    (told,) = (await probed(make_prober(), a_target())).values()
    assert told is not None
    assert problem in told


async def test_an_address_we_must_not_go_to_is_bad_and_not_gone_to(site: Site, make_prober: Probe) -> None:
    networks = [ipaddress.ip_network("10.0.0.0/8")]
    (told,) = (await probed(make_prober(allowed_networks=networks), a_target())).values()
    assert told is not None
    assert "ALLOWED_NETWORKS" in told
    assert site.requests == []


@pytest.mark.parametrize("at_once", [3, 1000])
async def test_a_dead_site_delays_nobody_else(at_once: int) -> None:
    dead, told = {"subcloud1", "subcloud2"}, {}
    with FakeCloud.start(subclouds=20) as cloud:
        for name in dead:
            cloud.set_fault(name, Fault("hang"))
        targets = [a_target(place["management_ip"], place["region_name"]) for place in cloud.subclouds()]
        prober = HttpProber(
            subcloud_templates=ServiceUrls(auth=f"http://{{ip}}:{cloud.port}/v3", dbsync="", sysinv=""),
            allowed_networks=[ipaddress.ip_network("127.0.0.0/8")],
            trust=Trust(None),
            timeout_seconds=TIMEOUT,
            at_once=at_once,
        )
        all_others = asyncio.Event()

        def on_result(target: ProbeTarget, problem: str | None) -> None:
            told[target.region_name] = problem
            if len(told) == len(targets) - len(dead):
                all_others.set()

        probing = asyncio.create_task(prober.probe(targets, on_result=on_result))
        await all_others.wait()
        assert set(told.values()) == {None}
        assert not dead & told.keys()
        time_passes(TIMEOUT)
        await probing
        assert {name for name, problem in told.items() if problem} == dead


async def test_no_probe_is_sent_to_a_server_of_ours(site: Site, make_prober: Probe) -> None:
    own = OwnServers([(ADDRESS, "the central cloud")])
    found = await probed(make_prober(own_servers=own), a_target())
    assert found == {"r1": f"address-refused: {ADDRESS} is the address of the central cloud, which is no subcloud"}
    assert site.requests == []
