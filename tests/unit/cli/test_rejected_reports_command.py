"""`dcsync state rejected`: what an operator, and a program, reads of reports that could not be used."""

from __future__ import annotations

from datetime import timedelta

import pytest

from dcsync.state.ports import RejectedReport
from tests.builders import NOON
from tests.fake_states import FakeRejectedReports
from tests.unit.cli.conftest import Shell


@pytest.fixture
def rejected(dcsync: Shell) -> FakeRejectedReports:
    dcsync.operator.rejected_reports = reports = FakeRejectedReports()  # type: ignore[assignment]
    return reports


def test_the_newest_comes_first_with_its_age_region_and_reason(dcsync: Shell, rejected: FakeRejectedReports) -> None:
    rejected.reject(RejectedReport("r1", "old", "{}"), now=NOON - timedelta(minutes=5))
    rejected.reject(RejectedReport(None, "no object", "null"), now=NOON)
    told = dcsync("state", "rejected")
    assert [line.split() for line in told.out.splitlines()] == [
        ["RECEIVED", "REGION", "REASON", "REPORT"],
        ["0.0", "s", "ago", "-", "no", "object", "null"],
        ["5", "min", "ago", "r1", "old", "{}"],
    ]
    assert len(dcsync("state", "rejected", "--limit", "1").out.splitlines()) == 2


def test_a_long_or_hostile_report_is_one_short_line_on_a_terminal(dcsync: Shell, rejected: FakeRejectedReports) -> None:
    rejected.reject(RejectedReport("r1", "bad\x1b[2J", "\x1b]0;x\x07\n" + "x" * 2_000), now=NOON)
    (_, line) = dcsync("state", "rejected").out.splitlines()
    assert line.isprintable()
    assert len(line) < 200
    assert line.endswith("...")


def test_programs_get_the_whole_report(dcsync: Shell, rejected: FakeRejectedReports) -> None:
    rejected.reject(RejectedReport("r1", "bad\x1b", "x" * 2_000), now=NOON)
    told = dcsync("state", "rejected", "-o", "json")
    assert told.json == [
        {"received_at": "2026-01-31T12:00:00.000Z", "region_name": "r1", "reason": "bad\x1b", "report": "x" * 2_000}
    ]
    assert "\x1b" not in told.out


def test_nothing_rejected_is_said_on_the_side(dcsync: Shell, rejected: FakeRejectedReports) -> None:
    told = dcsync("state", "rejected")
    assert (told.code, told.out, told.err) == (0, "", "no report was rejected\n")
    assert dcsync("state", "rejected", "-o", "json").json == []
