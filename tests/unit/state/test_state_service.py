"""What reports do to subclouds: the checks of docs/upstream/state-service.md section 12, as far as they apply, and
more."""

from __future__ import annotations

import json
from collections.abc import Collection
from datetime import timedelta
from typing import Any

import pytest

from dcsync.audit.endpoints import audited_types
from dcsync.model.errors import RowLocked
from dcsync.model.report_payloads import report_payload, signature_of
from dcsync.model.reports import AvailabilityReport
from dcsync.model.states.initial_sync import InitialSyncEvent, InitialSyncState
from dcsync.model.subcloud import DEFAULT_ENDPOINT_TYPES, EndpointType, SyncStatus
from dcsync.state.ports import EndpointRow, StateChanges, StateRow
from dcsync.state.service import StateService
from tests.fake_messenger import FakeMessenger
from tests.fake_states import FakeStateStore
from tests.reports import (
    DC_CERT,
    FIRMWARE,
    IDENTITY,
    IN_SYNC,
    NOW,
    OFFLINE,
    ONLINE,
    OUT_OF_SYNC,
    PLATFORM,
    SEVEN_TYPES,
    SOFTWARE,
    UNKNOWN,
    UNMANAGED,
    a_state_row,
    at,
    bulk,
    endpoint,
    fails,
    mark,
    offline,
    online,
    types,
)

REMAINING = {EndpointType.FIRMWARE, EndpointType.KUBERNETES, EndpointType.KUBE_ROOTCA, EndpointType.SOFTWARE}
DCSYNC_AUDITS = frozenset(audited_types())
OFFLINE_ALARM, PLATFORM_ALARM = ("280.001", ""), ("280.002", "platform")


KEY, NEXT_KEY = b"k" * 64, b"n" * 64


class World:
    """One subcloud (or more), and the service that takes reports about it."""

    def __init__(self, *rows: Any, broker_is_away: bool = False, **service: Any) -> None:
        """Somebody carries out every follow-up audit, unless `service` says otherwise."""
        self.store = FakeStateStore(*(rows or (a_state_row(),)))
        self.messenger = FakeMessenger(is_away=broker_is_away)
        more: dict[str, Any] = {"follow_ups": frozenset(EndpointType)} | service
        self.service = StateService(
            store=self.store, messenger=self.messenger, now=lambda: NOW, batch_subclouds=3, **more
        )

    def tell(self, *reports: Any) -> dict[str, int]:
        """Each in a message of its own."""
        told: dict[str, int] = {}
        for report in reports:
            told = self.service.apply_payloads([report_payload(report)]).as_dict()
        return told


@pytest.fixture
def world() -> World:
    """A managed subcloud that is online since second 1, with all that follows from that done and forgotten."""
    world = World()
    world.tell(online(1))
    world.store.audits.clear()
    world.store.events.clear()
    world.store.writes = 0
    world.messenger.sweeps = 0
    return world


# --- acceptance: docs/upstream/state-service.md section 3.3, without `secondary`; out-of-sync has the precondition of
# in-sync (R15) ---


@pytest.mark.parametrize("status", list(SyncStatus))
@pytest.mark.parametrize("is_online", [True, False])
@pytest.mark.parametrize("managed", [True, False])
@pytest.mark.parametrize("endpoint_type", [DC_CERT, PLATFORM, None])
def test_which_statuses_are_shown(status: SyncStatus, is_online: bool, managed: bool, endpoint_type: Any) -> None:
    world = World(a_state_row(**({} if managed else {"management_state": UNMANAGED})))
    world.tell(online(1) if is_online else offline(1), endpoint(2, endpoint_type, status))
    expected = status if is_online and (managed or endpoint_type is DC_CERT) else UNKNOWN
    assert world.store.status(endpoint_type or PLATFORM) is expected
    assert world.store.status(DC_CERT) is (expected if endpoint_type in (DC_CERT, None) else UNKNOWN)


def test_unknown_is_taken_from_an_unmanaged_and_offline_subcloud_too() -> None:
    world = World(a_state_row(management_state=UNMANAGED))
    world.tell(online(1), endpoint(2, DC_CERT, IN_SYNC), endpoint(3, DC_CERT, UNKNOWN))
    assert world.store.status(DC_CERT) is UNKNOWN


# --- S1 to S18 -----------------------------------------------------------------------------------------------------


def test_s1_identity_leaving_unknown_asks_for_the_remaining_audits_once(world: World) -> None:
    world.tell(endpoint(2, IDENTITY, IN_SYNC))
    assert world.store.status(IDENTITY) is IN_SYNC
    assert {type_ for _, type_ in world.store.audits} == REMAINING
    assert world.store.alarms() == set()


def test_s2_the_same_report_again_writes_nothing_and_asks_for_nothing(world: World) -> None:
    world.tell(endpoint(2, IDENTITY, IN_SYNC))
    world.store.audits.clear()
    world.store.writes = 0
    assert world.tell(endpoint(2, IDENTITY, IN_SYNC))["late"] == 1
    assert world.tell(endpoint(3, IDENTITY, IN_SYNC))["unchanged"] == 1
    # Only the age of the proof.
    assert (world.store.writes, world.store.audits) == (1, [])
    assert world.store.rows["subcloud1"].endpoints[IDENTITY].verified_at == at(3)


def test_s3_out_of_sync_raises_one_alarm_that_in_sync_clears(world: World) -> None:
    world.tell(endpoint(2, PLATFORM, OUT_OF_SYNC), endpoint(3, PLATFORM, OUT_OF_SYNC))
    assert world.store.alarms() == {PLATFORM_ALARM}
    (alarm,) = world.store.active.values()
    assert (alarm.raised_at, alarm.severity) == (at(2), "major")
    assert alarm.entity == "subcloud=name-of-subcloud1.resource=platform"
    assert alarm.reason_text == "name-of-subcloud1 platform sync_status is out-of-sync"
    world.tell(endpoint(4, PLATFORM, IN_SYNC))
    assert world.store.alarms() == set()


def test_s4_a_report_that_is_not_alarmable_raises_no_alarm(world: World) -> None:
    world.tell(endpoint(2, PLATFORM, OUT_OF_SYNC, alarmable=False))
    assert (world.store.status(PLATFORM), world.store.alarms()) == (OUT_OF_SYNC, set())
    world.tell(endpoint(3, PLATFORM, OUT_OF_SYNC))
    assert world.store.alarms() == {PLATFORM_ALARM}


def test_s8_an_endpoint_that_was_removed_from_the_subcloud_is_rejected(world: World) -> None:
    world.tell(types(2, EndpointType.IDENTITY_OPENSTACK, present=False))
    assert world.tell(endpoint(3, EndpointType.IDENTITY_OPENSTACK, IN_SYNC))["rejected"] == 1
    assert world.store.writes == 0
    assert "identity_openstack" in world.store.rejected[0].reason


def test_s9_going_offline_forgets_endpoints_clears_their_alarms_and_cancels_the_run(world: World) -> None:
    world.tell(endpoint(2, PLATFORM, OUT_OF_SYNC), endpoint(2, DC_CERT, IN_SYNC), offline(3, fail_count=2))
    row = world.store.rows["subcloud1"]
    assert (row.availability_status, row.fail_count) == (OFFLINE, 2)
    assert {shown.sync_status for shown in row.endpoints.values()} == {UNKNOWN}
    assert world.store.alarms() == {OFFLINE_ALARM}
    assert world.store.events == [("subcloud1", InitialSyncEvent.LEFT)]
    assert world.store.state() is InitialSyncState.NONE


def test_s10_coming_online_clears_the_alarm_asks_for_audits_and_an_initial_sync(world: World) -> None:
    world.tell(offline(2, fail_count=2))
    world.store.events.clear()
    told = world.tell(online(3))
    assert told["requested"] == 1
    assert world.store.alarms() == set()
    assert world.store.rows["subcloud1"].fail_count == 0
    assert {type_ for _, type_ in world.store.audits} == REMAINING | {DC_CERT}
    assert (world.store.events, world.messenger.sweeps) == ([("subcloud1", InitialSyncEvent.BECAME_ELIGIBLE)], 1)


def test_s11_a_broker_that_is_away_does_not_hinder_coming_online() -> None:
    world = World(broker_is_away=True)
    world.tell(online(1))
    assert world.store.state() is InitialSyncState.REQUESTED


def test_s12_state_only_changes_no_row_and_realigns_alarms(world: World) -> None:
    written: list[StateChanges] = []
    world.store.write = lambda changes, now: written.append(changes)  # type: ignore[method-assign]
    world.tell(AvailabilityReport(region_name="subcloud1", mark=mark(9), availability_status=OFFLINE, state_only=True))
    assert [(changes.realigned, changes.columns, changes.endpoints) for changes in written] == [([1], [], [])]


def test_s13_a_fail_count_alone_changes_only_the_count(world: World) -> None:
    world.tell(fails(2, 1))
    row = world.store.rows["subcloud1"]
    assert (row.fail_count, row.availability_status) == (1, ONLINE)
    assert (world.store.events, world.store.audits, world.store.alarms()) == ([], [], set())


def test_s14_the_ignored_endpoint_is_untouched(world: World) -> None:
    world.tell(endpoint(2, None, IN_SYNC), endpoint(3, None, UNKNOWN, ignored=frozenset({DC_CERT})))
    assert world.store.status(DC_CERT) is IN_SYNC
    assert {world.store.status(type_) for type_ in SEVEN_TYPES if type_ is not DC_CERT} == {UNKNOWN}


def test_s15_a_status_of_all_subclouds_reaches_everyone_and_asks_for_one_audit() -> None:
    regions = [f"subcloud{number}" for number in range(1, 9)]
    world = World(*(a_state_row(region, subcloud_id=id_) for id_, region in enumerate(regions, start=1)))
    world.tell(*(online(1, region) for region in regions), *(endpoint(2, FIRMWARE, IN_SYNC, r) for r in regions))
    world.store.audits.clear()
    world.tell(endpoint(3, FIRMWARE, UNKNOWN, region_name=None))
    assert {world.store.status(FIRMWARE, region) for region in regions} == {UNKNOWN}
    assert world.store.audits == [(None, FIRMWARE)]


@pytest.mark.parametrize(("endpoint_type", "status"), [(PLATFORM, UNKNOWN), (SOFTWARE, IN_SYNC), (None, UNKNOWN)])
def test_other_statuses_of_all_subclouds_ask_for_no_audit(endpoint_type: Any, status: SyncStatus) -> None:
    world = World()
    world.tell(endpoint(1, endpoint_type, status, region_name=None))
    assert world.store.audits == []


def test_follow_ups_that_nobody_carries_out_are_not_stored() -> None:
    """dcsync alone audits platform and identity, and neither is a follow-up."""
    world = World(follow_ups=DCSYNC_AUDITS)
    world.tell(online(1), endpoint(2, IDENTITY, IN_SYNC), endpoint(3, FIRMWARE, UNKNOWN, region_name=None))
    assert world.store.audits == []


def test_follow_ups_of_a_consumer_are_stored_and_no_others() -> None:
    world = World(follow_ups=DCSYNC_AUDITS | {FIRMWARE})
    world.tell(online(1), endpoint(2, IDENTITY, IN_SYNC), endpoint(3, SOFTWARE, UNKNOWN, region_name=None))
    assert world.store.audits == [(1, FIRMWARE)]
    world.tell(endpoint(4, FIRMWARE, UNKNOWN, region_name=None))
    assert world.store.audits == [(1, FIRMWARE), (None, FIRMWARE)]


# --- endpoint types that are not configured ------------------------------------------------------------------------


def two_types(**changes: Any) -> World:
    """Its one subcloud has platform and identity only, as where nothing else is configured."""
    shown = {type_: EndpointRow(UNKNOWN, True, None) for type_ in DEFAULT_ENDPOINT_TYPES}
    return World(a_state_row(endpoints=shown, **changes))


def endpoints_of(world: World) -> set[EndpointType]:
    return set(world.store.rows["subcloud1"].endpoints)


def test_an_endpoint_appears_with_the_first_report_about_it() -> None:
    world = two_types()
    assert world.tell(online(1), endpoint(2, FIRMWARE, OUT_OF_SYNC)) == {"applied": 1, "rejected": 0, "requested": 0}
    assert (world.store.status(FIRMWARE), world.store.alarms()) == (OUT_OF_SYNC, {("280.002", "firmware")})
    world.tell(bulk(3, {FIRMWARE: IN_SYNC, SOFTWARE: IN_SYNC}))
    assert (world.store.status(FIRMWARE), world.store.status(SOFTWARE), world.store.alarms()) == (
        IN_SYNC,
        IN_SYNC,
        set(),
    )


def test_an_endpoint_that_may_not_be_shown_yet_appears_as_unknown() -> None:
    world = two_types()
    world.tell(endpoint(2, FIRMWARE, IN_SYNC))
    assert world.store.status(FIRMWARE) is UNKNOWN
    world.tell(online(1))
    assert world.store.status(FIRMWARE) is IN_SYNC


def test_a_report_an_unmanaged_subcloud_may_not_show_adds_no_endpoint() -> None:
    world = two_types(management_state=UNMANAGED)
    world.tell(online(1), endpoint(2, FIRMWARE, IN_SYNC), endpoint(2, DC_CERT, IN_SYNC))
    assert endpoints_of(world) == {*DEFAULT_ENDPOINT_TYPES, DC_CERT}


def test_an_endpoint_that_appears_shows_nothing_from_before_the_subcloud_was_unmanaged() -> None:
    world = two_types(unmanaged_at=at(3))
    world.tell(online(1), endpoint(2, FIRMWARE, OUT_OF_SYNC), endpoint(2, DC_CERT, IN_SYNC))
    assert (world.store.status(FIRMWARE), world.store.status(DC_CERT), world.store.alarms()) == (
        UNKNOWN,
        IN_SYNC,
        set(),
    )
    world.tell(endpoint(4, FIRMWARE, IN_SYNC))
    assert world.store.status(FIRMWARE) is IN_SYNC


def test_a_report_on_all_endpoints_concerns_those_the_subcloud_has() -> None:
    world = two_types()
    world.tell(online(1), endpoint(2, None, IN_SYNC, ignored=frozenset({IDENTITY})))
    assert endpoints_of(world) == set(DEFAULT_ENDPOINT_TYPES)
    assert (world.store.status(PLATFORM), world.store.status(IDENTITY)) == (IN_SYNC, UNKNOWN)


# --- alarms --------------------------------------------------------------------------------------------------------


def test_a_subcloud_that_was_never_online_is_not_missed() -> None:
    world = World()
    world.tell(offline(1))
    assert world.store.alarms() == set()


def test_an_alarm_for_all_endpoints_names_each_endpoint(world: World) -> None:
    """Upstream names the argument, `resource=None` (R19)."""
    world.tell(endpoint(2, None, OUT_OF_SYNC))
    assert world.store.alarms() == {("280.002", str(type_)) for type_ in SEVEN_TYPES}


def test_unknown_clears_the_alarm_in_the_bulk_form_too(world: World) -> None:
    """Upstream's bulk path clears for in-sync only (R18)."""
    world.tell(endpoint(2, PLATFORM, OUT_OF_SYNC), bulk(3, {PLATFORM: UNKNOWN}))
    assert world.store.alarms() == set()


def test_removing_an_endpoint_type_takes_its_alarm_with_it(world: World) -> None:
    openstack = EndpointType.IDENTITY_OPENSTACK
    world.tell(types(2, openstack, present=True), endpoint(3, openstack, OUT_OF_SYNC))
    assert world.store.alarms() == {("280.002", "identity_openstack")}
    world.tell(types(4, openstack, present=False))
    assert openstack not in world.store.rows["subcloud1"].endpoints
    assert world.store.alarms() == set()
    world.tell(types(3.5, openstack, present=True))
    assert openstack not in world.store.rows["subcloud1"].endpoints


def test_a_report_from_before_an_endpoint_type_went_is_not_shown_when_it_is_back(world: World) -> None:
    world.tell(types(3, PLATFORM, present=False), types(4, PLATFORM, present=True), endpoint(2, PLATFORM, OUT_OF_SYNC))
    assert (world.store.status(PLATFORM), world.store.alarms()) == (UNKNOWN, set())
    world.tell(endpoint(5, PLATFORM, IN_SYNC))
    assert world.store.status(PLATFORM) is IN_SYNC


# --- the bulk form -------------------------------------------------------------------------------------------------


def test_bulk_judges_endpoints_by_the_availability_it_brings() -> None:
    """Upstream judged them by the row from before and lost two rounds (dc6a011e)."""
    world = World()
    world.tell(bulk(1, {PLATFORM: IN_SYNC, FIRMWARE: OUT_OF_SYNC}, availability_status=ONLINE))
    assert (world.store.status(PLATFORM), world.store.status(FIRMWARE)) == (IN_SYNC, OUT_OF_SYNC)


def test_bulk_with_an_endpoint_that_was_removed_changes_nothing_at_all() -> None:
    world = World()
    world.tell(types(0, EndpointType.IDENTITY_OPENSTACK, present=False))
    told = world.tell(bulk(1, {EndpointType.IDENTITY_OPENSTACK: IN_SYNC}, availability_status=ONLINE))
    assert (told["rejected"], world.store.writes) == (1, 0)


# --- of all subclouds ----------------------------------------------------------------------------------------------


def two_subclouds() -> World:
    return World(a_state_row("subcloud1"), a_state_row("subcloud2", subcloud_id=2))


def test_a_report_on_all_subclouds_passes_by_those_without_the_endpoint() -> None:
    """Else 20,000 of them would put it aside 20,000 times, and push out whatever else was put aside."""
    world, openstack = two_subclouds(), EndpointType.IDENTITY_OPENSTACK
    world.tell(online(1), types(1, openstack, present=True), endpoint(2, openstack, IN_SYNC))
    told = world.tell(endpoint(3, openstack, UNKNOWN, region_name=None))
    assert (told["rejected"], world.store.rejected) == (0, [])
    assert world.store.status(openstack) is UNKNOWN


def test_a_report_on_all_subclouds_from_the_future_is_rejected_once_and_asks_for_nothing() -> None:
    world = two_subclouds()
    told = world.tell(endpoint(86_400, FIRMWARE, UNKNOWN, region_name=None))
    assert (told["rejected"], len(world.store.rejected)) == (1, 1)
    assert world.store.audits == []


# --- from before it was added ---


@pytest.mark.parametrize(
    "report",
    [
        online(4),
        offline(4),
        fails(4, 3),
        endpoint(4, PLATFORM, IN_SYNC),
        bulk(4, {PLATFORM: IN_SYNC}, availability_status=ONLINE),
    ],
)
def test_a_report_on_an_earlier_subcloud_of_the_same_region_name_is_rejected(report: Any) -> None:
    world = World(a_state_row(added_at=at(5)))
    told = world.tell(report)
    assert (told["rejected"], world.store.writes) == (1, 0)
    (rejected,) = world.store.rejected
    assert "1 s before the subcloud was added" in rejected.reason


def test_a_report_on_all_subclouds_passes_by_those_added_since() -> None:
    world = World(a_state_row("subcloud1"), a_state_row("subcloud2", subcloud_id=2, added_at=at(5)))
    world.tell(online(1), online(6, region_name="subcloud2"))
    told = world.tell(endpoint(4, FIRMWARE, IN_SYNC, region_name=None))
    assert (told["rejected"], told["applied"]) == (0, 1)
    assert world.store.status(FIRMWARE, "subcloud2") is UNKNOWN


def test_a_subcloud_that_was_added_in_the_future_takes_reports() -> None:
    world = World(a_state_row(added_at=NOW + timedelta(hours=1)))
    world.tell(online(1))
    assert world.store.rows["subcloud1"].availability_status is ONLINE


# --- late, doubled, poisoned ---------------------------------------------------------------------------------------


def test_an_outage_that_becomes_known_late_is_made_good(world: World) -> None:
    world.tell(endpoint(2, PLATFORM, IN_SYNC), online(5), endpoint(6, FIRMWARE, IN_SYNC), offline(4))
    assert world.store.rows["subcloud1"].availability_status is ONLINE
    assert (world.store.status(PLATFORM), world.store.status(FIRMWARE)) == (UNKNOWN, IN_SYNC)
    assert world.store.alarms() == set()
    assert [(alarm.raised_at, alarm.cleared_at) for alarm in world.store.alarm_history] == [(at(4), at(5))]
    assert world.store.events == [("subcloud1", InitialSyncEvent.BECAME_ELIGIBLE)]


def test_an_outage_within_one_message_asks_for_one_initial_sync(world: World) -> None:
    payloads = [report_payload(report) for report in (online(3), offline(2))]
    assert world.service.apply_payloads(payloads).requested == 1
    assert world.store.events == [("subcloud1", InitialSyncEvent.BECAME_ELIGIBLE)]
    assert [(alarm.raised_at, alarm.cleared_at) for alarm in world.store.alarm_history] == [(at(2), at(3))]


def test_a_status_seen_before_the_subcloud_came_back_is_not_shown(world: World) -> None:
    world.tell(offline(2), endpoint(3, PLATFORM, IN_SYNC), online(4))
    assert world.store.status(PLATFORM) is UNKNOWN


def test_a_status_seen_after_it_came_back_is_shown_as_soon_as_that_is_known(world: World) -> None:
    world.tell(offline(2), endpoint(5, PLATFORM, IN_SYNC))
    assert world.store.status(PLATFORM) is UNKNOWN
    world.tell(online(4))
    assert world.store.status(PLATFORM) is IN_SYNC


def test_poisoned_reports_are_rejected_and_stop_nothing(world: World) -> None:
    good = report_payload(endpoint(2, PLATFORM, IN_SYNC))
    poisoned: list[object] = [
        None,
        {},
        {**good, "kind": "endpoints"},
        {**good, "sync_status": "green"},
        {**good, "observed_at": "2026-01-31T12:00:00"},
        {**good, "observed_at": "0001-01-01T00:00:00+10:00"},
        {**good, "sequence": -1},
        {**good, "sequence": True},
        {**good, "region_name": "a\x00b"},
        {**good, "region_name": "elsewhere"},
        {**good, "colour": "red"},
        {"kind": "availability", "region_name": "subcloud1", "observed_at": good["observed_at"]},
        {**good, "observed_at": "2099-01-01T00:00:00+00:00"},
    ]
    told = world.service.apply_payloads([*poisoned, good])
    assert (told.rejected, told.verdicts) == (len(poisoned), {"applied": 1})
    assert len(world.store.rejected) == len(poisoned)
    assert all(each.reason for each in world.store.rejected)
    assert world.store.status(PLATFORM) is IN_SYNC


def test_what_is_kept_of_a_rejected_report_shows_no_secret_and_no_control_character(world: World) -> None:
    good = report_payload(endpoint(2, PLATFORM, IN_SYNC))
    world.service.apply_payloads(
        [
            {**good, "password": "s3cret"},
            {**good, "sync_status": {"token": "s3cret"}},
            {**good, "ignored": [{"key": "s3cret"}, ["s3cret"]]},
            {**good, "kind": "bulk", "endpoints": {"platform": ["s3cret"], "s3cret": "in-sync"}},
            "s3cret",
            ["s3cret"],
            {**good, "sync_status": "\x1b[2J\x00"},
        ]
    )
    texts = [each.report for each in world.store.rejected]
    assert len(texts) == 7
    assert not any("s3cret" in text for text in texts)
    assert all(text.isascii() and text.isprintable() for text in texts)
    assert (texts[0].count("***"), '"region_name": "subcloud1"' in texts[0]) == (1, True)


def test_one_subcloud_the_rules_fall_over_does_not_take_the_batch_with_it() -> None:
    broken = a_state_row("broken", subcloud_id=2, memory={"on": [["never", 1]]})
    world = World(a_state_row(), broken)
    payloads = [report_payload(report) for report in (online(1), online(1, "broken"))]
    assert world.service.apply_payloads(payloads).rejected == 1
    assert world.store.rows["subcloud1"].availability_status is ONLINE
    assert world.store.rejected[0].reason == "a fault in dcsync: ValueError"


def test_memory_that_was_lost_costs_no_more_than_what_it_held(world: World) -> None:
    world.tell(endpoint(2, PLATFORM, IN_SYNC), online(3), endpoint(4, PLATFORM, IN_SYNC))
    row = world.store.rows["subcloud1"]
    assert row.memory
    world.store.rows["subcloud1"] = a_state_row(
        **{name: getattr(row, name) for name in ("availability_status", "online_mark", "endpoints")}
    )
    world.store.writes = 0
    world.tell(online(5), endpoint(6, PLATFORM, IN_SYNC))
    assert (world.store.writes, world.store.status(PLATFORM)) == (1, IN_SYNC)


# --- signed messages ---------------------------------------------------------------------------------------------

OFFLINE_REPORTS = [report_payload(offline(-2, f"subcloud{number}")) for number in range(1, 40)]


@pytest.mark.parametrize("signature", [None, "", "0" * 64, 7, signature_of(OFFLINE_REPORTS, b"t" * 64)])
def test_with_a_key_a_message_without_a_valid_signature_changes_nothing_and_leaves_one_row(signature: object) -> None:
    """On its reports alone: 39 reports of one forged message once raised 31 alarms."""
    world = World(*(a_state_row(f"subcloud{number}") for number in range(1, 40)), keys=lambda: (KEY,))

    tally = world.service.apply_message(OFFLINE_REPORTS, signature=signature)

    assert tally.as_dict() == {"rejected": 1, "requested": 0}
    (rejected,) = world.store.rejected
    expected = "the message is not signed" if signature is None else "the signature of the message is not valid"
    assert (rejected.region_name, rejected.reason) == (None, expected)
    assert json.loads(rejected.report)["reports"] == 39
    assert not any(world.store.alarms(f"subcloud{number}") for number in range(1, 40))


@pytest.mark.parametrize("key", [KEY, NEXT_KEY])
def test_a_message_signed_with_either_of_two_keys_is_applied(key: bytes) -> None:
    world = World(keys=lambda: (KEY, NEXT_KEY))
    payloads = [report_payload(online(1))]

    tally = world.service.apply_message(payloads, signature=signature_of(payloads, key))

    assert tally.rejected == 0


def test_a_signature_is_of_these_reports_only() -> None:
    world = World(keys=lambda: (KEY,))
    first, second = [report_payload(online(1))], [report_payload(offline(2))]

    assert world.service.apply_message(second, signature=signature_of(first, KEY)).rejected == 1
    assert world.service.apply_message(first + second, signature=signature_of(first, KEY)).rejected == 1


def test_without_a_key_signatures_do_not_count() -> None:
    assert World().service.apply_message([report_payload(online(1))], signature="nonsense").rejected == 0


@pytest.mark.parametrize("payload", [float("nan"), object(), ("a",)])
def test_what_cannot_be_verified_is_rejected(payload: object) -> None:
    assert World(keys=lambda: (KEY,)).service.apply_message([payload], signature="0" * 64).rejected == 1


def test_a_locked_row_delays_no_other_subcloud(monkeypatch: pytest.MonkeyPatch) -> None:
    regions = [f"subcloud{number}" for number in range(1, 8)]
    world = World(*(a_state_row(region_name=region, subcloud_id=id_) for id_, region in enumerate(regions, 1)))
    lock = world.store.lock

    def lock_unless_held(region_names: Collection[str], **of: Any) -> list[StateRow]:
        if "subcloud4" in region_names:
            raise RowLocked("another session holds a row")
        return lock(region_names, **of)

    monkeypatch.setattr(world.store, "lock", lock_unless_held)
    reports = [report_payload(online(1, region)) for region in regions]
    with pytest.raises(RowLocked, match="the rows of 1 subclouds"):
        world.service.apply_payloads(reports)
    are_online = [region for region in regions if world.store.rows[region].availability_status is ONLINE]
    assert are_online == [region for region in regions if region != "subcloud4"]
    monkeypatch.setattr(world.store, "lock", lock)
    world.service.apply_payloads(reports)
    assert world.store.rows["subcloud4"].availability_status is ONLINE
