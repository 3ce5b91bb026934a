"""What a probe means, and who is told of it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcsync.model.reports import MAX_FAIL_COUNT, AvailabilityReport, Mark
from dcsync.model.subcloud import AvailabilityStatus
from dcsync.probe.availability import (
    MAX_AT_ONCE,
    OFFLINE_AFTER,
    REPORT_EVERY,
    AvailabilityProbe,
    Observed,
    observe,
)
from dcsync.probe.ports import ProbeTarget
from tests.builders import NOON
from tests.fake_messenger import FakeMessenger
from tests.fake_probes import FakeProber, FakeProbeStore
from tests.fakes_sync import OwnLoop

ONLINE, OFFLINE = AvailabilityStatus.ONLINE, AvailabilityStatus.OFFLINE
GOOD, BAD = True, False


@pytest.mark.parametrize(
    ("status", "count", "is_good", "found"),
    [
        (OFFLINE, 0, GOOD, Observed(0, ONLINE)),
        (OFFLINE, 7, GOOD, Observed(0, ONLINE)),
        (OFFLINE, 0, BAD, Observed(1)),
        (OFFLINE, MAX_FAIL_COUNT, BAD, Observed(MAX_FAIL_COUNT)),
        (ONLINE, 0, GOOD, None),
        (ONLINE, 1, GOOD, Observed(0, ONLINE)),
        (ONLINE, 0, BAD, Observed(1)),
        (ONLINE, 1, BAD, Observed(2, OFFLINE)),
        (ONLINE, 5, BAD, Observed(6, OFFLINE)),
    ],
)
def test_what_one_probe_means(status: AvailabilityStatus, count: int, is_good: bool, found: Observed | None) -> None:
    assert observe(is_good=is_good, availability_status=status, fail_count=count, probes=1) == found


@pytest.mark.parametrize(("is_good", "status", "count"), [(GOOD, ONLINE, 0), (BAD, OFFLINE, 3)])
def test_now_and_then_the_status_is_reported_although_it_is_known(
    is_good: bool, status: AvailabilityStatus, count: int
) -> None:
    told = [
        observe(is_good=is_good, availability_status=status, fail_count=count, probes=number)
        for number in range(REPORT_EVERY)
    ]
    assert sum(found is not None and found.availability_status is status for found in told) == 1


@given(probes=st.lists(st.booleans()), lost=st.lists(st.booleans()))
def test_however_many_reports_are_lost_nobody_is_offline_after_fewer_than_two_bad_probes_in_a_row(
    probes: list[bool], lost: list[bool]
) -> None:
    status, count, bad_in_a_row = ONLINE, 0, 0
    for number, is_good in enumerate(probes):
        bad_in_a_row = 0 if is_good else bad_in_a_row + 1
        found = observe(is_good=is_good, availability_status=status, fail_count=count, probes=number)
        if found is not None and not (number < len(lost) and lost[number]):
            count, status = found.fail_count, found.availability_status or status
        elif not is_good or (status, count) != (ONLINE, 0):
            continue  # the row does not know of this probe
        if bad_in_a_row == 0:
            assert status is ONLINE
        if not lost:
            assert (status is OFFLINE) is (bad_in_a_row >= OFFLINE_AFTER)


# --- who is probed, and who is told ------------------------------------------------------------------------------


def a_target(region_name: str, status: AvailabilityStatus = OFFLINE, *, fail_count: int = 0) -> ProbeTarget:
    return ProbeTarget(region_name, "10.0.0.1", status, fail_count, probes=1)


def a_probe(
    store: FakeProbeStore, reports: list[AvailabilityReport], *, dead: Sequence[str] = (), others: FakeMessenger
) -> Any:
    return AvailabilityProbe(
        store=store,
        messenger=others,
        prober=FakeProber(dead),
        loop=OwnLoop(),
        mark=lambda: Mark(NOON, 1),
        report=reports.append,
        interval=timedelta(seconds=30),
    )


def probed(*targets: ProbeTarget, dead: Sequence[str] = ()) -> tuple[Any, list[Any]]:
    reports: list[AvailabilityReport] = []
    return a_probe(FakeProbeStore(*targets), reports, dead=dead, others=FakeMessenger()).run(now=NOON), reports


def test_only_what_is_news_is_reported() -> None:
    tally, reports = probed(a_target("a", ONLINE), a_target("b"), a_target("c", ONLINE, fail_count=1), dead=["c"])
    assert [(report.region_name, report.availability_status, report.fail_count) for report in reports] == [
        ("b", ONLINE, 0),
        ("c", OFFLINE, 2),
    ]
    assert (tally.good, tally.bad, tally.reported) == (2, 1, 2)
    assert tally.changed == [("b", ONLINE, "answers"), ("c", OFFLINE, "dead")]


def test_a_first_bad_probe_is_counted_and_changes_nothing() -> None:
    tally, (report,) = probed(a_target("a", ONLINE), dead=["a"])
    assert (report.availability_status, report.fail_count) == (None, 1)
    assert tally.changed == []


def test_one_that_is_deleted_meanwhile_is_harmless(monkeypatch: pytest.MonkeyPatch) -> None:
    store, reports = FakeProbeStore(a_target("a")), list[AvailabilityReport]()
    monkeypatch.setattr(store, "targets", lambda region_names: [])
    tally = a_probe(store, reports, others=FakeMessenger()).run(now=NOON)
    assert (tally.taken, tally.good, tally.bad, reports) == (1, 0, 0, [])


@pytest.mark.parametrize(
    ("due", "looks", "asked"),
    [
        (0, [0], 0),
        (1, [1], 0),
        (MAX_AT_ONCE, [MAX_AT_ONCE, 0], 1),
        (2 * MAX_AT_ONCE + 3, [MAX_AT_ONCE, MAX_AT_ONCE, 3], 2),
    ],
)
@pytest.mark.parametrize("are_away", [False, True])
def test_many_are_taken_at_once_and_others_are_asked_to_help_with_more(
    due: int, looks: list[int], asked: int, are_away: bool
) -> None:
    others, reports = FakeMessenger(is_away=are_away), list[AvailabilityReport]()
    probe = a_probe(FakeProbeStore(*(a_target(f"r{number}") for number in range(due))), reports, others=others)
    assert [probe.run(now=NOON).taken for _ in looks] == looks
    assert others.availability_sweeps == (0 if are_away else asked)
    assert len({report.region_name for report in reports}) == due
