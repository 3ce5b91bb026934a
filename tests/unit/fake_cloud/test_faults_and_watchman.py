"""Which requests a fault hits, what the watchman calls a violation, and how bytes become requests."""

from __future__ import annotations

import pytest

from dcsync.fake_cloud.connection import parse
from dcsync.fake_cloud.faults import Fault, Faults
from dcsync.fake_cloud.watchman import KEYS_BEFORE_IDENTITY, OVERLAPPING_RUNS, WRITE_AFTER_COMPLETION, Ledger, Watchman
from tests.unit.fake_cloud.builders import a_request


def hits(*faults: Fault, requests: int = 6) -> list[bool]:
    active = Faults(faults)
    picks = [
        active.pick(service="dbsync", verb="PUT", path="/v1.0/identity/users/1", is_write=True) for _ in range(requests)
    ]
    return [fault is not None for _, fault in picks]


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (Fault("status"), [True] * 6),
        (Fault("status", times=2), [True, True, False, False, False, False]),
        (Fault("status", skip=2, times=1), [False, False, True, False, False, False]),
        (Fault("status", every=2), [False, True] * 3),
        (Fault("status", every=2, times=1), [False, True, False, False, False, False]),
        (Fault("status", service="sysinv"), [False] * 6),
        (Fault("status", verb="GET"), [False] * 6),
        (Fault("status", verb="write", path="/v1.0/identity/users"), [True] * 6),
        (Fault("wrong-password"), [False] * 6),
        (Fault("partial-keys"), [False] * 6),
    ],
    ids=str,
)
def test_a_fault_hits_the_requests_it_names(fault: Fault, expected: list[bool]) -> None:
    assert hits(fault) == expected


def test_latency_adds_to_the_first_other_fault() -> None:
    faults = Faults((Fault("status"), Fault("latency", seconds=1.5), Fault("reset")))
    seconds, fault = faults.pick(service="sysinv", verb="GET", path="/v1/fernet_repo", is_write=False)
    assert (seconds, fault) == (1.5, Fault("status"))


class Story:
    """Writes of runs, one after another."""

    def __init__(self) -> None:
        self.watchman, self.ledger = Watchman(clock=lambda: 0.0), Ledger()

    def write(self, *runs: str | None) -> None:
        for run in runs:
            self.begin(run)
            self.watchman.ends(self.ledger, request_id=run)

    def begin(self, run: str | None) -> None:
        self.watchman.begins(self.ledger, region_name="subcloud1", request_id=run)

    def keys(self, run: str, *, in_order: bool = True) -> None:
        self.watchman.delivered_keys(self.ledger, region_name="subcloud1", request_id=run, in_order=in_order)

    def read(self, run: str, *, are_central: bool = True) -> None:
        self.watchman.read_keys(self.ledger, request_id=run, are_central=are_central)

    @property
    def seen(self) -> dict[str, int]:
        return self.watchman.violations("subcloud1")


def test_a_run_that_takes_over_from_a_dead_one_is_fine() -> None:
    story = Story()
    story.write("a", "a", "b", "b")
    assert story.seen == {}


def test_a_run_that_goes_on_after_another_began_is_a_violation() -> None:
    story = Story()
    story.write("a", "b", "a")
    assert story.seen == {OVERLAPPING_RUNS: 1}


def test_two_runs_in_flight_are_a_violation_and_two_writes_of_one_run_are_not() -> None:
    story = Story()
    story.begin("a")
    story.begin("a")
    assert story.seen == {}
    story.begin("b")
    assert story.seen == {OVERLAPPING_RUNS: 1}


def test_reading_equal_keys_completes_a_run_only_after_it_delivered_them() -> None:
    story = Story()
    story.read("a")
    story.write("a")
    story.keys("a")
    story.read("a", are_central=False)
    story.write("a")
    assert story.seen == {}
    story.read("a")
    story.write("a")
    assert story.seen == {WRITE_AFTER_COMPLETION: 1}


def test_a_run_that_goes_on_with_an_audit_may_write_until_it_reads_the_keys_it_sends() -> None:
    story = Story()
    story.write("a")
    story.keys("a")
    story.read("a")
    story.watchman.began_audit(story.ledger, request_id="a")
    story.write("a")
    assert story.seen == {}
    story.read("a")
    story.write("a")
    assert story.seen == {WRITE_AFTER_COMPLETION: 1}


def test_keys_out_of_order_are_a_violation() -> None:
    story = Story()
    story.keys("a", in_order=False)
    assert story.seen == {KEYS_BEFORE_IDENTITY: 1}
    assert story.watchman.descriptions()[0]["request_id"] == "a"


def test_writes_without_a_request_id_are_nobodys_fault() -> None:
    story = Story()
    story.write("a", None, "a")
    assert story.seen == {}


def test_old_runs_are_forgotten() -> None:
    story = Story()
    story.write(*(f"run{number}" for number in range(1000)))
    assert len(story.ledger.runs) < 50
    assert not story.ledger.in_flight


def test_requests_are_cut_from_the_stream_whole() -> None:
    data = b"PUT /v1/fernet_repo?x=1 HTTP/1.1\r\nContent-Length: 4\r\nX-Auth-Token: t\r\n\r\n[{}]GET / HTTP/1.1\r\n\r\n"
    assert parse(data[:-25]) is None
    parsed = parse(data)
    assert parsed is not None
    request, length = parsed
    assert (request.verb, request.path, request.query, request.body) == ("PUT", "/v1/fernet_repo", {"x": "1"}, b"[{}]")
    assert (request.token, data[length:]) == ("t", b"GET / HTTP/1.1\r\n\r\n")


def test_chunked_bodies_are_put_together() -> None:
    head = b"POST /v1/fernet_repo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    body = b"3\r\n[{}\r\n1\r\n]\r\n0\r\n\r\n"
    assert parse(head + body[:-3]) is None
    parsed = parse(head + body)
    assert parsed is not None
    assert (parsed[0].body, parsed[1]) == (b"[{}]", len(head + body))


@pytest.mark.parametrize("data", [b"\x16\x03\x01 hello\r\n\r\n", b"GET\r\n\r\n", b"x" * 100_000])
def test_what_is_no_http_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r".*"):
        parse(data)


@pytest.mark.parametrize(
    ("verb", "path", "service", "subject", "is_write"),
    [
        ("PUT", "/v1.0/identity/users/1", "dbsync", "dbsync users", True),
        ("GET", "/v1.0/identity/roles/", "dbsync", "dbsync roles", False),
        ("POST", "/v1/fernet_repo", "sysinv", "sysinv fernet_repo", True),
        ("POST", "/v3/auth/tokens", "keystone", "keystone auth", False),
        ("DELETE", "/v3/users/1", "keystone", "keystone users", True),
        ("GET", "/", "keystone", "keystone", False),
    ],
)
def test_services_are_told_apart_by_path(verb: str, path: str, service: str, subject: str, is_write: bool) -> None:
    request = a_request(verb, path)
    assert (request.service, request.subject, request.is_write) == (service, subject, is_write)
