"""Rejected reports as they are read, in memory and in PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

import pytest

from dcsync.adapters.postgres.rejected import SqlRejectedReports
from dcsync.adapters.postgres.states import SqlStateStore
from dcsync.state.ports import RejectedNotice, RejectedReport, RejectedReports, StateChanges
from tests.contract.held import Held
from tests.fake_states import FakeRejectedReports
from tests.reports import at

HELD = (Held(FakeRejectedReports, RejectedReports),)

Reject = Callable[[RejectedReport, datetime], None]


@pytest.fixture(params=["memory", "postgresql"])
def world(request: pytest.FixtureRequest) -> tuple[RejectedReports, Reject]:
    if request.param == "memory":
        fake = FakeRejectedReports()
        return fake, lambda report, now: fake.reject(report, now=now)
    engine = request.getfixturevalue("engine")

    def reject(report: RejectedReport, now: datetime) -> None:
        with SqlStateStore(engine).transaction() as transaction:
            transaction.write(StateChanges(rejected=[report]), now=now)

    return SqlRejectedReports(engine), reject


def test_the_newest_come_first_and_no_more_than_are_asked_for(world: tuple[RejectedReports, Reject]) -> None:
    reports, reject = world
    assert reports.newest(limit=2) == []
    for second, region_name in enumerate(("a", None, "c")):
        reject(RejectedReport(region_name, f"reason {second}", "{}"), at(second))
    assert reports.newest(limit=2) == [
        RejectedNotice(received_at=at(2), region_name="c", reason="reason 2", report="{}"),
        RejectedNotice(received_at=at(1), region_name=None, reason="reason 1", report="{}"),
    ]
    assert [each.region_name for each in reports.newest(limit=9)] == ["c", None, "a"]
