"""What a process reports travels in few messages, keeps nobody waiting, and is dropped rather than hoarded."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import pytest
from structlog.testing import capture_logs

from dcsync.adapters.broker.reporter import Observer, StateReporter
from dcsync.adapters.host.clock import utc_now
from dcsync.model.errors import BadReport, BrokerUnreachable
from dcsync.model.report_payloads import report_from_payload, report_payload
from dcsync.model.reports import BulkReport, Report
from dcsync.model.subcloud import EndpointType
from tests.processes import wait_until
from tests.reports import FIRMWARE, IN_SYNC, ONLINE, PLATFORM, UNKNOWN, bulk, endpoint, online

SECONDS = 60.0
"""As a limit, what no machine needs; as a window, what no test waits for."""


class Broker:
    """Keeps messages; while closed it makes senders wait, while away it refuses them."""

    def __init__(self) -> None:
        self.messages: list[list[Report]] = []
        self.open = threading.Event()
        self.open.set()
        self.refusals = 0

    def send(self, reports: Sequence[Report]) -> None:
        assert self.open.wait(timeout=SECONDS)
        if self.refusals:
            self.refusals -= 1
            raise BrokerUnreachable("away")
        self.messages.append(list(reports))

    def reports(self) -> list[Report]:
        return [report for message in self.messages for report in message]


@pytest.fixture
def broker() -> Broker:
    return Broker()


@pytest.fixture
def reporter(broker: Broker) -> Iterator[StateReporter]:
    reporter = StateReporter(broker, window_seconds=0.02, hold_off_seconds=0.01)
    yield reporter
    broker.open.set()
    reporter.close(timeout_seconds=SECONDS)


def test_reports_of_one_window_travel_in_one_message(broker: Broker) -> None:
    reporter = StateReporter(broker, window_seconds=SECONDS)
    told = [online(second) for second in range(100)]
    for report in told:
        reporter.report(report)
    assert reporter.close(timeout_seconds=SECONDS)
    assert broker.messages == [told]


def test_a_report_is_sent_without_a_flush(broker: Broker, reporter: StateReporter) -> None:
    reporter.report(online(1))
    wait_until(lambda: broker.messages, seconds=SECONDS, what="it is sent")
    assert broker.reports() == [online(1)]


def test_no_message_is_longer_than_the_bound(broker: Broker) -> None:
    reporter = StateReporter(broker, message_reports=10, window_seconds=SECONDS)
    for second in range(95):
        reporter.report(online(second))
    assert reporter.close(timeout_seconds=SECONDS)
    assert len(broker.reports()) == 95
    assert max(len(message) for message in broker.messages) == 10


def test_reports_from_many_threads_all_arrive(broker: Broker, reporter: StateReporter) -> None:
    def observe(observer: int) -> None:
        for second in range(200):
            reporter.report(online(second, f"subcloud{observer}"))

    threads = [threading.Thread(target=observe, args=(observer,)) for observer in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert reporter.flush(timeout_seconds=SECONDS)
    assert {(r.region_name, r.mark) for r in broker.reports()} == {
        (f"subcloud{observer}", online(second).mark) for observer in range(8) for second in range(200)
    }


def test_who_reports_does_not_wait_for_the_broker(broker: Broker, reporter: StateReporter) -> None:
    broker.open.clear()
    for second in range(1000):
        reporter.report(online(second))
    assert not reporter.flush(timeout_seconds=0.05)
    broker.open.set()
    assert reporter.flush(timeout_seconds=SECONDS)
    assert len(broker.reports()) == 1000


def test_what_could_not_be_sent_is_sent_again(broker: Broker, reporter: StateReporter) -> None:
    broker.refusals = 3
    reporter.report(online(1))
    assert reporter.flush(timeout_seconds=SECONDS)
    assert (broker.reports(), reporter.dropped) == ([online(1)], 0)


def test_after_enough_tries_reports_are_dropped_and_counted(broker: Broker, reporter: StateReporter) -> None:
    broker.refusals = 5
    reporter.report(online(1))
    assert reporter.flush(timeout_seconds=SECONDS)
    reporter.report(online(2))
    assert reporter.flush(timeout_seconds=SECONDS)
    assert (broker.reports(), reporter.dropped) == ([online(2)], 1)


def test_when_too_many_wait_the_oldest_are_dropped(broker: Broker) -> None:
    reporter = StateReporter(broker, max_pending=10, message_reports=1000, window_seconds=SECONDS)
    for second in range(25):
        reporter.report(online(second))
    assert reporter.close(timeout_seconds=SECONDS)
    assert broker.reports() == [online(second) for second in range(15, 25)]
    assert reporter.dropped == 15


def test_closing_ends_the_thread(broker: Broker) -> None:
    before = set(threading.enumerate())
    reporter = StateReporter(broker)
    reporter.report(online(1))
    assert reporter.close(timeout_seconds=SECONDS)
    assert set(threading.enumerate()) <= before


def test_a_report_that_cannot_be_sent_costs_no_other(broker: Broker) -> None:
    """Made by a program of somebody else's: neither the thread nor what travels with it is lost."""
    broken = BulkReport(availability=None, endpoints=())
    send = broker.send

    def send_payloads(reports: Sequence[Report]) -> None:
        for report in reports:
            report_payload(report)
        send(reports)

    broker.send = send_payloads  # type: ignore[method-assign]
    reporter = StateReporter(broker, window_seconds=SECONDS)
    for report in (*map(online, range(9)), broken, *map(online, range(9, 20))):
        reporter.report(report)
    assert reporter.flush(timeout_seconds=SECONDS)
    assert (broker.reports(), reporter.dropped) == ([online(second) for second in range(20)], 1)
    reporter.report(online(20))
    assert reporter.close(timeout_seconds=SECONDS)
    assert broker.reports()[-1] == online(20)


def test_a_report_that_says_nothing_cannot_be_made() -> None:
    with pytest.raises(BadReport):
        Observer(utc_now).bulk("r", {})


def test_a_closed_reporter_refuses_reports_and_says_so(broker: Broker) -> None:
    reporter = StateReporter(broker)
    reporter.report(online(1))
    reporter.close(timeout_seconds=SECONDS)
    with capture_logs() as logged:
        reporter.report(online(2))
    assert (broker.reports(), reporter.dropped) == ([online(1)], 1)
    assert [line["why"] for line in logged] == ["closed"]


def test_every_kind_of_report_survives_the_wire() -> None:
    observer = Observer(utc_now)
    openstack = frozenset({EndpointType.IDENTITY_OPENSTACK})
    reports: list[Report] = [
        observer.availability("r", ONLINE, fail_count=3),
        observer.fail_count("r", 1),
        observer.state_only("r"),
        observer.endpoint("r", PLATFORM, IN_SYNC, alarmable=False),
        observer.all_endpoints("r", UNKNOWN, ignored=frozenset({PLATFORM, FIRMWARE})),
        observer.all_subclouds(FIRMWARE, UNKNOWN),
        observer.bulk("r", {PLATFORM: IN_SYNC, FIRMWARE: UNKNOWN}, status=ONLINE, fail_count=0),
        observer.endpoint_types("r", openstack, present=False),
        bulk(1, {}, fail_count=4),
        endpoint(1, None, UNKNOWN, region_name=None),
    ]
    assert [report_from_payload(report_payload(report)) for report in reports] == reports


def test_one_observer_never_gives_the_same_mark_twice() -> None:
    observer = Observer(now=lambda: online(1).mark.observed_at)
    marks = [observer.mark() for _ in range(5)]
    assert sorted(set(marks)) == marks
