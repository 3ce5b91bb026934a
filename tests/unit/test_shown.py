"""Nothing is shown that was not seen, and seen recently: what may be shown is a function of row, time and windows."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcsync.model.reasons import Reason, Unproven, known_reason
from dcsync.model.reports import AvailabilityReport, EndpointReport, Mark, Report
from dcsync.model.shown import ShownAvailability, View, Windows, is_proven_in_sync, is_within, view
from dcsync.model.states.initial_sync import InitialSyncState
from dcsync.model.subcloud import (
    AvailabilityStatus,
    EndpointStatus,
    EndpointType,
    ManagementState,
    Subcloud,
    SyncStatus,
)
from dcsync.state import memory, rules
from dcsync.state.ports import EndpointRow, StateChanges, StateRow
from tests.builders import NOON, a_status, a_subcloud

PLATFORM, IDENTITY, FIRMWARE = EndpointType.PLATFORM, EndpointType.IDENTITY, EndpointType.FIRMWARE
UNKNOWN, IN_SYNC, OUT_OF_SYNC = SyncStatus.UNKNOWN, SyncStatus.IN_SYNC, SyncStatus.OUT_OF_SYNC
WINDOWS = Windows(availability=timedelta(minutes=2), audited=timedelta(minutes=40), reported=timedelta(hours=24))
SECOND = timedelta(seconds=1)


def completed(**changes: Any) -> Subcloud:
    both = {PLATFORM: a_status(IN_SYNC), IDENTITY: a_status(IN_SYNC)}
    return a_subcloud(**({"initial_sync_state": InitialSyncState.COMPLETED, "endpoints": both} | changes))


def seen(subcloud: Subcloud, *, now: datetime = NOON) -> View:
    return view(subcloud, now=now, windows=WINDOWS)


def status(
    subcloud: Subcloud, *, now: datetime = NOON, endpoint_type: EndpointType = PLATFORM
) -> tuple[str, str | None]:
    found = seen(subcloud, now=now).endpoints[endpoint_type]
    return found.sync_status, found.reason


# --- availability ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("age", "shown"),
    [
        (timedelta(), ShownAvailability.ONLINE),
        (WINDOWS.availability, ShownAvailability.ONLINE),
        (WINDOWS.availability + SECOND, ShownAvailability.UNKNOWN),
        (-SECOND, ShownAvailability.ONLINE),
        (timedelta(seconds=-3), ShownAvailability.UNKNOWN),
    ],
)
def test_online_is_shown_while_it_was_seen_lately(age: timedelta, shown: ShownAvailability) -> None:
    assert seen(completed(), now=NOON + age).availability is shown


def test_online_that_nobody_ever_saw_is_unknown() -> None:
    assert seen(completed(last_seen_at=None)).availability is ShownAvailability.UNKNOWN


def test_offline_needs_no_proof() -> None:
    away = completed(availability_status=AvailabilityStatus.OFFLINE, last_seen_at=None)
    assert seen(away).availability is ShownAvailability.OFFLINE


# --- sync status -------------------------------------------------------------------------------------------------


def test_what_was_verified_within_its_window_is_shown() -> None:
    assert status(completed(), now=NOON + WINDOWS.audited) == (IN_SYNC, None)


@pytest.mark.parametrize("stored", [IN_SYNC, OUT_OF_SYNC])
def test_what_was_verified_longer_ago_is_stale(stored: SyncStatus) -> None:
    subcloud = completed(endpoints={PLATFORM: a_status(stored)})
    now = NOON + WINDOWS.audited + SECOND
    assert status(subcloud, now=now) == (UNKNOWN, Unproven.STALE)
    assert seen(subcloud, now=now).endpoints[PLATFORM].stored is stored


def test_what_others_report_has_a_window_of_its_own() -> None:
    subcloud = completed(endpoints={FIRMWARE: a_status(IN_SYNC, is_audited=False)})
    assert status(subcloud, now=NOON + WINDOWS.reported, endpoint_type=FIRMWARE) == (IN_SYNC, None)
    later = NOON + WINDOWS.reported + SECOND
    assert status(subcloud, now=later, endpoint_type=FIRMWARE) == (UNKNOWN, Unproven.STALE)


def test_a_status_verified_in_the_future_is_not_shown() -> None:
    assert status(completed(), now=NOON - timedelta(seconds=3)) == (UNKNOWN, Unproven.STALE)


def test_a_status_without_any_proof_is_not_shown() -> None:
    assert status(completed(endpoints={PLATFORM: EndpointStatus(sync_status=IN_SYNC)})) == (UNKNOWN, Unproven.STALE)
    assert status(completed(endpoints={PLATFORM: EndpointStatus()})) == (UNKNOWN, Unproven.NEVER_VERIFIED)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"management_state": ManagementState.UNMANAGED}, Unproven.UNMANAGED),
        ({"availability_status": AvailabilityStatus.OFFLINE}, Unproven.OFFLINE),
        ({"initial_sync_state": InitialSyncState.REQUESTED}, Unproven.ASKED),
        ({"initial_sync_state": InitialSyncState.IN_PROGRESS}, Unproven.IN_PROGRESS),
        ({"initial_sync_state": InitialSyncState.FAILED, "reason": Reason.SERVER_ERROR}, Reason.SERVER_ERROR),
        ({"initial_sync_state": InitialSyncState.FAILED}, Unproven.NOT_COMPLETED),
        ({"initial_sync_state": InitialSyncState.NONE}, Unproven.NOT_COMPLETED),
    ],
)
def test_in_sync_in_the_row_is_not_shown_where_it_is_not_proven(changes: dict[str, Any], reason: str) -> None:
    assert status(completed(**changes)) == (UNKNOWN, reason)


def test_what_others_report_does_not_depend_on_the_initial_sync() -> None:
    endpoints = {FIRMWARE: a_status(IN_SYNC, is_audited=False)}
    failed = completed(initial_sync_state=InitialSyncState.FAILED, endpoints=endpoints)
    assert status(failed, endpoint_type=FIRMWARE) == (IN_SYNC, None)


def test_dc_cert_is_shown_of_an_unmanaged_subcloud() -> None:
    endpoints = {EndpointType.DC_CERT: a_status(IN_SYNC, is_audited=False)}
    unmanaged = completed(management_state=ManagementState.UNMANAGED, endpoints=endpoints)
    assert status(unmanaged, endpoint_type=EndpointType.DC_CERT) == (IN_SYNC, None)


def test_the_reason_in_the_row_is_shown() -> None:
    endpoints = {PLATFORM: a_status(reason=Reason.TIMEOUT, verified_at=NOON)}
    assert status(completed(endpoints=endpoints)) == (UNKNOWN, Reason.TIMEOUT)


def test_a_reason_of_another_release_is_shown_as_it_is() -> None:
    assert known_reason("asked") is Unproven.ASKED
    assert known_reason("timeout") is Reason.TIMEOUT
    assert known_reason("of-tomorrow") == "of-tomorrow"
    assert known_reason(None) is None


# --- the worst ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statuses", "worst"),
    [
        ((IN_SYNC, IN_SYNC, IN_SYNC), PLATFORM),
        ((IN_SYNC, UNKNOWN, IN_SYNC), IDENTITY),
        ((UNKNOWN, IN_SYNC, OUT_OF_SYNC), FIRMWARE),
    ],
)
def test_the_worst_is_that_of_all_endpoint_types(statuses: tuple[SyncStatus, ...], worst: EndpointType) -> None:
    endpoints = dict(zip((PLATFORM, IDENTITY, FIRMWARE), map(a_status, statuses), strict=True))
    found = seen(completed(endpoints=endpoints)).worst
    assert found is not None
    assert found.endpoint_type is worst


def test_a_subcloud_without_endpoint_types_has_no_worst() -> None:
    assert seen(completed(endpoints={})).worst is None


# --- what a wait believes ----------------------------------------------------------------------------------------

REQUESTED_BEFORE = {"requested_at": NOON - SECOND}


@pytest.mark.parametrize(
    ("changes", "is_proven"),
    [
        ({}, True),
        (REQUESTED_BEFORE, True),
        ({"requested_at": NOON + SECOND}, False),
        (REQUESTED_BEFORE | {"is_pending": True}, False),
        ({"sync_status": UNKNOWN}, False),
        ({"verified_at": NOON - WINDOWS.audited - SECOND}, False),
    ],
)
def test_in_sync_is_proven_by_what_is_newer_than_what_was_requested(
    changes: dict[str, Any], *, is_proven: bool
) -> None:
    endpoints = {PLATFORM: a_status(IN_SYNC), IDENTITY: replace(a_status(IN_SYNC), **changes)}
    assert is_proven_in_sync(seen(completed(endpoints=endpoints))) is is_proven


def test_a_fresh_proof_is_newer_than_the_wait() -> None:
    assert is_proven_in_sync(seen(completed()), since=NOON)
    assert not is_proven_in_sync(seen(completed()), since=NOON + SECOND)


def test_nothing_proves_nothing() -> None:
    assert not is_proven_in_sync(seen(completed(endpoints={})))


# --- whatever comes in whatever order ----------------------------------------------------------------------------

_MOMENTS = st.integers(min_value=-3600, max_value=7200).map(lambda seconds: NOON + timedelta(seconds=seconds))
_REPORTS: st.SearchStrategy[tuple[str, datetime, Any]] = st.one_of(
    st.tuples(st.just("availability"), _MOMENTS, st.sampled_from(AvailabilityStatus)),
    st.tuples(st.just("endpoint"), _MOMENTS, st.sampled_from(SyncStatus)),
)


def _report(kind: str, at: datetime, value: Any) -> Report:
    mark = Mark(at, 0)
    if kind == "availability":
        return AvailabilityReport(region_name="subcloud1", mark=mark, availability_status=value)
    return EndpointReport(region_name="subcloud1", mark=mark, endpoint_type=PLATFORM, sync_status=value)


def _applied(row: StateRow, report: Report, *, now: datetime) -> StateRow:
    """The row after the state service has applied the report and the memory was lost."""
    changes = StateChanges()
    facts = rules.apply(memory.facts_of(row, now=now), report, now=now).facts
    memory.write_changes(changes, row, facts, now=now)
    endpoints = dict(row.endpoints) | {type_: written for _, type_, written in changes.endpoints}
    row = replace(row, endpoints=endpoints)
    for columns in changes.columns:
        row = replace(
            row,
            availability_status=columns.availability_status,
            online_mark=columns.online_mark,
            offline_mark=columns.offline_mark,
        )
    return row


@given(sent=st.lists(st.tuples(_REPORTS, _MOMENTS), max_size=12), looked_at=_MOMENTS)
def test_nothing_is_shown_that_no_report_verified_within_its_window(
    sent: list[tuple[tuple[str, datetime, Any], datetime]], looked_at: datetime
) -> None:
    """Reports late, doubled, of wrong clocks and followed by silence: `in-sync` and `online` need one in the window."""
    row = StateRow(
        subcloud_id=1,
        name="subcloud1",
        region_name="subcloud1",
        management_state=ManagementState.MANAGED,
        initial_sync_state=InitialSyncState.COMPLETED,
        availability_status=AvailabilityStatus.OFFLINE,
        online_mark=None,
        offline_mark=None,
        fail_count=0,
        fail_mark=None,
        unmanaged_at=None,
        added_at=None,
        endpoints={PLATFORM: EndpointRow(UNKNOWN, True, None)},
        memory={},
    )
    taken: list[tuple[str, datetime, Any]] = []
    last_seen_at: datetime | None = None
    for told, applied_at in sorted(sent, key=lambda each: each[1]):
        try:
            row = _applied(row, _report(*told), now=applied_at)
        except rules.BadReport:
            continue
        taken.append(told)
        if told[2] is AvailabilityStatus.ONLINE:
            last_seen_at = max(told[1], last_seen_at or told[1])
    stored = row.endpoints[PLATFORM]
    subcloud = completed(
        availability_status=row.availability_status,
        last_seen_at=last_seen_at,
        endpoints={
            PLATFORM: EndpointStatus(
                sync_status=stored.sync_status,
                reason=stored.reason,
                verified_at=stored.verified_at,
                last_good_at=stored.last_good_at,
                is_audited=True,
            )
        },
    )
    shown = seen(subcloud, now=looked_at)

    def was_reported(value: object, window: timedelta) -> bool:
        return any(each[2] is value and is_within(each[1], window, now=looked_at) for each in taken)

    if shown.availability is ShownAvailability.ONLINE:
        assert was_reported(AvailabilityStatus.ONLINE, WINDOWS.availability)
    for each in (IN_SYNC, OUT_OF_SYNC):
        if shown.endpoints[PLATFORM].sync_status is each:
            assert was_reported(each, WINDOWS.audited)


def test_the_property_is_not_empty() -> None:
    """A subcloud that is seen and audited is shown so: the property above would hold of nothing as well."""
    shown = seen(completed())
    assert (shown.availability, shown.endpoints[PLATFORM].sync_status) == (ShownAvailability.ONLINE, IN_SYNC)
