"""Audits in PostgreSQL (port `AuditStore`).

Each method is one transaction. Every write of a run is conditional on its run id. Rows of several subclouds are locked
in the order of their keys, or skipped where another transaction holds them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlalchemy.engine import Connection, Engine, Row

from dcsync.adapters.postgres import operations
from dcsync.adapters.postgres.database import database_errors, wait_briefly_for_locks
from dcsync.adapters.postgres.moves import AUDIT_MOVES, ROTATION_MOVES
from dcsync.adapters.postgres.rows import (
    IS_ELIGIBLE,
    has_deaths,
    is_held_off,
    placed_body,
    placed_from_body,
    server_started_at,
    shares_ip_with,
    subcloud_from_row,
    was_before,
)
from dcsync.adapters.postgres.tables import (
    audit_history,
    audit_request,
    central_state,
    endpoint_status,
    key_rotation,
    silence,
    subcloud,
    subcloud_placed,
    subcloud_sync,
)
from dcsync.audit.endpoints import audited_types
from dcsync.audit.ports import AuditChanges, AuditPart, AuditRow, AuditRun, CentralState, LostReport, Settlement
from dcsync.audit.standing import standing_of
from dcsync.model.ending import Failure
from dcsync.model.errors import RowLocked, refuse_unknown
from dcsync.model.identity import Placed
from dcsync.model.marks import CLOCK_TOLERANCE
from dcsync.model.messages import AuditHint
from dcsync.model.operation import Intent
from dcsync.model.reasons import Reason
from dcsync.model.states.audit import AuditEvent
from dcsync.model.states.rotation import RotationEvent
from dcsync.model.subcloud import EndpointType
from dcsync.model.written import as_written
from dcsync.runs.abandoned import ANY_DEATHS, RunInProgress, Suspects
from dcsync.runs.ports import Standing

_ROW = subcloud_sync.c
_MAY_BE_CLAIMED = AUDIT_MOVES.where(AuditEvent.CLAIMED)
_WITH_SUBCLOUD = subcloud_sync.join(subcloud, subcloud.c.id == _ROW.subcloud_id)
_IN_ORDER = (_ROW.subcloud_id, _ROW.endpoint_type)
_KEY = sa.tuple_(*_IN_ORDER)
_NO_RUN: dict[str, Any] = {"run_id": None, "claimed_at": None, "dispatched_at": None}
_TEXTS = sa.ARRAY(sa.Text)


def _is_audited() -> sa.ColumnElement[bool]:
    """Returns the condition for rows of the endpoint types in the registry."""
    return _ROW.endpoint_type.in_(audited_types())


JUST_ROTATED = timedelta(seconds=60)
"""Longer than a process caches central data."""


class SqlAuditStore:
    """AuditStore on an engine owned by this process."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    # --- requests ---

    @database_errors()
    def request(
        self,
        names: Sequence[str] | None,
        endpoint_types: Collection[EndpointType],
        *,
        now: datetime,
        by: str,
        allow_deletes: bool = False,
        resource_types: Collection[str] | None = None,
        intent: Intent | None = None,
    ) -> list[str]:
        with self._engine.begin() as connection:
            found = _subclouds(connection, names)
            regions = {row.id: row.region_name for row in found}
            rows = sa.and_(_is_audited(), _ROW.endpoint_type.in_(endpoint_types), _ROW.subcloud_id.in_(list(regions)))
            _raise_generation(
                connection,
                rows,
                now=now,
                by=by,
                due_at=now,
                attempt=0,
                difference_repairs=0,
                deletes_allowed=sa.true() if allow_deletes else _ROW.deletes_allowed,
                resource_types=_restricted_to(resource_types),
            )
            if allow_deletes and names is None:
                types = [type_.value for type_ in endpoint_types]
                connection.execute(
                    sa.update(central_state).where(central_state.c.kind.in_(types)).values(shrink_allowed=True)
                )
            if intent is not None:
                done = intent.done([row.name for row in found], now=now, detail=f"audits of {len(found)} requested")
                operations.record(connection, done, list(regions))
            return sorted(regions.values())

    @database_errors()
    def raise_generation(self, endpoint_type: EndpointType, *, now: datetime, by: str) -> int:
        with self._engine.begin() as connection:
            return _central_changed(connection, endpoint_type, now=now, by=by)

    @database_errors()
    def lost_reports(self, *, since: datetime | None, before: datetime, now: datetime) -> list[LostReport]:
        shown = sa.and_(
            endpoint_status.c.subcloud_id == _ROW.subcloud_id, endpoint_status.c.endpoint_type == _ROW.endpoint_type
        )
        reported_at = _ROW.sync_status_report_time
        query = (
            sa.select(
                subcloud.c.region_name,
                _ROW.endpoint_type,
                _ROW.sync_status_reported,
                _ROW.reason,
                reported_at,
                sa.select(key_rotation.c.window_until).scalar_subquery().label("planned_until"),
            )
            .select_from(_WITH_SUBCLOUD.join(endpoint_status, shown))
            .where(
                _is_audited(),
                IS_ELIGIBLE,
                reported_at < before,
                reported_at >= since if since is not None else sa.true(),
                sa.or_(
                    endpoint_status.c.observed_at.is_(None),
                    endpoint_status.c.observed_at < reported_at,
                    endpoint_status.c.observed_at > now + CLOCK_TOLERANCE,
                ),
            )
        )
        with self._engine.connect() as connection:
            return [
                LostReport(
                    region_name=row.region_name,
                    endpoint_type=row.endpoint_type,
                    sync_status=row.sync_status_reported,
                    reason=row.reason,
                    reported_at=row.sync_status_report_time,
                    keys_planned_until=row.planned_until,
                )
                for row in connection.execute(query)
                if row.sync_status_reported is not None
            ]

    @database_errors()
    def take_follow_ups(self, *, now: datetime) -> int:
        taken = sa.text(
            "DELETE FROM audit_request WHERE id IN (SELECT id FROM audit_request WHERE endpoint_type = ANY(:audited)"
            " FOR UPDATE SKIP LOCKED) RETURNING subcloud_id, endpoint_type, cause"
        )
        with self._engine.begin() as connection:
            rows = connection.execute(taken, {"audited": [type_.value for type_ in audited_types()]}).all()
            for row in sorted(rows, key=lambda row: (row.subcloud_id or 0, row.endpoint_type)):
                which = _ROW.endpoint_type == EndpointType(row.endpoint_type)
                if row.subcloud_id is not None:
                    which = sa.and_(which, _ROW.subcloud_id == row.subcloud_id)
                _request_all_resource_types(connection, which, now=now, by=row.cause)
            return len(rows)

    @database_errors()
    def audits(self, names: Sequence[str] | None) -> list[AuditRow]:
        query = (
            sa.select(subcloud.c.name, subcloud.c.region_name, IS_ELIGIBLE.label("is_eligible"), subcloud_sync)
            .select_from(_WITH_SUBCLOUD)
            .where(_is_audited())
            .order_by(subcloud.c.name, _ROW.endpoint_type)
        )
        with self._engine.connect() as connection:
            if names is not None:
                query = query.where(subcloud.c.id.in_(list(_regions(connection, names))))
            return [_audit_row(row) for row in connection.execute(query)]

    # --- the sweep ---

    @database_errors()
    def in_progress_since_before(self, moment: datetime, *, now: datetime) -> list[RunInProgress]:
        query = (
            sa.select(
                subcloud.c.region_name, _ROW.run_id, sa.func.min(_ROW.claimed_at).label("claimed_at"), _ROW.abandoned
            )
            .select_from(_WITH_SUBCLOUD)
            .where(_ROW.run_id.is_not(None), was_before(moment, _ROW.claimed_at, now=now))
            .group_by(subcloud.c.region_name, _ROW.run_id, _ROW.abandoned)
        )
        with self._engine.connect() as connection:
            return [
                RunInProgress(row.region_name, row.run_id, row.claimed_at, row.abandoned)
                for row in connection.execute(query)
            ]

    @database_errors()
    def take_back(self, abandoned: Collection[RunInProgress], *, now: datetime, counted: bool = True) -> list[str]:
        died = {"abandoned": _ROW.abandoned + int(counted), "due_at": now, "detail": "its worker died or lost its lock"}
        return self._end_abandoned(abandoned, AuditEvent.ABANDONED, died)

    @database_errors()
    def quarantine(
        self, abandoned: Collection[RunInProgress], failure: Failure, *, now: datetime, retry_at: datetime
    ) -> list[str]:
        failed = {"abandoned": 0, "due_at": retry_at, "reason": failure.reason.value, "detail": failure.detail}
        failed |= {"failing_since": sa.func.least(_ROW.failing_since, now), "failures": _ROW.failures + 1}
        return self._end_abandoned(abandoned, AuditEvent.QUARANTINED, failed)

    def _end_abandoned(
        self, runs: Collection[RunInProgress], event: AuditEvent, values: Mapping[str, Any]
    ) -> list[str]:
        if not runs:
            return []
        unchanged = sa.tuple_(_ROW.run_id, _ROW.abandoned).in_([(run.run_id, run.deaths) for run in runs])
        with self._engine.begin() as connection:
            mine = _lock(connection, sa.and_(unchanged, AUDIT_MOVES.where(event)), skip_locked=True)
            ended = sa.update(subcloud_sync).where(_KEY.in_(mine)).values(**_NO_RUN, **AUDIT_MOVES.to(event), **values)
            ids = set(connection.scalars(ended.returning(_ROW.subcloud_id))) if mine else set()
            names = sa.select(subcloud.c.region_name).where(subcloud.c.id.in_(ids))
            return sorted(connection.scalars(names))

    @database_errors()
    def void_deadlines(self, *, now: datetime, longest: timedelta) -> int:
        void = sa.and_(_is_audited(), _MAY_BE_CLAIMED, _ROW.due_at > now + longest + CLOCK_TOLERANCE)
        with self._engine.begin() as connection:
            keys = sa.select(*_IN_ORDER).where(void).order_by(*_IN_ORDER).with_for_update(skip_locked=True)
            found = [tuple(row) for row in connection.execute(keys)]
            if found:
                connection.execute(sa.update(subcloud_sync).where(_KEY.in_(found)).values(due_at=now))
            return len(found)

    @database_errors()
    def server_started_at(self) -> datetime:
        return server_started_at(self._engine)

    @database_errors()
    def suspects(self, *, lost: Collection[AuditHint]) -> Suspects:
        is_lost = subcloud.c.region_name == sa.any_(sa.literal([hint.region_name for hint in lost], _TEXTS))
        is_in_flight = _ROW.run_id.is_not(None) | (_ROW.dispatched_at.is_not(None) & ~is_lost)
        query = (
            sa.select(_ROW.abandoned, is_in_flight.label("is_in_flight"), sa.func.count())
            .select_from(_WITH_SUBCLOUD)
            .where(_ROW.abandoned > 0, _is_audited(), IS_ELIGIBLE)
            .group_by(_ROW.abandoned, sa.text("is_in_flight"))
        )
        with self._engine.connect() as connection:
            return {(deaths, flies): number for deaths, flies, number in connection.execute(query)}

    @database_errors()
    def unstarted_hints(self) -> list[tuple[AuditHint, datetime]]:
        query = (
            sa.select(subcloud.c.region_name, _ROW.dispatches, _ROW.dispatched_at)
            .select_from(_WITH_SUBCLOUD)
            .where(_ROW.dispatched_at.is_not(None), _MAY_BE_CLAIMED, IS_ELIGIBLE)
        )
        with self._engine.connect() as connection:
            latest: dict[AuditHint, datetime] = {}
            for row in connection.execute(query):
                hint = AuditHint(row.region_name, row.dispatches)
                latest[hint] = max(row.dispatched_at, latest.get(hint, row.dispatched_at))
            return list(latest.items())

    @database_errors()
    def in_progress_count(self) -> int:
        query = sa.select(sa.func.count(sa.distinct(_ROW.run_id))).where(_ROW.run_id.is_not(None))
        with self._engine.connect() as connection:
            return int(connection.execute(query).scalar_one())

    @database_errors()
    def dispatch(
        self, *, room: int, lost: Collection[AuditHint], now: datetime, deaths: range = ANY_DEATHS
    ) -> list[AuditHint]:
        regions = [hint.region_name for hint in lost]
        not_sent = _ROW.dispatched_at.is_(None) | (subcloud.c.region_name == sa.any_(sa.literal(regions, _TEXTS)))
        due = (
            sa.select(*_IN_ORDER)
            .select_from(_WITH_SUBCLOUD)
            .where(_is_audited(), IS_ELIGIBLE, _MAY_BE_CLAIMED, _ROW.due_at <= now, not_sent)
            .where(has_deaths(_ROW.abandoned, deaths))
            .order_by(_ROW.due_at, *_IN_ORDER)
            .limit(room)
            .with_for_update(of=subcloud_sync, skip_locked=True)
        )
        with self._engine.begin() as connection:
            found = connection.execute(due).all()
            if not found:
                return []
            update = (
                sa.update(subcloud_sync)
                .where(_KEY.in_([tuple(row) for row in found]), subcloud.c.id == _ROW.subcloud_id)
                .values(dispatched_at=now, dispatches=_ROW.dispatches + 1)
                .returning(subcloud.c.region_name, _ROW.subcloud_id, _ROW.dispatches, _ROW.due_at)
            )
            rows = connection.execute(update).all()
            numbers: dict[int, int] = {}
            for row in rows:
                numbers[row.subcloud_id] = max(row.dispatches, numbers.get(row.subcloud_id, 0))
            _set_hint_number(connection, [tuple(row) for row in found], numbers)
        oldest: dict[str, tuple[datetime, int]] = {}
        for row in sorted(rows, key=lambda row: (row.due_at, row.subcloud_id)):
            oldest.setdefault(row.region_name, (row.due_at, numbers[row.subcloud_id]))
        return [AuditHint(name, number) for name, (_, number) in oldest.items()]

    @database_errors()
    def undo_dispatch(self, hints: Collection[AuditHint]) -> None:
        names = [hint.region_name for hint in hints]
        with self._engine.begin() as connection:
            ids = sa.select(subcloud.c.id).where(subcloud.c.region_name.in_(names))
            sent = sa.and_(_ROW.subcloud_id.in_(ids.scalar_subquery()), _MAY_BE_CLAIMED)
            mine = _lock(connection, sent, skip_locked=True)
            if mine:
                connection.execute(sa.update(subcloud_sync).where(_KEY.in_(mine)).values(dispatched_at=None))

    # --- one run ---

    @database_errors()
    def claim(self, regions: Mapping[str, str], *, now: datetime) -> list[AuditRun]:
        found = (self._claim_if_unlocked(region_name, run_id, now=now) for run_id, region_name in regions.items())
        return [run for run in found if run is not None]

    def _claim_if_unlocked(self, region_name: str, run_id: str, *, now: datetime) -> AuditRun | None:
        """Rows that another session holds are not claimed: their hints are lost, and the sweep sends them again."""
        try:
            with database_errors():
                return self._claim(region_name, run_id, now=now)
        except RowLocked:
            return None

    def _claim(self, region_name: str, run_id: str, *, now: datetime) -> AuditRun | None:
        found = (
            sa.select(*_IN_ORDER)
            .select_from(_WITH_SUBCLOUD)
            .where(
                subcloud.c.region_name == region_name, _is_audited(), IS_ELIGIBLE, _MAY_BE_CLAIMED, _ROW.due_at <= now
            )
            .order_by(*_IN_ORDER)
            .with_for_update(of=subcloud_sync)
        )
        with self._engine.begin() as connection:
            wait_briefly_for_locks(connection)
            due = [tuple(row) for row in connection.execute(found)]
            if not due:
                return None
            take = (
                sa.update(subcloud_sync)
                .where(_KEY.in_(due))
                .values(
                    **(_NO_RUN | {"run_id": run_id, "claimed_at": now}),
                    **AUDIT_MOVES.to(AuditEvent.CLAIMED),
                    attempt=_ROW.attempt + 1,
                )
                .returning(subcloud_sync)
            )
            rows = connection.execute(take).all()
            return _run(connection, run_id, subcloud.c.region_name == region_name, rows)

    @database_errors()
    def read_run(self, name: str) -> AuditRun:
        with self._engine.connect() as connection:
            (id_,) = _regions(connection, [name])
            rows = connection.execute(sa.select(subcloud_sync).where(_ROW.subcloud_id == id_, _is_audited())).all()
            return _run(connection, "", subcloud.c.id == id_, rows)

    @database_errors()
    def standing(self, run_ids: Collection[str]) -> dict[str, Standing | None]:
        query = (
            sa.select(_ROW.run_id, IS_ELIGIBLE.label("is_eligible"))
            .select_from(_WITH_SUBCLOUD)
            .where(_ROW.run_id.in_(run_ids))
        )
        with self._engine.connect() as connection:
            eligible = {row.run_id: row.is_eligible for row in connection.execute(query)}
        return {
            run_id: standing_of(owns_rows=run_id in eligible, is_eligible=eligible.get(run_id, False))
            for run_id in run_ids
        }

    @database_errors()
    def remember_placed(self, run: AuditRun, placed: Placed) -> bool:
        body = placed_body(placed)
        with self._engine.begin() as connection:
            if not _owns(connection, run):
                return False
            new = insert(subcloud_placed).values(subcloud_id=run.subcloud.id, placed=body)
            connection.execute(new.on_conflict_do_update(index_elements=["subcloud_id"], set_={"placed": body}))
            return True

    @database_errors()
    def remember_groups(self, run: AuditRun, groups: Mapping[str, tuple[str, ...]]) -> bool:
        kept = {group: list(ids) for group, ids in groups.items()}
        with self._engine.begin() as connection:
            if not _owns(connection, run):
                return False
            update = sa.update(subcloud).where(subcloud.c.id == run.subcloud.id).values(groups_to_refill=kept)
            return connection.execute(update).rowcount == 1

    @database_errors()
    def settle(self, settlements: Sequence[Settlement]) -> set[str]:
        in_order = sorted(settlements, key=lambda each: (each.run.subcloud.id, each.endpoint_type.value))
        settled, lost = [], set()
        with self._engine.begin() as connection:
            for each in in_order:
                if connection.execute(_settled(each)).rowcount:
                    settled.append(each)
                else:
                    lost.add(each.run.run_id)
            _keep_history(connection, settled)
        return {each.run.run_id for each in settlements} - lost

    @database_errors()
    def release(self, run: AuditRun, *, now: datetime) -> bool:
        with self._engine.begin() as connection:
            mine = _lock(connection, sa.and_(_ROW.run_id == run.run_id, AUDIT_MOVES.where(AuditEvent.RELEASED)))
            if not mine:
                return False
            update = sa.update(subcloud_sync).where(_KEY.in_(mine))
            connection.execute(
                update.values(**_NO_RUN, **AUDIT_MOVES.to(AuditEvent.RELEASED), attempt=_ROW.attempt - 1, due_at=now)
            )
            return True

    # --- the central cloud ---

    @database_errors()
    def central_state(self, endpoint_type: EndpointType) -> CentralState | None:
        query = sa.select(central_state).where(central_state.c.kind == endpoint_type.value)
        with self._engine.connect() as connection:
            row = connection.execute(query).one_or_none()
        if row is None:
            return None
        return CentralState(
            endpoint_type=endpoint_type,
            fingerprint=row.fingerprint,
            events_fingerprint=row.events_fingerprint,
            counts=dict(row.counts),
            generation=row.generation,
            changed_at=row.changed_at,
            refused=row.refused,
            refused_since=row.refused_since,
            shrink_allowed=row.shrink_allowed,
        )

    @database_errors()
    def add_rows(self, endpoint_type: EndpointType, *, now: datetime) -> int:
        every = sa.select(subcloud.c.id, sa.literal(endpoint_type.value), sa.literal(now))
        new = insert(subcloud_sync).from_select(["subcloud_id", "endpoint_type", "due_at"], every)
        with self._engine.begin() as connection:
            return connection.execute(new.on_conflict_do_nothing()).rowcount

    @database_errors()
    def accept_central(
        self, state: CentralState, *, old: CentralState | None, now: datetime, unless_rotating: bool = False
    ) -> int | None:
        columns: dict[str, Any] = {
            "fingerprint": state.fingerprint,
            "events_fingerprint": state.events_fingerprint,
            "counts": dict(state.counts),
            "changed_at": now,
            "checked_at": now,
            "refused": None,
            "refused_since": None,
            "shrink_allowed": False,
        }
        with self._engine.begin() as connection:
            if old is None:
                new = insert(central_state).values(kind=state.endpoint_type.value, **columns).on_conflict_do_nothing()
                return 0 if connection.execute(new).rowcount else None
            update = (
                sa.update(central_state)
                .where(
                    central_state.c.kind == state.endpoint_type.value,
                    central_state.c.fingerprint == old.fingerprint,
                    central_state.c.events_fingerprint == old.events_fingerprint,
                    ~_is_rotating(now=now) if unless_rotating else sa.true(),
                )
                .values(**columns, generation=central_state.c.generation + 1)
            )
            if not connection.execute(update).rowcount:
                return None
            return _central_changed(connection, state.endpoint_type, now=now, by="the central cloud changed")

    @database_errors()
    def refuse_central(self, endpoint_type: EndpointType, *, why: str, now: datetime) -> None:
        since = sa.func.least(central_state.c.refused_since, now)
        self._update_central(endpoint_type, refused=why, refused_since=since, checked_at=now)

    @database_errors()
    def note_central_check(self, *, unreadable: str | None, now: datetime) -> None:
        known, is_unreadable = silence.c, unreadable is not None
        noted = {
            "central_checked_at": now,
            "unreadable_since": sa.func.least(known.unreadable_since, now) if is_unreadable else sa.null(),
            "unreadable_reason": unreadable,
            "readable_since": sa.null() if is_unreadable else sa.func.least(known.readable_since, now),
        }
        first = {"central_checked_at": now, "unreadable_reason": unreadable}
        first |= {"unreadable_since" if is_unreadable else "readable_since": now}
        with self._engine.begin() as connection:
            new = insert(silence).values(id=1, **first)
            connection.execute(new.on_conflict_do_update(index_elements=["id"], set_=noted))

    @database_errors()
    def confirm_central(self, endpoint_type: EndpointType, *, now: datetime) -> None:
        self._update_central(endpoint_type, refused=None, refused_since=None, shrink_allowed=False, checked_at=now)

    def _update_central(self, endpoint_type: EndpointType, **columns: object) -> None:
        with self._engine.begin() as connection:
            connection.execute(
                sa.update(central_state).where(central_state.c.kind == endpoint_type.value).values(**columns)
            )


# --- parts of the statements -------------------------------------------------------------------------------------


def _regions(connection: Connection, names: Sequence[str] | None) -> dict[int, str]:
    """Returns id -> region name of these subclouds (None: all); raises UnknownSubcloud naming all that are missing."""
    return {row.id: row.region_name for row in _subclouds(connection, names)}


def _subclouds(connection: Connection, names: Sequence[str] | None) -> list[Any]:
    """Returns their ids, names and region names; raises as `_regions`."""
    query = sa.select(subcloud.c.id, subcloud.c.name, subcloud.c.region_name)
    if names is not None:
        query = query.where(subcloud.c.name == sa.any_(sa.literal(list(names), _TEXTS)))
    rows = connection.execute(query).all()
    refuse_unknown(names or (), {row.name for row in rows})
    return list(rows)


def _lock(
    connection: Connection, which: sa.ColumnElement[bool], *, skip_locked: bool = False
) -> list[tuple[int, EndpointType]]:
    """Locks these rows until the transaction ends; returns their keys."""
    query = sa.select(*_IN_ORDER).where(which).order_by(*_IN_ORDER).with_for_update(skip_locked=skip_locked)
    return [(row.subcloud_id, row.endpoint_type) for row in connection.execute(query)]


def _owns(connection: Connection, run: AuditRun) -> bool:
    """Returns whether the run owns its rows, and locks them until the transaction ends. The subcloud's row is locked
    first, as in every transaction that locks both: deletion and initial sync hold it before they lock these rows."""
    connection.execute(
        sa.select(subcloud.c.id).where(subcloud.c.id == run.subcloud.id).with_for_update(key_share=True)
    ).all()
    return bool(_lock(connection, sa.and_(_ROW.subcloud_id == run.subcloud.id, _ROW.run_id == run.run_id)))


def _is_rotating(*, now: datetime) -> sa.ColumnElement[bool]:
    """Returns the condition that keys are being rotated or were just rotated. The rotation records the central state
    itself and distributes the keys in waves; data read meanwhile may be older."""
    just_rotated = key_rotation.c.last_rotated_at.between(now - JUST_ROTATED, now + CLOCK_TOLERANCE)
    rotating = sa.or_(ROTATION_MOVES.where(RotationEvent.ROTATED), just_rotated)
    return sa.exists(sa.select(key_rotation.c.id).where(rotating))


def _due_now_unless_held_off(now: datetime) -> sa.ColumnElement[datetime]:
    return sa.case((is_held_off(), _ROW.due_at), else_=sa.func.least(_ROW.due_at, now))


def _central_changed(connection: Connection, endpoint_type: EndpointType, *, now: datetime, by: str) -> int:
    return _request_all_resource_types(connection, _ROW.endpoint_type == endpoint_type, now=now, by=by)


def _request_all_resource_types(
    connection: Connection, which: sa.ColumnElement[bool], *, now: datetime, by: str
) -> int:
    """Requests audits of all resource types, also where an operator requested only some: that run would otherwise
    settle this request as well. Returns how many rows.

    For rows that another session holds, the request is stored beside them; a later sweep takes it.
    """
    unlocked = sa.select(*_IN_ORDER).where(which).order_by(*_IN_ORDER).with_for_update(skip_locked=True)
    raised = _raised(_KEY.in_(unlocked), now=now, by=by, due_at=_due_now_unless_held_off(now), resource_types=sa.null())
    count = connection.execute(raised).rowcount
    skipped = sa.select(*_IN_ORDER, sa.literal(now), sa.literal(by)).where(
        which, _ROW.requested_at.is_distinct_from(now)
    )
    later = insert(audit_request).from_select(["subcloud_id", "endpoint_type", "requested_at", "cause"], skipped)
    return count + connection.execute(later.on_conflict_do_nothing()).rowcount


def _restricted_to(resource_types: Collection[str] | None) -> sa.ColumnElement[Any]:
    """Returns the new `resource_types` after an operator's request. An earlier request that is still open is combined
    with it, because one run carries out both."""
    if resource_types is None:
        return sa.null()
    requested, is_open = sa.literal(sorted(resource_types), JSONB), _ROW.generation > _ROW.observed_generation
    return sa.case(
        (sa.and_(is_open, _ROW.resource_types.is_(None)), sa.null()),
        (is_open, _ROW.resource_types.op("||")(requested)),
        else_=requested,
    )


def _raise_generation(
    connection: Connection, which: sa.ColumnElement[bool], *, now: datetime, by: str, **values: Any
) -> int:
    """Returns how many rows were requested; rows deleted before they could be locked are not counted."""
    connection.execute(sa.select(_ROW.subcloud_id).where(which).order_by(*_IN_ORDER).with_for_update())
    return connection.execute(_raised(which, now=now, by=by, **values)).rowcount


def _raised(which: sa.ColumnElement[bool], *, now: datetime, by: str, **values: Any) -> sa.Update:
    update = sa.update(subcloud_sync).where(which)
    return update.values(generation=_ROW.generation + 1, requested_at=now, requested_by=by, **values)


def _set_hint_number(connection: Connection, keys: list[tuple[Any, ...]], numbers: Mapping[int, int]) -> None:
    """Sets the hint number on all rows of a subcloud that share a hint."""
    listed = sa.values(sa.column("id", sa.BigInteger), sa.column("number", sa.BigInteger), name="numbers").data(
        sorted(numbers.items())
    )
    connection.execute(
        sa.update(subcloud_sync)
        .where(_KEY.in_(keys), _ROW.subcloud_id == listed.c.id, _ROW.dispatches != listed.c.number)
        .values(dispatches=listed.c.number)
    )


_COLUMNS = {
    "reported": "sync_status_reported",
    "reported_at": "sync_status_report_time",
    "differences": "difference_detail",
}
"""Field name in the service -> column name, where they differ."""


def _settled(settlement: Settlement) -> sa.Update:
    is_requested = _ROW.generation > settlement.generation
    values = {**_NO_RUN, **AUDIT_MOVES.to(settlement.event), **_columns(settlement.always)}
    found, asked = _columns(settlement.unless_requested), _columns(settlement.if_requested)
    for name in found.keys() | asked.keys():
        column = _ROW[name]
        new, newer = (sa.literal(each[name], column.type) if name in each else column for each in (found, asked))
        values[name] = sa.case((is_requested, newer), else_=new)
    return (
        sa.update(subcloud_sync)
        .where(
            _ROW.subcloud_id == settlement.run.subcloud.id,
            _ROW.endpoint_type == settlement.endpoint_type,
            _ROW.run_id == settlement.run.run_id,
            AUDIT_MOVES.where(settlement.event),
        )
        .values(values)
    )


def _keep_history(connection: Connection, settled: Sequence[Settlement]) -> None:
    """One statement, and none where no audit found anything."""
    rows = [
        {**vars(each.history), "subcloud_id": each.run.subcloud.id}
        | {column: vars(getattr(each.history, column)) for column in ("differences", "written", "not_written")}
        for each in settled
        if each.history is not None
    ]
    if rows:
        connection.execute(sa.insert(audit_history).values(rows))


def _columns(changes: AuditChanges) -> dict[str, Any]:
    return {_COLUMNS.get(name, name): value for name, value in changes.items()}


# --- from rows to records ----------------------------------------------------------------------------------------


def _run(connection: Connection, run_id: str, which: sa.ColumnElement[bool], rows: Sequence[Row[Any]]) -> AuditRun:
    found = connection.execute(sa.select(subcloud, shares_ip_with()).where(which)).mappings().one()
    body = connection.execute(
        sa.select(subcloud_placed.c.placed).where(subcloud_placed.c.subcloud_id == found["id"])
    ).scalar_one_or_none()
    counts = connection.execute(sa.select(central_state.c.counts)).scalars()
    return AuditRun(
        run_id=run_id,
        subcloud=subcloud_from_row(dict(found)),
        parts=tuple(
            _part(row, unmanaged_at=found["unmanaged_at"])
            for row in sorted(rows, key=lambda row: row.endpoint_type.value)
        ),
        placed=Placed() if body is None else placed_from_body(body),
        groups_to_refill={group: tuple(members) for group, members in found["groups_to_refill"].items()},
        central_counts={what: count for listed in counts for what, count in listed.items()},
        keys_planned_until=connection.execute(sa.select(key_rotation.c.window_until)).scalar_one_or_none(),
    )


def _part(row: Row[Any], *, unmanaged_at: datetime | None) -> AuditPart:
    """What failed before the subcloud was last unmanaged is forgotten."""
    is_failing = row.failing_since is not None and (unmanaged_at is None or row.failing_since > unmanaged_at)
    return AuditPart(
        endpoint_type=row.endpoint_type,
        generation=row.generation,
        attempt=row.attempt,
        difference=row.difference,
        difference_repairs=row.difference_repairs,
        deletes_allowed=row.deletes_allowed,
        resource_types=None if row.resource_types is None else frozenset(row.resource_types),
        requested_at=row.requested_at,
        failing_since=row.failing_since if is_failing else None,
        failures=row.failures if is_failing else 0,
    )


def _audit_row(row: Row[Any]) -> AuditRow:
    return AuditRow(
        name=row.name,
        region_name=row.region_name,
        endpoint_type=row.endpoint_type,
        is_eligible=row.is_eligible,
        generation=row.generation,
        observed_generation=row.observed_generation,
        requested_at=row.requested_at,
        requested_by=row.requested_by,
        audit_status=row.audit_status,
        due_at=row.due_at,
        claimed_at=row.claimed_at,
        attempt=row.attempt,
        reason=None if row.reason is None else as_written(Reason, row.reason),
        detail=row.detail,
        result=row.result,
        reported=row.sync_status_reported,
        last_audit_time=row.last_audit_time,
        last_good_at=row.last_good_at,
        differences=tuple(row.difference_detail),
        difference_at=row.difference_at,
        difference_repairs=row.difference_repairs,
        repaired_at=row.repaired_at,
    )
