"""Alarms on their way to sinks: told at least once, in order, also when a transaction commits late."""

from __future__ import annotations

import http.server
import socket
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime, timedelta

import pytest
from sqlalchemy import make_url, text
from structlog.testing import capture_logs

from dcsync.adapters.host.alarm_sinks import SinkUnreachable, WebhookSink
from dcsync.adapters.postgres.alarms import SqlAlarmStore
from dcsync.adapters.postgres.database import make_engine
from dcsync.state.alarms import AlarmFeed
from dcsync.state.ports import AlarmNotice
from tests.fake_states import FakeAlarmSink
from tests.integration.state.conftest import Rows
from tests.processes import wait_until
from tests.reports import FIRMWARE, IN_SYNC, OUT_OF_SYNC, at, endpoint, offline, online
from tests.webhook import receiving

LONGEST = timedelta(minutes=5)


class Clock:
    def __init__(self) -> None:
        self.now = at(100)

    def __call__(self) -> datetime:
        return self.now

    def pass_(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def states(sink: FakeAlarmSink) -> list[tuple[str, bool]]:
    """(entity without its beginning, active) in the order told."""
    return [(notice.entity.removeprefix("subcloud=name-of-"), notice.cleared_at is None) for notice in sink.told]


def a_feed(rows: Rows, clock: Clock, *sinks: FakeAlarmSink) -> AlarmFeed:
    return AlarmFeed(store=SqlAlarmStore(rows.engine), sinks=sinks, now=clock, jitter=lambda: 0.0)


def test_a_sink_is_told_of_each_change_once(rows: Rows, clock: Clock) -> None:
    rows.add(2)
    sink = FakeAlarmSink()
    feed = a_feed(rows, clock, sink)
    rows.tell(online(1), endpoint(2, FIRMWARE, OUT_OF_SYNC))
    assert (feed.deliver(), feed.deliver()) == ({"sink": 1}, {"sink": 0})
    rows.tell(endpoint(3, FIRMWARE, IN_SYNC), online(1, "subcloud2"), offline(4, "subcloud2"))
    feed.deliver()
    assert sorted(states(sink)) == [
        ("subcloud1.resource=firmware", False),
        ("subcloud1.resource=firmware", True),
        ("subcloud2", True),
    ]


def test_a_sink_that_is_away_is_held_off_and_told_later_and_delays_no_other(rows: Rows, clock: Clock) -> None:
    rows.add()
    away, there = FakeAlarmSink("away"), FakeAlarmSink("there")
    away.refuses = True
    feed = a_feed(rows, clock, away, there)
    rows.tell(online(1), offline(2))
    assert feed.deliver() == {"away": 0, "there": 1}
    away.refuses = False
    clock.pass_(4)
    assert feed.deliver() == {"away": 0, "there": 0}
    clock.pass_(2)
    assert feed.deliver() == {"away": 1, "there": 0}
    assert states(away) == states(there) == [("subcloud1", True)]


def test_a_notice_that_a_sink_refuses_keeps_no_other_from_it_and_is_shown(rows: Rows, clock: Clock) -> None:
    count = 40
    rows.add(count)
    sink = FakeAlarmSink()
    feed, store = a_feed(rows, clock, sink), SqlAlarmStore(rows.engine)
    regions = [f"subcloud{number}" for number in range(1, count + 1)]
    for region in regions:
        rows.tell(online(1, region), offline(2, region))
    sink.poison = {"subcloud=name-of-subcloud7", "subcloud=name-of-subcloud8"}
    assert feed.deliver() == {"sink": count - 2}
    assert sorted(states(sink)) == sorted(
        (region, True) for region in regions if region not in ("subcloud7", "subcloud8")
    )
    found = store.refused_notices(limit=9)
    assert {(each.sink, each.alarm_id, each.entity, each.why) for each in found.newest} == {
        ("sink", "280.001", entity, "status 413") for entity in sink.poison
    }
    assert (found.total, len(sink.sizes) < 20) == (2, True)
    sink.sizes.clear()
    assert (feed.deliver(), sink.sizes) == ({"sink": 0}, [])


def test_a_sink_that_refuses_everything_is_held_off_and_loses_nothing(rows: Rows, clock: Clock) -> None:
    rows.add(3)
    sink = FakeAlarmSink()
    feed, store = a_feed(rows, clock, sink), SqlAlarmStore(rows.engine)
    for region in ("subcloud1", "subcloud2", "subcloud3"):
        rows.tell(online(1, region), offline(2, region))
    sink.poison = {f"subcloud=name-of-subcloud{number}" for number in (1, 2, 3)}
    assert feed.deliver() == {"sink": 0}
    sent = len(sink.sizes)
    clock.pass_(4)
    assert (feed.deliver(), len(sink.sizes)) == ({"sink": 0}, sent)
    assert store.refused_notices(limit=1).total == 0
    sink.poison = set()
    clock.pass_(2)
    assert feed.deliver() == {"sink": 3}


def test_a_notice_that_is_refused_again_and_again_is_set_aside_although_nothing_follows(
    rows: Rows, clock: Clock
) -> None:
    rows.add(2)
    sink = FakeAlarmSink()
    feed, store = a_feed(rows, clock, sink), SqlAlarmStore(rows.engine)
    rows.tell(online(1), offline(2))
    sink.poison = {"subcloud=name-of-subcloud1"}
    for attempt in range(4):
        assert store.refused_notices(limit=1).total == 0, attempt
        feed.deliver()
        clock.pass_(400)
    assert store.refused_notices(limit=1).total == 1
    rows.tell(online(1, "subcloud2"), offline(2, "subcloud2"))
    assert feed.deliver() == {"sink": 1}


def test_what_a_sink_refused_is_kept_as_long_as_history(rows: Rows, clock: Clock) -> None:
    rows.add(2)
    sink = FakeAlarmSink()
    feed, store = a_feed(rows, clock, sink), SqlAlarmStore(rows.engine)
    rows.tell(online(1), offline(2))
    rows.tell(online(1, "subcloud2"), offline(2, "subcloud2"))
    sink.poison = {"subcloud=name-of-subcloud1"}
    feed.deliver()
    assert store.prune(cleared_before=clock() - timedelta(seconds=1), rejected_kept=9) == 0
    assert store.prune(cleared_before=clock() + timedelta(seconds=1), rejected_kept=9) == 1
    assert store.refused_notices(limit=1).total == 0


def test_a_sink_is_told_by_one_process_at_a_time_until_its_turn_is_over(rows: Rows, clock: Clock) -> None:
    store = SqlAlarmStore(rows.engine)
    assert store.take_turn("sink", now=clock(), until=clock() + timedelta(seconds=60), longest=LONGEST) is not None
    assert store.take_turn("sink", now=clock(), until=clock() + timedelta(seconds=60), longest=LONGEST) is None
    clock.pass_(61)
    assert store.take_turn("sink", now=clock(), until=clock() + timedelta(seconds=60), longest=LONGEST) is not None


def test_a_turn_that_ends_later_than_any_does_keeps_nobody_waiting(rows: Rows, clock: Clock) -> None:
    """Somebody took it whose clock was an hour ahead, and died."""
    store = SqlAlarmStore(rows.engine)
    ahead = clock() + timedelta(hours=1)
    assert store.take_turn("sink", now=ahead, until=ahead + timedelta(seconds=60), longest=LONGEST) is not None
    until = clock() + timedelta(seconds=60)
    assert store.take_turn("sink", now=clock(), until=until, longest=LONGEST) is not None
    assert store.take_turn("sink", now=clock(), until=until, longest=LONGEST) is None


def test_an_alarm_whose_transaction_commits_late_is_not_skipped(rows: Rows, clock: Clock) -> None:
    rows.add(2)
    rows.tell(online(1), online(1, "subcloud2"))
    sink = FakeAlarmSink()
    feed = a_feed(rows, clock, sink)
    with rows.engine.connect() as late:
        late.execute(text("SELECT pg_current_xact_id()"))
        late.execute(
            text(
                "INSERT INTO alarm (alarm_id, entity, severity, reason_text, raised_at, changed_xid)"
                " VALUES ('280.001', 'subcloud=name-of-late', 'critical', '', now(),"
                " pg_current_xact_id()::text::bigint)"
            )
        )
        rows.tell(offline(2, "subcloud2"))
        feed.deliver()
        late.commit()
    feed.deliver()
    assert states(sink) == [("late", True), ("subcloud2", True)]


def test_reconciling_repairs_what_was_damaged_and_tells_sinks(rows: Rows, clock: Clock) -> None:
    rows.add(3)
    rows.tell(online(1), offline(2), online(1, "subcloud2"), endpoint(2, FIRMWARE, OUT_OF_SYNC, "subcloud2"))
    right = rows.active_alarms()
    store, sink = SqlAlarmStore(rows.engine), FakeAlarmSink()
    assert store.reconcile(now=clock()) == (0, 0)
    with rows.engine.begin() as connection:
        connection.execute(text("DELETE FROM alarm WHERE alarm_id = '280.002'"))
        connection.execute(text("UPDATE alarm SET entity = 'subcloud=nobody' WHERE alarm_id = '280.001'"))
    assert store.reconcile(now=clock()) == (2, 1)
    assert rows.active_alarms() == right
    a_feed(rows, clock, sink).deliver()
    assert {notice.entity for notice in sink.told if notice.cleared_at is None} == {entity for _, entity in right}


def test_an_alarm_that_is_cleared_while_all_are_reconciled_is_not_raised_again(rows: Rows, clock: Clock) -> None:
    """Another transaction holds the reconciliation up, between its look at the rows and its last write."""
    rows.add(2)
    rows.tell(online(1), online(1, "subcloud2"), offline(2), offline(2, "subcloud2"))
    store = SqlAlarmStore(rows.engine)
    with rows.engine.begin() as connection:
        connection.execute(text("DELETE FROM alarm WHERE entity = 'subcloud=name-of-subcloud1'"))
    with rows.engine.connect() as other, ThreadPoolExecutor(1) as pool:
        other.execute(
            text(
                "INSERT INTO alarm (alarm_id, entity, severity, reason_text, raised_at, changed_xid)"
                " VALUES ('280.001', 'subcloud=name-of-subcloud1', 'critical', '', now(), 1)"
            )
        )
        reconciling = pool.submit(store.reconcile, now=clock())
        wait_until(lambda: somebody_waits(rows), seconds=60, what="the reconciliation waits")
        rows.tell(online(3, "subcloud2"))
        other.commit()
        reconciling.result(timeout=60)
    assert rows.active_alarms() == {("280.001", "subcloud=name-of-subcloud1")}


def somebody_waits(rows: Rows) -> bool:
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with rows.engine.connect() as connection:
        return bool(connection.scalar(text(waiting)))


def test_very_many_alarms_are_compared_with_rows_within_the_time_a_statement_has(
    rows: Rows, clock: Clock, database_url: str
) -> None:
    """With little memory these 28,000 stand for the 140,000 of 20,000 subclouds: no hash table of them fits."""
    rows.add(4_000, managed=False)
    with rows.engine.begin() as connection:
        connection.execute(text("UPDATE endpoint_status SET sync_status = 'out-of-sync'"))
        connection.execute(text("ANALYZE"))
        connection.execute(text(f"ALTER DATABASE {make_url(database_url).database} SET work_mem = '64kB'"))
    engine = make_engine(database_url)
    try:
        store = SqlAlarmStore(engine)
        assert store.reconcile(now=clock()) == (28_000, 0)
        assert store.reconcile(now=clock()) == (0, 0)
    finally:
        engine.dispose()


def test_a_flood_after_quiet_times_is_compared_with_rows_within_that_time_too(rows: Rows, clock: Clock) -> None:
    """The statistics know cleared alarms only, so the planner expects to compare one alarm with all rows."""
    rows.add(6_000, managed=False)
    with rows.engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO alarm (alarm_id, entity, severity, reason_text, raised_at, cleared_at, changed_xid)"
                " SELECT '280.001', 'subcloud=old' || n, 'critical', '', now(), now(), 1"
                " FROM generate_series(1, 50000) AS n"
            )
        )
        connection.execute(text("ANALYZE"))
        connection.execute(text("UPDATE endpoint_status SET sync_status = 'out-of-sync'"))
    store = SqlAlarmStore(rows.engine)
    assert store.reconcile(now=clock()) == (42_000, 0)
    assert store.reconcile(now=clock()) == (0, 0)


def test_sinks_are_told_of_what_changes_after_the_database_was_restored_elsewhere(rows: Rows, clock: Clock) -> None:
    """There the transactions are counted anew: what was dumped seems to come from the future."""
    rows.add(3)
    told, behind, silent, new = map(FakeAlarmSink, ("told", "behind", "silent", "new"))
    silent.refuses = True
    feed = a_feed(rows, clock, told, behind, silent)
    rows.tell(online(1), offline(2))
    feed.deliver()
    behind.refuses = True
    rows.tell(online(1, "subcloud2"), offline(2, "subcloud2"))
    feed.deliver()
    with rows.engine.begin() as connection:
        connection.execute(text("UPDATE alarm SET changed_xid = changed_xid + 1000000000"))
        connection.execute(text("UPDATE alarm_sink SET told_xid = told_xid + 1000000000 WHERE told_xid > 0"))
    rows.tell(online(1, "subcloud3"), offline(2, "subcloud3"))
    behind.refuses = silent.refuses = False
    clock.pass_(20)
    assert SqlAlarmStore(rows.engine).reconcile(now=clock()) == (0, 0)
    feed.deliver()
    a_feed(rows, clock, new).deliver()
    all_three = [(f"subcloud{number}", True) for number in (1, 2, 3)]
    assert [states(sink) for sink in (told, behind, silent, new)] == [all_three] * 4


def test_history_shows_cleared_alarms_until_they_are_pruned(rows: Rows, clock: Clock) -> None:
    rows.add()
    rows.tell(online(1), offline(2), online(3), offline(4))
    store = SqlAlarmStore(rows.engine)
    assert [notice.raised_at for notice in store.alarms(history=True, limit=9)] == [at(4), at(2)]
    assert [notice.cleared_at for notice in store.alarms(history=False, limit=9)] == [None]
    assert store.prune(cleared_before=at(50), rejected_kept=10) == 1
    assert len(store.alarms(history=True, limit=9)) == 1


# --- the webhook ---------------------------------------------------------------------------------------------------


@pytest.fixture
def receiver() -> Iterator[http.server.HTTPServer]:
    with receiving() as server:
        yield server


def a_webhook(server: http.server.HTTPServer) -> WebhookSink:
    return WebhookSink(
        f"http://127.0.0.1:{server.server_port}/token-4711", context=ssl.create_default_context, timeout_seconds=60
    )


NOTICE = AlarmNotice(
    alarm_id="280.001",
    entity="subcloud=a",
    severity="critical",
    reason_text="a is offline",
    raised_at=at(0),
    cleared_at=None,
)


def test_the_webhook_posts_alarms_as_json(receiver: http.server.HTTPServer) -> None:
    a_webhook(receiver).send([NOTICE])
    assert receiver.RequestHandlerClass.bodies == [  # type: ignore[attr-defined]
        {
            "version": 1,
            "alarms": [
                {
                    "alarm_id": "280.001",
                    "entity": "subcloud=a",
                    "severity": "critical",
                    "reason_text": "a is offline",
                    "raised_at": "2026-01-31T12:00:00+00:00",
                    "cleared_at": None,
                }
            ],
        }
    ]


@pytest.mark.parametrize("status", [302, 401, 404, 429, 500])
def test_anything_but_a_2xx_or_a_refusal_is_told_again(receiver: http.server.HTTPServer, status: int) -> None:
    receiver.RequestHandlerClass.statuses.append(status)  # type: ignore[attr-defined]
    with pytest.raises(SinkUnreachable) as raised:
        a_webhook(receiver).send([NOTICE])
    assert str(status) in str(raised.value)
    assert len(receiver.RequestHandlerClass.bodies) == 1  # type: ignore[attr-defined]


def test_a_webhook_that_is_away_is_named_without_its_url(receiver: http.server.HTTPServer) -> None:
    sink = a_webhook(receiver)
    receiver.server_close()
    with pytest.raises(SinkUnreachable) as raised:
        sink.send([NOTICE])
    assert "token-4711" not in str(raised.value)


def test_a_webhook_may_want_a_user_and_a_password(receiver: http.server.HTTPServer) -> None:
    url = f"http://dcsync:token-4711@127.0.0.1:{receiver.server_port}/alarms"
    WebhookSink(url, context=ssl.create_default_context, timeout_seconds=60).send([NOTICE])
    assert receiver.RequestHandlerClass.logins == ["Basic ZGNzeW5jOnRva2VuLTQ3MTE="]  # type: ignore[attr-defined]


def test_a_webhook_whose_answer_drips_is_given_up_in_time() -> None:
    """Else it would hold one thread of a worker more with every turn."""
    ended = threading.Event()

    def drip() -> None:
        connection, _ = listener.accept()
        with connection, suppress(OSError):
            connection.sendall(b"HTTP/1.1 200 OK\r\n")
            while not ended.wait(0.05):
                connection.sendall(b"X")

    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(2) as pool:
        pool.submit(drip)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        sink = WebhookSink(url, context=ssl.create_default_context, timeout_seconds=1)
        try:
            with pytest.raises(SinkUnreachable):
                pool.submit(sink.send, [NOTICE]).result(timeout=60)
        finally:
            ended.set()


def test_an_operator_sees_in_the_log_that_a_webhook_fails_and_why(receiver: http.server.HTTPServer) -> None:
    receiver.RequestHandlerClass.statuses.append(403)  # type: ignore[attr-defined]
    with capture_logs() as logged, pytest.raises(SinkUnreachable):
        a_webhook(receiver).send([NOTICE])
    assert [(line["log_level"], line["why"], line["waiting"]) for line in logged] == [("warning", "status 403", 1)]
    assert "token-4711" not in str(logged)
