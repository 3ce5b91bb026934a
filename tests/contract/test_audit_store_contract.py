"""What the rows of audits promise, held against those in memory and those in PostgreSQL.

The ports are DueAudits, AuditStore and CentralStates, and AuditRequests of the commands.

The rows are made and changed by others through `Rows`, which each backend fills in.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, delete, insert, select, text, update

from dcsync.adapters.postgres.audits import SqlAuditStore
from dcsync.adapters.postgres.inventory import SqlInventory
from dcsync.adapters.postgres.silence import SqlSilenceStore
from dcsync.adapters.postgres.tables import (
    audit_request,
    endpoint_status,
    key_rotation,
    subcloud,
    subcloud_sync,
)
from dcsync.audit.endpoints import REGISTRY, audited_types
from dcsync.audit.ports import (
    SETTLED,
    AuditRow,
    AuditRun,
    AuditStore,
    CentralState,
    CentralStates,
    DueAudits,
    Finding,
)
from dcsync.audit.settlement import settlement
from dcsync.cli.ports import AuditRequests, CentralChecks
from dcsync.model.ending import Ending, Failure
from dcsync.model.errors import UnknownSubcloud
from dcsync.model.identity import ActorType, Assignment, Placed, ResourceType
from dcsync.model.messages import AuditHint
from dcsync.model.reasons import Reason
from dcsync.model.states.audit import AuditStatus
from dcsync.model.states.initial_sync import InitialSyncState
from dcsync.model.subcloud import EndpointType, SyncStatus, new_subcloud
from dcsync.runs.abandoned import QUARANTINED, RunInProgress
from dcsync.state.ports import CentralFacts, RefusedFacts
from tests.builders import NOON, a_subcloud, an_address
from tests.contract.held import Held
from tests.fakes_audit import MemoryAuditStore
from tests.processes import wait_until
from tests.requested_rows import leave, requested_rows

PLATFORM, IDENTITY = EndpointType.PLATFORM, EndpointType.IDENTITY
LATER = NOON + timedelta(minutes=5)
NEXT = NOON + timedelta(minutes=20)

HELD = (Held(MemoryAuditStore, DueAudits, AuditStore, CentralStates, AuditRequests, CentralChecks),)


@dataclass
class Rows:
    """A store with three eligible subclouds, s1 to s3, all due since NOON, and what others do to them."""

    store: SqlAuditStore | MemoryAuditStore
    leave: Callable[[str], None]
    delete: Callable[[str], object]
    ask_follow_up: Callable[[str | None, EndpointType], None]
    plan_rotation: Callable[[datetime], None]
    observe: Callable[[str, EndpointType, datetime], None]
    """As if the state service had applied a report observed at that time."""
    central: Callable[[], CentralFacts]

    def row(self, name: str = "s1", type_: EndpointType = IDENTITY) -> AuditRow:
        (found,) = [row for row in self.store.audits([name]) if row.endpoint_type is type_]
        return found


def _memory_rows() -> Rows:
    store = MemoryAuditStore().add(
        *(a_subcloud(f"s{n}", id=n, initial_sync_state=InitialSyncState.COMPLETED, generation=1) for n in (1, 2, 3))
    )

    def plan(until: datetime) -> None:
        store.keys_planned_until = until

    return Rows(
        store=store,
        leave=store.leave,
        delete=store.delete,
        ask_follow_up=lambda name, type_: store.follow_ups.append((name, type_, "somebody asked")),
        plan_rotation=plan,
        observe=lambda name, type_, at: store.observed.update({(name, type_): at}),
        central=store.central_facts,
    )


def _sql_rows(engine: Engine) -> Rows:
    completed_rows(engine, [f"s{n}" for n in (1, 2, 3)])
    inventory = SqlInventory(engine)

    def follow_up(name: str | None, type_: EndpointType) -> None:
        id_ = None if name is None else inventory.find([name])[0].id
        with engine.begin() as connection:
            connection.execute(
                insert(audit_request).values(
                    subcloud_id=id_, endpoint_type=type_, requested_at=NOON, cause="somebody asked"
                )
            )

    def plan(until: datetime) -> None:
        with engine.begin() as connection:
            connection.execute(text("DELETE FROM key_rotation"))
            connection.execute(insert(key_rotation).values(window_until=until))

    def observe(name: str, type_: EndpointType, at: datetime) -> None:
        own = endpoint_status.c.subcloud_id == inventory.find([name])[0].id, endpoint_status.c.endpoint_type == type_
        with engine.begin() as connection:
            connection.execute(update(endpoint_status).where(*own).values(observed_at=at))

    return Rows(
        store=SqlAuditStore(engine),
        leave=lambda name: leave(engine, name),
        delete=lambda name: [None, inventory.delete([name], now=NOON)][0],
        ask_follow_up=follow_up,
        plan_rotation=plan,
        observe=observe,
        central=SqlSilenceStore(engine).central_facts,
    )


def completed_rows(engine: Engine, names: list[str]) -> None:
    """Managed, online and completed, their audits due at NOON."""
    requested_rows(
        engine,
        [new_subcloud(name=n, management_ip=an_address(n), region_name=n, software_version="") for n in names],
    )
    with engine.begin() as connection:
        connection.execute(update(subcloud).values(initial_sync_state=InitialSyncState.COMPLETED))
        connection.execute(update(subcloud_sync).values(due_at=NOON))


@pytest.fixture(params=["memory", "postgresql"])
def rows(request: pytest.FixtureRequest) -> Rows:
    return _memory_rows() if request.param == "memory" else _sql_rows(request.getfixturevalue("engine"))


def claim(rows: Rows, name: str = "s1", run_id: str = "run-1", now: datetime = NOON) -> AuditRun | None:
    return next(iter(rows.store.claim({run_id: name}, now=now)), None)


def claimed(rows: Rows, name: str = "s1", run_id: str = "run-1", now: datetime = NOON) -> AuditRun:
    run = claim(rows, name, run_id, now)
    assert run is not None
    return run


def a_finding(type_: EndpointType = IDENTITY, **changes: Any) -> Finding:
    values: dict[str, Any] = {
        "endpoint_type": type_,
        "generation": 0,
        "result": SyncStatus.IN_SYNC,
        "reported": SyncStatus.IN_SYNC,
        "is_observed": True,
        "due_at": NEXT,
    }
    return Finding(**(values | changes))


def settle(rows: Rows, run: AuditRun, **changes: Any) -> bool:
    return settle_as(rows, run, [a_finding(part.endpoint_type, **changes) for part in run.parts], now=LATER)


def settle_as(rows: Rows, run: AuditRun, findings: list[Finding], *, now: datetime) -> bool:
    return rows.store.settle([settlement(run, finding, now=now) for finding in findings]) == {run.run_id}


def died(run_id: str, *, deaths: int = 0) -> RunInProgress:
    return RunInProgress("s1", run_id, NOON, deaths)


# --- asking ------------------------------------------------------------------------------------------------------


def test_a_request_makes_the_named_audits_due_and_says_who_asked(rows: Rows) -> None:
    settle(rows, claimed(rows))
    assert rows.store.request(["s1"], [IDENTITY], now=LATER, by="eve") == ["s1"]
    asked, other = rows.row(), rows.row(type_=PLATFORM)
    assert (asked.generation, asked.due_at, asked.requested_by, asked.requested_at) == (1, LATER, "eve", LATER)
    assert (other.generation, other.due_at) == (0, NEXT)
    assert [part.endpoint_type for part in claimed(rows, run_id="run-2", now=LATER).parts] == [IDENTITY]


def test_a_request_for_all_reaches_those_that_are_away_too(rows: Rows) -> None:
    rows.leave("s2")
    assert rows.store.request(None, audited_types(), now=LATER, by="eve") == ["s1", "s2", "s3"]
    assert rows.row("s2").generation == 1
    assert not rows.row("s2").is_eligible
    assert claim(rows, "s2", now=LATER) is None


def test_an_unknown_name_is_refused_and_nothing_is_asked(rows: Rows) -> None:
    with pytest.raises(UnknownSubcloud, match=r"^there is no subcloud named s9, s8$"):
        rows.store.request(["s9", "s1", "s8"], [IDENTITY], now=LATER, by="eve")
    assert rows.row().generation == 0
    with pytest.raises(UnknownSubcloud):
        rows.store.audits(["s9"])


def test_an_operator_s_request_ends_a_hold_off_and_forgets_how_often_was_repaired(rows: Rows) -> None:
    failure = Failure(Reason.TIMEOUT, "slow")
    settle(rows, claimed(rows), failure=failure, difference="d", difference_repairs=2, is_observed=False)
    rows.store.request(["s1"], [IDENTITY], now=LATER, by="eve", allow_deletes=True, resource_types=["users"])
    run = claimed(rows, run_id="run-2", now=LATER)
    (part,) = run.parts
    assert (part.attempt, part.difference_repairs, part.deletes_allowed) == (1, 0, True)
    assert part.resource_types == frozenset({"users"})


def test_what_is_allowed_once_is_not_allowed_the_next_time(rows: Rows) -> None:
    rows.store.request(["s1"], [IDENTITY], now=NOON, by="eve", allow_deletes=True, resource_types=["users"])
    settle(rows, claimed(rows), generation=1)
    rows.store.request(["s1"], [IDENTITY], now=LATER, by="eve")
    (part,) = claimed(rows, run_id="run-2", now=LATER).parts
    assert (part.deletes_allowed, part.resource_types) == (False, None)


def restricted_to(rows: Rows, run_id: str = "run-2") -> frozenset[str] | None:
    parts = claimed(rows, run_id=run_id, now=LATER).parts
    return {part.endpoint_type: part.resource_types for part in parts}[IDENTITY]


def test_a_change_of_the_central_cloud_is_not_lost_in_a_request_for_some_types(rows: Rows) -> None:
    rows.store.request(["s1"], [IDENTITY], now=NOON, by="eve", resource_types=["users"])
    rows.store.raise_generation(IDENTITY, now=NOON, by="the central cloud changed")
    assert restricted_to(rows) is None


def test_a_request_of_the_state_service_is_not_lost_in_a_request_for_some_types(rows: Rows) -> None:
    rows.store.request(["s1"], [IDENTITY], now=NOON, by="eve", resource_types=["users"])
    rows.ask_follow_up("s1", IDENTITY)
    rows.store.take_follow_ups(now=NOON)
    assert restricted_to(rows) is None


def test_a_request_for_some_types_does_not_shadow_what_was_asked_before_it(rows: Rows) -> None:
    rows.store.raise_generation(IDENTITY, now=NOON, by="the central cloud changed")
    rows.store.request(["s1"], [IDENTITY], now=NOON, by="eve", resource_types=["users"])
    assert restricted_to(rows) is None


def test_two_requests_for_some_types_are_one_for_all_of_these(rows: Rows) -> None:
    rows.store.request(["s1"], [IDENTITY], now=NOON, by="eve", resource_types=["users"])
    rows.store.request(["s1"], [IDENTITY], now=NOON, by="eve", resource_types=["roles", "users"])
    assert restricted_to(rows) == {"users", "roles"}


def test_what_is_allowed_stays_allowed_until_it_was_done(rows: Rows) -> None:
    rows.store.request(["s1"], [IDENTITY], now=NOON, by="eve", allow_deletes=True)
    failure = Failure(Reason.UNREACHABLE, "")
    settle(rows, claimed(rows), generation=1, result=None, is_observed=False, failure=failure, due_at=LATER)
    parts = claimed(rows, run_id="run-2", now=LATER).parts
    assert {part.endpoint_type: part.deletes_allowed for part in parts} == {IDENTITY: True, PLATFORM: False}


def test_a_change_of_the_central_cloud_makes_every_row_of_its_kind_due_but_not_those_held_off(rows: Rows) -> None:
    settle(rows, claimed(rows))
    settle(rows, claimed(rows, "s2", "run-2"), failure=Failure(Reason.UNREACHABLE, ""), result=None, is_observed=False)
    assert rows.store.raise_generation(IDENTITY, now=LATER, by="the central cloud") == 3
    assert (rows.row("s1").due_at, rows.row("s2").due_at, rows.row("s3").due_at) == (LATER, NEXT, NOON)
    assert [rows.row(name).generation for name in ("s1", "s2", "s3")] == [1, 1, 1]
    assert rows.row("s1", PLATFORM).generation == 0


@pytest.mark.parametrize("reason", sorted(SETTLED))
def test_a_change_of_the_central_cloud_reaches_those_too_whose_last_difference_was_left_as_it_is(
    rows: Rows, reason: Reason
) -> None:
    settle(rows, claimed(rows), failure=Failure(reason, ""), result=SyncStatus.OUT_OF_SYNC)
    rows.store.raise_generation(IDENTITY, now=LATER, by="the central cloud")
    assert (rows.row("s1").due_at, rows.row("s1", PLATFORM).due_at) == (LATER, NEXT)


def test_requests_of_the_state_service_become_due_rows_once(rows: Rows) -> None:
    for name in ("s1", "s2", "s3"):
        settle(rows, claimed(rows, name, f"run-{name}"))
    rows.ask_follow_up("s1", IDENTITY)
    rows.ask_follow_up(None, PLATFORM)
    rows.ask_follow_up(None, EndpointType.FIRMWARE)
    assert rows.store.take_follow_ups(now=LATER) == 2
    assert (rows.row("s1").due_at, rows.row("s2").due_at) == (LATER, NEXT)
    assert rows.row("s3", PLATFORM).due_at == LATER
    assert rows.row("s1").requested_by == "somebody asked"
    assert rows.store.take_follow_ups(now=LATER) == 0


# --- reports that were lost ---------------------------------------------------------------------------------------


SETTLED_AT = NOON + timedelta(seconds=10)


def lost(rows: Rows, *, since: datetime | None = None, before: datetime = LATER) -> list[tuple[str, EndpointType]]:
    found = rows.store.lost_reports(since=since, before=before, now=LATER)
    return sorted((each.region_name, each.endpoint_type) for each in found)


def settled(rows: Rows, **changes: Any) -> None:
    run = claimed(rows)
    rows.store.settle([settlement(run, a_finding(type_, **changes), now=SETTLED_AT) for type_ in (PLATFORM, IDENTITY)])


def test_what_was_reported_and_is_in_no_row_is_lost(rows: Rows) -> None:
    settled(rows)
    rows.observe("s1", IDENTITY, SETTLED_AT)
    assert lost(rows) == [("s1", PLATFORM)]
    (found,) = rows.store.lost_reports(since=SETTLED_AT, before=LATER, now=LATER)
    assert (found.sync_status, found.reason, found.reported_at) == (SyncStatus.IN_SYNC, None, SETTLED_AT)
    assert found.keys_planned_until is None


def test_a_row_that_saw_something_older_does_not_have_the_report(rows: Rows) -> None:
    settled(rows)
    for type_ in (PLATFORM, IDENTITY):
        rows.observe("s1", type_, SETTLED_AT - timedelta(milliseconds=1))
    assert lost(rows) == [("s1", IDENTITY), ("s1", PLATFORM)]


def test_a_lost_report_says_why_it_is_unknown(rows: Rows) -> None:
    settled(rows, result=None, reported=SyncStatus.UNKNOWN, failure=Failure(Reason.TIMEOUT, "slow"))
    rows.plan_rotation(LATER)
    found = rows.store.lost_reports(since=None, before=LATER, now=LATER)
    assert {(each.sync_status, each.reason, each.keys_planned_until) for each in found} == {
        (SyncStatus.UNKNOWN, Reason.TIMEOUT, LATER)
    }


def test_what_a_row_saw_in_the_future_is_void(rows: Rows) -> None:
    settled(rows)
    rows.observe("s1", IDENTITY, LATER + timedelta(hours=1))
    rows.observe("s1", PLATFORM, LATER)
    assert lost(rows) == [("s1", IDENTITY)]


def test_lost_reports_are_looked_for_in_a_span_of_time(rows: Rows) -> None:
    settled(rows)
    assert lost(rows, since=SETTLED_AT + timedelta(seconds=1)) == []
    assert lost(rows, before=SETTLED_AT) == []


def test_nothing_is_lost_where_nothing_was_reported_or_nobody_audits(rows: Rows) -> None:
    assert lost(rows) == []
    settled(rows)
    rows.leave("s1")
    assert lost(rows) == []


# --- claiming and settling ---------------------------------------------------------------------------------------


def test_a_claim_takes_all_that_is_due_of_one_subcloud(rows: Rows) -> None:
    run = claimed(rows)
    assert {part.endpoint_type for part in run.parts} == set(audited_types())
    assert (run.placed, dict(run.groups_to_refill), dict(run.central_counts)) == (Placed(), {}, {})
    assert rows.row().audit_status is AuditStatus.IN_PROGRESS
    assert claim(rows, run_id="run-2") is None


def test_what_is_not_due_yet_is_not_claimed(rows: Rows) -> None:
    assert claim(rows, now=NOON - timedelta(seconds=1)) is None
    assert claim(rows, "nowhere") is None


def test_a_finished_comparison_is_kept_and_the_next_is_due_later(rows: Rows) -> None:
    assert settle(rows, claimed(rows))
    row = rows.row()
    assert (row.audit_status, row.result, row.reported) == (
        AuditStatus.COMPLETED, SyncStatus.IN_SYNC, SyncStatus.IN_SYNC,
    )  # fmt: skip
    assert (row.last_audit_time, row.last_good_at, row.due_at, row.attempt) == (LATER, LATER, NEXT, 0)
    assert claim(rows, run_id="run-2", now=NEXT - timedelta(seconds=1)) is None
    assert claim(rows, run_id="run-2", now=NEXT) is not None


def test_a_failure_keeps_the_last_good_answer_beside_its_reason(rows: Rows) -> None:
    settle(rows, claimed(rows))
    failed: dict[str, Any] = {
        "result": None,
        "reported": SyncStatus.UNKNOWN,
        "failure": Failure(Reason.UNREACHABLE, "gone"),
    }
    run = claimed(rows, run_id="run-2", now=NEXT)
    settle_as(rows, run, [a_finding(is_observed=False, due_at=NEXT, **failed)], now=NEXT)
    row = rows.row()
    assert (row.audit_status, row.reason, row.detail, row.attempt) == (
        AuditStatus.FAILED,
        Reason.UNREACHABLE,
        "gone",
        1,
    )
    assert (row.result, row.last_good_at, row.last_audit_time) == (SyncStatus.IN_SYNC, LATER, LATER)
    assert row.reported is SyncStatus.UNKNOWN
    settle(rows, run)
    assert rows.row(type_=PLATFORM).reason is None


def test_failures_in_a_row_are_counted_since_the_first_until_an_audit_succeeds(rows: Rows) -> None:
    failed: dict[str, Any] = {"result": None, "failure": Failure(Reason.SERVER_ERROR, "500"), "is_observed": False}
    settle(rows, claimed(rows), **failed)
    second = claimed(rows, run_id="run-2", now=NEXT)
    assert {(part.failing_since, part.failures) for part in second.parts} == {(LATER, 1)}
    settle_as(rows, second, [a_finding(part.endpoint_type, **failed) for part in second.parts], now=NEXT)
    third = claimed(rows, run_id="run-3", now=NEXT)
    assert {(part.failing_since, part.failures) for part in third.parts} == {(LATER, 2)}
    settle_as(rows, third, [a_finding(part.endpoint_type) for part in third.parts], now=NEXT)
    fourth = claimed(rows, run_id="run-4", now=NEXT)
    assert {(part.failing_since, part.failures) for part in fourth.parts} == {(None, 0)}


def test_differences_are_kept_when_they_are_gone_and_the_digest_is_not(rows: Rows) -> None:
    named = ("users bob: password",)
    settle(rows, claimed(rows), difference="d1", differences=named, difference_repairs=1, repaired=True)
    assert rows.row().repaired_at == LATER
    run = claimed(rows, run_id="run-2", now=NEXT)
    assert [(part.difference, part.difference_repairs) for part in run.parts] == [("d1", 1)] * 2
    settle_as(rows, run, [a_finding(part.endpoint_type) for part in run.parts], now=NEXT)
    row = rows.row()
    assert (row.differences, row.difference_at, row.difference_repairs) == (named, LATER, 0)


def test_a_request_that_arrives_during_a_run_leads_to_another_run(rows: Rows) -> None:
    run = claimed(rows)
    rows.store.request(["s1"], [IDENTITY], now=LATER, by="eve", allow_deletes=True)
    assert claim(rows, run_id="run-2", now=LATER) is None
    assert settle(rows, run, difference_repairs=3)
    row = rows.row()
    assert (row.generation, row.observed_generation, row.due_at) == (1, 0, LATER)
    (part,) = claimed(rows, run_id="run-2", now=LATER).parts
    assert (part.endpoint_type, part.deletes_allowed, part.difference_repairs) == (IDENTITY, True, 0)
    assert rows.row(type_=PLATFORM).due_at == NEXT


def test_a_change_of_the_central_cloud_during_a_run_leads_to_another_run(rows: Rows) -> None:
    run = claimed(rows)
    rows.store.raise_generation(IDENTITY, now=LATER, by="the central cloud")
    settle(rows, run)
    assert rows.row().due_at <= LATER
    assert claim(rows, run_id="run-2", now=LATER) is not None


def test_what_a_run_remembers_is_there_for_the_next(rows: Rows) -> None:
    run = claimed(rows)
    grant = Assignment("p1", ActorType.GROUP, "g1", "r1")
    placed = Placed({ResourceType.USERS: frozenset({"u1"})}, frozenset({grant}))
    assert rows.store.remember_placed(run, Placed())
    assert rows.store.remember_placed(run, placed)
    assert rows.store.remember_groups(run, {"g1": ("u1",)})
    settle(rows, run)
    again = claimed(rows, run_id="run-2", now=NEXT)
    assert again.placed.of(ResourceType.USERS) | again.placed.assignments == {"u1", grant}
    assert dict(again.groups_to_refill) == {"g1": ("u1",)}


def test_a_planned_rotation_is_told_to_the_run(rows: Rows) -> None:
    rows.plan_rotation(NEXT)
    assert claimed(rows).keys_planned_until == NEXT


def test_looking_takes_nothing(rows: Rows) -> None:
    run = rows.store.read_run("s1")
    assert {part.endpoint_type for part in run.parts} == set(audited_types())
    assert rows.row().audit_status is AuditStatus.NONE
    with pytest.raises(UnknownSubcloud, match=r"^there is no subcloud named s9$"):
        rows.store.read_run("s9")


def test_a_released_run_is_as_if_it_had_not_been(rows: Rows) -> None:
    run = claimed(rows)
    assert rows.store.release(run, now=LATER)
    row = rows.row()
    assert (row.audit_status, row.attempt, row.due_at) == (AuditStatus.NONE, 0, LATER)
    assert not rows.store.release(run, now=LATER)
    assert claim(rows, run_id="run-2", now=LATER) is not None


WRITES: dict[str, Callable[[Rows, AuditRun], bool]] = {
    "remember_placed": lambda rows, run: rows.store.remember_placed(run, Placed()),
    "remember_groups": lambda rows, run: rows.store.remember_groups(run, {"g": ("u",)}),
    "settle": settle,
    "release": lambda rows, run: rows.store.release(run, now=LATER),
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("what", ["taken back", "claimed by another", "deleted"])
def test_a_run_that_lost_its_rows_writes_nothing(rows: Rows, write: str, what: str) -> None:
    run = claimed(rows)
    if what == "deleted":
        rows.delete("s1")
    else:
        rows.store.take_back([died("run-1")], now=NOON)
        if what == "claimed by another":
            claimed(rows, run_id="run-2")
    before = None if what == "deleted" else rows.row()
    assert WRITES[write](rows, run) is False
    assert before is None or rows.row() == before


def test_standing_says_why_a_run_must_stop(rows: Rows) -> None:
    for name in ("s1", "s2", "s3"):
        claimed(rows, name, f"run-{name}")
    run_ids = ["run-s1", "run-s2", "run-s3"]
    assert set(rows.store.standing(run_ids).values()) == {None}
    rows.leave("s1")
    rows.delete("s2")
    standing = rows.store.standing(run_ids)
    assert [found and found.ending for found in map(standing.get, run_ids)] == [
        Ending.CANCELLED, Ending.SUPERSEDED, None,
    ]  # fmt: skip


# --- the sweep ---------------------------------------------------------------------------------------------------


def test_dispatch_sends_one_hint_for_both_rows_and_only_once(rows: Rows) -> None:
    first = rows.store.dispatch(room=2, lost=[], now=NOON)
    assert first == [AuditHint("s1", 1)]
    assert rows.store.dispatch(room=9, lost=[], now=NOON) == [AuditHint("s2", 1), AuditHint("s3", 1)]
    assert rows.store.dispatch(room=9, lost=[], now=NOON) == []
    assert rows.store.dispatch(room=9, lost=first, now=LATER) == [AuditHint("s1", 2)]
    assert dict(rows.store.unstarted_hints()) == {
        AuditHint("s1", 2): LATER, AuditHint("s2", 1): NOON, AuditHint("s3", 1): NOON,
    }  # fmt: skip


def test_those_that_are_not_eligible_are_not_sent_and_do_not_count_as_waiting(rows: Rows) -> None:
    rows.store.dispatch(room=2, lost=[], now=NOON)
    rows.leave("s1")
    rows.leave("s2")
    assert rows.store.unstarted_hints() == []
    assert [hint.region_name for hint in rows.store.dispatch(room=9, lost=[], now=NOON)] == ["s3"]


def test_undone_dispatches_are_due_again(rows: Rows) -> None:
    rows.store.undo_dispatch(rows.store.dispatch(room=9, lost=[], now=NOON))
    assert rows.store.unstarted_hints() == []
    assert len(rows.store.dispatch(room=9, lost=[], now=NOON)) == 3


def test_a_claim_answers_every_hint_of_its_subcloud(rows: Rows) -> None:
    rows.store.dispatch(room=2, lost=[], now=NOON)
    run = claimed(rows)
    assert rows.store.unstarted_hints() == []
    assert rows.store.in_progress_count() == 1
    assert rows.store.in_progress_since_before(LATER, now=LATER) == [died("run-1")]
    assert rows.store.in_progress_since_before(NOON, now=NOON) == []
    settle(rows, run)
    assert rows.store.in_progress_count() == 0


def test_taking_back_makes_due_again_and_counts_and_quarantine_holds_off(rows: Rows) -> None:
    assert rows.store.take_back([died("another")], now=NOON) == []
    for number in range(2):
        claimed(rows, run_id=f"run-{number}")
        assert rows.store.in_progress_since_before(LATER, now=LATER) == [died(f"run-{number}", deaths=number)]
        assert rows.store.take_back([died(f"run-{number}", deaths=number)], now=NOON) == ["s1"]
        assert (rows.row().audit_status, rows.row().due_at) == (AuditStatus.FAILED, NOON)
    claimed(rows, run_id="run-2")
    assert rows.store.quarantine([died("run-2", deaths=2)], QUARANTINED, now=NOON, retry_at=LATER) == ["s1"]
    row = rows.row()
    assert (row.audit_status, row.reason, row.due_at) == (AuditStatus.FAILED, Reason.QUARANTINED, LATER)
    claimed(rows, run_id="run-3", now=LATER)
    assert rows.store.in_progress_since_before(NEXT, now=NEXT) == [RunInProgress("s1", "run-3", LATER, 0)]


def test_a_death_that_does_not_count_leaves_no_trace(rows: Rows) -> None:
    claimed(rows)
    assert rows.store.take_back([died("run-1")], now=NOON, counted=False) == ["s1"]
    assert rows.store.suspects(lost=[]) == {}


def test_suspects_are_counted_and_sent_by_their_deaths(rows: Rows) -> None:
    claimed(rows)
    rows.store.take_back([died("run-1")], now=NOON)
    of_s1 = len(audited_types())
    assert rows.store.suspects(lost=[]) == {(1, False): of_s1}
    assert "s1" not in {hint.region_name for hint in rows.store.dispatch(room=9, lost=[], now=LATER, deaths=range(1))}
    assert rows.store.dispatch(room=9, lost=[], now=LATER, deaths=range(2, 9)) == []
    (hint,) = rows.store.dispatch(room=9, lost=[], now=LATER, deaths=range(1, 2))
    assert hint.region_name == "s1"
    assert rows.store.suspects(lost=[]) == {(1, True): of_s1}
    assert rows.store.suspects(lost=[hint]) == {(1, False): of_s1}
    claimed(rows, run_id="run-2", now=LATER)
    assert rows.store.suspects(lost=[hint]) == {(1, True): of_s1}


def test_the_server_says_when_it_was_started(rows: Rows) -> None:
    assert rows.store.server_started_at() < datetime.now(UTC)


def test_a_run_claimed_in_the_future_counts_as_claimed_long_ago(rows: Rows) -> None:
    claimed(rows)
    earlier = NOON - timedelta(hours=1)
    assert rows.store.in_progress_since_before(earlier - timedelta(seconds=30), now=earlier) == [died("run-1")]


def test_an_audit_further_away_than_any_is_planned_is_due(rows: Rows) -> None:
    longest = timedelta(minutes=22)
    settle_as(rows, claimed(rows), [a_finding(PLATFORM)], now=NOON)
    due_at = rows.row(type_=PLATFORM).due_at
    assert rows.store.void_deadlines(now=due_at - longest, longest=longest) == 0
    assert rows.row(type_=PLATFORM).due_at == due_at
    earlier = due_at - longest - timedelta(seconds=3)
    assert rows.store.void_deadlines(now=earlier, longest=longest) >= 1
    assert rows.row(type_=PLATFORM).due_at == earlier


def test_rows_of_one_run_that_died_are_told_apart_by_how_often_theirs_did(rows: Rows) -> None:
    settle_as(rows, claimed(rows), [a_finding(PLATFORM)], now=NOON)
    rows.store.take_back([died("run-1")], now=NOON)
    run = claimed(rows, run_id="run-2", now=NEXT)
    assert {part.endpoint_type for part in run.parts} == set(audited_types())
    found = rows.store.in_progress_since_before(NEXT + timedelta(minutes=1), now=NEXT + timedelta(minutes=1))
    assert sorted((run.run_id, run.deaths) for run in found) == [("run-2", 0), ("run-2", 1)]
    (first,) = [run for run in found if run.deaths]
    assert rows.store.quarantine([first], QUARANTINED, now=NEXT, retry_at=NEXT) == ["s1"]
    assert [rows.row(type_=type_).audit_status for type_ in (IDENTITY, PLATFORM)] == [
        AuditStatus.FAILED, AuditStatus.IN_PROGRESS,
    ]  # fmt: skip


# --- the central cloud
# --------------------------------------------------------------------------------------------------


SEEN = CentralState(endpoint_type=IDENTITY, fingerprint="f1", events_fingerprint="e1", counts={"users": 7})


def test_the_first_sight_of_the_central_cloud_is_kept_and_makes_nothing_due(rows: Rows) -> None:
    assert rows.store.central_state(IDENTITY) is None
    assert rows.store.accept_central(SEEN, old=None, now=NOON) == 0
    assert rows.store.accept_central(SEEN, old=None, now=NOON) is None
    assert rows.store.central_state(IDENTITY) == replace(SEEN, changed_at=NOON)
    assert rows.row().generation == 0
    assert dict(claimed(rows).central_counts) == {"users": 7}


def test_a_change_is_accepted_by_one_of_two_watchers_and_makes_rows_due(rows: Rows) -> None:
    rows.store.accept_central(SEEN, old=None, now=NOON)
    old = rows.store.central_state(IDENTITY)
    newer = replace(SEEN, fingerprint="f2")
    assert rows.store.accept_central(newer, old=old, now=LATER) == 3
    assert rows.store.accept_central(newer, old=old, now=LATER) is None
    kept = rows.store.central_state(IDENTITY)
    assert kept is not None
    assert (kept.fingerprint, kept.generation, kept.changed_at) == ("f2", 1, LATER)
    assert [rows.row(name).generation for name in ("s1", "s2", "s3")] == [1, 1, 1]


def test_a_refusal_is_noted_until_the_central_cloud_is_confirmed_and_allowed_only_for_all(rows: Rows) -> None:
    rows.store.accept_central(SEEN, old=None, now=NOON)
    rows.store.refuse_central(IDENTITY, why="shrunk", now=NOON)
    rows.store.request(["s1"], [IDENTITY], now=NOON, by="eve", allow_deletes=True)
    kept = rows.store.central_state(IDENTITY)
    assert kept is not None
    assert (kept.refused, kept.shrink_allowed) == ("shrunk", False)
    rows.store.request(None, [IDENTITY], now=NOON, by="eve", allow_deletes=True)
    rows.store.refuse_central(IDENTITY, why="gone", now=NOON)
    kept = rows.store.central_state(IDENTITY)
    assert kept is not None
    assert (kept.refused, kept.shrink_allowed) == ("gone", True)
    rows.store.confirm_central(IDENTITY, now=NOON)
    kept = rows.store.central_state(IDENTITY)
    assert kept is not None
    assert (kept.refused, kept.shrink_allowed) == (None, False)


def test_since_when_the_central_cloud_is_unreadable_is_kept_until_it_is_readable_also_before_the_first_sight(
    rows: Rows,
) -> None:
    assert rows.central() == CentralFacts()
    rows.store.note_central_check(unreadable="central-unreachable: refused", now=NOON)
    rows.store.note_central_check(unreadable="central-auth-failed: 401", now=LATER)
    assert rows.central() == CentralFacts(
        checked_at=LATER, unreadable_since=NOON, unreadable_reason="central-auth-failed: 401"
    )
    rows.store.note_central_check(unreadable=None, now=LATER)
    rows.store.note_central_check(unreadable=None, now=NEXT)
    assert rows.central() == CentralFacts(checked_at=NEXT, readable_since=LATER)
    rows.store.note_central_check(unreadable="central-empty: none", now=NEXT)
    assert rows.central() == CentralFacts(
        checked_at=NEXT, unreadable_since=NEXT, unreadable_reason="central-empty: none"
    )


def test_a_refusal_is_kept_with_its_beginning(rows: Rows) -> None:
    rows.store.accept_central(SEEN, old=None, now=NOON)
    rows.store.refuse_central(IDENTITY, why="shrunk", now=LATER)
    rows.store.refuse_central(IDENTITY, why="shrunk more", now=NEXT)
    kept = rows.store.central_state(IDENTITY)
    assert kept is not None
    assert (kept.refused, kept.refused_since) == ("shrunk more", LATER)
    assert rows.central() == CentralFacts(refused=(RefusedFacts(IDENTITY, LATER, "shrunk more"),))
    rows.store.confirm_central(IDENTITY, now=NEXT)
    kept = rows.store.central_state(IDENTITY)
    assert kept is not None
    assert kept.refused_since is None


# --- only PostgreSQL can show this ---------------------------------------------------------------------------------


def test_ten_claims_at_once_give_the_rows_to_one(engine: Engine) -> None:
    rows = _sql_rows(engine)
    got: list[AuditRun | None] = []
    _together(10, lambda number: got.append(claim(rows, run_id=f"run-{number}")))
    assert len(got) == 10
    assert len([run for run in got if run is not None]) == 1


def test_two_dispatches_at_once_share_the_rows_between_them(engine: Engine) -> None:
    completed_rows(engine, [f"n{i}" for i in range(100)])
    store, sent = SqlAuditStore(engine), []
    _together(4, lambda number: sent.extend(store.dispatch(room=60, lost=[], now=NOON)))
    with engine.connect() as connection:
        marked = connection.execute(select(subcloud_sync.c.dispatches)).scalars().all()
    assert {hint.region_name for hint in sent} <= {f"n{i}" for i in range(100)}
    assert max(marked) <= 2


def test_requests_for_all_and_settling_runs_do_not_deadlock(engine: Engine) -> None:
    names = [f"n{i}" for i in range(30)]
    completed_rows(engine, names)
    rows = replace(_memory_rows(), store=SqlAuditStore(engine))
    done: list[bool] = []

    def work(number: int) -> None:
        for name in names[number::4]:
            run = claimed(rows, name, f"run-{name}", now=NEXT)
            rows.store.request(None, audited_types(), now=NOON, by="eve")
            done.append(settle(rows, run))

    _together(4, work)
    assert done == [True] * 30


@pytest.mark.parametrize("write", ["remember_placed", "remember_groups"])
def test_a_subcloud_can_be_deleted_while_its_audit_writes(engine: Engine, write: str) -> None:
    rows = _sql_rows(engine)
    run = claimed(rows)
    got: list[bool] = []
    writer = threading.Thread(target=lambda: got.append(WRITES[write](rows, run)))
    with engine.begin() as connection:
        connection.execute(select(subcloud.c.id).where(subcloud.c.name == "s1").with_for_update())
        writer.start()
        wait_until(lambda: _waits_for_a_lock(engine), seconds=60, what="the audit waits for the subcloud's row")
        connection.execute(delete(subcloud).where(subcloud.c.name == "s1"))
    writer.join(60)
    assert got == [False]


def _waits_for_a_lock(engine: Engine) -> bool:
    waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
    with engine.connect() as connection:
        return bool(connection.scalar(waiting))


def _together(count: int, work: Callable[[int], object]) -> None:
    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)


def test_an_endpoint_type_that_is_audited_from_now_on_gets_its_rows_once(
    rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(REGISTRY, EndpointType.FIRMWARE, REGISTRY[PLATFORM])

    assert rows.store.add_rows(EndpointType.FIRMWARE, now=LATER) == 3
    assert rows.store.add_rows(EndpointType.FIRMWARE, now=NEXT) == 0
    assert rows.row("s2", EndpointType.FIRMWARE).due_at == LATER
