"""Marks in the future say nothing: whatever was stamped by a wrong clock, what is observed truly has its effect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcsync.model.marks import CLOCK_TOLERANCE
from dcsync.model.report_payloads import report_payload
from dcsync.model.reports import Report
from dcsync.state import memory
from dcsync.state.service import StateService
from tests.fake_messenger import FakeMessenger
from tests.fake_states import FakeStateStore
from tests.reports import (
    DC_CERT,
    IDENTITY,
    IN_SYNC,
    NOW,
    OFFLINE,
    ONLINE,
    OUT_OF_SYNC,
    PLATFORM,
    UNKNOWN,
    a_state_row,
    at,
    endpoint,
    mark,
    offline,
    online,
    types,
)

AHEAD = 3600.0
"""By so much a clock was wrong, in seconds."""
LATER = 250 + AHEAD
TRUE = 250.0
"""What is reported now, in seconds after NOON."""


def taken(store: FakeStateStore, *reports: Report, late_by: float = 0.0) -> dict[str, int]:
    """As the state service took them: with the clock of now, or one that was so far ahead."""
    service = StateService(store=store, messenger=FakeMessenger(), now=lambda: NOW + timedelta(seconds=late_by))
    return service.apply_payloads([report_payload(report) for report in reports]).as_dict()


def stamped_ahead(*reports: Report) -> FakeStateStore:
    """A subcloud whose row and memory carry these reports, all accepted when the database's clock was ahead as well."""
    store = FakeStateStore(a_state_row())
    assert taken(store, *reports, late_by=AHEAD)["rejected"] == 0
    return store


@pytest.mark.parametrize(("ahead", "rejected"), [(1.9, 0), (2.1, 1), (290.0, 1)])
def test_a_report_from_the_future_is_rejected_with_a_reason_that_names_the_clock(ahead: float, rejected: int) -> None:
    """One from a clock 290 s ahead kept a healthy subcloud offline for 290 s."""
    store = FakeStateStore(a_state_row())
    taken(store, online(1))
    assert taken(store, offline(TRUE + ahead))["rejected"] == rejected
    assert store.rows["subcloud1"].availability_status is (ONLINE if rejected else OFFLINE)
    assert [each.reason for each in store.rejected] == [
        f"observed {ahead:.0f} s in the future: the observer's clock is ahead of the database's"
    ] * rejected


def test_an_outage_is_seen_though_the_row_was_stamped_an_hour_ahead() -> None:
    """An observer whose clock was set back reported "offline" for an hour, and nothing came of it."""
    store = stamped_ahead(online(LATER), endpoint(LATER + 1, PLATFORM, OUT_OF_SYNC))
    assert store.alarms() == {("280.002", "platform")}
    assert taken(store, offline(TRUE)) == {"applied": 1, "rejected": 0, "requested": 0}
    row = store.rows["subcloud1"]
    assert (row.availability_status, store.status(PLATFORM)) == (OFFLINE, UNKNOWN)
    assert store.alarms() == {("280.001", "")}


def test_a_return_is_seen_though_the_outage_was_stamped_an_hour_ahead() -> None:
    store = stamped_ahead(online(1), offline(LATER))
    assert store.alarms() == {("280.001", "")}
    assert taken(store, online(TRUE))["applied"] == 1
    assert store.rows["subcloud1"].availability_status is ONLINE
    assert store.alarms() == set()


@pytest.mark.parametrize("status", [UNKNOWN, OUT_OF_SYNC])
@pytest.mark.parametrize("seen_online", [1, LATER - 1])
def test_a_status_is_taken_though_the_last_was_stamped_an_hour_ahead(status: object, seen_online: float) -> None:
    store = stamped_ahead(online(seen_online), endpoint(LATER, PLATFORM, IN_SYNC))
    assert store.status(PLATFORM) is IN_SYNC, "what is shown stays, until it is observed anew"
    taken(store, endpoint(TRUE, PLATFORM, status))  # type: ignore[arg-type]
    assert store.status(PLATFORM) is status


def test_the_same_status_again_writes_over_the_void_mark() -> None:
    store = stamped_ahead(online(LATER - 1), endpoint(LATER, PLATFORM, IN_SYNC))
    taken(store, online(TRUE), endpoint(TRUE, PLATFORM, IN_SYNC))
    row = store.rows["subcloud1"]
    assert row.endpoints[PLATFORM].mark == mark(TRUE)
    assert row.online_mark is not None
    assert row.online_mark <= mark(TRUE)


def test_what_was_unmanaged_in_the_future_takes_statuses_again() -> None:
    store = FakeStateStore(a_state_row(unmanaged_at=at(LATER)))
    taken(store, online(1), endpoint(TRUE, DC_CERT, IN_SYNC), endpoint(TRUE, IDENTITY, IN_SYNC))
    assert store.status(IDENTITY) is IN_SYNC


def test_a_type_that_was_removed_in_the_future_comes_back() -> None:
    store = stamped_ahead(online(1), types(LATER, PLATFORM, present=False))
    assert PLATFORM not in store.rows["subcloud1"].endpoints
    taken(store, types(TRUE, PLATFORM, present=True))
    assert PLATFORM in store.rows["subcloud1"].endpoints


SOME_REPORT = st.one_of(
    st.builds(online, st.floats(0, LATER)),
    st.builds(offline, st.floats(0, LATER)),
    st.builds(
        lambda second, status: endpoint(second, PLATFORM, status),
        st.floats(0, LATER),
        st.sampled_from([UNKNOWN, IN_SYNC, OUT_OF_SYNC]),
    ),
)


@given(before=st.lists(SOME_REPORT, max_size=8), status=st.sampled_from([IN_SYNC, OUT_OF_SYNC]))
def test_whatever_was_stamped_when_what_is_observed_now_is_shown(before: Sequence[Report], status: object) -> None:
    """Also after that hour has passed, and the marks in the rows could be believed again."""
    for hours in (0, 1):
        second = TRUE + hours * (AHEAD + 10)
        store = stamped_ahead(*before)
        row = lambda store=store: store.rows["subcloud1"]  # noqa: E731
        taken(store, offline(TRUE))
        assert row().availability_status is OFFLINE
        taken(store, online(TRUE + 0.5), endpoint(TRUE + 1, PLATFORM, status))  # type: ignore[arg-type]
        assert (row().availability_status, store.status(PLATFORM)) == (ONLINE, status)
        if hours:
            taken(store, offline(second), late_by=AHEAD + 10)
            assert (row().availability_status, store.status(PLATFORM)) == (OFFLINE, UNKNOWN)


def test_marks_within_the_tolerance_are_believed() -> None:
    row = replace(a_state_row(), availability_status=ONLINE, online_mark=mark(250 + CLOCK_TOLERANCE.total_seconds()))
    assert memory.facts_of(row, now=NOW).online_marks == (row.online_mark,)
