"""Every fault, as a client meets it."""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable

import pytest

from dcsync.fake_cloud.control import FakeCloud
from dcsync.fake_cloud.faults import Fault
from tests.integration.fake_cloud.client import Client, Run, id_of, is_refused

USERS = "/v1.0/identity/users/"


def test_refuse_closes_the_address_until_it_is_cleared(fake: FakeCloud, run: Run, region: str) -> None:
    fake.set_fault(region, Fault("refuse"))
    assert is_refused(run.site.ip, run.site.port)
    with pytest.raises((http.client.HTTPException, OSError)):
        run.site.ask("GET", USERS)
    fake.set_fault(region, None)
    assert not is_refused(run.site.ip, run.site.port)


@pytest.mark.parametrize("kind", ["hang", "hang-mid-body"])
def test_an_answer_that_does_not_come_or_does_not_end(fake: FakeCloud, run: Run, region: str, kind: str) -> None:
    fake.set_fault(region, Fault(kind, path=USERS))
    run.site.close()
    run.site.connection.timeout = 0.2
    with pytest.raises(TimeoutError):
        run.site.ask("GET", USERS)


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("reset", (http.client.RemoteDisconnected, ConnectionResetError)),
        ("lost-answer", (http.client.RemoteDisconnected, ConnectionResetError)),
        ("truncated", http.client.IncompleteRead),
        ("garbage", http.client.BadStatusLine),
    ],
)
def test_an_answer_that_is_cut_or_is_no_http(
    fake: FakeCloud, run: Run, region: str, kind: str, error: type[Exception]
) -> None:
    fake.set_fault(region, Fault(kind))
    with pytest.raises(error):
        run.site.ask("GET", USERS)


def test_an_endless_answer_goes_on_and_other_clouds_do_not_mind(fake: FakeCloud, run: Run, region: str) -> None:
    fake.set_fault(region, Fault("endless"))
    run.site.connection.request("GET", USERS)
    response = run.site.connection.getresponse()
    assert len(response.read(2_000_000)) == 2_000_000
    assert run.central.fernet_keys()
    run.site.close()


def test_a_dripping_answer_arrives_slowly_and_whole(fake: FakeCloud, run: Run, region: str) -> None:
    path = "/v1.0/identity/users/0123"
    expected = run.site.ask("GET", path)
    fake.set_fault(region, Fault("drip", seconds=0.001))
    assert run.site.ask("GET", path).body == expected.body


def seconds_of(call: Callable[[], object]) -> float:
    began = time.monotonic()
    call()
    return time.monotonic() - began


def test_latency_delays_only_what_it_names(fake: FakeCloud, run: Run, region: str) -> None:
    fake.set_fault(region, Fault("latency", service="dbsync", seconds=0.3))
    assert seconds_of(lambda: run.site.ask("GET", USERS)) > 0.29
    fake.set_fault(region, Fault("latency", service="dbsync", seconds=3600))
    assert run.site.fernet_keys(), "not an hour later"


@pytest.mark.parametrize(
    ("fault", "status", "body"),
    [
        (Fault("status", status=503, retry_after=7), 503, b"out of order"),
        (Fault("unauthorized"), 401, None),
        (Fault("html"), 200, None),
        (Fault("wrong-shape"), 200, b'{"cats": [1, 2, 3]}'),
        (Fault("empty-list"), 200, b"[]"),
    ],
    ids=lambda value: value.kind if isinstance(value, Fault) else "",
)
def test_wrong_answers(fake: FakeCloud, run: Run, region: str, fault: Fault, status: int, body: bytes | None) -> None:
    fake.set_fault(region, fault)
    reply = run.site.ask("GET", USERS)
    assert reply.status == status
    assert body is None or reply.body == body
    assert reply.headers.get("retry-after") == ("7" if fault.retry_after else None)


def test_401_once_is_401_once(fake: FakeCloud, run: Run, region: str) -> None:
    fake.set_fault(region, Fault("unauthorized", service="dbsync", times=1))
    assert [run.site.ask("GET", USERS).status for _ in range(3)] == [401, 200, 200]


def test_wrong_password_touches_logins_only(fake: FakeCloud, run: Run, region: str) -> None:
    fake.set_fault(region, Fault("wrong-password"))
    assert run.site.ask("GET", USERS).status == 200
    assert run.site.log_in().status == 401


def test_half_the_writes_fail_and_change_nothing(fake: FakeCloud, run: Run, region: str) -> None:
    fake.set_fault(region, Fault("status", verb="write", every=2))
    due = [item for item in run.due("users") if item[1]["local_user"]["name"] != "operator1"]
    statuses = [run.site.put("users", *item).status for item in due]
    assert statuses == [200 if number % 2 == 0 else 500 for number in range(len(due))]
    moved = {id_of("users", row) for row in run.site.records("users").values()}
    written = {item[1]["user"]["id"] for item, status in zip(due, statuses, strict=True) if status == 200}
    assert written <= moved


def test_the_kth_write_fails(fake: FakeCloud, run: Run, region: str) -> None:
    fake.set_fault(region, Fault("status", verb="write", skip=2, times=1, status=500))
    admin_id, admin = next(item for item in run.due("users") if item[1]["local_user"]["name"] == "admin")
    assert [run.site.put("users", admin_id, admin).status for _ in range(5)] == [200, 200, 500, 200, 200]


def test_a_lost_answer_was_carried_out(fake: FakeCloud, run: Run, region: str) -> None:
    fake.set_fault(region, Fault("lost-answer", verb="write", times=1))
    with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
        run.keys()
    assert fake.state(region)["keys_match"]


def test_swallowed_writes_look_done_and_are_not(fake: FakeCloud, run: Run, region: str) -> None:
    fake.set_fault(region, Fault("swallow"))
    id_, vim = next(item for item in run.due("users") if item[1]["local_user"]["name"] == "vim")
    reply = run.site.put("users", id_, vim)
    assert (reply.status, reply.json["user"]["id"]) == (200, id_)
    assert run.keys() == 201
    assert not fake.state(region)["keys_match"]


def test_partial_keys_leave_a_mix(fake: FakeCloud, run: Run, region: str) -> None:
    before = run.site.fernet_keys()
    fake.set_fault(region, Fault("partial-keys"))
    assert run.keys() == 500
    after = run.site.fernet_keys()
    assert after != before
    assert after != run.central.fernet_keys()


def test_a_fault_of_one_subcloud_is_not_anothers(
    fake: FakeCloud, region: str, numbers: object, begin: Callable[[str], Run]
) -> None:
    healthy = begin(f"subcloud{next(numbers)}")  # type: ignore[call-overload]
    fake.set_fault(region, Fault("status"))
    assert healthy.site.ask("GET", USERS).status == 200


def test_unknown_faults_and_names_are_told(fake: FakeCloud) -> None:
    with pytest.raises(ValueError, match="unknown kind"):
        Fault("bad-mood")
    with pytest.raises(ValueError, match="subcloud0"):
        fake.set_fault("subcloud0", None)
    with pytest.raises(ValueError, match="cannot refuse"):
        fake.set_fault("central", Fault("refuse"))


def test_latency_of_all_subclouds_spares_the_central_cloud() -> None:
    with FakeCloud.start(subclouds=1, latency=0.2) as slow:
        central, site = Client(slow.central_ip, slow.port), Client("127.1.0.1", slow.port)
        assert seconds_of(site.log_in) > 0.19
        slow.set_latency(3600)
        assert central.log_in().status == 201, "not an hour later"
        slow.set_latency(0.0)
        assert site.log_in().status == 201
        central.close()
        site.close()
