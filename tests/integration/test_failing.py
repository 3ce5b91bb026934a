"""Since when an initial sync has been failing, and how often in a row: kept in the subcloud's row."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from sqlalchemy import Engine, select

from dcsync.adapters.postgres.inventory import SqlInventory
from dcsync.adapters.postgres.runs import SqlRunStore
from dcsync.adapters.postgres.tables import subcloud
from dcsync.initial_sync.ports import Claim, Run
from dcsync.model.ending import Failure
from dcsync.model.reasons import Reason
from dcsync.model.subcloud import ManagementState, new_subcloud
from dcsync.runs.abandoned import QUARANTINED, RunInProgress
from tests.builders import NOON
from tests.requested_rows import leave, requested_rows

LATER, LAST = NOON + timedelta(minutes=5), NOON + timedelta(minutes=20)
BROKEN = Failure(Reason.SERVER_ERROR, "500")


@pytest.fixture
def store(engine: Engine) -> SqlRunStore:
    requested_rows(engine, [new_subcloud(name="s1", management_ip="10.1.1.1", region_name="s1", software_version="")])
    return SqlRunStore(engine)


def failing(engine: Engine) -> tuple[datetime | None, int]:
    with engine.connect() as connection:
        row = connection.execute(select(subcloud.c.failing_since, subcloud.c.failures)).one()
    return row.failing_since, row.failures


def claimed(store: SqlRunStore, run_id: str, *, now: datetime, generation: int = 1) -> Run:
    (run,) = store.claim([Claim(run_id, "s1", generation)], worker="w", now=now)
    return run


def fail(store: SqlRunStore, run_id: str, *, now: datetime, generation: int = 1) -> None:
    assert store.fail(claimed(store, run_id, now=now, generation=generation), BROKEN, now=now, retry_at=now)
    store.requeue_due(now=now, longest=timedelta(hours=1))


def test_the_first_of_the_failures_in_a_row_is_kept_until_one_run_completes(engine: Engine, store: SqlRunStore) -> None:
    fail(store, "run-1", now=NOON)
    fail(store, "run-2", now=LATER)
    assert failing(engine) == (NOON, 2)
    SqlInventory(engine).request(["s1"], now=LATER, by="eve")
    assert failing(engine) == (NOON, 2), "a request alone repairs nothing"
    store.complete(claimed(store, "run-3", now=LAST, generation=2), now=LAST, audits_due_at=LAST)
    assert failing(engine) == (None, 0)


def test_a_run_that_kills_its_worker_too_often_counts_as_a_failure(engine: Engine, store: SqlRunStore) -> None:
    claimed(store, "run-1", now=NOON)
    store.quarantine([RunInProgress("s1", "run-1", NOON, 2)], QUARANTINED, now=LATER, retry_at=LAST)
    assert failing(engine) == (LATER, 1)


def test_what_failed_before_a_subcloud_was_unmanaged_does_not_count(engine: Engine, store: SqlRunStore) -> None:
    fail(store, "run-1", now=NOON - timedelta(hours=1))
    leave(engine, "s1")
    SqlInventory(engine).set_management(["s1"], ManagementState.MANAGED, now=LATER, by="test")
    fail(store, "run-2", now=LAST, generation=2)
    assert failing(engine) == (LAST, 1)


def test_a_failure_never_begins_later_than_now(engine: Engine, store: SqlRunStore) -> None:
    fail(store, "run-1", now=LAST)
    fail(store, "run-2", now=NOON)
    assert failing(engine) == (NOON, 2)
