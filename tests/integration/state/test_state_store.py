"""The state service on a real PostgreSQL: one transaction, no deadlock, no needless write, whatever the order."""

from __future__ import annotations

import dataclasses
import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import make_url, select, text

from dcsync.adapters.postgres.database import make_engine
from dcsync.adapters.postgres.inventory import SqlInventory
from dcsync.adapters.postgres.states import SqlStateStore
from dcsync.adapters.postgres.tables import endpoint_status, subcloud
from dcsync.audit.endpoints import audited_types
from dcsync.model.errors import DatabaseUnreachable, MisconfiguredError
from dcsync.model.reasons import Reason, Unproven
from dcsync.model.report_payloads import report_from_payload, report_payload
from dcsync.model.reports import AvailabilityReport, Report
from dcsync.model.states.initial_sync import InitialSyncState
from dcsync.model.subcloud import DEFAULT_ENDPOINT_TYPES, EndpointType, ManagementState
from dcsync.state import memory, rules
from dcsync.state.ports import EndpointRow, StateChanges
from dcsync.state.service import StateService
from tests.builders import NOON
from tests.integration.state.conftest import Rows
from tests.processes import wait_until
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
    at,
    bulk,
    endpoint,
    fails,
    mark,
    offline,
    online,
    types,
)

RUNNING: dict[str, Any] = {
    "initial_sync_state": InitialSyncState.IN_PROGRESS,
    "run_id": "run-1",
    "claimed_at": NOON,
    "attempt": 1,
    "step": "identity",
}
FIVE: dict[str, list[Report]] = {
    "an outage": [
        online(1),
        endpoint(2, PLATFORM, OUT_OF_SYNC),
        offline(3),
        online(4),
        endpoint(5, FIRMWARE, OUT_OF_SYNC),
    ],
    "gone": [
        online(1),
        endpoint(2, None, IN_SYNC),
        fails(3, 1),
        offline(4, fail_count=2),
        endpoint(5, DC_CERT, IN_SYNC),
    ],
    "twice away": [online(1), offline(2), online(3), endpoint(4, IDENTITY, IN_SYNC), online(5)],
    "to and fro": [
        bulk(1, {PLATFORM: IN_SYNC, IDENTITY: IN_SYNC}, availability_status=ONLINE),
        endpoint(2, PLATFORM, OUT_OF_SYNC),
        endpoint(3, PLATFORM, IN_SYNC),
        endpoint(4, PLATFORM, OUT_OF_SYNC, alarmable=False),
        endpoint(5, PLATFORM, OUT_OF_SYNC),
    ],
}


def everything_shown(rows: Rows, region_name: str) -> tuple[Any, ...]:
    known = rows.subcloud(region_name)
    name = f"subcloud={known.name}"
    alarms = {(id_, entity.removeprefix(name)) for id_, entity in rows.active_alarms() if entity.split(".")[0] == name}
    with rows.engine.connect() as connection:
        fail_count = connection.scalar(select(subcloud.c.audit_fail_count).where(subcloud.c.id == known.id))
    return known.availability_status, known.initial_sync_state, known.sync_status, fail_count, frozenset(alarms)


@pytest.mark.parametrize("story", FIVE)
def test_every_permutation_of_five_reports_ends_in_the_same_row(rows: Rows, story: str) -> None:
    """One subcloud per permutation; its reports come one message after the other."""
    orders = list(itertools.permutations(FIVE[story]))
    regions = rows.add(len(orders))
    for step in range(5):
        rows.tell(*(_about(order[step], region) for order, region in zip(orders, regions, strict=True)))
    shown = {region: everything_shown(rows, region) for region in regions[:: len(regions) // 12]}
    assert len({str(each) for each in shown.values()}) == 1, shown
    with rows.engine.connect() as connection:
        different = connection.execute(
            text(
                "SELECT DISTINCT availability_status, initial_sync_state, audit_fail_count,"
                " (SELECT string_agg(endpoint_type || sync_status || alarmable, ' ' ORDER BY endpoint_type)"
                "  FROM endpoint_status WHERE subcloud_id = s.id),"
                " (SELECT string_agg(alarm_id || coalesce(endpoint_type, ''), ' ' ORDER BY alarm_id, endpoint_type)"
                "  FROM alarm WHERE subcloud_id = s.id AND cleared_at IS NULL)"
                " FROM subcloud AS s"
            )
        ).all()
    assert len(different) == 1, different


def _about(report: Any, region_name: str) -> Report:
    return report_from_payload({**report_payload(report), "region_name": region_name})


def test_unchanged_values_and_duplicates_write_no_row_that_anybody_can_see(rows: Rows) -> None:
    rows.add()
    told = [online(1), endpoint(2, FIRMWARE, OUT_OF_SYNC), endpoint(2, SOFTWARE, IN_SYNC), fails(3, 1)]
    rows.tell(*told)
    before = rows.versions()
    rows.tell(*told)
    rows.tell(endpoint(1.5, FIRMWARE, OUT_OF_SYNC))
    assert rows.versions() == before


def test_a_repeated_report_writes_the_age_of_its_proof_alone(rows: Rows) -> None:
    rows.add()
    rows.tell(online(1), endpoint(2, FIRMWARE, OUT_OF_SYNC), endpoint(2, SOFTWARE, IN_SYNC))
    before, changed = rows.versions(), changed_at(rows)
    rows.tell(online(4), endpoint(5, FIRMWARE, OUT_OF_SYNC), endpoint(6, SOFTWARE, IN_SYNC))
    assert {table for table, _ in rows.versions() - before} == {"endpoint_status"}
    assert changed_at(rows) == changed
    found = rows.subcloud().endpoints
    assert (found[FIRMWARE].verified_at, found[FIRMWARE].last_good_at) == (at(5), None)
    assert (found[SOFTWARE].verified_at, found[SOFTWARE].last_good_at) == (at(6), at(6))
    assert rows.subcloud().last_seen_at == at(4)


def test_being_seen_in_the_future_gives_way_to_a_report(rows: Rows) -> None:
    rows.add()
    rows.tell(online(1))
    with rows.engine.begin() as connection:
        connection.execute(text("UPDATE subcloud_probe SET seen_at = now() + interval '1 hour'"))
    rows.tell(online(4))
    assert rows.subcloud().last_seen_at == at(4)


def changed_at(rows: Rows) -> list[object]:
    with rows.engine.connect() as connection:
        return list(connection.scalars(text("SELECT changed_at FROM endpoint_status ORDER BY endpoint_type")))


def test_what_dcsync_audits_is_unknown_until_the_initial_sync_is_completed(rows: Rows) -> None:
    rows.add()
    rows.tell(online(1), endpoint(2, PLATFORM, OUT_OF_SYNC), endpoint(2, FIRMWARE, OUT_OF_SYNC))
    assert rows.subcloud().endpoints[PLATFORM].reason == Unproven.ASKED
    assert (rows.status(PLATFORM), rows.status(FIRMWARE)) == (UNKNOWN, OUT_OF_SYNC)
    assert rows.active_alarms() == {("280.002", "subcloud=name-of-subcloud1.resource=firmware")}
    rows.put(initial_sync_state=InitialSyncState.COMPLETED)
    rows.tell(endpoint(3, PLATFORM, OUT_OF_SYNC))
    assert rows.status(PLATFORM) is OUT_OF_SYNC
    assert len(rows.active_alarms()) == 2


def test_asking_for_a_sync_makes_what_dcsync_audits_unknown(rows: Rows) -> None:
    """Also its alarm: nothing is known until the run and its audit have ended."""
    rows.add()
    rows.tell(online(1))
    rows.put(initial_sync_state=InitialSyncState.COMPLETED)
    rows.tell(endpoint(2, PLATFORM, IN_SYNC), endpoint(2, IDENTITY, OUT_OF_SYNC), endpoint(2, FIRMWARE, IN_SYNC))
    rows.inventory.request(["name-of-subcloud1"], now=at(5), by="eve")
    found = rows.subcloud().endpoints
    assert [found[each].sync_status for each in (PLATFORM, IDENTITY, FIRMWARE)] == [UNKNOWN, UNKNOWN, IN_SYNC]
    assert (found[PLATFORM].reason, found[PLATFORM].last_good_at) == (Unproven.ASKED, at(2))
    assert rows.active_alarms() == set()
    rows.put(initial_sync_state=InitialSyncState.COMPLETED)
    rows.tell(endpoint(4, PLATFORM, IN_SYNC))
    assert rows.status(PLATFORM) is UNKNOWN, "observed before the request"
    rows.tell(endpoint(6, PLATFORM, IN_SYNC))
    assert rows.status(PLATFORM) is IN_SYNC


def test_an_unknown_status_keeps_why_and_when_it_was_last_good(rows: Rows) -> None:
    rows.add()
    rows.put(initial_sync_state=InitialSyncState.COMPLETED)
    rows.tell(online(1))
    rows.put(initial_sync_state=InitialSyncState.COMPLETED)
    rows.tell(endpoint(2, PLATFORM, IN_SYNC))
    rows.tell(endpoint(3, PLATFORM, UNKNOWN, reason="timeout"))
    found = rows.subcloud().endpoints[PLATFORM]
    assert (found.sync_status, found.reason, found.verified_at, found.last_good_at) == (
        UNKNOWN,
        Reason.TIMEOUT,
        at(2),
        at(2),
    )


def test_an_unchanged_report_still_outranks_a_late_one(rows: Rows) -> None:
    rows.add()
    rows.tell(online(1), endpoint(2, FIRMWARE, IN_SYNC))
    rows.tell(endpoint(4, FIRMWARE, IN_SYNC))
    rows.tell(endpoint(3, FIRMWARE, OUT_OF_SYNC))
    assert rows.status(FIRMWARE) is IN_SYNC


def test_going_offline_cancels_a_running_initial_sync_in_the_same_transaction(rows: Rows) -> None:
    """A reader that sees the one sees the other."""
    rows.add()
    rows.tell(online(1), endpoint(2, FIRMWARE, OUT_OF_SYNC))
    rows.put(**RUNNING)
    seen: list[tuple[Any, ...]] = []
    done = threading.Event()

    def watch() -> None:
        wanted = select(
            subcloud.c.availability_status,
            subcloud.c.initial_sync_state,
            select(endpoint_status.c.sync_status)
            .where(endpoint_status.c.subcloud_id == subcloud.c.id, endpoint_status.c.endpoint_type == FIRMWARE)
            .scalar_subquery(),
        )
        while not done.is_set():
            with rows.engine.connect() as connection:
                seen.append(tuple(connection.execute(wanted).one()))

    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch)
        try:
            wait_until(lambda: seen, seconds=60, what="somebody looks")
            rows.tell(offline(3))
        finally:
            done.set()
        watching.result(timeout=60)
    before = (ONLINE, InitialSyncState.IN_PROGRESS, OUT_OF_SYNC)
    assert before in seen
    assert set(seen) <= {before, (OFFLINE, InitialSyncState.NONE, UNKNOWN)}
    gone = rows.subcloud()
    assert (gone.run_id, gone.step, gone.initial_sync_state) == (None, None, InitialSyncState.NONE)
    assert rows.active_alarms() == {("280.001", "subcloud=name-of-subcloud1")}


def test_coming_online_requests_an_initial_sync_and_asks_for_a_sweep(rows: Rows) -> None:
    rows.add()
    assert rows.tell(online(1)).requested == 1
    known = rows.subcloud()
    assert (known.initial_sync_state, known.generation, rows.messenger.sweeps) == (InitialSyncState.REQUESTED, 1, 1)
    assert rows.requests() == [(known.id, 1)]


def test_an_unmanaged_subcloud_that_comes_online_requests_nothing(rows: Rows) -> None:
    rows.add(managed=False)
    assert rows.tell(online(1)).requested == 0
    assert (rows.subcloud().initial_sync_state, rows.messenger.sweeps) == (InitialSyncState.NONE, 0)


def test_audits_that_are_still_asked_for_are_not_asked_for_again(rows: Rows) -> None:
    rows.add()
    rows.tell(online(1), endpoint(2, IDENTITY, IN_SYNC))
    id_ = rows.subcloud().id
    asked = {(id_, name) for name in ("dc-cert", "firmware", "kubernetes", "kube-rootca", "software")}
    assert rows.audits() == asked
    rows.tell(endpoint(3, FIRMWARE, UNKNOWN, region_name=None), endpoint(4, FIRMWARE, UNKNOWN, region_name=None))
    assert rows.audits() == asked | {(None, "firmware")}


def test_endpoint_types_come_and_go_with_their_rows(rows: Rows) -> None:
    rows.add()
    openstack = EndpointType.IDENTITY_OPENSTACK
    rows.tell(online(1), types(2, openstack, present=True), endpoint(3, openstack, OUT_OF_SYNC))
    assert rows.status(openstack) is OUT_OF_SYNC
    rows.tell(types(4, openstack, present=False))
    assert set(rows.subcloud().sync_status) == set(SEVEN_TYPES)
    assert rows.active_alarms() == set()


def test_an_audit_row_comes_and_goes_with_an_endpoint_type_that_dcsync_audits_only(rows: Rows) -> None:
    rows.add()
    removed = types(2, PLATFORM, EndpointType.IDENTITY_OPENSTACK, present=False)
    rows.tell(online(1), endpoint(1, EndpointType.IDENTITY_OPENSTACK, IN_SYNC), removed)
    assert rows.audited() == {"identity"}
    rows.tell(types(3, PLATFORM, EndpointType.IDENTITY_OPENSTACK, present=True))
    assert rows.audited() == {"identity", "platform"}


def test_an_endpoint_appears_with_the_first_report_about_it(rows: Rows) -> None:
    rows.inventory = SqlInventory(rows.engine)
    rows.add()
    assert set(rows.subcloud().sync_status) == set(DEFAULT_ENDPOINT_TYPES)
    rows.tell(online(1), endpoint(2, FIRMWARE, OUT_OF_SYNC))
    assert rows.subcloud().sync_status == {PLATFORM: UNKNOWN, IDENTITY: UNKNOWN, FIRMWARE: OUT_OF_SYNC}
    assert rows.active_alarms() == {("280.002", "subcloud=name-of-subcloud1.resource=firmware")}


def test_an_endpoint_that_appears_shows_nothing_from_before_unmanage(rows: Rows) -> None:
    rows.inventory = SqlInventory(rows.engine)
    rows.add()
    rows.tell(online(-9))
    rows.inventory.set_management(None, ManagementState.UNMANAGED, now=at(-5), by="test")
    rows.inventory.set_management(None, ManagementState.MANAGED, now=at(-4), by="test")
    rows.tell(endpoint(-6, FIRMWARE, OUT_OF_SYNC), endpoint(-6, DC_CERT, IN_SYNC))
    assert (rows.status(FIRMWARE), rows.status(DC_CERT), rows.active_alarms()) == (UNKNOWN, IN_SYNC, set())
    rows.tell(endpoint(-3, FIRMWARE, IN_SYNC))
    assert rows.status(FIRMWARE) is IN_SYNC


def test_subclouds_get_the_endpoint_types_that_are_configured_later(rows: Rows) -> None:
    """Not where a report says that there is none, and nothing from before the subcloud was unmanaged."""
    rows.inventory = SqlInventory(rows.engine)
    rows.add(3)
    rows.tell(*(online(-9, region) for region in ("subcloud1", "subcloud2", "subcloud3")))
    rows.tell(endpoint(-8, FIRMWARE, IN_SYNC, "subcloud1"), types(-8, FIRMWARE, present=False, region_name="subcloud2"))
    rows.inventory.set_management(["name-of-subcloud3"], ManagementState.UNMANAGED, now=at(-5), by="test")
    rows.inventory.set_management(["name-of-subcloud3"], ManagementState.MANAGED, now=at(-4), by="test")
    configured = dataclasses.replace(rows.service, endpoint_types=(*DEFAULT_ENDPOINT_TYPES, FIRMWARE))
    assert (configured.add_missing_endpoints(), configured.add_missing_endpoints()) == (1, 0)
    assert rows.status(FIRMWARE, "subcloud1") is IN_SYNC
    assert FIRMWARE not in rows.subcloud("subcloud2").sync_status
    rows.tell(endpoint(-6, FIRMWARE, OUT_OF_SYNC, "subcloud3"))
    assert rows.status(FIRMWARE, "subcloud3") is UNKNOWN
    rows.tell(endpoint(-3, FIRMWARE, OUT_OF_SYNC, "subcloud3"))
    assert rows.status(FIRMWARE, "subcloud3") is OUT_OF_SYNC


def test_a_first_report_is_not_lost_to_an_endpoint_type_that_is_configured_meanwhile(rows: Rows) -> None:
    """The row is added after the state worker has found that there is none."""
    rows.inventory = SqlInventory(rows.engine)
    rows.add()
    rows.tell(online(1))
    store = SqlStateStore(rows.engine)
    with store.transaction() as transaction:
        (row,) = transaction.lock(["subcloud1"], endpoint_types=[FIRMWARE])
        assert store.add_missing_endpoints([FIRMWARE]) == 1
        reported = EndpointRow(OUT_OF_SYNC, True, mark(2))
        transaction.write(StateChanges(added_endpoints=[(row.subcloud_id, FIRMWARE, reported)]), now=at(2))
    assert rows.status(FIRMWARE) is OUT_OF_SYNC


def test_a_report_the_database_refuses_is_rejected_and_the_others_are_kept(rows: Rows) -> None:
    regions = rows.add(5)
    with rows.engine.begin() as connection:
        connection.execute(text("ALTER TABLE subcloud ADD CONSTRAINT c CHECK (audit_fail_count <> 13)"))
    told = rows.tell(*(online(1, region, fail_count=13 if region == "subcloud3" else 0) for region in regions))
    assert told.rejected == 1
    assert [rows.subcloud(region).availability_status for region in regions] == [
        ONLINE,
        ONLINE,
        OFFLINE,
        ONLINE,
        ONLINE,
    ]
    assert [(region, reason.split(":")[0]) for region, reason in rows.rejected()] == [
        ("subcloud3", "rejected by the database")
    ]


def test_rows_that_contradict_each_other_cost_their_own_subcloud_only(rows: Rows) -> None:
    """Here a request from the future, as a damaged table may have one: the error is SQLAlchemy's, not psycopg2's."""
    regions = rows.add(3)
    with rows.engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO sync_request (subcloud_id, generation, requested_at, requested_by, cause)"
                " SELECT id, 1, now(), 'nobody', '' FROM subcloud WHERE region_name = 'subcloud2'"
            )
        )
    assert rows.tell(*(online(1, region) for region in regions)).rejected == 1
    assert [rows.subcloud(region).availability_status for region in regions] == [ONLINE, OFFLINE, ONLINE]
    assert [region for region, _ in rows.rejected()] == ["subcloud2"]


@pytest.mark.parametrize(
    ("trouble", "error"),
    [
        ("ALTER DATABASE {database} SET default_transaction_read_only = on", DatabaseUnreachable),
        ("CREATE ROLE {database} LOGIN; ALTER DATABASE {database} SET role = {database}", MisconfiguredError),
    ],
)
def test_a_database_that_takes_no_writes_is_no_fault_of_the_reports(
    rows: Rows, database_url: str, trouble: str, error: type[Exception]
) -> None:
    """A standby after a failover, or a role without rights: the message must wait, not be lost."""
    rows.add()
    database = make_url(database_url).database
    with rows.engine.begin() as connection:
        connection.execute(text(trouble.format(database=database)))
    engine = make_engine(database_url)
    try:
        service = StateService(store=SqlStateStore(engine), messenger=rows.messenger, now=lambda: NOW)
        with pytest.raises(error):
            service.apply([online(1)])
    finally:
        engine.dispose()
        with rows.engine.begin() as connection:
            connection.execute(text("SET TRANSACTION READ WRITE"))
            connection.execute(text("SET LOCAL ROLE NONE"))
            connection.execute(text(f"ALTER DATABASE {database} RESET ALL"))
            connection.execute(text(f"DROP ROLE IF EXISTS {database}"))


def test_a_report_on_an_unknown_subcloud_is_rejected(rows: Rows) -> None:
    rows.add()
    assert rows.tell(online(1, "elsewhere"), online(1)).rejected == 1
    assert rows.rejected() == [("elsewhere", "there is no subcloud with this region name")]
    assert rows.subcloud().availability_status is ONLINE


def test_only_the_newest_rejected_reports_are_kept(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dcsync.adapters.postgres.states.REJECTED_KEPT", 3)
    for number in range(5):
        rows.tell(online(1, f"nowhere{number}"))
    assert [region for region, _ in rows.rejected()] == ["nowhere2", "nowhere3", "nowhere4"]


def test_batches_over_the_same_subclouds_at_once_neither_deadlock_nor_lose(rows: Rows) -> None:
    """S16: serialised per subcloud. Each thread takes the subclouds in another order, with newer and older reports."""
    regions = rows.add(40)
    types_ = [EndpointType.KUBERNETES, SOFTWARE, FIRMWARE, DC_CERT]

    def flood(thread: int) -> None:
        for turn in range(6):
            ordered = regions[:: 1 if thread % 2 else -1]
            second = turn * 10 + thread
            rows.tell(
                *(online(second, region) for region in ordered),
                *(endpoint(second, types_[thread], OUT_OF_SYNC if turn % 2 else IN_SYNC, region) for region in ordered),
            )

    with ThreadPoolExecutor(4) as pool:
        for running in [pool.submit(flood, thread) for thread in range(4)]:
            running.result(timeout=200)
    for region in regions:
        assert {rows.status(type_, region) for type_ in types_} == {OUT_OF_SYNC}
    assert len(rows.active_alarms()) == 40 * 4
    assert len(rows.requests()) == 40


def test_a_report_from_before_unmanage_is_not_shown_after_it_is_managed_again(rows: Rows) -> None:
    rows.add()
    rows.tell(
        online(-9), endpoint(-8, FIRMWARE, IN_SYNC), endpoint(-7, FIRMWARE, IN_SYNC), endpoint(-7, DC_CERT, IN_SYNC)
    )
    rows.inventory.set_management(None, ManagementState.UNMANAGED, now=at(-5), by="test")
    assert (rows.status(FIRMWARE), rows.status(DC_CERT)) == (UNKNOWN, IN_SYNC)
    rows.inventory.set_management(None, ManagementState.MANAGED, now=at(-4), by="test")
    rows.tell(endpoint(-6, FIRMWARE, OUT_OF_SYNC), endpoint(-6, SOFTWARE, OUT_OF_SYNC))
    assert (rows.status(FIRMWARE), rows.status(SOFTWARE), rows.active_alarms()) == (UNKNOWN, UNKNOWN, set())
    rows.tell(endpoint(-3, FIRMWARE, IN_SYNC))
    assert rows.status(FIRMWARE) is IN_SYNC


def test_unmanage_and_delete_clear_alarms(rows: Rows) -> None:
    rows.add(2)
    for region in ("subcloud1", "subcloud2"):
        rows.tell(
            online(1, region), endpoint(2, FIRMWARE, OUT_OF_SYNC, region), endpoint(2, DC_CERT, OUT_OF_SYNC, region)
        )
    rows.inventory.set_management(["name-of-subcloud1"], ManagementState.UNMANAGED, now=at(3), by="test")
    rows.inventory.delete(["name-of-subcloud2"], now=at(3))
    assert rows.active_alarms() == {("280.002", "subcloud=name-of-subcloud1.resource=dc-cert")}


def test_state_only_makes_alarms_agree_with_rows(rows: Rows) -> None:
    rows.add(2)
    rows.tell(online(1), endpoint(2, FIRMWARE, OUT_OF_SYNC), online(1, "subcloud2"), offline(2, "subcloud2"))
    right = rows.active_alarms()
    with rows.engine.begin() as connection:
        connection.execute(text("UPDATE alarm SET cleared_at = now() WHERE alarm_id = '280.002'"))
        connection.execute(text("UPDATE alarm SET entity = 'subcloud=name-of-subcloud1' WHERE cleared_at IS NULL"))
    assert rows.active_alarms() != right
    for region in ("subcloud1", "subcloud2"):
        rows.tell(AvailabilityReport(region_name=region, mark=mark(3), state_only=True))
    assert rows.active_alarms() >= right


def test_the_alarms_that_sql_expects_are_those_the_rules_expect(rows: Rows) -> None:
    regions = rows.add(4)
    rows.tell(
        *(online(1, region) for region in regions[:3]),
        endpoint(2, None, OUT_OF_SYNC, "subcloud1"),
        endpoint(2, FIRMWARE, OUT_OF_SYNC, "subcloud2", alarmable=False),
        offline(3, "subcloud3"),
        offline(3, "subcloud4"),
    )
    with rows.engine.begin() as connection:
        connection.execute(text("DELETE FROM alarm"))
    rows.tell(*(AvailabilityReport(region_name=region, mark=mark(4), state_only=True) for region in regions))
    with SqlStateStore(rows.engine).transaction() as transaction:
        expected = {
            (alarm.alarm_id.value, alarm.entity(row.name))
            for row in transaction.lock(regions)
            for alarm in rules.expected_alarms(memory.facts_of(row, now=NOW))
        }
    assert rows.active_alarms() == expected
    assert len(expected) == len(set(SEVEN_TYPES) - set(audited_types())) + 1


def test_a_database_that_is_away_is_said_to_be() -> None:
    engine = make_engine("postgresql://postgres@127.0.0.1:1/none")
    service = StateService(store=SqlStateStore(engine), messenger=Rows(engine).messenger, now=lambda: NOW)
    with pytest.raises(DatabaseUnreachable):
        service.apply([online(1)])
