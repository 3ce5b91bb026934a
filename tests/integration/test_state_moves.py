"""No statement of the stores leads outside the three tables of states.

A trigger on each column of states writes down every change of (state, run id). `OPERATIONS` is every write of the
stores, with the events it may carry out: each is tried in each state, by the run that owns the row and by another, and
all of them in random order. A change that is none of the operation's events, in its own column, fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from random import Random
from typing import Any

import pytest
from sqlalchemy import Engine, insert, select, text, update
from sqlalchemy.dialects.postgresql import insert as insert_new

from dcsync.adapters.postgres.audits import SqlAuditStore
from dcsync.adapters.postgres.key_rotation import SqlKeyRotationStore
from dcsync.adapters.postgres.runs import SqlRunStore
from dcsync.adapters.postgres.tables import (
    audit_request,
    key_rotation,
    subcloud,
    subcloud_sync,
    sync_attempt,
    sync_step,
)
from dcsync.adapters.postgres.transitions import apply_event
from dcsync.audit.ports import AuditPart, AuditRun, CentralState, Finding
from dcsync.audit.settlement import settlement
from dcsync.initial_sync.ports import Claim, Run
from dcsync.model.ending import Ending, Failure
from dcsync.model.identity import KeySet, Placed
from dcsync.model.messages import AuditHint, SyncHint
from dcsync.model.reasons import Reason
from dcsync.model.states.audit import AUDIT, AuditEvent, AuditStatus
from dcsync.model.states.initial_sync import INITIAL_SYNC, InitialSyncEvent, InitialSyncState
from dcsync.model.states.rotation import ROTATION, RotationEvent, RotationState
from dcsync.model.states.table import StateTable
from dcsync.model.subcloud import EndpointType, NewSubcloud, Step, SyncStatus
from dcsync.runs.abandoned import QUARANTINED, RunInProgress
from tests.builders import NOON, a_subcloud
from tests.requested_rows import requested_rows

IDENTITY = EndpointType.IDENTITY
FAILURE = Failure(Reason.TIMEOUT, "slow")
KEYS = KeySet("f1", ())

COLUMNS: dict[str, tuple[StateTable[Any, Any], str]] = {
    "subcloud": (INITIAL_SYNC, "initial_sync_state"),
    "subcloud_sync": (AUDIT, "audit_status"),
    "key_rotation": (ROTATION, "state"),
}
TRIGGERS = "CREATE TABLE moved (what text, old text, new text);" + "".join(
    f"""
    CREATE FUNCTION note_{table}() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN INSERT INTO moved VALUES ('{table}', OLD.{column}, NEW.{column}); RETURN NULL; END $$;
    CREATE TRIGGER note AFTER UPDATE ON {table} FOR EACH ROW
        WHEN ((OLD.{column}, OLD.run_id) IS DISTINCT FROM (NEW.{column}, NEW.run_id))
        EXECUTE FUNCTION note_{table}();"""
    for table, (_, column) in COLUMNS.items()
)


class Called:
    """A store that remembers what was called of it."""

    def __init__(self, store: object) -> None:
        self._store = store
        self.names: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        self.names.add(name)
        return getattr(self._store, name)

    def never(self) -> set[str]:
        return {name for name in dir(self._store) if not name.startswith("_")} - self.names


READS = {
    *(
        "in_progress_since_before",
        "in_progress_count",
        "unstarted_hints",
        "server_started_at",
        "suspects",
        "unowned_attempts",
        "standing",
    ),
    *("audits", "read_run", "central_state", "row", "spread", "lost_reports", "without_keys", "oldest_reading"),
}
ELSEWHERE = {"refuse_central", "confirm_central", "void_deadlines", "note_central_check"}
"""The first two write to what is known of the central cloud alone, the last to due times."""


@dataclass
class World:
    """One subcloud with the row of one audit, and the row of the rotation; whoever acts does so as `run_id`."""

    engine: Engine
    id: int
    run_id: str = "run-1"
    now: datetime = NOON
    runs: Any = field(init=False)
    audits: Any = field(init=False)
    rotation: Any = field(init=False)

    def __post_init__(self) -> None:
        self.runs, self.audits = Called(SqlRunStore(self.engine)), Called(SqlAuditStore(self.engine))
        self.rotation = Called(SqlKeyRotationStore(self.engine))

    def put(
        self,
        *,
        sync: InitialSyncState = InitialSyncState.COMPLETED,
        audit: AuditStatus = AuditStatus.NONE,
        rotation: RotationState = RotationState.IDLE,
        owner: str = "run-1",
    ) -> None:
        """The rows as nobody but this test writes them."""
        owns = {True: {"run_id": owner, "claimed_at": NOON}, False: {"run_id": None, "claimed_at": None}}
        with self.engine.begin() as rows:
            rows.execute(
                update(subcloud).values(
                    initial_sync_state=sync, generation=1, abandoned=0, dispatched_at=None,
                    reason="timeout", retry_at=NOON, **owns[sync is InitialSyncState.IN_PROGRESS],
                )
            )  # fmt: skip
            audited = owns[audit is AuditStatus.IN_PROGRESS]
            rows.execute(update(subcloud_sync).values(audit_status=audit, abandoned=0, due_at=NOON, **audited))
            rows.execute(
                update(key_rotation).values(
                    state=rotation, requested_at=None, next_due_at=NOON, **owns[rotation is RotationState.ROTATING]
                )
            )
            for table in ("moved", "sync_attempt", "sync_request"):
                rows.execute(text(f"DELETE FROM {table}"))

    def moved(self) -> list[tuple[str, str, str]]:
        """What changed since the last time this was asked."""
        with self.engine.begin() as rows:
            return [tuple(row) for row in rows.execute(text("DELETE FROM moved RETURNING what, old, new"))]

    def state(self, table: str) -> str:
        with self.engine.connect() as rows:
            return str(rows.scalar(text(f"SELECT {COLUMNS[table][1]} FROM {table}")))

    # --- what operations act with ---

    @property
    def run(self) -> Run:
        return Run(self.run_id, a_subcloud("s1", id=self.id), None)

    @property
    def audit(self) -> AuditRun:
        return AuditRun(
            run_id=self.run_id, subcloud=self.run.subcloud, parts=(AuditPart(endpoint_type=IDENTITY, generation=0),),
            placed=Placed(), groups_to_refill={}, central_counts={},
        )  # fmt: skip

    @property
    def dead(self) -> list[RunInProgress]:
        return [RunInProgress("s1", self.run_id, NOON, 0)]

    @property
    def hint(self) -> SyncHint:
        return SyncHint("s1", 1, 1)

    def apply(self, event: InitialSyncEvent) -> None:
        with self.engine.begin() as rows:
            apply_event(rows, event, [self.id], now=self.now, by="eve", cause="test")

    def claim(self) -> object:
        with self.engine.begin() as rows:
            generation = rows.scalar(select(subcloud.c.generation)) or 0
            rows.execute(sync_attempt.delete().where(sync_attempt.c.run_id == self.run_id))  # of the same name, earlier
        return self.runs.claim([Claim(self.run_id, "s1", generation)], worker="w", now=self.now)

    def start_step(self) -> object:
        with self.engine.begin() as rows:
            rows.execute(sync_step.delete())
            attempt = {"run_id": self.run_id, "subcloud_id": self.id, "generation": 1, "attempt": 1, "worker": "w"}
            rows.execute(insert_new(sync_attempt).values(**attempt, started_at=NOON).on_conflict_do_nothing())
        return self.runs.start_step(self.run, Step.IDENTITY, now=self.now)

    def settle(self, failure: Failure | None) -> object:
        finding = Finding(
            endpoint_type=IDENTITY, generation=0, result=SyncStatus.IN_SYNC, reported=None, is_observed=True,
            due_at=self.now, failure=failure,
        )  # fmt: skip
        return self.audits.settle([settlement(self.audit, finding, now=self.now)])

    def follow_up(self) -> object:
        with self.engine.begin() as rows:
            rows.execute(insert(audit_request).values(endpoint_type=IDENTITY, requested_at=self.now, cause="test"))
        return self.audits.take_follow_ups(now=self.now)

    def accept(self) -> object:
        seen = CentralState(endpoint_type=IDENTITY, fingerprint=str(self.now), events_fingerprint="", counts={})
        return self.audits.accept_central(seen, old=self.audits.central_state(IDENTITY), now=self.now)

    def finish(self) -> object:
        return self.rotation.finish(
            run_id=self.run_id, current=KEYS, now=self.now, next_due_at=None, window_until=self.now
        )

    def give_up(self, event: RotationEvent) -> object:
        return self.rotation.give_up(
            event, run_id=self.run_id, detail="", now=self.now, retry_at=self.now, forget=False
        )


@dataclass(frozen=True)
class Operation:
    """One write of a store. `is_of_a_run`: only the run that owns the row may carry out the events."""

    table: str
    name: str
    call: Callable[[World], object]
    events: tuple[StrEnum, ...] = ()
    is_of_a_run: bool = True
    given: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"{self.table}: {self.name}"

    @property
    def states(self) -> StateTable[Any, Any]:
        return COLUMNS[self.table][0]

    def leads_to(self, state: str) -> set[str]:
        return {after for event in self.events if (after := self.states.next_state(state, event))}


def _operations() -> Iterator[Operation]:
    for event in (InitialSyncEvent.BECAME_ELIGIBLE, InitialSyncEvent.LEFT, InitialSyncEvent.ASKED):
        yield Operation("subcloud", event, lambda w, e=event: w.apply(e), (event,), is_of_a_run=False)
    due, later = InitialSyncEvent.RETRY_DUE, NOON + timedelta(days=1)
    yield Operation(
        "subcloud",
        "requeue",
        lambda w: w.runs.requeue_due(now=later, longest=timedelta(days=1)),
        (due,),
        is_of_a_run=False,
    )
    yield Operation("subcloud", "claim", World.claim, (InitialSyncEvent.CLAIMED,), is_of_a_run=False)
    for name, of_run, call in (
        ("complete", InitialSyncEvent.SUCCEEDED, lambda w: w.runs.complete(w.run, now=w.now, audits_due_at=w.now)),
        ("fail", InitialSyncEvent.STEP_FAILED, lambda w: w.runs.fail(w.run, FAILURE, now=w.now, retry_at=w.now)),
        (
            "give back",
            InitialSyncEvent.GIVEN_BACK,
            lambda w: w.runs.give_back(w.run, ending=Ending.GIVEN_BACK, detail="", now=w.now),
        ),
        ("take back", InitialSyncEvent.ABANDONED, lambda w: w.runs.take_back(w.dead, now=w.now)),
        (
            "quarantine",
            InitialSyncEvent.QUARANTINED,
            lambda w: w.runs.quarantine(w.dead, QUARANTINED, now=w.now, retry_at=w.now),
        ),
    ):
        yield Operation("subcloud", name, call, (of_run,))
    for name, writes in {
        "dispatch": lambda w: w.runs.dispatch(room=9, lost=[w.hint], now=w.now),
        "undo dispatch": lambda w: w.runs.undo_dispatch([w.hint]),
        "record identity": lambda w: w.runs.record_identity(w.run, fingerprint="f"),
        "remember groups": lambda w: w.runs.remember_groups(w.run, {}),
        "remember placed": lambda w: w.runs.remember_placed(w.run, Placed(), {}),
        "end attempt": lambda w: w.runs.end_attempt(w.run, Ending.CANCELLED, detail="", now=w.now),
        "end unowned": lambda w: w.runs.end_unowned([w.run_id], now=w.now),
        "start step": World.start_step,
        "end step": lambda w: w.runs.end_step(w.run, Step.IDENTITY, now=w.now, outcome="done"),
    }.items():
        yield Operation("subcloud", name, writes)

    running = {"sync": InitialSyncState.IN_PROGRESS}
    reset = AuditEvent.RESET
    yield Operation("subcloud_sync", "reset", lambda w: w.runs.init_audit(w.run, now=w.now), (reset,), given=running)
    yield Operation(
        "subcloud_sync",
        "claim",
        lambda w: w.audits.claim({w.run_id: "s1"}, now=w.now),
        (AuditEvent.CLAIMED,),
        is_of_a_run=False,
    )
    for name, audited, call in (
        ("settle", AuditEvent.SUCCEEDED, lambda w: w.settle(None)),
        ("settle as failed", AuditEvent.FAILED, lambda w: w.settle(FAILURE)),
        ("release", AuditEvent.RELEASED, lambda w: w.audits.release(w.audit, now=w.now)),
        ("take back", AuditEvent.ABANDONED, lambda w: w.audits.take_back(w.dead, now=w.now)),
        (
            "quarantine",
            AuditEvent.QUARANTINED,
            lambda w: w.audits.quarantine(w.dead, QUARANTINED, now=w.now, retry_at=w.now),
        ),
    ):
        yield Operation("subcloud_sync", name, call, (audited,))
    for name, writes in {
        "request": lambda w: w.audits.request(None, [IDENTITY], now=w.now, by="eve", allow_deletes=True),
        "add rows": lambda w: w.audits.add_rows(IDENTITY, now=w.now),
        "raise generation": lambda w: w.audits.raise_generation(IDENTITY, now=w.now, by="test"),
        "take follow-ups": World.follow_up,
        "accept central": World.accept,
        "dispatch": lambda w: w.audits.dispatch(room=9, lost=[AuditHint("s1", 1)], now=w.now),
        "undo dispatch": lambda w: w.audits.undo_dispatch([AuditHint("s1", 1)]),
        "remember placed": lambda w: w.audits.remember_placed(w.audit, Placed()),
        "remember groups": lambda w: w.audits.remember_groups(w.audit, {}),
    }.items():
        yield Operation("subcloud_sync", name, writes)

    claims = RotationEvent.CLAIMED, RotationEvent.TAKEN_OVER
    yield Operation(
        "key_rotation",
        "claim",
        lambda w: w.rotation.claim(run_id=w.run_id, now=w.now, stale_before=w.now),
        claims,
        is_of_a_run=False,
    )
    yield Operation("key_rotation", "finish", World.finish, (RotationEvent.ROTATED,))
    for not_rotated in (RotationEvent.GIVEN_UP, RotationEvent.RESUMED):
        yield Operation("key_rotation", not_rotated, lambda w, e=not_rotated: w.give_up(e), (not_rotated,))
    yield Operation(
        "key_rotation",
        "end distribution",
        lambda w: w.rotation.end_distribution(now=w.now, detail=""),
        (RotationEvent.DISTRIBUTED,),
        is_of_a_run=False,
    )
    for name, writes in {
        "ask": lambda w: w.rotation.ask(now=w.now, by="eve", forced=False, max_in_flight=None),
        "schedule": lambda w: w.rotation.schedule(w.now, was=NOON),
        "remember": lambda w: w.rotation.remember(run_id=w.run_id, before=KEYS, now=NOON),
        "next wave": lambda w: w.rotation.next_wave("f2", max_in_flight=9, requested_before=w.now, now=w.now),
    }.items():
        yield Operation("key_rotation", name, writes)


OPERATIONS = list(_operations())
ARGUMENT = {"subcloud": "sync", "subcloud_sync": "audit", "key_rotation": "rotation"}


@pytest.fixture
def world(engine: Engine) -> World:
    requested_rows(engine, [NewSubcloud(name="s1", management_ip="10.0.0.1", region_name="s1")])
    with engine.begin() as rows:
        rows.execute(subcloud_sync.delete().where(subcloud_sync.c.endpoint_type != IDENTITY))
        rows.execute(insert(key_rotation).values(id=1))
        rows.exec_driver_sql(TRIGGERS)
        return World(engine, rows.execute(select(subcloud.c.id)).scalar_one())


def outside(operation: Operation, moves: list[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """The changes that are none of this operation's events."""
    return [
        (table, old, new)
        for table, old, new in moves
        if table != operation.table or new not in operation.leads_to(operation.states.states(old))
    ]


def test_each_write_carries_out_its_event_where_its_table_allows_it_and_nowhere_else(world: World) -> None:
    wrong = []
    for operation in OPERATIONS:
        for state in operation.states.states:
            for owner in ("run-1", "another"):
                world.put(**(operation.given | {ARGUMENT[operation.table]: state, "owner": owner}))
                world.now = NOON + timedelta(minutes=1)
                operation.call(world)
                may = operation.leads_to(state) if owner == "run-1" or not operation.is_of_a_run else set()
                after, moves = world.state(operation.table), world.moved()
                if after not in (may or {state}) or outside(operation, moves):
                    wrong.append((operation, state, owner, after, moves))
    assert wrong == []
    never = world.runs.never() | world.audits.never() | world.rotation.never()
    assert never - READS == ELSEWHERE, "add it to OPERATIONS"


def test_every_event_is_carried_out_by_a_write() -> None:
    carried_out = {event for operation in OPERATIONS for event in operation.events}
    missing = {event for table, _ in COLUMNS.values() for event in table.events} - carried_out
    assert missing == {RotationEvent.WAVE_SENT}  # asks subclouds for audits, and leaves the rotation's row as it is


# Of each table as often as of the others, and less often what moves nothing.
CHOICES = [
    *([each for each in OPERATIONS if each.events and each.table == table] for table in COLUMNS),
    [each for each in OPERATIONS if not each.events],
]


@pytest.mark.parametrize("seed", range(8))
def test_no_order_of_writes_leads_outside_the_tables(world: World, seed: int) -> None:
    draw = Random(seed)
    for _ in range(10):
        world.put(**{name: draw.choice(list(COLUMNS[table][0].states)) for table, name in ARGUMENT.items()})
        steps: list[tuple[Operation, str]] = []
        for minute in range(40):
            operation, run_id = draw.choice(draw.choice(CHOICES)), draw.choice(["run-1", "run-2"])
            steps.append((operation, run_id))
            world.run_id, world.now = run_id, NOON + timedelta(minutes=minute)
            operation.call(world)
            assert outside(operation, world.moved()) == [], steps
