"""A flood of damaged reports: every one is applied or rejected with a short reason, and none raises an error."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from dcsync.model.report_payloads import report_payload
from tests.reports import FIRMWARE, IN_SYNC, PLATFORM, bulk, endpoint, offline, online, types
from tests.unit.adapters.documents import places, replaced
from tests.unit.state.test_state_service import World

GOOD: list[Any] = [
    report_payload(report)
    for report in (
        online(2),
        offline(3),
        endpoint(2, PLATFORM, IN_SYNC),
        bulk(4, {PLATFORM: IN_SYNC}),
        types(5, FIRMWARE, present=True),
    )
]
ODD: list[Any] = [
    ..., None, True, -1, 0, 2**70, 1e308, float("nan"), "", "\0", "\ud800", "\x1b[2J", "x" * 10_000, [], {}, [[]], [{}],
    "9999-12-31T23:59:59+00:00", "0001-01-01T00:00:00+14:00", "platform", "in-sync",
]  # fmt: skip


@st.composite
def damaged(draw: st.DrawFn) -> Any:
    payload = draw(st.sampled_from(GOOD))
    for _ in range(draw(st.integers(1, 3))):
        payload = replaced(payload, draw(st.sampled_from(places(payload))), draw(st.sampled_from(ODD)))
    return payload


@given(st.lists(damaged(), min_size=1, max_size=40))
def test_a_flood_of_damaged_reports_ends_in_rows_with_short_reasons(payloads: list[Any]) -> None:
    world = World()
    told = world.service.apply_payloads([*payloads, *payloads])
    assert told.rejected == len(world.store.rejected)
    assert told.rejected >= 2 * sum(not isinstance(payload, dict) for payload in payloads)
    for each in world.store.rejected:
        assert 0 < len(each.reason) <= 400
        assert each.reason.isprintable()
        assert each.report.isascii()
        assert len(each.report) <= 2000
        assert each.region_name is None or each.region_name.isprintable()
