"""The store as the sweep and the runs see it (port `RunStore`), in PostgreSQL.

Each method is one transaction. Every write of a run is "where the row still carries my run id"; what a state becomes
is read from the one table in `lifecycle`, never written here by name.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from dcsync.adapters.database import database_errors
from dcsync.adapters.store.rows import subcloud_from_row
from dcsync.adapters.tables import subcloud, subcloud_sync, sync_attempt, sync_request, sync_step
from dcsync.errors import Reason
from dcsync.lifecycle import ABANDONED_LIMIT, Ending, Event, Failure, state_after, states_before
from dcsync.messages import SyncHint
from dcsync.ports import Run, Standing
from dcsync.subcloud import SYNCED_ENDPOINT_TYPES, InitialSyncState, Step

_NO_RUN: dict[str, Any] = {"run_id": None, "claimed_at": None, "step": None}
"""What a row carries of its run once no run owns it."""


def _moved(event: Event, *, now: datetime, **values: Any) -> dict[str, Any]:
    return {"initial_sync_state": state_after(event), "updated_at": now, **values}


def _where_allowed(event: Event) -> sa.ColumnElement[bool]:
    return subcloud.c.initial_sync_state.in_(states_before(event))


class SqlRunStore:
    """RunStore on an engine that is this process's own."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        # For what is one statement: it is its own transaction, and BEGIN and COMMIT would be two more round trips.
        self._single = engine.execution_options(isolation_level="AUTOCOMMIT")

    # --- the sweep ---

    @database_errors()
    def requeue_due(self, *, now: datetime) -> int:
        due = (
            sa.select(subcloud.c.id)
            .where(_where_allowed(Event.RETRY_DUE), subcloud.c.retry_at <= now)
            .order_by(subcloud.c.id)
            .with_for_update(skip_locked=True)
        )
        update = (
            sa.update(subcloud)
            .where(subcloud.c.id.in_(due.scalar_subquery()))
            .values(_moved(Event.RETRY_DUE, now=now, requested_at=now, dispatched_at=None, retry_at=None))
        )
        with self._single.connect() as connection:
            return connection.execute(update).rowcount

    @database_errors()
    def in_progress_since_before(self, moment: datetime) -> list[tuple[str, str, datetime]]:
        query = sa.select(subcloud.c.region_name, subcloud.c.run_id, subcloud.c.claimed_at).where(
            subcloud.c.initial_sync_state == InitialSyncState.IN_PROGRESS, subcloud.c.claimed_at < moment
        )
        with self._single.connect() as connection:
            return [(row.region_name, row.run_id, row.claimed_at) for row in connection.execute(query)]

    @database_errors()
    def take_back(
        self, abandoned: Collection[tuple[str, str]], *, now: datetime, hold_off_until: datetime
    ) -> list[str]:
        if not abandoned:
            return []
        run_ids = [run_id for _, run_id in abandoned]
        lost = subcloud.c.run_id.in_(run_ids)
        with self._engine.begin() as connection:
            _lock_runs(connection, run_ids)
            quarantined = connection.execute(
                sa.update(subcloud)
                .where(lost, _where_allowed(Event.QUARANTINED), subcloud.c.abandoned >= ABANDONED_LIMIT - 1)
                .values(
                    _moved(
                        Event.QUARANTINED,
                        now=now,
                        **_NO_RUN,
                        abandoned=0,
                        retry_at=hold_off_until,
                        reason=Reason.QUARANTINED.value,
                        detail=f"{ABANDONED_LIMIT} runs of it ended with the death of their worker",
                    )
                )
                .returning(subcloud.c.region_name)
            ).scalars()
            requested = connection.execute(
                sa.update(subcloud)
                .where(lost, _where_allowed(Event.ABANDONED))
                .values(
                    _moved(Event.ABANDONED, now=now, **_NO_RUN, abandoned=subcloud.c.abandoned + 1, dispatched_at=None)
                )
                .returning(subcloud.c.region_name)
            ).scalars()
            _end_attempts(connection, run_ids, Ending.ABANDONED, "its worker died or lost its lock", now)
            return [*quarantined, *requested]

    @database_errors()
    def overtaken_attempts(self, *, started_before: datetime) -> list[tuple[str, str]]:
        query = (
            sa.select(subcloud.c.region_name, sync_attempt.c.run_id)
            .join(subcloud, subcloud.c.id == sync_attempt.c.subcloud_id)
            .where(
                sync_attempt.c.ended_at.is_(None),
                sync_attempt.c.started_at < started_before,
                subcloud.c.run_id.is_distinct_from(sync_attempt.c.run_id),
            )
        )
        with self._engine.connect() as connection:
            return [(row.region_name, row.run_id) for row in connection.execute(query)]

    @database_errors()
    def end_overtaken(self, run_ids: Collection[str], *, now: datetime) -> None:
        with self._engine.begin() as connection:
            _end_attempts(connection, run_ids, Ending.ABANDONED, "its worker died when it was no longer wanted", now)

    @database_errors()
    def unstarted_hints(self) -> list[tuple[SyncHint, datetime]]:
        query = sa.select(
            subcloud.c.region_name, subcloud.c.generation, subcloud.c.attempt, subcloud.c.dispatched_at
        ).where(subcloud.c.initial_sync_state == InitialSyncState.REQUESTED, subcloud.c.dispatched_at.is_not(None))
        with self._single.connect() as connection:
            return [(_hint(row), row.dispatched_at) for row in connection.execute(query)]

    @database_errors()
    def in_progress_count(self) -> int:
        query = (
            sa.select(sa.func.count())
            .select_from(subcloud)
            .where(subcloud.c.initial_sync_state == InitialSyncState.IN_PROGRESS)
        )
        with self._single.connect() as connection:
            return int(connection.execute(query).scalar_one())

    @database_errors()
    def dispatch(self, *, room: int, lost: Collection[SyncHint], now: datetime) -> list[SyncHint]:
        lost_regions = [hint.region_name for hint in lost]
        due = (
            sa.select(subcloud.c.id)
            .where(
                subcloud.c.initial_sync_state == InitialSyncState.REQUESTED,
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
        update = (
            sa.update(subcloud)
            .where(
                subcloud.c.region_name.in_([hint.region_name for hint in hints]),
                subcloud.c.initial_sync_state == InitialSyncState.REQUESTED,
            )
            .values(dispatched_at=None)
        )
        with self._single.connect() as connection:
            connection.execute(update)

    # --- one run ---

    @database_errors()
    def claim(self, *, region_name: str, generation: int, run_id: str, worker: str, now: datetime) -> Run | None:
        update = (
            sa.update(subcloud)
            .where(
                subcloud.c.region_name == region_name,
                subcloud.c.generation == generation,
                _where_allowed(Event.CLAIMED),
            )
            .values(
                _moved(
                    Event.CLAIMED,
                    now=now,
                    run_id=run_id,
                    claimed_at=now,
                    step=None,
                    dispatched_at=None,
                    attempt=subcloud.c.attempt + 1,
                )
            )
            .returning(subcloud)
        )
        with self._engine.begin() as connection:
            found = connection.execute(update).mappings().one_or_none()
            if found is None:
                return None
            row = dict(found)
            connection.execute(
                sa.insert(sync_attempt).values(
                    run_id=run_id,
                    subcloud_id=row["id"],
                    generation=generation,
                    attempt=row["attempt"],
                    worker=worker,
                    started_at=now,
                )
            )
        return Run(
            run_id=run_id,
            subcloud=subcloud_from_row(row),
            identity_fingerprint=row["identity_fingerprint"],
            groups_to_refill={group: tuple(members) for group, members in row["groups_to_refill"].items()},
        )

    @database_errors()
    def standing(self, run_ids: Collection[str]) -> dict[str, Standing | None]:
        query = (
            sa.select(
                sync_attempt.c.run_id,
                sync_attempt.c.generation.label("own_generation"),
                subcloud.c.run_id.label("owner"),
                subcloud.c.generation,
                subcloud.c.initial_sync_state,
            )
            .join(subcloud, subcloud.c.id == sync_attempt.c.subcloud_id)
            .where(sync_attempt.c.run_id.in_(run_ids))
        )
        with self._single.connect() as connection:
            rows = {row.run_id: row for row in connection.execute(query)}
        return {run_id: _standing(run_id, rows.get(run_id)) for run_id in run_ids}

    @database_errors()
    def start_step(self, run: Run, step: Step, *, now: datetime) -> bool:
        with self._engine.begin() as connection:
            if not _update_own(connection, run, step=step):
                return False
            connection.execute(sa.insert(sync_step).values(run_id=run.run_id, step=step, started_at=now))
            return True

    @database_errors()
    def end_step(self, run: Run, step: Step, *, now: datetime, outcome: str, detail: str = "") -> None:
        update = (
            sa.update(sync_step)
            .where(sync_step.c.run_id == run.run_id, sync_step.c.step == step)
            .values(ended_at=now, outcome=outcome, detail=detail)
        )
        with self._single.connect() as connection:
            connection.execute(update)

    @database_errors()
    def record_identity(self, run: Run, *, fingerprint: str) -> bool:
        with self._single.connect() as connection:
            return _update_own(connection, run, subsequent_sync=True, identity_fingerprint=fingerprint)

    @database_errors()
    def remember_groups(self, run: Run, groups: Mapping[str, tuple[str, ...]]) -> bool:
        with self._single.connect() as connection:
            return _update_own(connection, run, groups_to_refill={group: list(ids) for group, ids in groups.items()})

    @database_errors()
    def init_audit(self, run: Run, *, now: datetime) -> bool:
        reset = (
            sa.update(subcloud_sync)
            .where(
                subcloud_sync.c.subcloud_id == run.subcloud.id,
                subcloud_sync.c.endpoint_type.in_(SYNCED_ENDPOINT_TYPES),
            )
            .values(
                audit_status="none",
                sync_status_reported="none",
                sync_status_report_time=None,
                last_audit_time=None,
                run_id=None,
                claimed_at=None,
                reason=None,
                detail="",
                attempt=0,
                abandoned=0,
                difference=None,
                difference_repairs=0,
            )
        )
        with self._engine.begin() as connection:
            if not _update_own(connection, run, updated_at=now):
                return False
            return connection.execute(reset).rowcount == len(SYNCED_ENDPOINT_TYPES)

    @database_errors()
    def complete(self, run: Run, *, now: datetime) -> bool:
        with self._engine.begin() as connection:
            if not _move_own(
                connection, run, Event.SUCCEEDED, now=now, attempt=0, abandoned=0, reason=None, detail="", retry_at=None
            ):
                return False
            connection.execute(
                sa.update(subcloud_sync)
                .where(subcloud_sync.c.subcloud_id == run.subcloud.id)
                .values(due_at=now, dispatched_at=None)
            )
            _end_attempts(connection, [run.run_id], Ending.COMPLETED, "", now)
            return True

    @database_errors()
    def fail(self, run: Run, failure: Failure, *, now: datetime, retry_at: datetime) -> bool:
        reason, detail = failure.reason.value, failure.detail
        with self._engine.begin() as connection:
            if not _move_own(
                connection,
                run,
                Event.STEP_FAILED,
                now=now,
                reason=reason,
                detail=detail,
                retry_at=retry_at,
                abandoned=0,
            ):
                return False
            _end_attempts(connection, [run.run_id], Ending.FAILED, detail, now, reason=reason)
            return True

    @database_errors()
    def give_back(self, run: Run, *, ending: Ending, detail: str, now: datetime) -> bool:
        with self._engine.begin() as connection:
            if not _move_own(
                connection, run, Event.GIVEN_BACK, now=now, attempt=subcloud.c.attempt - 1, dispatched_at=None
            ):
                return False
            _end_attempts(connection, [run.run_id], ending, detail, now)
            return True

    @database_errors()
    def end_attempt(self, run: Run, ending: Ending, *, detail: str, now: datetime) -> None:
        with self._single.connect() as connection:
            _end_attempts(connection, [run.run_id], ending, detail, now)

    @database_errors()
    def delete_history(self, *, ended_before: datetime, limit: int) -> int:
        newest = (
            sa.select(sa.func.max(sync_request.c.generation))
            .where(sync_request.c.subcloud_id == sync_attempt.c.subcloud_id)
            .scalar_subquery()
        )
        old = (
            sa.select(sync_attempt.c.run_id)
            .where(sync_attempt.c.ended_at < ended_before, sync_attempt.c.generation < newest)
            .limit(limit)
        )
        delete = sa.delete(sync_attempt).where(sync_attempt.c.run_id.in_(old.scalar_subquery()))
        with self._single.connect() as connection:
            return connection.execute(delete).rowcount


_TEXTS = sa.ARRAY(sa.Text)


def _hint(row: Any) -> SyncHint:
    """The hint for the next attempt at this row."""
    return SyncHint(region_name=row.region_name, generation=row.generation, attempt=row.attempt + 1)


def _lock_runs(connection: Connection, run_ids: list[str]) -> None:
    """Lock these runs' rows in id order, as every other transaction over several subclouds does."""
    connection.execute(
        sa.select(subcloud.c.id).where(subcloud.c.run_id.in_(run_ids)).order_by(subcloud.c.id).with_for_update()
    ).all()


def _update_own(connection: Connection, run: Run, **values: Any) -> bool:
    update = sa.update(subcloud).where(subcloud.c.id == run.subcloud.id, subcloud.c.run_id == run.run_id)
    return connection.execute(update.values(**values)).rowcount == 1


def _move_own(connection: Connection, run: Run, event: Event, *, now: datetime, **values: Any) -> bool:
    update = (
        sa.update(subcloud)
        .where(subcloud.c.id == run.subcloud.id, subcloud.c.run_id == run.run_id, _where_allowed(event))
        .values(_moved(event, now=now, **(_NO_RUN | values)))
    )
    return connection.execute(update).rowcount == 1


def _end_attempts(
    connection: Connection,
    run_ids: Collection[str],
    ending: Ending,
    detail: str,
    now: datetime,
    *,
    reason: str | None = None,
) -> None:
    """Close attempts that are still open; one that was closed already keeps its first ending."""
    connection.execute(
        sa.update(sync_attempt)
        .where(sync_attempt.c.run_id.in_(run_ids), sync_attempt.c.ended_at.is_(None))
        .values(ended_at=now, ending=ending, detail=detail, reason=reason)
    )


def _standing(run_id: str, row: Any) -> Standing | None:
    if row is None:
        return Standing(Ending.CANCELLED, "the subcloud was deleted")
    if row.owner == run_id:
        return None
    if row.generation == row.own_generation and row.initial_sync_state is not InitialSyncState.NONE:
        return Standing(Ending.SUPERSEDED, "the run was taken back, for its lock was gone")
    if row.initial_sync_state is InitialSyncState.NONE:
        return Standing(Ending.CANCELLED, "the subcloud is no longer managed and online")
    return Standing(Ending.SUPERSEDED, "the subcloud was requested anew")
