"""Initial sync runs in PostgreSQL (port `RunStore`).

Each method is one transaction. What concerns many subclouds skips rows that another session holds: the next sweep finds
them again, and one of them delays no other. Every write of a run is conditional on its run id; states are read from the
tables in `dcsync.model.states`, never named here. The statements of a run are in `run_statements`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.engine import Connection, Engine

from dcsync.adapters.postgres import run_statements
from dcsync.adapters.postgres.database import database_errors, wait_briefly_for_locks
from dcsync.adapters.postgres.moves import INITIAL_SYNC_MOVES
from dcsync.adapters.postgres.rows import (
    has_deaths,
    has_passed,
    placed_body,
    placed_from_body,
    server_started_at,
    subcloud_from_row,
    was_before,
)
from dcsync.adapters.postgres.run_statements import NO_RUN, failed_again, moved
from dcsync.adapters.postgres.tables import subcloud, subcloud_placed, sync_attempt
from dcsync.initial_sync.ports import Claim, Run
from dcsync.initial_sync.standing import RunAndRow, standing_of
from dcsync.model.ending import Ending, Failure
from dcsync.model.errors import RowLocked
from dcsync.model.identity import NewIds, Placed
from dcsync.model.messages import SyncHint
from dcsync.model.states.initial_sync import InitialSyncEvent
from dcsync.model.subcloud import Step
from dcsync.runs.abandoned import ANY_DEATHS, RunInProgress, Suspects
from dcsync.runs.ports import Standing


class SqlRunStore:
    """RunStore on an engine owned by this process."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        # For single statements, which are transactions by themselves: BEGIN and COMMIT would be two more round trips.
        self._single = engine.execution_options(isolation_level="AUTOCOMMIT")

    # --- the sweep ---

    @database_errors()
    def requeue_due(self, *, now: datetime, longest: timedelta) -> int:
        due = (
            sa.select(subcloud.c.id)
            .where(
                INITIAL_SYNC_MOVES.where(InitialSyncEvent.RETRY_DUE),
                has_passed(subcloud.c.retry_at, now=now, longest=longest),
            )
            .order_by(subcloud.c.id)
            .with_for_update(skip_locked=True)
        )
        update = (
            sa.update(subcloud)
            .where(subcloud.c.id.in_(due.scalar_subquery()))
            .values(moved(InitialSyncEvent.RETRY_DUE, now=now, requested_at=now, dispatched_at=None, retry_at=None))
        )
        with self._single.connect() as connection:
            return connection.execute(update).rowcount

    @database_errors()
    def in_progress_since_before(self, moment: datetime, *, now: datetime) -> list[RunInProgress]:
        query = sa.select(subcloud.c.region_name, subcloud.c.run_id, subcloud.c.claimed_at, subcloud.c.abandoned).where(
            INITIAL_SYNC_MOVES.where(InitialSyncEvent.ABANDONED), was_before(moment, subcloud.c.claimed_at, now=now)
        )
        with self._single.connect() as connection:
            return [RunInProgress(*row) for row in connection.execute(query)]

    @database_errors()
    def take_back(self, abandoned: Collection[RunInProgress], *, now: datetime, counted: bool = True) -> list[str]:
        died = {"abandoned": subcloud.c.abandoned + int(counted), "dispatched_at": None}
        return self._end_abandoned(abandoned, InitialSyncEvent.ABANDONED, died, now=now)

    @database_errors()
    def quarantine(
        self, abandoned: Collection[RunInProgress], failure: Failure, *, now: datetime, retry_at: datetime
    ) -> list[str]:
        failed = {"abandoned": 0, "retry_at": retry_at, "reason": failure.reason.value, "detail": failure.detail}
        failed |= failed_again(now=now)
        return self._end_abandoned(abandoned, InitialSyncEvent.QUARANTINED, failed, now=now)

    def _end_abandoned(
        self, runs: Collection[RunInProgress], event: InitialSyncEvent, values: Mapping[str, Any], *, now: datetime
    ) -> list[str]:
        if not runs:
            return []
        run_ids = [run.run_id for run in runs]
        rows = sa.select(subcloud.c.id).where(subcloud.c.run_id.in_(run_ids), INITIAL_SYNC_MOVES.where(event))
        unlocked = rows.order_by(subcloud.c.id).with_for_update(skip_locked=True)
        update = (
            sa.update(subcloud)
            .where(subcloud.c.id.in_(unlocked.scalar_subquery()))
            .values(moved(event, now=now, **NO_RUN, **values))
            .returning(subcloud.c.region_name)
        )
        still_owned = sa.select(subcloud.c.run_id).where(subcloud.c.run_id.in_(run_ids))
        with self._engine.begin() as connection:
            changed = list(connection.scalars(update))
            # A row that was skipped still has its run id; its attempt ends with it.
            ended = set(run_ids).difference(connection.scalars(still_owned))
            _end_attempts(
                connection, ended, Ending.ABANDONED, "its worker died or lost its lock", now, skip_locked=True
            )
            return changed

    @database_errors()
    def unowned_attempts(self, *, started_before: datetime, now: datetime) -> list[tuple[str, str]]:
        query = (
            sa.select(subcloud.c.region_name, sync_attempt.c.run_id)
            .join(subcloud, subcloud.c.id == sync_attempt.c.subcloud_id)
            .where(
                sync_attempt.c.ended_at.is_(None),
                was_before(started_before, sync_attempt.c.started_at, now=now),
                subcloud.c.run_id.is_distinct_from(sync_attempt.c.run_id),
            )
        )
        with self._engine.connect() as connection:
            return [(row.region_name, row.run_id) for row in connection.execute(query)]

    @database_errors()
    def end_unowned(self, run_ids: Collection[str], *, now: datetime) -> None:
        with self._engine.begin() as connection:
            detail = "its worker died after the run was superseded"
            _end_attempts(connection, run_ids, Ending.ABANDONED, detail, now, skip_locked=True)

    @database_errors()
    def server_started_at(self) -> datetime:
        return server_started_at(self._single)

    @database_errors()
    def suspects(self, *, lost: Collection[SyncHint]) -> Suspects:
        waits = INITIAL_SYNC_MOVES.where(InitialSyncEvent.CLAIMED)
        is_lost = subcloud.c.region_name == sa.any_(sa.literal([hint.region_name for hint in lost], _TEXTS))
        is_in_flight = ~waits | (subcloud.c.dispatched_at.is_not(None) & ~is_lost)
        query = (
            sa.select(subcloud.c.abandoned, is_in_flight.label("is_in_flight"), sa.func.count())
            .where(subcloud.c.abandoned > 0, waits | INITIAL_SYNC_MOVES.where(InitialSyncEvent.ABANDONED))
            .group_by(subcloud.c.abandoned, sa.text("is_in_flight"))
        )
        with self._single.connect() as connection:
            return {(deaths, flies): number for deaths, flies, number in connection.execute(query)}

    @database_errors()
    def unstarted_hints(self) -> list[tuple[SyncHint, datetime]]:
        query = sa.select(
            subcloud.c.region_name, subcloud.c.generation, subcloud.c.attempt, subcloud.c.dispatched_at
        ).where(INITIAL_SYNC_MOVES.where(InitialSyncEvent.CLAIMED), subcloud.c.dispatched_at.is_not(None))
        with self._single.connect() as connection:
            return [(_hint(row), row.dispatched_at) for row in connection.execute(query)]

    @database_errors()
    def in_progress_count(self) -> int:
        query = (
            sa.select(sa.func.count()).select_from(subcloud).where(INITIAL_SYNC_MOVES.where(InitialSyncEvent.ABANDONED))
        )
        with self._single.connect() as connection:
            return int(connection.execute(query).scalar_one())

    @database_errors()
    def dispatch(
        self, *, room: int, lost: Collection[SyncHint], now: datetime, deaths: range = ANY_DEATHS
    ) -> list[SyncHint]:
        lost_regions = [hint.region_name for hint in lost]
        due = (
            sa.select(subcloud.c.id)
            .where(
                INITIAL_SYNC_MOVES.where(InitialSyncEvent.CLAIMED),
                has_deaths(subcloud.c.abandoned, deaths),
                subcloud.c.dispatched_at.is_(None)
                | (subcloud.c.region_name == sa.any_(sa.literal(lost_regions, _TEXTS))),
            )
            .order_by(subcloud.c.requested_at, subcloud.c.id)
            .limit(room)
            .with_for_update(skip_locked=True)
        )
        update = (
            sa.update(subcloud)
            .where(subcloud.c.id.in_(due.scalar_subquery()))
            .values(dispatched_at=now)
            .returning(
                subcloud.c.region_name,
                subcloud.c.generation,
                subcloud.c.attempt,
                subcloud.c.requested_at,
                subcloud.c.id,
            )
        )
        with self._single.connect() as connection:
            rows = connection.execute(update).all()
        return [_hint(row) for row in sorted(rows, key=lambda row: (row.requested_at, row.id))]

    @database_errors()
    def undo_dispatch(self, hints: Collection[SyncHint]) -> None:
        sent = (
            sa.select(subcloud.c.id)
            .where(
                subcloud.c.region_name.in_([hint.region_name for hint in hints]),
                INITIAL_SYNC_MOVES.where(InitialSyncEvent.CLAIMED),
            )
            .order_by(subcloud.c.id)
            .with_for_update(skip_locked=True)
        )
        update = sa.update(subcloud).where(subcloud.c.id.in_(sent.scalar_subquery())).values(dispatched_at=None)
        with self._single.connect() as connection:
            connection.execute(update)

    # --- one run ---

    @database_errors()
    def claim(self, claims: Sequence[Claim], *, worker: str, now: datetime) -> list[Run]:
        with self._single.connect() as connection:
            runs = _claimed(connection, run_statements.CLAIM, claims, worker=worker, now=now)
        claimed = {run.run_id for run in runs}
        missed = [claim for claim in claims if claim.run_id not in claimed]
        return runs + self._claim_waiting(missed, worker=worker, now=now) if missed else runs

    def _claim_waiting(self, claims: Sequence[Claim], *, worker: str, now: datetime) -> list[Run]:
        """Claims rows that a short transaction of ours may have held. Those that another session holds for longer are
        not claimed: their hints are lost, and the sweep sends them again."""
        try:
            with database_errors(), self._engine.begin() as connection:
                wait_briefly_for_locks(connection)
                return _claimed(connection, run_statements.CLAIM_WAITING, claims, worker=worker, now=now)
        except RowLocked:
            return []

    @database_errors()
    def standing(self, run_ids: Collection[str]) -> dict[str, Standing | None]:
        with self._single.connect() as connection:
            found = connection.execute(run_statements.STANDING, {"run_ids": list(run_ids)})
            rows = {row.run_id: _run_and_row(row) for row in found}
        return {run_id: standing_of(rows.get(run_id)) for run_id in run_ids}

    @database_errors()
    def start_step(self, run: Run, step: Step, *, now: datetime) -> bool:
        return self._write(run_statements.STEP_STARTED, run, given_step=step, now=now)

    @database_errors()
    def end_step(self, run: Run, step: Step, *, now: datetime, outcome: str, detail: str = "") -> None:
        given = {"given_run_id": run.run_id, "given_step": step, "given_outcome": outcome, "given_detail": detail}
        with self._single.connect() as connection:
            connection.execute(run_statements.STEP_ENDED, given | {"now": now})

    @database_errors()
    def record_identity(self, run: Run, *, fingerprint: str | None) -> bool:
        return self._write(run_statements.IDENTITY_RECORDED, run, given_identity_fingerprint=fingerprint)

    @database_errors()
    def remember_groups(self, run: Run, groups: Mapping[str, tuple[str, ...]]) -> bool:
        kept = {group: list(ids) for group, ids in groups.items()}
        return self._write(run_statements.GROUPS_REMEMBERED, run, given_groups_to_refill=kept)

    @database_errors()
    def remember_placed(self, run: Run, placed: Placed, new_ids: NewIds) -> bool:
        kept = subcloud_placed.c
        known = sa.select(kept.placed).where(kept.subcloud_id == run.subcloud.id).with_for_update()
        with self._engine.begin() as connection:
            if not _lock_runs(connection, [run.run_id]):
                return False
            body = connection.execute(known).scalar_one_or_none()
            before = Placed() if body is None else placed_from_body(body)
            after = before.followed(new_ids) | placed
            if body is None or placed_body(after) != body:
                new = {"placed": placed_body(after)}
                insert = postgresql_insert(subcloud_placed).values(subcloud_id=run.subcloud.id, **new)
                connection.execute(insert.on_conflict_do_update(index_elements=["subcloud_id"], set_=new))
            return True

    @database_errors()
    def init_audit(self, run: Run, *, now: datetime) -> bool:
        return self._write(run_statements.AUDIT_INITIALISED, run, now=now)

    @database_errors()
    def complete(self, run: Run, *, now: datetime, audits_due_at: datetime) -> bool:
        return self._write(run_statements.COMPLETED, run, given_due_at=audits_due_at, now=now)

    @database_errors()
    def fail(self, run: Run, failure: Failure, *, now: datetime, retry_at: datetime) -> bool:
        return self._write(
            run_statements.FAILED,
            run,
            given_reason=failure.reason.value,
            given_detail=failure.detail,
            given_retry_at=retry_at,
            now=now,
        )

    @database_errors()
    def give_back(self, run: Run, *, ending: Ending, detail: str, now: datetime) -> bool:
        return self._write(run_statements.GIVEN_BACK, run, given_ending=ending, given_detail=detail, now=now)

    def _write(self, statement: sa.Select[Any], run: Run, **given: object) -> bool:
        """Returns whether the run still owned the row; if not, nothing was written."""
        own = {"given_id": run.subcloud.id, "given_run_id": run.run_id}
        with self._single.connect() as connection:
            return connection.execute(statement, own | given).one_or_none() is not None

    @database_errors()
    def end_attempt(self, run: Run, ending: Ending, *, detail: str, now: datetime) -> None:
        with self._single.connect() as connection:
            _end_attempts(connection, [run.run_id], ending, detail, now)


_TEXTS = sa.ARRAY(sa.Text)


def _claimed(
    connection: Connection, statement: sa.Select[Any], claims: Sequence[Claim], *, worker: str, now: datetime
) -> list[Run]:
    given = {
        "region_names": [claim.region_name for claim in claims],
        "generations": [claim.generation for claim in claims],
        "run_ids": [claim.run_id for claim in claims],
        "given_worker": worker,
        "now": now,
    }
    return [_run(dict(row)) for row in connection.execute(statement, given).mappings()]


def _run(row: dict[str, Any]) -> Run:
    return Run(
        run_id=row["run_id"],
        subcloud=subcloud_from_row(row),
        identity_fingerprint=row["identity_fingerprint"],
        groups_to_refill={group: tuple(members) for group, members in row["groups_to_refill"].items()},
    )


def _hint(row: Any) -> SyncHint:
    """Returns the hint for the next attempt at this row."""
    return SyncHint(region_name=row.region_name, generation=row.generation, attempt=row.attempt + 1)


def _lock_runs(connection: Connection, run_ids: list[str]) -> bool:
    """Locks these runs' rows in id order, as every transaction over several subclouds does; returns False for none."""
    rows = sa.select(subcloud.c.id).where(subcloud.c.run_id.in_(run_ids)).order_by(subcloud.c.id).with_for_update()
    return bool(connection.execute(rows).all())


def _end_attempts(
    connection: Connection,
    run_ids: Collection[str],
    ending: Ending,
    detail: str,
    now: datetime,
    *,
    skip_locked: bool = False,
) -> None:
    """Ends the attempts that are still open; an attempt that has ended keeps its ending."""
    is_open = sa.and_(sync_attempt.c.run_id.in_(run_ids), sync_attempt.c.ended_at.is_(None))
    if skip_locked:
        found = sa.select(sync_attempt.c.run_id).where(is_open).with_for_update(skip_locked=True)
        is_open = sa.and_(sync_attempt.c.ended_at.is_(None), sync_attempt.c.run_id.in_(found.scalar_subquery()))
    connection.execute(sa.update(sync_attempt).where(is_open).values(ended_at=now, ending=ending, detail=detail))


def _run_and_row(row: Any) -> RunAndRow:
    return RunAndRow(
        run_id=row.run_id,
        run_generation=row.own_generation,
        row_run_id=row.owner,
        row_generation=row.generation,
        row_state=row.initial_sync_state,
    )
