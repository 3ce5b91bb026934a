"""Which alarms report that nobody observes or that nothing succeeds: facts in, alarms out."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcsync.model.reasons import Reason
from dcsync.model.subcloud import EndpointType
from dcsync.state.ports import (
    AlarmRow,
    CentralFacts,
    FailingFacts,
    KeysFacts,
    ObservedFacts,
    RefusedFacts,
    SilenceFacts,
)
from dcsync.state.silence import CENTRAL_REASONS, SilenceId, SilenceLimits, alarm_ids, expected
from tests.builders import NOON

PLATFORM, IDENTITY = EndpointType.PLATFORM, EndpointType.IDENTITY
LIMITS = SilenceLimits(
    unobserved_share=0.1,
    failing_after=timedelta(seconds=900),
    failing_attempts=5,
    retry_within=timedelta(seconds=900),
    sweep_late_after=timedelta(seconds=60),
    central_unreadable_after=timedelta(seconds=20),
    central_silent_after=timedelta(seconds=50),
    key_window=timedelta(hours=1),
)
HEALTHY = SilenceFacts(
    first_checked_at=NOON - timedelta(days=9),
    swept_at=NOON - timedelta(seconds=5),
    observed=(ObservedFacts(endpoint_type=None, subclouds=100, stale=0),),
    central=CentralFacts(checked_at=NOON - timedelta(seconds=5), readable_since=NOON - timedelta(days=9)),
)


def ago(**duration: float) -> Any:
    return NOON - timedelta(**duration)


def alarms(facts: SilenceFacts, limits: SilenceLimits = LIMITS) -> list[AlarmRow]:
    found = expected(facts, limits=limits, now=NOON)
    assert len({(each.alarm_id, each.entity) for each in found}) == len(found)
    assert {each.alarm_id for each in found} <= set(alarm_ids())
    return found


def raised(facts: SilenceFacts, limits: SilenceLimits = LIMITS) -> list[tuple[str, str]]:
    return [(each.alarm_id, each.entity) for each in alarms(facts, limits)]


def text(facts: SilenceFacts) -> str:
    (only,) = alarms(facts)
    return only.reason_text


def active(facts: SilenceFacts) -> SilenceFacts:
    """The same, with the alarms raised that it asks for."""
    return replace(facts, active=frozenset(raised(facts)))


def test_where_all_is_observed_and_succeeds_no_alarm_is_expected() -> None:
    assert raised(HEALTHY) == []


# --- nobody observes ---------------------------------------------------------------------------------------------


def observed(stale: int, of: int, endpoint_type: EndpointType | None = None, **more: Any) -> SilenceFacts:
    return replace(HEALTHY, observed=(ObservedFacts(endpoint_type=endpoint_type, subclouds=of, stale=stale, **more),))


@pytest.mark.parametrize(
    ("stale", "of", "is_raised"),
    [(10, 100, False), (11, 100, True), (1, 10, False), (2, 10, True), (1, 9, True), (1, 1, True)],
)
def test_more_than_a_tenth_or_one_in_a_small_fleet_raises_it(stale: int, of: int, is_raised: bool) -> None:
    entity = ("dcsync.nobody-observes", "fleet.resource=availability")
    assert raised(observed(stale, of)) == ([entity] if is_raised else [])


def test_each_resource_has_an_alarm_of_its_own_that_says_how_many_and_what_to_do() -> None:
    facts = observed(12, 100, PLATFORM, names=("a", "b", "c", "d", "e"))
    assert raised(facts) == [("dcsync.nobody-observes", "fleet.resource=platform")]
    assert "12 of 100 managed, online subclouds have no recent platform status (a, b, c, d, e and 7 more)" in text(
        facts
    )
    assert "dcsync service monitor" in text(facts)


def test_it_is_cleared_at_half_the_share_that_raised_it() -> None:
    entity = ("dcsync.nobody-observes", "fleet.resource=availability")
    assert raised(replace(observed(6, 100), active=frozenset({entity}))) == [entity]
    assert raised(replace(observed(5, 100), active=frozenset({entity}))) == []
    assert raised(observed(6, 100)) == []


@given(st.integers(0, 400), st.integers(0, 400), st.floats(0, 1))
def test_a_share_that_does_not_change_never_makes_it_come_and_go(stale: int, more: int, share: float) -> None:
    limits = replace(LIMITS, unobserved_share=share)
    facts = observed(stale, stale + more)
    first = raised(facts, limits)
    assert raised(replace(facts, active=frozenset(first)), limits) == first


# --- the central cloud -------------------------------------------------------------------------------------------


def central(**changes: Any) -> SilenceFacts:
    return replace(HEALTHY, central=replace(HEALTHY.central, **changes))


def test_a_central_cloud_that_cannot_be_read_is_reported_with_its_reason_and_advice() -> None:
    facts = central(unreadable_since=ago(seconds=20), unreadable_reason="central-auth-failed: 401")
    assert raised(facts) == [("dcsync.central-unreadable", "central")]
    assert "since 2026-01-31 11:59:40 UTC, central-auth-failed: 401" in text(facts)
    assert Reason.CENTRAL_AUTH_FAILED.advice in text(facts)


def test_one_failed_look_raises_nothing_and_one_good_look_clears_it() -> None:
    unreadable = {"unreadable_since": ago(seconds=19), "unreadable_reason": "central-unreachable: refused"}
    assert raised(central(**unreadable)) == []
    refused = (RefusedFacts(IDENTITY, ago(seconds=19), "central-unreachable: refused"),)
    assert raised(central(**unreadable, refused=refused)) == [], "the same look, as recorded for each endpoint type"
    entity = ("dcsync.central-unreadable", "central")
    assert raised(replace(central(**unreadable), active=frozenset({entity}))) == [entity]
    assert raised(replace(HEALTHY, active=frozenset({entity}))) == []


def test_a_list_that_shrank_is_reported_at_once() -> None:
    facts = central(refused=(RefusedFacts(IDENTITY, ago(seconds=1), "users went from 8 to 3"),))
    assert raised(facts) == [("dcsync.central-unreadable", "central")]
    assert "identity is refused since 2026-01-31 11:59:59 UTC, users went from 8 to 3" in text(facts)
    assert "--allow-deletes" in text(facts)


@pytest.mark.parametrize("checked_at", [ago(seconds=51), None, NOON + timedelta(hours=1)])
def test_nobody_looking_at_the_central_cloud_is_reported_also_by_a_mark_in_the_future(checked_at: Any) -> None:
    assert raised(central(checked_at=checked_at)) == [("dcsync.central-unreadable", "central")]
    assert "the central cloud was not checked since" in text(central(checked_at=checked_at))
    off = replace(LIMITS, central_silent_after=None)
    assert raised(central(checked_at=checked_at), off) == [], "where it is not checked periodically"


def test_what_was_recorded_before_nobody_was_meant_to_look_any_more_raises_nothing() -> None:
    off = replace(LIMITS, central_silent_after=None)
    old = central(unreadable_since=ago(days=9), unreadable_reason="central-unreachable: refused")
    assert raised(old, off) == []
    fails = failing(reason=Reason.CENTRAL_UNREACHABLE, since=ago(hours=3), online_since=ago(hours=3))
    assert raised(replace(old, failing=(fails,)), off) == [S1], "no other alarm explains it"


def test_a_new_installation_is_given_the_time_to_check_and_to_sweep() -> None:
    new = SilenceFacts(first_checked_at=ago(seconds=40))
    assert raised(new) == []
    assert raised(replace(new, first_checked_at=ago(seconds=61))) == [
        ("dcsync.central-unreadable", "central"), ("dcsync.sweep-late", "fleet.resource=sweep"),
    ]  # fmt: skip


# --- the sweep ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("swept_at", "is_raised"),
    [(ago(seconds=60), False), (ago(seconds=61), True), (None, True), (NOON + timedelta(minutes=9), True)],
)
def test_a_late_sweep_is_reported(swept_at: Any, is_raised: bool) -> None:
    facts = replace(HEALTHY, swept_at=swept_at)
    assert raised(facts) == ([("dcsync.sweep-late", "fleet.resource=sweep")] if is_raised else [])


# --- keys --------------------------------------------------------------------------------------------------------


def keys(**changes: Any) -> SilenceFacts:
    values: dict[str, Any] = {"changed_at": ago(hours=2), "subclouds": 8, "behind": 2, "names": ("a", "b")}
    return replace(HEALTHY, keys=KeysFacts(**(values | changes)))


def test_subclouds_that_lack_the_keys_after_the_window_are_counted_and_named() -> None:
    assert raised(keys()) == [("dcsync.keys-behind", "fleet.resource=keys")]
    assert text(keys()).startswith("2 of 8 managed, online and completed subclouds lack the current central keys")
    assert "(a, b)" in text(keys())


@pytest.mark.parametrize(
    "changes",
    [
        {"behind": 0, "names": ()},
        {"changed_at": ago(minutes=59)},
        {"window_until": NOON + timedelta(minutes=1)},
        {"changed_at": None},
    ],
)
def test_inside_the_window_lacking_keys_are_planned(changes: dict[str, Any]) -> None:
    assert raised(keys(**changes)) == []


def test_a_window_further_away_than_a_window_lasts_is_void() -> None:
    assert raised(keys(window_until=NOON + timedelta(hours=2)))


# --- failing subclouds -------------------------------------------------------------------------------------------


def failing(**changes: Any) -> FailingFacts:
    values: dict[str, Any] = {
        "subcloud_id": 1,
        "name": "s1",
        "is_online": True,
        "online_since": ago(days=1),
        "endpoint_type": None,
        "since": ago(seconds=900),
        "failures": 2,
        "reason": Reason.SERVER_ERROR,
        "detail": "500",
    }
    return FailingFacts(**(values | changes))


def with_failing(*each: FailingFacts, **changes: Any) -> SilenceFacts:
    return replace(HEALTHY, failing=each, **changes)


S1 = ("dcsync.sync-failing", "subcloud=s1")


@pytest.mark.parametrize(
    ("changes", "is_raised"),
    [
        ({}, True),
        ({"since": ago(seconds=899)}, False),
        ({"since": ago(seconds=1), "failures": 5}, True),
        ({"since": ago(seconds=1), "failures": 4}, False),
        ({"is_online": False}, False),
        ({"reason": None, "failures": 9}, False),
        ({"since": ago(days=3), "online_since": ago(seconds=899)}, False),
        ({"since": ago(days=3), "online_since": NOON + timedelta(hours=1)}, True),
        ({"since": ago(days=3), "online_since": None}, True),
        ({"endpoint_type": PLATFORM}, True),
    ],
)
def test_a_subcloud_that_fails_for_too_long_or_too_often_is_reported(changes: dict[str, Any], is_raised: bool) -> None:
    assert raised(with_failing(failing(**changes))) == ([S1] if is_raised else [])


def test_the_text_names_what_fails_since_when_why_and_what_to_do() -> None:
    told = text(with_failing(failing(detail="x" * 999)))
    assert told.startswith(
        "s1: the initial sync has failed 2 times in a row since 2026-01-31 11:45:00 UTC, last server-error ("
    )
    assert Reason.SERVER_ERROR.advice in told
    assert told.endswith("see dcsync history s1")
    assert len(told) < 500


def test_one_alarm_reports_all_that_fails_on_one_subcloud() -> None:
    both = with_failing(
        failing(), failing(endpoint_type=IDENTITY, since=ago(hours=2)), failing(name="s2", subcloud_id=2)
    )
    assert raised(both) == [S1, ("dcsync.sync-failing", "subcloud=s2")]
    assert "audits of identity" in alarms(both)[0].reason_text


def test_it_stays_until_a_run_succeeds_also_while_the_subcloud_is_away_or_the_central_cloud_is() -> None:
    for changes in ({"is_online": False}, {"reason": Reason.CENTRAL_EMPTY}, {"reason": None, "since": ago(seconds=1)}):
        facts = with_failing(failing(**changes))
        assert raised(facts) == []
        assert raised(replace(facts, active=frozenset({S1}))) == [S1]
    assert raised(replace(HEALTHY, active=frozenset({S1}))) == []


@pytest.mark.parametrize("reason", sorted(CENTRAL_REASONS))
def test_an_outage_of_the_central_cloud_is_one_alarm_and_not_one_for_each_subcloud(reason: Reason) -> None:
    facts = with_failing(failing(reason=reason, since=ago(hours=3), failures=9))
    unreadable = replace(HEALTHY.central, unreadable_since=ago(hours=3), unreadable_reason=f"{reason}: x")
    assert raised(replace(facts, central=unreadable)) == [("dcsync.central-unreadable", "central")]
    just_back = replace(HEALTHY.central, readable_since=ago(seconds=1799))
    assert raised(replace(facts, central=just_back)) == []


def test_what_fails_because_of_a_central_cloud_that_the_watch_can_read_is_reported_all_the_same() -> None:
    facts = with_failing(failing(reason=Reason.CENTRAL_UNREACHABLE, since=ago(hours=3)))
    assert raised(replace(facts, central=replace(HEALTHY.central, readable_since=ago(seconds=1800)))) == [S1]


def test_every_alarm_has_a_severity_and_no_second_look_at_the_same_facts_changes_anything() -> None:
    facts = replace(
        with_failing(failing()),
        observed=(ObservedFacts(endpoint_type=PLATFORM, subclouds=5, stale=5),),
        swept_at=ago(hours=1),
        central=replace(HEALTHY.central, checked_at=ago(hours=1)),
        keys=keys().keys,
    )
    assert [each.alarm_id for each in alarms(facts)] == list(SilenceId)
    assert {each.severity for each in alarms(facts)} == {"critical", "major"}
    assert alarms(active(facts)) == alarms(facts)
