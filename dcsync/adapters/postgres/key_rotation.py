"""Key rotation in PostgreSQL (port `KeyRotationStore`): its single row, and which keys each subcloud has.

Each method is one transaction. Every write of a rotation is conditional on its run id, so exactly one of several
workers rotates. Rows contain fingerprints, never keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.engine import Connection, Engine, Row

from dcsync.adapters.postgres import operations
from dcsync.adapters.postgres.database import database_errors
from dcsync.adapters.postgres.moves import INITIAL_SYNC_MOVES, ROTATION_MOVES
from dcsync.adapters.postgres.rows import IS_ELIGIBLE, is_held_off, was_before
from dcsync.adapters.postgres.tables import central_state, key_rotation, subcloud, subcloud_sync
from dcsync.audit.endpoints import endpoint_type_of_keys
from dcsync.model.identity import KeySet
from dcsync.model.marks import CLOCK_TOLERANCE
from dcsync.model.operation import Intent, OperationOutcome
from dcsync.model.states.initial_sync import InitialSyncEvent
from dcsync.model.states.rotation import RotationEvent
from dcsync.model.subcloud import AvailabilityStatus, ManagementState, SyncStatus
from dcsync.rotation.ports import KeyHolding, KeyRotationRow, Spread

_ROW = key_rotation.c
_SYNC = subcloud_sync.c
_KEYS_TYPE = endpoint_type_of_keys()
_ENDED: dict[str, Any] = {"run_id": None, "claimed_at": None, "requested_at": None, "requested_by": "", "forced": False}
_ELIGIBLE = sa.and_(IS_ELIGIBLE, _SYNC.endpoint_type == _KEYS_TYPE)
_KEYS_OF_SUBCLOUDS = subcloud.outerjoin(
    subcloud_sync, sa.and_(_SYNC.subcloud_id == subcloud.c.id, _SYNC.endpoint_type == _KEYS_TYPE)
)
_WITH_SUBCLOUD = subcloud_sync.join(subcloud, subcloud.c.id == _SYNC.subcloud_id)


class SqlKeyRotationStore:
    """KeyRotationStore on an engine owned by this process. How a rotation ended is recorded as an operation of
    `carried_out_by`, also where the schedule asked for it."""

    def __init__(self, engine: Engine, *, carried_out_by: Intent | None = None) -> None:
        self._engine = engine
        self._carried_out_by = carried_out_by

    # --- the row ---

    @database_errors()
    def row(self) -> KeyRotationRow:
        with self._engine.begin() as connection:
            found = connection.execute(sa.select(key_rotation)).one_or_none()
            return _row(found or _insert_row(connection))

    @database_errors()
    def ask(
        self, *, now: datetime, by: str, forced: bool, max_in_flight: int | None, intent: Intent | None = None
    ) -> None:
        asked = {"requested_at": now, "requested_by": by, "forced": forced, "max_in_flight": max_in_flight}
        with self._engine.begin() as connection:
            new = insert(key_rotation).values(id=1, **asked)
            connection.execute(new.on_conflict_do_update(index_elements=["id"], set_=asked))
            if intent is not None:
                operations.record(connection, intent.done((), now=now, detail="requested"), ())

    @database_errors()
    def schedule(self, due: datetime | None, *, was: datetime | None) -> None:
        update = sa.update(key_rotation).where(_ROW.next_due_at.is_not_distinct_from(was)).values(next_due_at=due)
        with self._engine.begin() as connection:
            connection.execute(update)

    # --- the rotation ---

    @database_errors()
    def claim(self, *, run_id: str, now: datetime, stale_before: datetime) -> KeyRotationRow | None:
        is_due = sa.or_(_ROW.requested_at.is_not(None), _ROW.next_due_at <= now)
        free = sa.and_(ROTATION_MOVES.where(RotationEvent.CLAIMED), is_due)
        stale = sa.and_(ROTATION_MOVES.where(RotationEvent.TAKEN_OVER), _ROW.claimed_at < stale_before)
        update = (
            sa.update(key_rotation)
            .where(sa.or_(free, stale))
            .values(**ROTATION_MOVES.to(RotationEvent.CLAIMED), run_id=run_id, claimed_at=now)
            .returning(key_rotation)
        )
        claim_in_future = sa.update(key_rotation).where(_ROW.claimed_at > now + CLOCK_TOLERANCE).values(claimed_at=now)
        with self._engine.begin() as connection:
            connection.execute(claim_in_future)
            claimed = connection.execute(update).one_or_none()
            return None if claimed is None else _row(claimed)

    @database_errors()
    def remember(self, *, run_id: str, before: KeySet, now: datetime) -> bool:
        update = sa.update(key_rotation).where(_ROW.run_id == run_id)
        with self._engine.begin() as connection:
            return connection.execute(update.values(before=_set_body(before), claimed_at=now)).rowcount == 1

    @database_errors()
    def finish(
        self, *, run_id: str, current: KeySet, now: datetime, next_due_at: datetime | None, window_until: datetime
    ) -> bool:
        rotated: dict[str, Any] = {
            "detail": "rotated; the keys are being distributed to the subclouds",
            "last_rotated_at": now,
            "next_due_at": next_due_at,
            "window_until": window_until,
            "before": None,
        }
        known = (
            sa.update(central_state)
            .where(central_state.c.kind == _KEYS_TYPE.value)
            .values(
                fingerprint=current.fingerprint,
                generation=central_state.c.generation + 1,
                changed_at=now,
                checked_at=now,
                refused=None,
                refused_since=None,
            )
        )
        with self._engine.begin() as connection:
            if not connection.execute(_ended(run_id, RotationEvent.ROTATED, rotated)).rowcount:
                return False
            connection.execute(known)
            self._record(connection, OperationOutcome.DONE, now=now, detail=f"now {current.fingerprint[:8]}")
            return True

    @database_errors()
    def give_up(
        self, event: RotationEvent, *, run_id: str, detail: str, now: datetime, retry_at: datetime, forget: bool
    ) -> bool:
        values: dict[str, Any] = {
            "next_due_at": sa.case((_ROW.next_due_at <= now, retry_at), else_=_ROW.next_due_at),
            "detail": detail,
            "before": sa.null() if forget else _ROW.before,
        }
        with self._engine.begin() as connection:
            if not connection.execute(_ended(run_id, event, values)).rowcount:
                return False
            self._record(connection, OperationOutcome.FAILED, now=now, detail=detail)
            return True

    def _record(self, connection: Connection, outcome: OperationOutcome, *, now: datetime, detail: str) -> None:
        if self._carried_out_by is not None:
            operations.record(connection, self._carried_out_by.ended(outcome, (), now=now, detail=detail), ())

    # --- the subclouds ---

    @database_errors()
    def spread(self, fingerprint: str) -> Spread:
        holding = _holding(fingerprint)
        query = sa.select(holding, sa.func.count()).select_from(_KEYS_OF_SUBCLOUDS).group_by(holding)
        with self._engine.connect() as connection:
            return Spread(**{row[0]: row[1] for row in connection.execute(query)})

    @database_errors()
    def without_keys(self, fingerprint: str, *, limit: int) -> list[tuple[str, KeyHolding]]:
        holding = _holding(fingerprint).label("holding")
        is_without = holding.not_in([KeyHolding.HAVE.value, KeyHolding.UNMANAGED.value])
        query = sa.select(subcloud.c.name, holding).select_from(_KEYS_OF_SUBCLOUDS).where(is_without)
        with self._engine.connect() as connection:
            rows = connection.execute(query.order_by(subcloud.c.name).limit(limit)).all()
            return [(name, KeyHolding(word)) for name, word in rows]

    @database_errors()
    def oldest_reading(self, fingerprint: str) -> datetime | None:
        query = sa.select(sa.func.min(_SYNC.sync_status_report_time)).select_from(_KEYS_OF_SUBCLOUDS)
        with self._engine.connect() as connection:
            have = _holding(fingerprint) == KeyHolding.HAVE.value
            oldest: datetime | None = connection.execute(query.where(have)).scalar_one()
            return oldest

    @database_errors()
    def next_wave(self, fingerprint: str, *, max_in_flight: int, requested_before: datetime, now: datetime) -> int:
        distributing = sa.select(_ROW.id).where(ROTATION_MOVES.where(RotationEvent.WAVE_SENT))
        with self._engine.begin() as connection:
            if connection.execute(distributing.with_for_update(skip_locked=True)).one_or_none() is None:
                return 0
            room = max_in_flight - _in_flight(connection, fingerprint)
            if room <= 0:
                return 0
            # A subcloud that is held off is neither retried early nor waited for.
            waiting = (
                sa.select(_SYNC.subcloud_id)
                .select_from(_WITH_SUBCLOUD)
                .where(_ELIGIBLE, _lacks(fingerprint), ~is_held_off())
                .where(sa.or_(_SYNC.requested_at.is_(None), was_before(requested_before, _SYNC.requested_at, now=now)))
                .order_by(_SYNC.subcloud_id)
                .limit(room)
                .with_for_update(of=subcloud_sync, skip_locked=True)
            )
            ids = list(connection.scalars(waiting))
            requested = (
                sa.update(subcloud_sync)
                .where(_SYNC.subcloud_id.in_(ids), _SYNC.endpoint_type == _KEYS_TYPE)
                .values(
                    generation=_SYNC.generation + 1,
                    requested_at=now,
                    requested_by="key rotation",
                    due_at=sa.func.least(_SYNC.due_at, now),
                )
            )
            return connection.execute(requested).rowcount if ids else 0

    @database_errors()
    def end_distribution(self, *, now: datetime, detail: str) -> bool:
        update = (
            sa.update(key_rotation)
            .where(ROTATION_MOVES.where(RotationEvent.DISTRIBUTED), _ROW.requested_at.is_(None))
            .values(
                **ROTATION_MOVES.to(RotationEvent.DISTRIBUTED),
                detail=detail,
                window_until=sa.func.least(_ROW.window_until, now),
                max_in_flight=None,
            )
        )
        with self._engine.begin() as connection:
            return connection.execute(update).rowcount == 1


def _ended(run_id: str, event: RotationEvent, values: Mapping[str, Any]) -> sa.Update:
    """Returns the update that applies an event and ends the claim."""
    own = sa.update(key_rotation).where(_ROW.run_id == run_id, ROTATION_MOVES.where(event))
    return own.values(**_ENDED, **ROTATION_MOVES.to(event), **values)


def _holding(fingerprint: str) -> sa.ColumnElement[str]:
    """Returns the `KeyHolding` of each subcloud."""
    return sa.case(
        (subcloud.c.management_state != ManagementState.MANAGED, KeyHolding.UNMANAGED.value),
        (subcloud.c.availability_status != AvailabilityStatus.ONLINE, KeyHolding.AWAY.value),
        (INITIAL_SYNC_MOVES.after(InitialSyncEvent.STEP_FAILED), KeyHolding.FAILED.value),
        (~INITIAL_SYNC_MOVES.after(InitialSyncEvent.SUCCEEDED), KeyHolding.SYNCING.value),
        (_lacks(fingerprint), KeyHolding.LACK.value),
        else_=KeyHolding.HAVE.value,
    )


def _lacks(fingerprint: str) -> sa.ColumnElement[bool]:
    """Returns the condition that a subcloud was last seen to hold other keys, or that the latest audit could not see
    which."""
    could_not_be_read = _SYNC.sync_status_reported.is_not_distinct_from(SyncStatus.UNKNOWN)
    return sa.or_(_SYNC.keys_fingerprint.is_distinct_from(fingerprint), could_not_be_read)


def _in_flight(connection: Connection, fingerprint: str) -> int:
    is_open = _SYNC.generation > _SYNC.observed_generation
    query = sa.select(sa.func.count()).select_from(_WITH_SUBCLOUD)
    query = query.where(_ELIGIBLE, _lacks(fingerprint), is_open, ~is_held_off())
    return connection.execute(query).scalar_one()


def _insert_row(connection: Connection) -> Row[Any]:
    """Inserts the row with defaults and returns it."""
    connection.execute(insert(key_rotation).values(id=1).on_conflict_do_nothing())
    return connection.execute(sa.select(key_rotation)).one()


def _row(row: Row[Any]) -> KeyRotationRow:
    return KeyRotationRow(
        state=row.state,
        detail=row.detail,
        next_due_at=row.next_due_at,
        last_rotated_at=row.last_rotated_at,
        window_until=row.window_until,
        requested_at=row.requested_at,
        requested_by=row.requested_by,
        forced=row.forced,
        max_in_flight=row.max_in_flight,
        before=_set(row.before) if row.before else None,
    )


def _set_body(found: KeySet) -> dict[str, Any]:
    return {"fingerprint": found.fingerprint, "keys": [list(pair) for pair in found.keys]}


def _set(body: dict[str, Any]) -> KeySet:
    return KeySet(body["fingerprint"], tuple((id_, key) for id_, key in body["keys"]))
