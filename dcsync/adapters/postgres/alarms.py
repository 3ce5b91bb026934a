"""Alarms in PostgreSQL (port `AlarmStore`): list, deliver to sinks, reconcile, prune.

A sink's position is a transaction id and a row id. A sink reads only changes of transactions older than every open
one: with row ids alone it would miss a row whose transaction committed late.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import BigInteger, Engine, RowMapping, case, delete, func, literal, literal_column, select, update
from sqlalchemy.dialects.postgresql import insert

from dcsync.adapters.postgres.database import database_errors
from dcsync.adapters.postgres.rows import has_passed
from dcsync.adapters.postgres.states import reconcile_alarms
from dcsync.adapters.postgres.tables import alarm, alarm_sink, refused_notice, rejected_report, silence
from dcsync.state.ports import AlarmNotice, AlarmPosition, RefusedNotice, RefusedNotices, SinkTurn
from dcsync.state.silence import alarm_ids

_OLDEST_OPEN_XID = literal_column("pg_snapshot_xmin(pg_current_snapshot())::text::bigint", BigInteger)
_SHOWN = (
    alarm.c.alarm_id,
    alarm.c.entity,
    alarm.c.severity,
    alarm.c.reason_text,
    alarm.c.raised_at,
    alarm.c.cleared_at,
)
_PRUNED_AT_ONCE = 10_000
_BEFORE_ALL = -(2**63)
"""The position of a sink before its first delivery."""


class SqlAlarmStore:
    """AlarmStore over PostgreSQL; thread-safe."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @database_errors()
    def alarms(self, *, history: bool, limit: int) -> list[AlarmNotice]:
        wanted = select(*_SHOWN).limit(limit)
        if history:
            wanted = wanted.order_by(alarm.c.raised_at.desc(), alarm.c.id.desc())
        else:
            fleet_first = case({each: number for number, each in enumerate(alarm_ids())}, value=alarm.c.alarm_id)
            wanted = wanted.where(alarm.c.cleared_at.is_(None))
            wanted = wanted.order_by(fleet_first.nulls_last(), alarm.c.alarm_id, alarm.c.raised_at, alarm.c.entity)
        with self._engine.connect() as connection:
            return [_notice(row) for row in connection.execute(wanted).mappings()]

    @database_errors()
    def checked_at(self) -> datetime | None:
        with self._engine.connect() as connection:
            return connection.execute(select(silence.c.checked_at)).scalar_one_or_none()

    @database_errors()
    def take_turn(self, sink: str, *, now: datetime, until: datetime, longest: timedelta) -> SinkTurn | None:
        with self._engine.begin() as connection:
            connection.execute(
                insert(alarm_sink)
                .values(name=sink, next_attempt_at=now, told_xid=_BEFORE_ALL)
                .on_conflict_do_nothing(),
            )
            taken = connection.execute(
                update(alarm_sink)
                .where(alarm_sink.c.name == sink, has_passed(alarm_sink.c.next_attempt_at, now=now, longest=longest))
                .values(next_attempt_at=until)
                .returning(alarm_sink.c.told_xid, alarm_sink.c.told_id, alarm_sink.c.attempt)
            ).first()
        return SinkTurn(sink, AlarmPosition(taken.told_xid, taken.told_id), taken.attempt) if taken else None

    @database_errors()
    def changed_after(self, position: AlarmPosition, *, limit: int) -> tuple[list[AlarmNotice], AlarmPosition]:
        changed = (
            select(*_SHOWN, alarm.c.changed_xid, alarm.c.id)
            .where(func.row(alarm.c.changed_xid, alarm.c.id) > func.row(*_bound(position)))
            .where(alarm.c.changed_xid < _OLDEST_OPEN_XID)
            .order_by(alarm.c.changed_xid, alarm.c.id)
            .limit(limit)
        )
        with self._engine.connect() as connection:
            rows = connection.execute(changed).mappings().all()
        reached = AlarmPosition(rows[-1]["changed_xid"], rows[-1]["id"]) if rows else position
        return [_notice(row) for row in rows], reached

    @database_errors()
    def end_turn(
        self,
        turn: SinkTurn,
        *,
        reached: AlarmPosition,
        next_attempt_at: datetime,
        attempt: int,
        refused: Sequence[RefusedNotice] = (),
    ) -> None:
        with self._engine.begin() as connection:
            if refused:
                connection.execute(insert(refused_notice), [asdict(each) for each in refused])
            connection.execute(
                update(alarm_sink)
                .where(alarm_sink.c.name == turn.sink)
                .values(told_xid=reached.xid, told_id=reached.row_id, attempt=attempt, next_attempt_at=next_attempt_at)
            )

    @database_errors()
    def refused_notices(self, *, limit: int) -> RefusedNotices:
        newest = select(refused_notice).order_by(refused_notice.c.id.desc()).limit(limit)
        with self._engine.connect() as connection:
            rows = connection.execute(newest).mappings().all()
            total = connection.scalar(select(func.count()).select_from(refused_notice))
        notices = ({name: value for name, value in row.items() if name != "id"} for row in rows)
        return RefusedNotices(total or 0, tuple(RefusedNotice(**notice) for notice in notices))

    @database_errors()
    def reconcile(self, *, now: datetime) -> tuple[int, int]:
        """Raises and clears alarms to match the rows; returns how many were raised and how many cleared.

        One statement each over all rows. State workers may write at the same time; their changes take precedence."""
        with self._engine.begin() as connection:
            dbapi_connection: Any = connection.connection.dbapi_connection
            with dbapi_connection.cursor() as cursor:
                _move_positions_of_another_server(cursor)
                # After many alarms at once the statistics are outdated, and a nested loop takes minutes.
                cursor.execute("SET LOCAL enable_nestloop = off")
                return reconcile_alarms(cursor, now=now)

    @database_errors()
    def prune(self, *, cleared_before: datetime, rejected_kept: int) -> int:
        """Deletes old cleared alarms and notices that sinks refused, and all but the newest rejected reports; returns
        how many rows were deleted."""
        old = (
            select(alarm.c.id)
            .where(alarm.c.cleared_at < cleared_before)
            .limit(_PRUNED_AT_ONCE)
            .with_for_update(skip_locked=True)
        )
        old_refused = (
            select(refused_notice.c.id)
            .where(refused_notice.c.refused_at < cleared_before)
            .limit(_PRUNED_AT_ONCE)
            .with_for_update(skip_locked=True)
        )
        newest = select(func.max(rejected_report.c.id)).scalar_subquery()
        surplus = select(rejected_report.c.id).where(rejected_report.c.id <= newest - rejected_kept)
        surplus = surplus.with_for_update(skip_locked=True)
        with self._engine.begin() as connection:
            removed = connection.execute(delete(alarm).where(alarm.c.id.in_(old))).rowcount
            removed += connection.execute(delete(refused_notice).where(refused_notice.c.id.in_(old_refused))).rowcount
            removed += connection.execute(delete(rejected_report).where(rejected_report.c.id.in_(surplus))).rowcount
        return removed


def _move_positions_of_another_server(cursor: Any) -> None:
    """Moves transaction ids that this server has not reached yet below zero, in the same order, and sinks' positions
    with them. A dump of another server may contain such ids; later alarms would sort before them and never be
    delivered. A sink whose position is not among them receives all alarms again."""
    cursor.execute(
        "SELECT greatest((SELECT max(changed_xid) FROM alarm), (SELECT max(told_xid) FROM alarm_sink)),"
        " pg_snapshot_xmax(pg_current_snapshot())::text::bigint"
    )
    newest, next_xid = cursor.fetchone()
    if newest is None or newest < next_xid:
        return
    moved = {"next_xid": next_xid, "by": newest + 1, "before_all": _BEFORE_ALL}
    cursor.execute("UPDATE alarm SET changed_xid = changed_xid - %(by)s WHERE changed_xid >= %(next_xid)s", moved)
    cursor.execute(
        "UPDATE alarm_sink SET"
        " told_xid = CASE WHEN told_xid >= %(next_xid)s THEN told_xid - %(by)s ELSE %(before_all)s END",
        moved,
    )


def _bound(position: AlarmPosition) -> Sequence[Any]:
    return literal(position.xid, BigInteger), literal(position.row_id, BigInteger)


def _notice(row: RowMapping) -> AlarmNotice:
    return AlarmNotice(**{column.name: row[column.name] for column in _SHOWN})
