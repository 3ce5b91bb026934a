"""What the rows of initial syncs promise (ports DueSyncs and RunStore), held against memory and PostgreSQL.

The rows are made and looked at through `Rows`, which each backend fills in: the port itself cannot add a subcloud.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Engine

from dcsync.adapters.postgres.audits import SqlAuditStore
from dcsync.adapters.postgres.history import SqlHistory
from dcsync.adapters.postgres.inventory import SqlInventory
from dcsync.adapters.postgres.runs import SqlRunStore
from dcsync.initial_sync.ports import Claim, DueSyncs, Run, RunStore
from dcsync.model.ending import Ending, Failure
from dcsync.model.identity import ActorType, Assignment, Placed, ResourceType
from dcsync.model.reasons import Reason
from dcsync.model.states.initial_sync import InitialSyncState
from dcsync.model.subcloud import Step, Subcloud, new_subcloud
from dcsync.runs.abandoned import QUARANTINED, RunInProgress
from tests.builders import NOON, an_address
from tests.contract.held import Held
from tests.fakes_sync import MemoryRunStore, a_requested_store
from tests.requested_rows import leave, request, requested_rows

HELD = (Held(MemoryRunStore, DueSyncs, RunStore),)

LATER = NOON + timedelta(minutes=5)
LONGEST = timedelta(minutes=15)
"""A hold-off may last."""
USERS = ResourceType.USERS


@dataclass
class Rows:
    """A store with three requested subclouds, s1 to s3, and what others do to them."""

    store: SqlRunStore | MemoryRunStore
    subcloud: Callable[[str], Subcloud]
    ask: Callable[[str], None]
    leave: Callable[[str], None]
    delete: Callable[[str], None]
    ending: Callable[[str], Ending | None]
    placed: Callable[[str], Placed]


def _memory_rows() -> Rows:
    store: MemoryRunStore = a_requested_store("s1", "s2", "s3")
    return Rows(
        store=store,
        subcloud=lambda name: store.rows[name].subcloud,
        ask=lambda name: store.ask(name, now=LATER),
        leave=store.leave,
        delete=store.delete,
        ending=lambda run_id: store.attempts[run_id].ending,
        placed=lambda name: store.rows[name].placed,
    )


def _sql_rows(engine: Engine) -> Rows:
    inventory = SqlInventory(engine)
    requested_rows(
        engine,
        [
            new_subcloud(name=n, management_ip=an_address(n), region_name=n, software_version="")
            for n in ("s1", "s2", "s3")
        ],
    )

    def ending(run_id: str) -> Ending | None:
        for name in [s.name for s in inventory.all()]:
            for asked in inventory.history(name)[0].requests:
                for attempt in asked.attempts:
                    if attempt.run_id == run_id:
                        return attempt.ending
        return None

    return Rows(
        store=SqlRunStore(engine),
        subcloud=lambda name: inventory.find([name])[0],
        ask=lambda name: request(engine, name),
        leave=lambda name: leave(engine, name),
        delete=lambda name: [None, inventory.delete([name], now=LATER)][0],
        ending=ending,
        placed=lambda name: SqlAuditStore(engine).read_run(name).placed,
    )


@pytest.fixture(params=["memory", "postgresql"])
def rows(request: pytest.FixtureRequest) -> Rows:
    return _memory_rows() if request.param == "memory" else _sql_rows(request.getfixturevalue("engine"))


def claim(rows: Rows, name: str = "s1", run_id: str = "run-1", generation: int = 1, now: datetime = NOON) -> Run | None:
    return next(iter(rows.store.claim([Claim(run_id, name, generation)], worker="w", now=now)), None)


def claimed(rows: Rows, name: str = "s1", run_id: str = "run-1") -> Run:
    run = claim(rows, name, run_id)
    assert run is not None
    return run


def died(run_id: str, *, deaths: int = 0) -> RunInProgress:
    return RunInProgress("s1", run_id, NOON, deaths)


def test_a_claim_takes_the_row_and_counts_the_attempt(rows: Rows) -> None:
    run = claimed(rows)
    after = rows.subcloud("s1")
    assert (after.initial_sync_state, after.run_id, after.attempt) == (InitialSyncState.IN_PROGRESS, "run-1", 1)
    assert replace(run.subcloud, endpoints=after.endpoints, last_seen_at=after.last_seen_at) == after
    assert (run.identity_fingerprint, dict(run.groups_to_refill)) == (None, {})


def test_only_one_of_two_claims_gets_the_row(rows: Rows) -> None:
    claimed(rows)
    assert claim(rows, run_id="run-2") is None
    assert rows.subcloud("s1").run_id == "run-1"


def test_a_claim_of_another_generation_gets_nothing(rows: Rows) -> None:
    assert claim(rows, generation=2) is None
    rows.ask("s1")
    assert claim(rows, generation=1) is None
    assert claim(rows, generation=2) is not None


def test_a_claim_of_an_unknown_region_gets_nothing(rows: Rows) -> None:
    assert claim(rows, "nowhere") is None


def test_completing_clears_what_failed_before(rows: Rows) -> None:
    run = claimed(rows)
    rows.store.fail(run, Failure(Reason.TIMEOUT, "slow"), now=NOON, retry_at=NOON)
    rows.store.requeue_due(now=NOON, longest=LONGEST)
    run = claimed(rows, run_id="run-2")
    assert run.subcloud.attempt == 2
    assert rows.store.complete(run, now=LATER, audits_due_at=LATER)
    after = rows.subcloud("s1")
    assert (after.initial_sync_state, after.run_id, after.attempt, after.reason, after.retry_at, after.step) == (
        InitialSyncState.COMPLETED, None, 0, None, None, None,
    )  # fmt: skip
    assert rows.ending("run-2") is Ending.COMPLETED


def test_failing_stores_the_reason_and_when_to_try_again(rows: Rows) -> None:
    assert rows.store.fail(claimed(rows), Failure(Reason.AUTH_FAILED, "401"), now=NOON, retry_at=LATER)
    after = rows.subcloud("s1")
    assert (after.initial_sync_state, after.reason, after.detail, after.retry_at, after.attempt) == (
        InitialSyncState.FAILED, Reason.AUTH_FAILED, "401", LATER, 1,
    )  # fmt: skip
    assert rows.ending("run-1") is Ending.FAILED
    assert rows.store.requeue_due(now=LATER - timedelta(seconds=1), longest=LONGEST) == 0
    assert rows.store.requeue_due(now=LATER, longest=LONGEST) == 1
    assert rows.subcloud("s1").initial_sync_state is InitialSyncState.REQUESTED


def test_giving_back_makes_the_row_due_again_as_if_not_tried(rows: Rows) -> None:
    assert rows.store.give_back(claimed(rows), ending=Ending.GIVEN_BACK, detail="stop", now=NOON)
    after = rows.subcloud("s1")
    assert (after.initial_sync_state, after.attempt, after.run_id) == (InitialSyncState.REQUESTED, 0, None)
    assert rows.ending("run-1") is Ending.GIVEN_BACK
    assert "s1" in [hint.region_name for hint in rows.store.dispatch(room=9, lost=[], now=NOON)]


WRITES: dict[str, Callable[[SqlRunStore | MemoryRunStore, Run], bool]] = {
    "start_step": lambda store, run: store.start_step(run, Step.IDENTITY, now=NOON),
    "record_identity": lambda store, run: store.record_identity(run, fingerprint="f"),
    "remember_groups": lambda store, run: store.remember_groups(run, {"g": ("u",)}),
    "remember_placed": lambda store, run: store.remember_placed(run, Placed({USERS: frozenset({"u"})}), {}),
    "init_audit": lambda store, run: store.init_audit(run, now=NOON),
    "complete": lambda store, run: store.complete(run, now=NOON, audits_due_at=NOON),
    "fail": lambda store, run: store.fail(run, Failure(Reason.TIMEOUT, ""), now=NOON, retry_at=LATER),
    "give_back": lambda store, run: store.give_back(run, ending=Ending.GIVEN_BACK, detail="", now=NOON),
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("what", ["unmanaged", "asked anew", "taken back", "claimed by another"])
def test_a_run_that_lost_its_row_writes_nothing(rows: Rows, write: str, what: str) -> None:
    run = claimed(rows)
    lose(rows, what)
    before = rows.subcloud("s1"), rows.placed("s1")
    assert WRITES[write](rows.store, run) is False
    assert (rows.subcloud("s1"), rows.placed("s1")) == before


def lose(rows: Rows, what: str) -> None:
    if what == "unmanaged":
        rows.leave("s1")
    elif what == "asked anew":
        rows.ask("s1")
    else:
        rows.store.take_back([died("run-1")], now=NOON)
        if what == "claimed by another":
            claimed(rows, run_id="run-2")


@pytest.mark.parametrize("write", WRITES)
def test_a_run_whose_subcloud_was_deleted_writes_nothing(rows: Rows, write: str) -> None:
    run = claimed(rows)
    rows.delete("s1")
    assert WRITES[write](rows.store, run) is False


def test_standing_says_why_a_run_must_stop(rows: Rows) -> None:
    for number, name in enumerate(("s1", "s2", "s3"), start=1):
        claimed(rows, name, f"run-{number}")
    assert set(rows.store.standing(["run-1", "run-2", "run-3"]).values()) == {None}
    rows.leave("s1")
    rows.ask("s2")
    rows.delete("s3")
    standing = rows.store.standing(["run-1", "run-2", "run-3"])
    assert {run_id: found and found.ending for run_id, found in standing.items()} == {
        "run-1": Ending.CANCELLED,
        "run-2": Ending.SUPERSEDED,
        "run-3": Ending.CANCELLED,
    }


def test_an_attempt_keeps_its_first_ending(rows: Rows) -> None:
    run = claimed(rows)
    rows.leave("s1")
    rows.store.end_attempt(run, Ending.CANCELLED, detail="left", now=NOON)
    rows.store.end_attempt(run, Ending.SUPERSEDED, detail="again", now=LATER)
    assert rows.ending("run-1") is Ending.CANCELLED


def test_dispatch_goes_oldest_first_and_only_once(rows: Rows) -> None:
    first = rows.store.dispatch(room=2, lost=[], now=NOON)
    assert [hint.task_id for hint in first] == ["s1.g1.a1", "s2.g1.a1"]
    assert [hint.region_name for hint in rows.store.dispatch(room=9, lost=[], now=NOON)] == ["s3"]
    assert [hint.region_name for hint in rows.store.dispatch(room=9, lost=first[:1], now=NOON)] == ["s1"]
    assert {(hint.region_name, at) for hint, at in rows.store.unstarted_hints()} == {
        (n, NOON) for n in ("s1", "s2", "s3")
    }


def test_undone_dispatches_are_due_again(rows: Rows) -> None:
    sent = rows.store.dispatch(room=9, lost=[], now=NOON)
    rows.store.undo_dispatch(sent)
    assert rows.store.unstarted_hints() == []
    assert rows.store.dispatch(room=9, lost=[], now=NOON) == sent


def test_a_new_request_is_sent_although_the_old_hint_still_waits(rows: Rows) -> None:
    rows.store.dispatch(room=9, lost=[], now=NOON)
    rows.ask("s1")
    assert [hint.task_id for hint in rows.store.dispatch(room=9, lost=[], now=LATER)] == ["s1.g2.a1"]


def test_taking_back_needs_the_run_id_to_stand_still(rows: Rows) -> None:
    claimed(rows)
    assert rows.store.take_back([died("another")], now=NOON) == []
    assert rows.store.take_back([], now=NOON) == []
    assert rows.store.take_back([died("run-1")], now=NOON) == ["s1"]
    assert rows.subcloud("s1").initial_sync_state is InitialSyncState.REQUESTED
    assert rows.ending("run-1") is Ending.ABANDONED


def test_the_deaths_of_a_request_are_counted_until_it_is_quarantined(rows: Rows) -> None:
    for number in range(2):
        claimed(rows, run_id=f"run-{number}")
        assert rows.store.in_progress_since_before(LATER, now=LATER) == [died(f"run-{number}", deaths=number)]
        rows.store.take_back([died(f"run-{number}", deaths=number)], now=NOON)
    claimed(rows, run_id="run-2")
    quarantined = rows.store.quarantine(
        [died("run-2", deaths=2), died("another")], QUARANTINED, now=NOON, retry_at=LATER
    )
    after = rows.subcloud("s1")
    assert quarantined == ["s1"]
    assert (after.initial_sync_state, after.reason, after.detail, after.retry_at) == (
        InitialSyncState.FAILED, Reason.QUARANTINED, QUARANTINED.detail, LATER,
    )  # fmt: skip
    assert rows.ending("run-2") is Ending.ABANDONED
    rows.store.requeue_due(now=LATER, longest=LONGEST)
    claimed(rows, run_id="run-3")
    assert rows.store.in_progress_since_before(LATER, now=LATER) == [died("run-3", deaths=0)]


def test_in_progress_rows_are_found_by_their_age(rows: Rows) -> None:
    claimed(rows)
    assert rows.store.in_progress_since_before(NOON, now=NOON) == []
    assert rows.store.in_progress_since_before(LATER, now=LATER) == [died("run-1")]
    assert rows.store.in_progress_count() == 1


def test_a_run_claimed_in_the_future_counts_as_claimed_long_ago(rows: Rows) -> None:
    """Its worker's clock was ahead; whether it still works, its lock tells."""
    claimed(rows)
    earlier = NOON - timedelta(hours=1)
    (found,) = rows.store.in_progress_since_before(earlier - timedelta(seconds=30), now=earlier)
    assert found == died("run-1")
    nearly = NOON - timedelta(seconds=2)
    assert rows.store.in_progress_since_before(nearly - timedelta(seconds=30), now=nearly) == []


def test_an_overtaken_attempt_that_began_in_the_future_is_found(rows: Rows) -> None:
    claimed(rows)
    rows.leave("s1")
    earlier = NOON - timedelta(hours=1)
    assert rows.store.unowned_attempts(started_before=earlier, now=earlier) == [("s1", "run-1")]


def test_a_hold_off_longer_than_there_are_is_over(rows: Rows) -> None:
    assert rows.store.fail(claimed(rows), Failure(Reason.AUTH_FAILED, "401"), now=NOON, retry_at=LATER)
    assert rows.store.requeue_due(now=LATER - LONGEST, longest=LONGEST) == 0
    assert rows.store.requeue_due(now=LATER - LONGEST - timedelta(seconds=3), longest=LONGEST) == 1


@pytest.mark.parametrize("overtake", ["ask", "leave"])
def test_an_attempt_without_an_end_whose_row_moved_on_is_found_and_ended(rows: Rows, overtake: str) -> None:
    claimed(rows)
    claimed(rows, "s2", "run-2")
    assert rows.store.unowned_attempts(started_before=LATER, now=LATER) == []
    getattr(rows, overtake)("s1")
    assert rows.store.unowned_attempts(started_before=NOON, now=NOON) == []
    assert rows.store.unowned_attempts(started_before=LATER, now=LATER) == [("s1", "run-1")]
    rows.store.end_unowned(["run-1"], now=LATER)
    assert rows.store.unowned_attempts(started_before=LATER, now=LATER) == []
    assert (rows.ending("run-1"), rows.ending("run-2")) == (Ending.ABANDONED, None)


def test_an_end_that_a_run_wrote_itself_stands(rows: Rows) -> None:
    run = claimed(rows)
    rows.leave("s1")
    rows.store.end_attempt(run, Ending.CANCELLED, detail="", now=NOON)
    rows.store.end_unowned(["run-1"], now=LATER)
    assert rows.ending("run-1") is Ending.CANCELLED


def test_what_a_run_learns_is_there_for_the_next_one(rows: Rows) -> None:
    run = claimed(rows)
    assert rows.store.record_identity(run, fingerprint="f1")
    assert rows.store.remember_groups(run, {"g1": ("u1", "u2")})
    rows.store.take_back([died("run-1")], now=NOON)
    second = claimed(rows, run_id="run-2")
    assert (second.identity_fingerprint, second.subcloud.subsequent_sync) == ("f1", True)
    assert dict(second.groups_to_refill) == {"g1": ("u1", "u2")}
    assert rows.store.record_identity(second, fingerprint=None)
    rows.store.take_back([died("run-2")], now=NOON)
    assert claimed(rows, run_id="run-3").identity_fingerprint is None


def test_what_is_placed_is_added_up_and_its_grants_follow_records_that_take_other_ids(rows: Rows) -> None:
    run, hers = claimed(rows), Assignment("p1", ActorType.USER, "u1", "r1")
    assert rows.store.remember_placed(run, Placed({USERS: frozenset({"u1"})}, frozenset({hers})), {})
    assert rows.store.remember_placed(run, Placed({USERS: frozenset({"u2"})}), {(USERS, "u1"): "u2"})
    placed = rows.placed("s1")
    assert placed.of(USERS) == {"u1", "u2"}
    assert placed.assignments == {hers, replace(hers, actor_id="u2")}


def test_ten_claims_at_once_give_the_row_to_one(engine: Engine) -> None:
    rows = _sql_rows(engine)
    got: list[Run | None] = []
    threads = [
        threading.Thread(target=lambda number=number: got.append(claim(rows, run_id=f"run-{number}")))
        for number in range(10)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(got) == 10
    assert len([run for run in got if run is not None]) == 1


def test_two_dispatches_at_once_share_the_rows_between_them(engine: Engine) -> None:
    requested_rows(
        engine,
        [
            new_subcloud(name=f"n{i}", management_ip=an_address(f"n{i}"), region_name=None, software_version="")
            for i in range(200)
        ],
    )
    store, sent = SqlRunStore(engine), []
    threads = [
        threading.Thread(target=lambda: sent.extend(store.dispatch(room=150, lost=[], now=NOON))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    regions = [hint.region_name for hint in sent]
    assert len(regions) == len(set(regions))


def test_audit_init_resets_the_audit_columns_of_platform_and_identity(engine: Engine) -> None:
    rows = _sql_rows(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE subcloud_sync SET audit_status='completed', sync_status_reported='in-sync', last_audit_time=now(),"
            " sync_status_report_time=now()"
        )
    run = claimed(rows)
    assert rows.store.init_audit(run, now=NOON)
    with engine.connect() as connection:
        found = connection.exec_driver_sql(
            "SELECT audit_status, sync_status_reported, sync_status_report_time, last_audit_time FROM subcloud_sync"
            f" WHERE subcloud_id={run.subcloud.id}"
        ).all()
    assert [tuple(row) for row in found] == [("none", "none", None, None)] * 2


def test_completing_says_when_the_audits_of_that_subcloud_are_due_and_of_no_other(engine: Engine) -> None:
    rows = _sql_rows(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE subcloud_sync SET due_at='2030-01-01', dispatched_at=now()")
    run = claimed(rows)
    assert rows.store.init_audit(run, now=NOON)
    assert rows.store.complete(run, now=LATER, audits_due_at=LATER)
    with engine.connect() as connection:
        found = connection.exec_driver_sql(
            f"SELECT subcloud_id = {run.subcloud.id}, due_at, dispatched_at IS NULL FROM subcloud_sync ORDER BY 1 DESC"
        ).all()
    assert [tuple(row) for row in found[:2]] == [(True, LATER, True)] * 2
    assert all((due_at > LATER, is_free) == (True, False) for _, due_at, is_free in found[2:])


def test_an_audit_that_was_asked_for_meanwhile_is_due_at_once(engine: Engine) -> None:
    rows = _sql_rows(engine)
    run = claimed(rows)
    with engine.begin() as connection:
        connection.exec_driver_sql(
            f"UPDATE subcloud_sync SET generation=generation+1 WHERE subcloud_id={run.subcloud.id}"
            " AND endpoint_type='identity'"
        )
    assert rows.store.complete(run, now=NOON, audits_due_at=LATER)
    with engine.connect() as connection:
        found = connection.exec_driver_sql(
            "SELECT endpoint_type, due_at FROM subcloud_sync"
            f" WHERE subcloud_id={run.subcloud.id} AND endpoint_type IN ('identity', 'platform') ORDER BY 1"
        ).all()
    assert [tuple(row) for row in found] == [("identity", NOON), ("platform", LATER)]


def test_audit_init_takes_a_dead_audit_s_rows_from_it(engine: Engine) -> None:
    rows = _sql_rows(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE subcloud_sync SET audit_status='in-progress', run_id='dead', attempt=3")
    run = claimed(rows)
    assert rows.store.init_audit(run, now=NOON)
    with engine.connect() as connection:
        found = connection.exec_driver_sql(
            f"SELECT audit_status, run_id, attempt FROM subcloud_sync WHERE subcloud_id={run.subcloud.id}"
        ).all()
    assert [tuple(row) for row in found] == [("none", None, 0)] * 2


def test_old_history_goes_and_the_latest_request_stays(engine: Engine) -> None:
    rows = _sql_rows(engine)
    rows.store.complete(claimed(rows), now=NOON, audits_due_at=NOON)
    rows.ask("s1")
    later = NOON + timedelta(seconds=1)
    run = claim(rows, run_id="run-2", generation=2, now=later)
    assert run is not None
    rows.store.complete(run, now=later, audits_due_at=NOON)
    assert SqlHistory(engine).delete_older(than=LATER, limit=100) == 1
    assert rows.ending("run-1") is None
    assert rows.ending("run-2") is Ending.COMPLETED
    assert [asked.generation for asked in SqlInventory(engine).history("s1")[0].requests] == [2]
    assert SqlHistory(engine).delete_older(than=LATER, limit=100) == 0


def test_of_a_request_that_fails_for_ever_the_latest_attempt_stays(engine: Engine) -> None:
    rows = _sql_rows(engine)
    for number in range(4):
        now = NOON + timedelta(minutes=number)
        run = claim(rows, run_id=f"run-{number}", now=now)
        assert run is not None
        rows.store.fail(run, Failure(Reason.TIMEOUT, ""), now=now, retry_at=now)
        rows.store.requeue_due(now=now, longest=LONGEST)
    assert SqlHistory(engine).delete_older(than=NOON + timedelta(hours=1), limit=2) == 2
    assert SqlHistory(engine).delete_older(than=NOON + timedelta(hours=1), limit=2) == 1
    (asked,) = SqlInventory(engine).history("s1")[0].requests
    assert [attempt.run_id for attempt in asked.attempts] == ["run-3"]


def test_requests_that_led_to_no_attempt_go_as_well(engine: Engine) -> None:
    rows = _sql_rows(engine)
    for _ in range(3):
        rows.ask("s1")
    latest = rows.subcloud("s1").generation
    assert SqlHistory(engine).delete_older(than=datetime.max.replace(tzinfo=UTC), limit=100) == 3
    assert [asked.generation for asked in SqlInventory(engine).history("s1")[0].requests] == [latest]
