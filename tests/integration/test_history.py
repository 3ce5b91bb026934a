"""What only PostgreSQL can show of the history: what a trigger refuses, what outlives a subcloud, what is removed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Engine, event, insert, select, text, update
from sqlalchemy.exc import IntegrityError

from dcsync.adapters.host.clock import utc_now
from dcsync.adapters.postgres.audits import SqlAuditStore
from dcsync.adapters.postgres.history import SqlHistory
from dcsync.adapters.postgres.inventory import SqlInventory
from dcsync.adapters.postgres.operations import SqlOperations
from dcsync.adapters.postgres.runs import SqlRunStore
from dcsync.adapters.postgres.tables import audit_history, deleted_subcloud, metadata, subcloud, subcloud_sync
from dcsync.audit.ports import Finding
from dcsync.audit.settlement import settlement
from dcsync.initial_sync.ports import Claim, Run
from dcsync.model.ending import Ending, Failure
from dcsync.model.errors import UnknownSubcloud
from dcsync.model.history import LONGEST_NAME, NAMED_AT_MOST, AuditHistory, RequestHistory
from dcsync.model.operation import Intent
from dcsync.model.reasons import Reason
from dcsync.model.states.initial_sync import InitialSyncState
from dcsync.model.subcloud import AvailabilityStatus, EndpointType, ManagementState, NewSubcloud, Step, SyncStatus
from tests.builders import NOON

LATER, LAST = NOON + timedelta(minutes=5), NOON + timedelta(minutes=9)
FOR_EVER = datetime(9000, 1, 1, tzinfo=UTC)


def intent(command: str, *, keep: timedelta = timedelta(days=36500)) -> Intent:
    return Intent(who="eve", host="central-1", command=command, keep=keep)


@pytest.fixture
def inventory(engine: Engine) -> SqlInventory:
    """One managed and online subcloud, whose initial sync is requested."""
    inventory = SqlInventory(engine)
    add(inventory)
    with engine.begin() as rows:
        rows.execute(update(subcloud).values(availability_status=AvailabilityStatus.ONLINE))
    inventory.set_management(["a"], ManagementState.MANAGED, now=NOON, by="eve", intent=intent("subcloud manage"))
    return inventory


def add(inventory: SqlInventory) -> None:
    new = NewSubcloud(name="a", management_ip="10.0.0.1", region_name="r1")
    inventory.add([new], now=NOON, intent=intent("subcloud add"))


def claim(engine: Engine, run_id: str) -> Run:
    (run,) = SqlRunStore(engine).claim([Claim(run_id, "r1", 1)], worker="sync@host", now=LATER)
    return run


def numbers(inventory: SqlInventory) -> list[int]:
    (request,) = inventory.history("a")[0].requests
    return [attempt.attempt for attempt in request.attempts]


def audited(engine: Engine, finding: Finding, *, run_id: str = "run-9") -> None:
    with engine.begin() as rows:
        rows.execute(update(subcloud).values(initial_sync_state=InitialSyncState.COMPLETED))
        rows.execute(update(subcloud_sync).values(due_at=NOON))
    store = SqlAuditStore(engine)
    (run,) = store.claim({run_id: "r1"}, now=LATER)
    settled = settlement(run, finding, now=LAST, started_at=LATER, worker="sync@host")
    assert store.settle([settled]) == {run_id}


def a_finding(**changes: object) -> Finding:
    values = {
        "endpoint_type": EndpointType.IDENTITY, "generation": 0, "result": SyncStatus.IN_SYNC, "reported": None,
        "is_observed": True, "due_at": LAST,
    }  # fmt: skip
    return Finding(**(values | changes))  # type: ignore[arg-type]


# --- operations ---


@pytest.mark.parametrize(
    "change",
    ["UPDATE operation SET who = 'adam'", "UPDATE operation SET who = 'adam' WHERE false", "TRUNCATE operation",
     "DELETE FROM operation"],
)  # fmt: skip
def test_an_operation_can_neither_be_changed_nor_removed_early(engine: Engine, change: str) -> None:
    SqlOperations(engine).record(intent("keys rotate").done((), now=utc_now()), ())
    with pytest.raises(IntegrityError, match="operation"), engine.begin() as rows:
        rows.execute(text(change))
    assert [each.who for each in SqlOperations(engine).newest(limit=9)] == ["eve"]


def test_housekeeping_removes_operations_whose_time_is_over_and_no_others(engine: Engine) -> None:
    operations, now = SqlOperations(engine), utc_now()
    for number in range(5):
        done = intent(f"old {number}", keep=timedelta(days=1)).done((), now=now - timedelta(days=2))
        operations.record(done, ())
    operations.record(intent("young", keep=timedelta(days=3)).done((), now=now - timedelta(days=2)), ())
    history = SqlHistory(engine)
    assert [history.delete_older(than=now, limit=3) for _ in range(3)] == [3, 2, 0]
    assert [each.command for each in operations.newest(limit=9)] == ["young"]


# --- attempts ---


def test_no_two_attempts_of_a_request_have_one_number_though_a_lock_was_lost(
    engine: Engine, inventory: SqlInventory
) -> None:
    store = SqlRunStore(engine)
    for run_id, ending in (("run-1", Ending.LOCK_LOST), ("run-2", Ending.GIVEN_BACK)):
        assert store.give_back(claim(engine, run_id), ending=ending, detail="", now=LATER)
    third = claim(engine, "run-3")
    assert numbers(inventory) == [1, 2, 3]
    assert third.subcloud.attempt == 1, "neither of the others counts for the hold-off"


def test_attempts_of_a_new_request_are_numbered_from_one(engine: Engine, inventory: SqlInventory) -> None:
    claim(engine, "run-1")
    inventory.request(["a"], now=LATER, by="eve")
    SqlRunStore(engine).claim([Claim("run-2", "r1", 2)], worker="w", now=LAST)
    newest, first = inventory.history("a")[0].requests
    assert [[a.attempt for a in request.attempts] for request in (newest, first)] == [[1], [1]]


# --- audits ---


def test_an_audit_that_found_a_difference_is_in_the_history_with_what_was_written(
    engine: Engine, inventory: SqlInventory
) -> None:
    many = tuple(f"users user-{number}: {'x' * 300}" for number in range(NAMED_AT_MOST + 5))
    audited(engine, a_finding(differences=many, written=("PUT users bob",), not_written=("DELETE users eve",)))
    (found,) = (entry for entry in inventory.history("a")[0].entries if isinstance(entry, AuditHistory))
    assert (found.run_id, found.worker, found.started_at, found.ended_at) == ("run-9", "sync@host", LATER, LAST)
    assert (found.endpoint_type, found.result, found.reason) == (EndpointType.IDENTITY, SyncStatus.IN_SYNC, None)
    assert (len(found.differences.names), found.differences.count) == (NAMED_AT_MOST, len(many))
    assert {len(name) for name in found.differences.names} == {LONGEST_NAME}
    assert (found.written.names, found.not_written.names) == (("PUT users bob",), ("DELETE users eve",))


def test_a_failed_audit_is_in_the_history_and_a_clean_one_is_not(engine: Engine, inventory: SqlInventory) -> None:
    audited(engine, a_finding(), run_id="clean")
    audited(engine, a_finding(result=None, failure=Failure(Reason.TIMEOUT, "slow")), run_id="failed")
    found = [entry for entry in inventory.history("a")[0].entries if isinstance(entry, AuditHistory)]
    assert [(entry.run_id, entry.reason, entry.detail) for entry in found] == [("failed", "timeout", "slow")]


@pytest.mark.parametrize(("found", "statements"), [((), 2), (("users bob",), 3)])
def test_the_history_costs_a_clean_audit_no_statement(
    engine: Engine, inventory: SqlInventory, found: tuple[str, ...], statements: int
) -> None:
    """Of two endpoint types: an update of each row, and one insertion for both where something was found."""
    with engine.begin() as rows:
        rows.execute(update(subcloud).values(initial_sync_state=InitialSyncState.COMPLETED))
        rows.execute(update(subcloud_sync).values(due_at=NOON))
    store = SqlAuditStore(engine)
    (run,) = store.claim({"run-9": "r1"}, now=LATER)
    types = (EndpointType.IDENTITY, EndpointType.PLATFORM)
    findings = [a_finding(endpoint_type=type_, differences=found) for type_ in types]
    sent: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *arguments: sent.append(arguments[2]))
    assert store.settle([settlement(run, finding, now=LAST) for finding in findings]) == {"run-9"}
    assert len(sent) == statements


def test_a_run_that_lost_its_row_leaves_no_audit_in_the_history(engine: Engine, inventory: SqlInventory) -> None:
    with engine.begin() as rows:
        rows.execute(update(subcloud).values(initial_sync_state=InitialSyncState.COMPLETED))
        rows.execute(update(subcloud_sync).values(due_at=NOON))
    store = SqlAuditStore(engine)
    (run,) = store.claim({"run-9": "r1"}, now=LATER)
    assert store.release(run, now=LATER)
    assert store.settle([settlement(run, a_finding(differences=("users bob",)), now=LAST)]) == set()
    with engine.connect() as rows:
        assert rows.execute(select(audit_history)).all() == []


# --- deletion ---


def test_what_happened_to_a_deleted_subcloud_is_told_in_one_order_of_time(
    engine: Engine, inventory: SqlInventory
) -> None:
    store = SqlRunStore(engine)
    run = claim(engine, "run-1")
    store.start_step(run, Step.IDENTITY, now=LATER)
    store.end_step(run, Step.IDENTITY, now=LATER, outcome="done")
    store.complete(run, now=LATER, audits_due_at=LATER)
    audited(engine, a_finding(differences=("users bob",)))
    inventory.delete(["a"], now=LAST, intent=intent("subcloud delete"))
    (life,) = inventory.history("a")
    assert (life.name, life.region_name, life.added_at, life.deleted_at) == ("a", "r1", NOON, LAST)
    kinds = [type(entry).__name__ for entry in life.entries]
    assert kinds == ["AuditHistory", "Operation", "RequestHistory", "Operation", "Operation"]
    assert [entry.at for entry in life.entries] == [LAST, LAST, NOON, NOON, NOON]
    (attempt,) = life.requests[0].attempts
    assert (attempt.ending, [step.outcome for step in attempt.steps]) == (Ending.COMPLETED, ["done"])


def test_a_run_of_a_subcloud_that_is_deleted_ends_in_the_history(engine: Engine, inventory: SqlInventory) -> None:
    store, run = SqlRunStore(engine), claim(engine, "run-1")
    inventory.delete(["a"], now=LAST)
    standing = store.standing(["run-1"])["run-1"]
    assert standing is not None
    assert (standing.ending, standing.detail) == (Ending.CANCELLED, "the subcloud was deleted")
    assert not store.start_step(run, Step.IDENTITY, now=LAST)
    store.end_attempt(run, standing.ending, detail="later", now=LAST)
    (request,) = inventory.history("a")[0].requests
    assert [(each.ending, each.ended_at, each.detail) for each in request.attempts] == [
        (Ending.CANCELLED, LAST, "the subcloud was deleted")
    ]
    assert store.unowned_attempts(started_before=FOR_EVER, now=FOR_EVER) == []


def test_nothing_of_a_deleted_subcloud_is_left_once_it_is_old(engine: Engine, inventory: SqlInventory) -> None:
    claim(engine, "run-1")
    audited_before = a_finding(differences=("users bob",))
    inventory.request(["a"], now=LATER, by="eve")
    SqlRunStore(engine).claim([Claim("run-2", "r1", 2)], worker="w", now=LATER)
    inventory.set_management(["a"], ManagementState.UNMANAGED, now=LATER, by="eve")
    inventory.set_management(["a"], ManagementState.MANAGED, now=LATER, by="eve")
    with engine.begin() as rows:
        rows.execute(update(subcloud).values(initial_sync_state=InitialSyncState.COMPLETED, run_id=None))
    audited(engine, audited_before)
    inventory.delete(["a"], now=LAST)
    history = SqlHistory(engine)
    history.delete_older(than=LAST, limit=100)
    assert len(inventory.history("a")) == 1, "not yet"
    for _ in range(9):
        if not history.delete_older(than=LAST + timedelta(seconds=1), limit=1):
            break
    with pytest.raises(UnknownSubcloud):
        inventory.history("a")
    with engine.connect() as rows:
        left = {t.name for t in metadata.sorted_tables if rows.execute(select(t).limit(1)).all()}
    assert left == {"operation"}


def test_a_subcloud_that_exists_keeps_its_latest_request_beside_one_that_was_deleted(
    engine: Engine, inventory: SqlInventory
) -> None:
    claim(engine, "run-1")
    inventory.delete(["a"], now=LATER)
    add(inventory)
    with engine.begin() as rows:
        rows.execute(update(subcloud).values(availability_status=AvailabilityStatus.ONLINE))
    inventory.set_management(["a"], ManagementState.MANAGED, now=NOON, by="eve")
    claim(engine, "run-2")
    for _ in range(3):
        SqlHistory(engine).delete_older(than=FOR_EVER, limit=100)
    (life,) = inventory.history("a")
    assert life.deleted_at is None
    assert [attempt.run_id for request in life.requests for attempt in request.attempts] == ["run-2"]
    assert isinstance(life.requests[0], RequestHistory)


def test_deleted_subclouds_are_removed_in_bounded_batches(engine: Engine) -> None:
    rows_of = [
        {"id": number, "name": "a", "region_name": "r", "added_at": NOON, "deleted_at": NOON} for number in range(1, 6)
    ]
    with engine.begin() as rows:
        rows.execute(insert(deleted_subcloud), rows_of)
    assert [SqlHistory(engine).delete_older(than=LATER, limit=2) for _ in range(4)] == [2, 2, 1, 0]
