"""An outsider's `SELECT ... FOR UPDATE` on what belongs to one subcloud delays nobody else."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import pytest
from sqlalchemy import Engine, text

from dcsync.adapters.postgres.alarms import SqlAlarmStore
from dcsync.adapters.postgres.audits import SqlAuditStore
from dcsync.adapters.postgres.history import SqlHistory
from dcsync.adapters.postgres.inventory import SqlInventory
from dcsync.adapters.postgres.probes import SqlProbeStore
from dcsync.adapters.postgres.runs import SqlRunStore
from dcsync.adapters.postgres.silence import SqlSilenceStore
from dcsync.adapters.postgres.states import SqlStateStore
from dcsync.initial_sync.ports import Claim
from dcsync.model.ending import Failure
from dcsync.model.errors import RowLocked
from dcsync.model.history import AttemptHistory
from dcsync.model.reasons import Reason
from dcsync.model.states.initial_sync import InitialSyncState
from dcsync.model.subcloud import AvailabilityStatus, EndpointType, new_subcloud
from dcsync.runs.abandoned import RunInProgress
from dcsync.state.ports import AlarmRow
from dcsync.state.service import StateService
from tests.builders import NOON, an_address
from tests.contract.test_audit_store_contract import completed_rows
from tests.fake_messenger import FakeMessenger
from tests.reports import at, online
from tests.requested_rows import requested_rows

Holds = Callable[..., AbstractContextManager[None]]

LATER = NOON + timedelta(hours=1)
NAMES = ["s1", "s2", "s3"]
LOCKED = "s2"
OTHERS = ["s1", "s3"]
SOON = 8.0
"""Less than a statement waits for a locked row."""


@dataclass
class Outsider:
    engine: Engine

    @contextmanager
    def holds(self, *tables: str) -> Iterator[None]:
        """The rows of LOCKED in these tables, as a forgotten psql session does; the block must end soon."""
        with self.engine.begin() as connection:
            connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
            for table in tables:
                column = "id" if table == "subcloud" else "subcloud_id"
                statement = (
                    f"SELECT 1 FROM {table} WHERE {column} = (SELECT id FROM subcloud WHERE name = :name) FOR UPDATE"
                )
                assert connection.execute(text(statement), {"name": LOCKED}).all(), f"{table} has no row to be locked"
            began = time.monotonic()
            yield
            assert time.monotonic() - began < SOON


@pytest.fixture
def holds(engine: Engine) -> Holds:
    return Outsider(engine).holds


def add_requested(engine: Engine) -> SqlRunStore:
    new = [new_subcloud(name=n, management_ip=an_address(n), region_name=n, software_version="") for n in NAMES]
    requested_rows(engine, new)
    return SqlRunStore(engine)


def claim_all(store: SqlRunStore) -> list[str]:
    claims = [Claim(f"run-{name}", name, 1) for name in NAMES]
    return sorted(run.subcloud.name for run in store.claim(claims, worker="w", now=NOON))


def abandoned(deaths: int = 0) -> list[RunInProgress]:
    return [RunInProgress(name, f"run-{name}", NOON, deaths) for name in NAMES]


def states(engine: Engine) -> dict[str, InitialSyncState]:
    return {found.name: found.initial_sync_state for found in SqlInventory(engine).all()}


def attempts_of(engine: Engine, name: str) -> list[AttemptHistory]:
    return [each for request in SqlInventory(engine).history(name)[0].requests for each in request.attempts]


# --- initial syncs ---


def test_other_requests_are_dispatched_and_claimed(engine: Engine, holds: Holds) -> None:
    store = add_requested(engine)
    with holds("subcloud"):
        hints = store.dispatch(room=10, lost=[], now=NOON)
        assert sorted(hint.region_name for hint in hints) == OTHERS
        assert claim_all(store) == OTHERS
    assert claim_all(store) == [LOCKED]


@pytest.mark.parametrize("tables", [("subcloud",), ("sync_attempt",), ("subcloud", "sync_attempt")], ids="-".join)
@pytest.mark.parametrize("way", ["take-back", "quarantine"])
def test_other_runs_of_dead_workers_are_taken_back(
    engine: Engine, holds: Holds, way: str, tables: tuple[str, ...]
) -> None:
    store = add_requested(engine)
    assert claim_all(store) == NAMES

    def recover() -> list[str]:
        if way == "take-back":
            return sorted(store.take_back(abandoned(), now=LATER))
        failure = Failure(Reason.QUARANTINED, "")
        return sorted(store.quarantine(abandoned(), failure, now=LATER, retry_at=LATER))

    with holds(*tables):
        assert set(recover()) >= set(OTHERS)
    recover()
    store.end_unowned([run.run_id for run in abandoned()], now=LATER)
    assert InitialSyncState.IN_PROGRESS not in states(engine).values()
    attempts = [attempts_of(engine, name) for name in NAMES]
    assert [len(each) for each in attempts] == [1, 1, 1]
    assert all(attempt.ended_at for each in attempts for attempt in each)


def test_the_attempt_of_a_row_that_was_skipped_is_not_ended_before_it(engine: Engine, holds: Holds) -> None:
    store = add_requested(engine)
    claim_all(store)
    with holds("subcloud"):
        assert sorted(store.take_back(abandoned(), now=LATER)) == OTHERS
        assert [attempt.ended_at for attempt in attempts_of(engine, LOCKED)] == [None]


def test_other_hints_that_were_not_sent_are_due_again(engine: Engine, holds: Holds) -> None:
    store = add_requested(engine)
    hints = store.dispatch(room=10, lost=[], now=NOON)
    with holds("subcloud"):
        store.undo_dispatch(hints)
        assert sorted(hint.region_name for hint, _ in store.unstarted_hints()) == [LOCKED]


def test_other_attempts_whose_request_was_superseded_are_ended(engine: Engine, holds: Holds) -> None:
    store = add_requested(engine)
    claim_all(store)
    for name in NAMES:
        SqlInventory(engine).request([name], now=NOON, by="test")
    with holds("sync_attempt"):
        store.end_unowned([run.run_id for run in abandoned()], now=LATER)
        assert store.unowned_attempts(started_before=LATER, now=LATER) == [(LOCKED, f"run-{LOCKED}")]


def test_other_history_is_deleted(engine: Engine, holds: Holds) -> None:
    store = add_requested(engine)
    claim_all(store)
    store.take_back(abandoned(), now=NOON)
    for name in NAMES:
        SqlInventory(engine).request([name], now=NOON, by="test")
    second = [replace(Claim("", name, 2), run_id=f"second-{name}") for name in NAMES]
    assert len(store.claim(second, worker="w", now=LATER)) == 3
    history = SqlHistory(engine)
    with holds("sync_attempt"):
        assert history.delete_older(than=LATER, limit=100) == 2
    with holds("sync_request"):
        assert history.delete_older(than=LATER, limit=100) == 1
    assert history.delete_older(than=LATER, limit=100) == 1


# --- audits ---


def due_at(store: SqlAuditStore) -> dict[str, datetime]:
    return {row.name: row.due_at for row in store.audits(None) if row.endpoint_type is EndpointType.IDENTITY}


def test_other_audits_are_sent_claimed_and_taken_back(engine: Engine, holds: Holds) -> None:
    completed_rows(engine, NAMES)
    store = SqlAuditStore(engine)
    runs = {f"run-{name}": name for name in NAMES}
    with holds("subcloud_sync"):
        hints = store.dispatch(room=10, lost=[], now=NOON)
        assert sorted(hint.region_name for hint in hints) == OTHERS
        store.undo_dispatch(hints)
        assert sorted(run.subcloud.name for run in store.claim(runs, now=NOON)) == OTHERS
    assert [run.subcloud.name for run in store.claim(runs, now=NOON)] == [LOCKED]
    with holds("subcloud_sync"):
        assert store.take_back(abandoned(), now=LATER) == OTHERS
    assert store.take_back(abandoned(), now=LATER) == [LOCKED]


@pytest.mark.parametrize("change", ["central", "request"])
def test_a_request_for_all_reaches_the_others_at_once_and_a_locked_row_later(
    engine: Engine, holds: Holds, change: str
) -> None:
    completed_rows(engine, NAMES)
    store = SqlAuditStore(engine)
    with engine.begin() as connection:
        connection.execute(text("UPDATE subcloud_sync SET due_at = :later"), {"later": LATER + timedelta(hours=1)})

    def ask() -> None:
        if change == "central":
            assert store.raise_generation(EndpointType.IDENTITY, now=LATER, by="the central cloud changed") == 3
            return
        with engine.begin() as connection:
            connection.execute(
                text(
                    "INSERT INTO audit_request (subcloud_id, endpoint_type, requested_at, cause)"
                    " VALUES (NULL, 'identity', now(), 'asked')"
                )
            )
        assert store.take_follow_ups(now=LATER) == 1

    with holds("subcloud_sync"):
        ask()
        found = due_at(store)
        assert [found[name] for name in OTHERS] == [LATER, LATER]
        assert found[LOCKED] > LATER
    soon = LATER + timedelta(seconds=10)
    assert store.take_follow_ups(now=soon) == 1
    assert due_at(store) == dict.fromkeys(OTHERS, LATER) | {LOCKED: soon}
    assert store.take_follow_ups(now=soon) == 0


# --- probes ---


def test_others_are_probed_and_seen(engine: Engine, holds: Holds) -> None:
    new = [new_subcloud(name=n, management_ip=an_address(n), region_name=n, software_version="") for n in NAMES]
    SqlInventory(engine).add(new, now=NOON)
    store = SqlProbeStore(engine)
    minute = timedelta(minutes=1)
    with holds("subcloud"):
        assert sorted(store.take_due(now=NOON, interval=minute, most=10)) == OTHERS
        store.note_seen(NAMES, now=NOON)
    assert store.take_due(now=NOON, interval=minute, most=10) == [LOCKED]
    with holds("subcloud_probe"):
        assert sorted(store.take_due(now=LATER, interval=minute, most=10)) == OTHERS
        store.note_seen(NAMES, now=LATER)
        seen = {each.name: each.last_seen_at for each in SqlInventory(engine).all()}
        assert [seen[name] for name in OTHERS] == [LATER, LATER]


# --- reports and alarms ---


def test_reports_on_others_are_applied_and_the_message_is_kept(engine: Engine, holds: Holds) -> None:
    names = [f"s{number}" for number in range(1, 6)]
    new = [new_subcloud(name=n, management_ip=an_address(n), region_name=n, software_version="") for n in names]
    SqlInventory(engine).add(new, now=NOON)
    service = StateService(store=SqlStateStore(engine), messenger=FakeMessenger(), now=lambda: at(0))
    reports = [online(1, name) for name in names]

    def are_online() -> list[str]:
        return [
            each.name for each in SqlInventory(engine).all() if each.availability_status is AvailabilityStatus.ONLINE
        ]

    with holds("subcloud"):
        with pytest.raises(RowLocked, match="the rows of 1 subclouds"):
            service.apply(reports)
        assert are_online() == [name for name in names if name != LOCKED]
    service.apply(reports)
    assert are_online() == names


def test_other_alarms_are_reconciled_and_pruned(engine: Engine, holds: Holds) -> None:
    add_requested(engine)
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO alarm (alarm_id, entity, subcloud_id, severity, reason_text, raised_at, changed_xid)"
                " SELECT '280.001', 'subcloud=' || name, id, 'critical', '', :now, 1 FROM subcloud"
            ),
            {"now": NOON},
        )
    store = SqlAlarmStore(engine)
    with holds("alarm"):
        assert store.reconcile(now=NOON) == (0, 2)
    assert store.reconcile(now=NOON) == (0, 1)
    with holds("alarm"):
        assert store.prune(cleared_before=LATER, rejected_kept=1) == 2


def test_alarms_of_others_are_raised(engine: Engine, holds: Holds) -> None:
    add_requested(engine)
    with engine.begin() as connection:
        connection.execute(
            text("UPDATE subcloud SET availability_status = 'offline', online_observed_at = :now"), {"now": NOON}
        )
    store = SqlAlarmStore(engine)
    with holds("subcloud"):
        assert store.reconcile(now=NOON) == (2, 0)
    assert store.reconcile(now=NOON) == (1, 0)


def test_silence_is_told_of_others(engine: Engine, holds: Holds) -> None:
    add_requested(engine)
    ids = {each.name: each.id for each in SqlInventory(engine).all()}
    store = SqlSilenceStore(engine)
    failing = [
        AlarmRow(
            alarm_id="dcsync.sync-failing",
            entity=f"subcloud={name}",
            subcloud_id=ids[name],
            endpoint_type=None,
            severity="major",
            reason_text="first",
            raised_at=NOON,
        )
        for name in NAMES
    ]
    assert store.begin_check(now=NOON, swept_at=None, unless_since=NOON - timedelta(hours=1))
    with holds("subcloud"):
        assert store.settle(failing, checked_at=NOON, now=NOON) == (2, 0)
    assert store.settle(failing, checked_at=NOON, now=NOON) == (1, 0)
    with holds("alarm"):
        assert store.settle([], checked_at=NOON, now=NOON) == (0, 2)
    assert store.settle([], checked_at=NOON, now=NOON) == (0, 1)
