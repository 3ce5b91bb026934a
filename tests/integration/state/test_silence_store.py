"""What the check for silence reads from rows, and how it raises and clears alarms, on a real PostgreSQL."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, insert, update

from dcsync.adapters.postgres.alarms import SqlAlarmStore
from dcsync.adapters.postgres.audits import SqlAuditStore
from dcsync.adapters.postgres.inventory import SqlInventory
from dcsync.adapters.postgres.silence import SqlSilenceStore
from dcsync.adapters.postgres.tables import endpoint_status, key_rotation, subcloud, subcloud_probe, subcloud_sync
from dcsync.audit.endpoints import audited_types
from dcsync.audit.ports import CentralState
from dcsync.model.errors import BrokerUnreachable
from dcsync.model.reasons import Reason
from dcsync.model.reports import MAX_FAIL_COUNT
from dcsync.model.shown import Windows, view
from dcsync.model.states.initial_sync import InitialSyncState
from dcsync.model.subcloud import AvailabilityStatus, EndpointType, ManagementState, SyncStatus
from dcsync.state.ports import (
    AlarmNotice,
    AlarmRow,
    CentralFacts,
    FailingFacts,
    KeysFacts,
    RefusedFacts,
)
from dcsync.state.silence import SilenceId, SilenceLimits, cutoffs
from dcsync.state.silence_check import SilenceCheck, SilenceResult
from tests.builders import NOON
from tests.integration.state.conftest import Rows
from tests.reports import SEVEN_TYPES, at, offline, online

IDENTITY, PLATFORM = EndpointType.IDENTITY, EndpointType.PLATFORM
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
WINDOWS = Windows(availability=timedelta(seconds=90), audited=timedelta(minutes=40), reported=timedelta(days=1))
CUTOFFS = replace(cutoffs(WINDOWS, LIMITS, now=NOON), requested=NOON)


def later(**duration: float) -> datetime:
    return NOON + timedelta(**duration)


@pytest.fixture
def store(engine: Engine) -> SqlSilenceStore:
    return SqlSilenceStore(engine)


def an_alarm(entity: str = "central", text: str = "why", subcloud_id: int | None = None) -> AlarmRow:
    return AlarmRow(
        alarm_id=SilenceId.SYNC_FAILING if subcloud_id else SilenceId.CENTRAL_UNREADABLE,
        entity=entity,
        subcloud_id=subcloud_id,
        endpoint_type=None,
        severity="critical",
        reason_text=text,
        raised_at=NOON,
    )


def checked(store: SqlSilenceStore, now: datetime = NOON, swept_at: datetime | None = None) -> bool:
    return store.begin_check(now=now, swept_at=swept_at, unless_since=now - timedelta(seconds=15))


def settled(store: SqlSilenceStore, *expected: AlarmRow, now: datetime = NOON) -> tuple[int, int] | None:
    assert checked(store, now)
    return store.settle(expected, checked_at=now, now=now)


def active(engine: Engine) -> list[tuple[str, str, str]]:
    found = SqlAlarmStore(engine).alarms(history=False, limit=100)
    return [(each.alarm_id, each.entity, each.reason_text) for each in found]


# --- turns -------------------------------------------------------------------------------------------------------


def test_of_all_processes_one_checks_at_a_time(store: SqlSilenceStore) -> None:
    taken: list[bool] = []
    threads = [threading.Thread(target=lambda: taken.append(checked(store))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(taken) == [False] * 7 + [True]
    assert not checked(store, later(seconds=14))
    assert checked(store, later(seconds=15))


def test_a_turn_that_was_taken_in_the_future_is_void(store: SqlSilenceStore) -> None:
    assert checked(store, later(hours=1))
    assert checked(store)


def test_when_a_sweep_last_ended_is_kept_and_never_goes_back_unless_it_lay_in_the_future(
    store: SqlSilenceStore,
) -> None:
    def swept(minutes: float, swept_at: datetime | None) -> datetime | None:
        assert checked(store, later(minutes=minutes), swept_at)
        return store.facts(CUTOFFS, now=later(minutes=minutes)).swept_at

    assert swept(0, NOON) == NOON
    assert swept(1, None) == NOON
    assert swept(2, later(minutes=2)) == later(minutes=2)
    assert swept(3, NOON) == later(minutes=2)
    assert checked(store, later(hours=2), later(hours=2))
    assert swept(4, later(minutes=4)) == later(minutes=4)
    assert store.facts(CUTOFFS, now=NOON).first_checked_at == NOON


# --- writing -----------------------------------------------------------------------------------------------------


def test_alarms_are_raised_once_reworded_quietly_and_cleared(engine: Engine, store: SqlSilenceStore) -> None:
    assert settled(store, an_alarm()) == (1, 0)
    alarms = SqlAlarmStore(engine)
    turn = alarms.take_turn("sink", now=NOON, until=NOON, longest=timedelta(minutes=1))
    assert turn is not None
    (notice,), position = alarms.changed_after(turn.position, limit=9)
    assert settled(store, an_alarm(text="why now"), now=later(seconds=30)) == (0, 0)
    assert active(engine) == [("dcsync.central-unreadable", "central", "why now")]
    assert alarms.changed_after(position, limit=9)[0] == [], "sinks are not notified of a text"
    assert settled(store, now=later(seconds=60)) == (0, 1)
    assert active(engine) == []
    ((gone,), _) = alarms.changed_after(position, limit=9)
    assert (notice.cleared_at, gone.raised_at, gone.cleared_at) == (None, NOON, later(seconds=60))


def test_a_process_that_was_stopped_in_the_middle_of_its_check_writes_nothing(
    engine: Engine, store: SqlSilenceStore
) -> None:
    assert checked(store)
    assert settled(store, an_alarm(), now=later(seconds=30)) == (1, 0)
    assert store.settle([], checked_at=NOON, now=later(seconds=31)) is None
    assert len(active(engine)) == 1


def test_two_that_write_the_same_at_once_do_no_harm(engine: Engine, store: SqlSilenceStore) -> None:
    assert checked(store)
    done: list[Any] = []
    many = [an_alarm(f"fleet.resource={number}") for number in range(50)]
    threads = [
        threading.Thread(target=lambda: done.append(store.settle(many, checked_at=NOON, now=NOON))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sum(raised for raised, _ in done) == 50
    assert len(active(engine)) == 50


def test_a_subcloud_that_was_deleted_meanwhile_raises_nothing(engine: Engine, store: SqlSilenceStore) -> None:
    assert settled(store, an_alarm("subcloud=s9", subcloud_id=4711), an_alarm()) == (1, 0)
    assert [entity for _, entity, _ in active(engine)] == ["central"]


def test_deleting_a_subcloud_clears_its_alarm(rows: Rows, store: SqlSilenceStore) -> None:
    rows.add()
    settled(store, an_alarm("subcloud=name-of-subcloud1", subcloud_id=rows.subcloud().id))
    rows.inventory.delete(["name-of-subcloud1"], now=NOON)
    assert active(rows.engine) == []


def test_reconciling_the_other_alarms_leaves_these_and_these_leave_the_others(
    rows: Rows, store: SqlSilenceStore
) -> None:
    rows.add()
    rows.tell(online(1), offline(2))
    settled(store, an_alarm(), an_alarm("subcloud=name-of-subcloud1", subcloud_id=rows.subcloud().id))
    assert SqlAlarmStore(rows.engine).reconcile(now=NOON) == (0, 0)
    rows.tell(online(3), offline(4))
    assert [alarm_id for alarm_id, _, _ in active(rows.engine)] == [
        "dcsync.central-unreadable", "dcsync.sync-failing", "280.001",
    ]  # fmt: skip
    assert settled(store, now=later(seconds=30)) == (0, 2)
    assert [alarm_id for alarm_id, _, _ in active(rows.engine)] == ["280.001"]


# --- reading -----------------------------------------------------------------------------------------------------


def put(engine: Engine, name: str, **columns: Any) -> None:
    with engine.begin() as connection:
        connection.execute(update(subcloud).where(subcloud.c.name == name).values(**columns))


def put_audit(engine: Engine, id_: int, type_: EndpointType, **columns: Any) -> None:
    own = (subcloud_sync.c.subcloud_id == id_) & (subcloud_sync.c.endpoint_type == type_)
    with engine.begin() as connection:
        connection.execute(update(subcloud_sync).where(own).values(**columns))


def test_failing_are_managed_subclouds_whose_sync_or_audit_failed_since_they_were_last_managed(
    rows: Rows, store: SqlSilenceStore
) -> None:
    rows.add(4)
    failing: dict[str, Any] = {"failing_since": at(5), "failures": 2, "reason": "timeout", "detail": "slow"}
    for number in (1, 2, 3):
        put(rows.engine, f"name-of-subcloud{number}", **failing)
    put(rows.engine, "name-of-subcloud1", availability_status=AvailabilityStatus.ONLINE, online_observed_at=at(4))
    put(rows.engine, "name-of-subcloud2", management_state=ManagementState.UNMANAGED)
    put(rows.engine, "name-of-subcloud3", unmanaged_at=at(5))
    known = rows.subcloud("subcloud4")
    put_audit(rows.engine, known.id, IDENTITY, failing_since=at(6), failures=1, reason="refused", detail="403")
    found = store.facts(CUTOFFS, now=at(9)).failing
    assert set(found) == {
        FailingFacts(
            subcloud_id=rows.subcloud().id, name="name-of-subcloud1", is_online=True, online_since=at(4),
            endpoint_type=None, since=at(5), failures=2, reason=Reason.TIMEOUT, detail="slow",
        ),
        FailingFacts(
            subcloud_id=known.id, name="name-of-subcloud4", is_online=False, online_since=None,
            endpoint_type=IDENTITY, since=at(6), failures=1, reason=Reason.REFUSED, detail="403",
        ),
    }  # fmt: skip


def test_what_the_watch_recorded_is_read_back(engine: Engine, store: SqlSilenceStore) -> None:
    assert store.central_facts() == CentralFacts()
    watch = SqlAuditStore(engine)
    watch.note_central_check(unreadable="central-empty: users", now=NOON)
    assert store.central_facts() == CentralFacts(
        checked_at=NOON, unreadable_since=NOON, unreadable_reason="central-empty: users"
    )
    watch.note_central_check(unreadable=None, now=later(minutes=1))
    watch.accept_central(
        CentralState(endpoint_type=IDENTITY, fingerprint="f", events_fingerprint="", counts={}), old=None, now=NOON
    )
    watch.refuse_central(IDENTITY, why="users went from 8 to 3", now=later(minutes=2))
    assert store.facts(CUTOFFS, now=NOON).central == CentralFacts(
        checked_at=later(minutes=1),
        readable_since=later(minutes=1),
        refused=(RefusedFacts(IDENTITY, later(minutes=2), "users went from 8 to 3"),),
    )


def test_keys_are_counted_over_those_that_should_have_them(rows: Rows, store: SqlSilenceStore) -> None:
    rows.add(5)
    assert store.facts(CUTOFFS, now=NOON).keys == KeysFacts()
    known = CentralState(endpoint_type=PLATFORM, fingerprint="new", events_fingerprint="", counts={})
    SqlAuditStore(rows.engine).accept_central(known, old=None, now=NOON)
    completed = {"availability_status": "online", "initial_sync_state": InitialSyncState.COMPLETED}
    for number in (1, 2, 3, 4):
        put(rows.engine, f"name-of-subcloud{number}", requested_at=NOON, **completed)
    put(rows.engine, "name-of-subcloud3", requested_at=later(seconds=1))
    put_audit(rows.engine, rows.subcloud("subcloud1").id, PLATFORM, keys_fingerprint="new")
    put_audit(rows.engine, rows.subcloud("subcloud2").id, PLATFORM, keys_fingerprint="old")
    with rows.engine.begin() as connection:
        connection.execute(insert(key_rotation).values(window_until=later(minutes=5)))
    assert store.facts(CUTOFFS, now=NOON).keys == KeysFacts(
        changed_at=NOON,
        window_until=later(minutes=5),
        subclouds=4,
        behind=2,
        names=("name-of-subcloud2", "name-of-subcloud4"),
    )


def put_status(engine: Engine, id_: int, type_: EndpointType, **columns: Any) -> None:
    own = (endpoint_status.c.subcloud_id == id_) & (endpoint_status.c.endpoint_type == type_)
    with engine.begin() as connection:
        connection.execute(update(endpoint_status).where(own).values(**columns))


def see(engine: Engine, id_: int, at: datetime | None) -> None:
    with engine.begin() as connection:
        connection.execute(insert(subcloud_probe).values(subcloud_id=id_, next_probe_at=NOON, probes=0, seen_at=at))


SECOND = timedelta(seconds=1)
AGES: list[Callable[[timedelta], timedelta] | None] = [
    None,
    lambda window: window + SECOND,
    lambda window: window,
    lambda window: timedelta(),
    lambda window: -2 * SECOND,
    lambda window: -3 * SECOND,
]
"""How long ago something was observed, depending on its window: at each of its edges, and never."""


def test_what_is_counted_as_stale_is_what_would_be_shown_as_stale(rows: Rows, store: SqlSilenceStore) -> None:
    kinds = list(
        itertools.product(
            AGES, ManagementState, AvailabilityStatus, (InitialSyncState.COMPLETED, InitialSyncState.REQUESTED)
        )
    )
    rows.add(len(kinds))
    for number, (age, managed, available, initial) in enumerate(kinds, start=1):
        known = rows.subcloud(f"subcloud{number}")
        put(
            rows.engine, known.name, management_state=managed, availability_status=available, initial_sync_state=initial
        )
        see(rows.engine, known.id, age and NOON - age(WINDOWS.availability))
        for place, type_ in enumerate(known.endpoints):
            window = WINDOWS.of(is_audited=known.endpoints[type_].is_audited)
            status = (SyncStatus.IN_SYNC, SyncStatus.OUT_OF_SYNC)[place % 2]
            put_status(rows.engine, known.id, type_, sync_status=status, verified_at=age and NOON - age(window))
    views = [view(known, now=NOON, windows=WINDOWS) for known in rows.inventory.all()]
    counted = [
        shown
        for shown in views
        if (shown.subcloud.management_state, shown.subcloud.availability_status) == ("managed", "online")
    ]
    found = {each.endpoint_type: each for each in store.facts(CUTOFFS, now=NOON).observed}
    assert found.keys() == {None, *SEVEN_TYPES}
    unseen = [shown for shown in counted if shown.availability == "unknown"]
    managed_ones = [shown for shown in views if shown.subcloud.management_state == "managed"]
    assert (found[None].stale, found[None].subclouds) == (len(unseen), len(managed_ones)) == (6, 24)
    for type_ in SEVEN_TYPES:
        stale = [shown.subcloud.name for shown in counted if shown.endpoints[type_].is_stale]
        assert found[type_].stale == len(stale) == (3 if type_ in audited_types() else 6)
        assert set(found[type_].names) <= set(stale)


def stale(store: SqlSilenceStore, type_: EndpointType | None) -> int:
    return sum(each.stale for each in store.facts(CUTOFFS, now=NOON).observed if each.endpoint_type is type_)


def test_an_unknown_status_is_observed_as_long_as_it_is_reported(rows: Rows, store: SqlSilenceStore) -> None:
    rows.add()
    online_and_completed = {
        "availability_status": AvailabilityStatus.ONLINE,
        "initial_sync_state": InitialSyncState.COMPLETED,
    }
    put(rows.engine, "name-of-subcloud1", requested_at=NOON - WINDOWS.audited, **online_and_completed)
    id_ = rows.subcloud().id
    put_status(rows.engine, id_, IDENTITY, observed_at=None)
    assert stale(store, IDENTITY) == 0, "it was requested just now"
    put(rows.engine, "name-of-subcloud1", requested_at=NOON - WINDOWS.audited - SECOND)
    assert stale(store, IDENTITY) == 1
    put_status(rows.engine, id_, IDENTITY, observed_at=NOON - WINDOWS.audited, reason="timeout")
    assert stale(store, IDENTITY) == 0, "an audit fails, which somebody reports"


def test_a_subcloud_is_seen_also_by_a_report_of_others(rows: Rows, store: SqlSilenceStore) -> None:
    rows.add()
    put(rows.engine, "name-of-subcloud1", availability_status=AvailabilityStatus.ONLINE)
    assert stale(store, None) == 1
    put(rows.engine, "name-of-subcloud1", online_observed_at=NOON)
    assert stale(store, None) == 0


def test_offline_is_observed_as_long_as_it_is_reported(rows: Rows, store: SqlSilenceStore) -> None:
    """Also where a probe sees it: then no state worker writes what the probe reports."""
    rows.add()
    name, too_old = "name-of-subcloud1", NOON - WINDOWS.availability - SECOND
    put(rows.engine, name, created_at=too_old)
    assert stale(store, None) == 1, "nobody has ever looked for it"
    see(rows.engine, rows.subcloud().id, NOON)
    put(rows.engine, name, offline_observed_at=too_old)
    assert stale(store, None) == 1
    put(rows.engine, name, fail_count_observed_at=NOON - WINDOWS.availability, audit_fail_count=7)
    assert stale(store, None) == 0
    put(rows.engine, name, fail_count_observed_at=too_old, audit_fail_count=MAX_FAIL_COUNT)
    assert stale(store, None) == 0, "what is counted no further is not written any more"


def test_an_initial_sync_that_nobody_starts_is_as_old_as_its_request(rows: Rows, store: SqlSilenceStore) -> None:
    rows.add()
    name, too_old = "name-of-subcloud1", NOON - WINDOWS.audited - SECOND
    requested = {"availability_status": AvailabilityStatus.ONLINE, "initial_sync_state": InitialSyncState.REQUESTED}
    put(rows.engine, name, requested_at=NOON - WINDOWS.audited, **requested)
    assert stale(store, IDENTITY) == 0
    put(rows.engine, name, requested_at=too_old)
    assert stale(store, IDENTITY) == 1
    put(rows.engine, name, failing_since=too_old)
    assert stale(store, IDENTITY) == 0, "dcsync.sync-failing reports it"


# --- the check as a whole ----------------------------------------------------------------------------------------


class Sweeps:
    """What Redis says of the last sweep; None: it does not answer."""

    def __init__(self) -> None:
        self.seconds: float | None = 1.0

    def __call__(self) -> float | None:
        if self.seconds is None:
            raise BrokerUnreachable("away")
        return self.seconds


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def a_check(engine: Engine, clock: Clock, sweeps: Sweeps) -> SilenceCheck:
    return SilenceCheck(
        store=SqlSilenceStore(engine), seconds_since_sweep=sweeps, windows=WINDOWS, limits=LIMITS, now=clock
    )


def names(notices: Sequence[AlarmNotice]) -> list[str]:
    return [each.alarm_id for each in notices]


def test_any_process_raises_and_any_other_clears(engine: Engine, clock: Clock) -> None:
    sweeps, alarms = Sweeps(), SqlAlarmStore(engine)
    one, other = a_check(engine, clock, sweeps), a_check(engine, clock, sweeps)
    watch = SqlAuditStore(engine)
    watch.note_central_check(unreadable=None, now=NOON)
    assert one.run() == SilenceResult(0, 0)
    assert other.run() is None, "the first has just checked"
    clock.now = later(seconds=55)
    sweeps.seconds = None
    assert other.run() == SilenceResult(1, 0)
    assert names(alarms.alarms(history=False, limit=9)) == ["dcsync.central-unreadable"]
    clock.now = later(seconds=85)
    assert one.run() == SilenceResult(1, 0)
    assert names(alarms.alarms(history=False, limit=9)) == ["dcsync.central-unreadable", "dcsync.sweep-late"]
    sweeps.seconds = 0.5
    watch.note_central_check(unreadable=None, now=later(seconds=114))
    clock.now = later(seconds=115)
    assert other.run() == SilenceResult(0, 2)


def test_a_mark_of_a_sweep_in_the_future_is_void(engine: Engine, clock: Clock) -> None:
    sweeps = Sweeps()
    sweeps.seconds = -3600.0
    check = a_check(engine, clock, sweeps)
    SqlAuditStore(engine).note_central_check(unreadable=None, now=NOON)
    check.run()
    clock.now = later(seconds=61)
    SqlAuditStore(engine).note_central_check(unreadable=None, now=clock.now)
    assert check.run() == SilenceResult(1, 0)


def test_a_subcloud_that_is_unmanaged_is_not_failing_any_more(rows: Rows, clock: Clock) -> None:
    rows.add()
    put(
        rows.engine, "name-of-subcloud1", failing_since=NOON - timedelta(hours=1), failures=9, reason="timeout",
        availability_status=AvailabilityStatus.ONLINE, online_observed_at=NOON,
    )  # fmt: skip
    check = a_check(rows.engine, clock, Sweeps())
    SqlAuditStore(rows.engine).note_central_check(unreadable=None, now=NOON)
    assert check.run() == SilenceResult(1, 0)
    SqlInventory(rows.engine).set_management(None, ManagementState.UNMANAGED, now=later(seconds=1), by="test")
    clock.now = later(seconds=30)
    assert check.run() == SilenceResult(0, 1)
