"""What the rows of the state service promise (StateStore, StateTransaction, Alarms), in memory and in PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import pytest
from sqlalchemy import Engine, select

from dcsync.adapters.postgres.alarms import SqlAlarmStore
from dcsync.adapters.postgres.inventory import SqlInventory
from dcsync.adapters.postgres.silence import SqlSilenceStore
from dcsync.adapters.postgres.states import SqlStateStore
from dcsync.adapters.postgres.tables import audit_request, rejected_report
from dcsync.cli.ports import Alarms
from dcsync.model.reports import Mark
from dcsync.model.states.initial_sync import InitialSyncEvent, InitialSyncState
from dcsync.model.subcloud import EndpointType, ManagementState, new_subcloud
from dcsync.state.ports import (
    AlarmRow,
    EndpointRow,
    ObservedColumns,
    RefusedNotice,
    RefusedNotices,
    RejectedReport,
    StateChanges,
    StateRow,
    StateStore,
    StateTransaction,
)
from tests.builders import NOON, an_address
from tests.contract.held import Held
from tests.fake_states import FakeAlarms, FakeStateStore
from tests.reports import (
    DC_CERT,
    FIRMWARE,
    IDENTITY,
    IN_SYNC,
    OFFLINE,
    ONLINE,
    OUT_OF_SYNC,
    PLATFORM,
    SEVEN_TYPES,
    UNKNOWN,
    a_state_row,
    at,
    mark,
)

HELD = (Held(FakeStateStore, StateStore, StateTransaction), Held(FakeAlarms, Alarms))

REGIONS = ("subcloud1", "subcloud2", "subcloud3")


@dataclass
class Rows:
    """Three managed subclouds with seven endpoint types each, and what is read beside them."""

    store: StateStore
    alarms: Alarms
    audits: Callable[[], set[tuple[int | None, EndpointType]]]
    rejected: Callable[[], list[str]]
    unmanage: Callable[[str, datetime], None]
    check: Callable[[datetime], object]
    """A worker checks for silence."""
    refuse: Callable[[RefusedNotice], None]

    def write(self, changes: StateChanges, *, now: datetime = NOON) -> None:
        with self.store.transaction() as transaction:
            transaction.write(changes, now=now)

    def row(self, region_name: str = "subcloud1") -> StateRow:
        with self.store.transaction() as transaction:
            (found,) = transaction.lock([region_name])
            # What is audited is the registry's, not stored.
            return replace(found, audited=frozenset())

    def active(self) -> list[tuple[str, str, datetime]]:
        return [(a.alarm_id, a.entity, a.raised_at) for a in self.alarms.alarms(history=False, limit=99)]


def _memory_rows() -> Rows:
    store = FakeStateStore(*(a_state_row(region, subcloud_id=number) for number, region in enumerate(REGIONS, start=1)))

    def unmanage(region_name: str, now: datetime) -> None:
        row, unmanaged = store.rows[region_name], ManagementState.UNMANAGED
        store.rows[region_name] = replace(row, management_state=unmanaged, unmanaged_at=now)

    alarms = FakeAlarms(store)
    return Rows(
        store=store,
        alarms=alarms,
        check=alarms.check,
        audits=lambda: set(store.audits),
        rejected=lambda: [each.reason for each in store.rejected],
        unmanage=unmanage,
        refuse=lambda notice: alarms.refused.insert(0, notice),
    )


def _sql_rows(engine: Engine) -> Rows:
    inventory = SqlInventory(engine, endpoint_types=SEVEN_TYPES)
    inventory.add(
        [
            new_subcloud(
                name=f"name-of-{region}", management_ip=an_address(region), region_name=region, software_version=None
            )
            for region in REGIONS
        ],
        now=NOON,
    )
    inventory.set_management(None, ManagementState.MANAGED, now=NOON, by="test")

    def audits() -> set[tuple[int | None, EndpointType]]:
        with engine.connect() as connection:
            query = select(audit_request.c.subcloud_id, audit_request.c.endpoint_type)
            return {(row.subcloud_id, EndpointType(row.endpoint_type)) for row in connection.execute(query)}

    def rejected() -> list[str]:
        with engine.connect() as connection:
            return list(connection.scalars(select(rejected_report.c.reason).order_by(rejected_report.c.id)))

    def unmanage(region_name: str, now: datetime) -> None:
        inventory.set_management([f"name-of-{region_name}"], ManagementState.UNMANAGED, now=now, by="test")

    def refuse(notice: RefusedNotice) -> None:
        store = SqlAlarmStore(engine)
        turn = store.take_turn(notice.sink, now=NOON, until=NOON, longest=timedelta(seconds=60))
        assert turn is not None
        store.end_turn(turn, reached=turn.position, next_attempt_at=NOON, attempt=0, refused=[notice])

    return Rows(
        store=SqlStateStore(engine),
        alarms=SqlAlarmStore(engine),
        check=lambda now: SqlSilenceStore(engine).begin_check(now=now, swept_at=None, unless_since=now),
        audits=audits,
        rejected=rejected,
        unmanage=unmanage,
        refuse=refuse,
    )


@pytest.fixture(params=["memory", "postgresql"])
def rows(request: pytest.FixtureRequest) -> Rows:
    return _memory_rows() if request.param == "memory" else _sql_rows(request.getfixturevalue("engine"))


def an_alarm(type_: EndpointType | None = None, *, raised: float, cleared: float | None = None) -> AlarmRow:
    resource = f".resource={type_}" if type_ else ""
    return AlarmRow(
        alarm_id="280.002" if type_ else "280.001",
        entity=f"subcloud=name-of-subcloud1{resource}",
        subcloud_id=1,
        endpoint_type=type_,
        severity="major" if type_ else "critical",
        reason_text="text",
        raised_at=at(raised),
        cleared_at=None if cleared is None else at(cleared),
    )


OFFLINE_ALARM = ("280.001", "subcloud=name-of-subcloud1")
PLATFORM_ALARM = ("280.002", "subcloud=name-of-subcloud1.resource=platform")


# --- reading ---


def test_rows_are_locked_in_the_order_of_their_ids_and_unknown_ones_are_left_out(rows: Rows) -> None:
    with rows.store.transaction() as transaction:
        found = transaction.lock(["subcloud3", "unknown", "subcloud1"])
        assert transaction.lock([]) == []
    bare = [replace(row, audited=frozenset()) for row in found]
    assert bare == [a_state_row("subcloud1", subcloud_id=1), a_state_row("subcloud3", subcloud_id=3)]


def test_rows_say_since_when_their_subcloud_exists(rows: Rows) -> None:
    assert rows.row().added_at == NOON


def test_only_the_endpoints_asked_for_are_read(rows: Rows) -> None:
    with rows.store.transaction() as transaction:
        (row,) = transaction.lock(["subcloud1"], endpoint_types=[PLATFORM, EndpointType.IDENTITY_OPENSTACK])
        (none,) = transaction.lock(["subcloud1"], endpoint_types=[])
    assert row.endpoints == {PLATFORM: EndpointRow(UNKNOWN, True, None)}
    assert none.endpoints == {}


def test_region_names_come_in_pages(rows: Rows) -> None:
    assert rows.store.region_names(after="", limit=2) == ["subcloud1", "subcloud2"]
    assert rows.store.region_names(after="subcloud2", limit=2) == ["subcloud3"]
    assert rows.store.region_names(after="subcloud3", limit=2) == []


# --- writing ---


def test_what_is_written_is_read_back_and_no_other_row_is_touched(rows: Rows) -> None:
    columns = ObservedColumns(
        subcloud_id=1,
        availability_status=ONLINE,
        online_mark=mark(3, 7),
        offline_mark=mark(2),
        fail_count=4,
        fail_mark=mark(1),
    )
    changed = EndpointRow(OUT_OF_SYNC, False, mark(5, 2))
    memory = {"on": [["2026-01-31T12:00:00+00:00", 1]]}
    rows.write(StateChanges(columns=[columns], endpoints=[(1, PLATFORM, changed)], memories=[(1, memory)]))
    before = a_state_row("subcloud1")
    assert rows.row() == replace(
        before,
        availability_status=ONLINE,
        online_mark=mark(3, 7),
        offline_mark=mark(2),
        fail_count=4,
        fail_mark=mark(1),
        endpoints={**before.endpoints, PLATFORM: changed},
        memory=memory,
    )
    assert rows.row("subcloud2") == a_state_row("subcloud2", subcloud_id=2)


def test_endpoints_are_removed_and_added_and_one_that_is_missing_is_not_changed(rows: Rows) -> None:
    shown = EndpointRow(IN_SYNC, True, mark(1))
    rows.write(StateChanges(removed_endpoints=[(1, FIRMWARE), (1, IDENTITY)]))
    rows.write(StateChanges(endpoints=[(1, FIRMWARE, shown)], added_endpoints=[(1, IDENTITY, shown)]))
    endpoints = rows.row().endpoints
    assert FIRMWARE not in endpoints
    assert endpoints[IDENTITY] == shown


def test_nothing_is_kept_of_a_transaction_whose_block_raises(rows: Rows) -> None:
    changes = StateChanges(
        endpoints=[(1, PLATFORM, EndpointRow(IN_SYNC, True, mark(1)))],
        raised_alarms=[an_alarm(raised=1)],
        audits=[(1, PLATFORM, "cause")],
        rejected=[RejectedReport("subcloud1", "reason", "{}")],
    )

    class Breaks(Exception):
        pass

    def break_off() -> None:
        with rows.store.transaction() as transaction:
            transaction.write(changes, now=NOON)
            raise Breaks

    with pytest.raises(Breaks):
        break_off()
    assert rows.row() == a_state_row("subcloud1")
    assert (rows.active(), rows.audits(), rows.rejected()) == ([], set(), [])


def test_an_event_moves_the_rows_that_know_it(rows: Rows) -> None:
    rows.write(StateChanges(events={InitialSyncEvent.BECAME_ELIGIBLE: [1, 2]}))
    rows.write(StateChanges(events={InitialSyncEvent.LEFT: [2]}))
    assert [rows.row(region).initial_sync_state for region in REGIONS] == [
        InitialSyncState.REQUESTED,
        InitialSyncState.NONE,
        InitialSyncState.NONE,
    ]


def test_an_audit_that_is_still_asked_for_is_not_asked_for_again(rows: Rows) -> None:
    rows.write(StateChanges(audits=[(1, PLATFORM, "first"), (None, FIRMWARE, "for all")]))
    rows.write(StateChanges(audits=[(1, PLATFORM, "second"), (None, FIRMWARE, "for all"), (2, PLATFORM, "third")]))
    assert rows.audits() == {(1, PLATFORM), (None, FIRMWARE), (2, PLATFORM)}


def test_rejected_reports_are_kept_in_their_order(rows: Rows) -> None:
    rows.write(StateChanges(rejected=[RejectedReport("r1", "first", "{}"), RejectedReport(None, "second", "null")]))
    assert rows.rejected() == ["first", "second"]


# --- alarms ---


def test_an_alarm_that_is_active_keeps_the_time_it_was_first_raised(rows: Rows) -> None:
    rows.write(StateChanges(raised_alarms=[an_alarm(raised=1)]))
    rows.write(StateChanges(raised_alarms=[an_alarm(raised=2), an_alarm(PLATFORM, raised=2)]))
    assert rows.active() == [(*OFFLINE_ALARM, at(1)), (*PLATFORM_ALARM, at(2))]


def test_a_cleared_alarm_is_history_and_may_be_raised_again_in_the_same_write(rows: Rows) -> None:
    rows.write(StateChanges(raised_alarms=[an_alarm(raised=1)]))
    rows.write(StateChanges(cleared_alarms=[(*OFFLINE_ALARM, at(3))], raised_alarms=[an_alarm(raised=4)]))
    assert rows.active() == [(*OFFLINE_ALARM, at(4))]
    history = rows.alarms.alarms(history=True, limit=99)
    assert [(a.raised_at, a.cleared_at) for a in history] == [(at(4), None), (at(1), at(3))]
    assert rows.alarms.alarms(history=True, limit=1) == history[:1]


def test_an_alarm_is_never_cleared_before_it_was_raised(rows: Rows) -> None:
    rows.write(StateChanges(raised_alarms=[an_alarm(raised=5)]))
    rows.write(StateChanges(cleared_alarms=[(*OFFLINE_ALARM, at(1)), ("280.001", "subcloud=unknown", at(1))]))
    (cleared,) = rows.alarms.alarms(history=True, limit=99)
    assert (cleared.raised_at, cleared.cleared_at) == (at(5), at(5))


def test_an_alarm_that_came_and_went_is_history_only(rows: Rows) -> None:
    rows.write(StateChanges(raised_alarms=[an_alarm(raised=1, cleared=2)]))
    assert rows.active() == []
    assert [a.cleared_at for a in rows.alarms.alarms(history=True, limit=99)] == [at(2)]


def test_active_alarms_come_gravest_and_oldest_first_and_no_more_than_are_asked_for(rows: Rows) -> None:
    raised = [an_alarm(FIRMWARE, raised=2), an_alarm(PLATFORM, raised=1), an_alarm(raised=3)]
    rows.write(StateChanges(raised_alarms=raised))
    assert [raised_at for _, _, raised_at in rows.active()] == [at(3), at(1), at(2)]
    assert len(rows.alarms.alarms(history=False, limit=2)) == 2


def test_it_is_known_when_somebody_last_checked_for_silence(rows: Rows) -> None:
    assert rows.alarms.checked_at() is None
    for moment in (at(1), at(40)):
        rows.check(moment)
        assert rows.alarms.checked_at() == moment


def test_realigned_alarms_are_those_the_rows_ask_for(rows: Rows) -> None:
    was_online = ObservedColumns(
        subcloud_id=1,
        availability_status=OFFLINE,
        online_mark=mark(1),
        offline_mark=mark(2),
        fail_count=0,
        fail_mark=None,
    )
    endpoints = [
        (1, PLATFORM, EndpointRow(OUT_OF_SYNC, True, mark(1))),
        (1, IDENTITY, EndpointRow(OUT_OF_SYNC, False, mark(1))),
        (2, PLATFORM, EndpointRow(OUT_OF_SYNC, True, mark(1))),
    ]
    stale = [an_alarm(FIRMWARE, raised=1)]
    rows.write(StateChanges(columns=[was_online], endpoints=endpoints, raised_alarms=stale, realigned=[1]), now=at(9))
    assert rows.active() == [(*OFFLINE_ALARM, at(9)), (*PLATFORM_ALARM, at(9))]
    rows.write(StateChanges(realigned=[1]), now=at(10))
    assert rows.active() == [(*OFFLINE_ALARM, at(9)), (*PLATFORM_ALARM, at(9))]


# --- endpoint types that were configured later ---


def test_missing_endpoints_are_added_once_as_unknown(rows: Rows) -> None:
    rows.write(StateChanges(removed_endpoints=[(1, FIRMWARE), (2, FIRMWARE), (2, DC_CERT)]))
    assert rows.store.add_missing_endpoints([FIRMWARE, DC_CERT, PLATFORM]) == 3
    assert rows.store.add_missing_endpoints([FIRMWARE, DC_CERT, PLATFORM]) == 0
    assert rows.row("subcloud2").endpoints == a_state_row().endpoints


def test_a_type_that_was_reported_as_removed_is_not_added(rows: Rows) -> None:
    memory = {"types": {FIRMWARE.value: [False, at(1).isoformat(), 0], DC_CERT.value: [True, at(1).isoformat(), 0]}}
    rows.write(StateChanges(removed_endpoints=[(1, FIRMWARE), (1, DC_CERT)], memories=[(1, memory)]))
    assert rows.store.add_missing_endpoints([FIRMWARE, DC_CERT]) == 1
    assert FIRMWARE not in rows.row().endpoints


def test_an_endpoint_added_to_an_unmanaged_subcloud_discards_reports_from_before(rows: Rows) -> None:
    rows.write(StateChanges(removed_endpoints=[(1, FIRMWARE), (1, DC_CERT)]))
    rows.unmanage("subcloud1", at(5))
    rows.store.add_missing_endpoints([FIRMWARE, DC_CERT])
    endpoints = rows.row().endpoints
    assert endpoints[FIRMWARE] == EndpointRow(UNKNOWN, True, Mark(at(5), 0))
    assert endpoints[DC_CERT] == EndpointRow(UNKNOWN, True, None)


def test_notices_that_a_sink_refused_are_counted_and_the_newest_are_shown(rows: Rows) -> None:
    assert rows.alarms.refused_notices(limit=9) == RefusedNotices()
    notices = [
        RefusedNotice(refused_at=at(n), sink="webhook", alarm_id="280.001", entity=f"subcloud={n}", why="status 413")
        for n in range(3)
    ]
    for notice in notices:
        rows.refuse(notice)
    assert rows.alarms.refused_notices(limit=2) == RefusedNotices(3, (notices[2], notices[1]))
