"""The SQL of the check for silence (port `SilenceStore`): few statements, each a transaction of its own.

A statement in autocommit ends whatever becomes of the process that sent it: one that is stopped in the middle of a
check holds no lock. What it writes after it was continued is void, because another process has checked since.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.engine import Connection, Engine

from dcsync.adapters.postgres.database import database_errors
from dcsync.adapters.postgres.moves import INITIAL_SYNC_MOVES
from dcsync.adapters.postgres.rows import IS_ELIGIBLE
from dcsync.adapters.postgres.tables import (
    alarm,
    central_state,
    endpoint_status,
    key_rotation,
    silence,
    subcloud,
    subcloud_probe,
    subcloud_sync,
)
from dcsync.audit.endpoints import audited_types, endpoint_type_of_keys
from dcsync.model.marks import CLOCK_TOLERANCE
from dcsync.model.reasons import Reason
from dcsync.model.reports import MAX_FAIL_COUNT
from dcsync.model.states.initial_sync import InitialSyncEvent
from dcsync.model.subcloud import AvailabilityStatus, EndpointType, ManagementState, SyncStatus
from dcsync.model.written import as_written
from dcsync.state.ports import (
    AlarmRow,
    CentralFacts,
    FailingFacts,
    KeysFacts,
    ObservedFacts,
    RefusedFacts,
    SilenceCutoffs,
    SilenceFacts,
)
from dcsync.state.silence import NAMED, alarm_ids

_ROW = silence.c
_AUDIT = subcloud_sync.c
_IS_OURS = sa.and_(alarm.c.cleared_at.is_(None), alarm.c.alarm_id.in_(list(alarm_ids())))
_MANAGED = subcloud.c.management_state == ManagementState.MANAGED
_IS_COMPLETED = INITIAL_SYNC_MOVES.after(InitialSyncEvent.SUCCEEDED)
_ONLINE = subcloud.c.availability_status == AvailabilityStatus.ONLINE
_PROBED = subcloud.outerjoin(subcloud_probe, subcloud_probe.c.subcloud_id == subcloud.c.id)
_STATUSES = endpoint_status.join(subcloud, subcloud.c.id == endpoint_status.c.subcloud_id)
_AUDITS = subcloud_sync.join(subcloud, subcloud.c.id == _AUDIT.subcloud_id)


class SqlSilenceStore:
    """SilenceStore on an engine that is this process's own."""

    def __init__(self, engine: Engine) -> None:
        self._single = engine.execution_options(isolation_level="AUTOCOMMIT")

    @database_errors()
    def begin_check(self, *, now: datetime, swept_at: datetime | None, unless_since: datetime) -> bool:
        new = insert(silence).values(id=1, checked_at=now, first_checked_at=now, swept_at=swept_at)
        known = sa.case((_ROW.swept_at <= now + CLOCK_TOLERANCE, _ROW.swept_at))
        nobody_else = sa.or_(
            _ROW.checked_at.is_(None), _ROW.checked_at <= unless_since, _ROW.checked_at > now + CLOCK_TOLERANCE
        )
        taken = new.on_conflict_do_update(
            index_elements=["id"],
            set_={
                "checked_at": now,
                "first_checked_at": sa.func.least(_ROW.first_checked_at, now),
                "swept_at": sa.func.greatest(known, sa.literal(swept_at, _ROW.swept_at.type)),
            },
            where=nobody_else,
        ).returning(_ROW.id)
        with self._single.connect() as connection:
            return connection.execute(taken).first() is not None

    @database_errors()
    def facts(self, cutoffs: SilenceCutoffs, *, now: datetime) -> SilenceFacts:
        with self._single.connect() as connection:
            row = connection.execute(sa.select(silence)).one_or_none()
            return SilenceFacts(
                first_checked_at=row.first_checked_at if row is not None and row.first_checked_at else now,
                swept_at=row.swept_at if row is not None else None,
                observed=_observed(connection, cutoffs),
                failing=_failing(connection),
                central=_central(connection),
                keys=_keys(connection, cutoffs),
                active=frozenset(
                    (each.alarm_id, each.entity)
                    for each in connection.execute(sa.select(alarm.c.alarm_id, alarm.c.entity).where(_IS_OURS))
                ),
            )

    @database_errors()
    def central_facts(self) -> CentralFacts:
        """What the watch recorded, for an operator."""
        with self._single.connect() as connection:
            return _central(connection)

    @database_errors()
    def settle(self, expected: Sequence[AlarmRow], *, checked_at: datetime, now: datetime) -> tuple[int, int] | None:
        given = {
            "checked_at": checked_at,
            "now": now,
            "alarm_ids": [each.alarm_id for each in expected],
            "entities": [each.entity for each in expected],
            "subcloud_ids": [each.subcloud_id for each in expected],
            "endpoint_types": [each.endpoint_type and each.endpoint_type.value for each in expected],
            "severities": [each.severity for each in expected],
            "reason_texts": [each.reason_text for each in expected],
        }
        with self._single.connect() as connection:
            turns, raised, cleared = connection.execute(_SETTLE, given).one()
        return (raised, cleared) if turns else None


# --- reading -----------------------------------------------------------------------------------------------------


def _observed(connection: Connection, cutoffs: SilenceCutoffs) -> tuple[ObservedFacts, ...]:
    is_stale = ~_is_recent(_LAST_OBSERVED, sa.literal(cutoffs.availability), cutoffs) & ~_IS_COUNTED_OUT
    subclouds, stale = connection.execute(
        sa.select(sa.func.count(), sa.func.count().filter(is_stale)).select_from(_PROBED).where(_MANAGED)
    ).one()
    names = _names(connection, _PROBED, _MANAGED, is_stale) if stale else ()
    seen = ObservedFacts(endpoint_type=None, subclouds=subclouds, stale=stale, names=names)
    return (seen, *_verified(connection, cutoffs))


def _verified(connection: Connection, cutoffs: SilenceCutoffs) -> Iterator[ObservedFacts]:
    type_ = endpoint_status.c.endpoint_type
    is_audited = type_.in_(audited_types())
    since = sa.case((is_audited, cutoffs.audited), else_=cutoffs.reported)
    is_waiting = sa.and_(is_audited, ~_IS_COMPLETED)
    is_stale = ~_is_recent(sa.case((is_waiting, _WAITING_SINCE), else_=_PROOF), since, cutoffs)
    # Of one that fails, another alarm reports it.
    counted = (_MANAGED, _ONLINE, sa.or_(~is_waiting, subcloud.c.failing_since.is_(None)))
    rows = connection.execute(
        sa.select(type_, sa.func.count().label("subclouds"), sa.func.count().filter(is_stale).label("stale"))
        .select_from(_STATUSES)
        .where(*counted)
        .group_by(type_)
    ).all()
    for row in sorted(rows, key=lambda row: row.endpoint_type):
        own = type_ == row.endpoint_type
        names = _names(connection, _STATUSES, *counted, own, is_stale) if row.stale else ()
        yield ObservedFacts(endpoint_type=row.endpoint_type, subclouds=row.subclouds, stale=row.stale, names=names)


def _names(connection: Connection, source: sa.FromClause, *which: sa.ColumnElement[bool]) -> tuple[str, ...]:
    """Returns the names of a few of these subclouds, always the same ones."""
    query = sa.select(subcloud.c.name).select_from(source).where(*which).order_by(subcloud.c.id).limit(NAMED)
    return tuple(connection.execute(query).scalars())


def _is_recent(moment: Any, since: Any, cutoffs: SilenceCutoffs) -> sa.ColumnElement[bool]:
    """As `dcsync.model.shown.is_within`."""
    return sa.func.coalesce(moment.between(since, cutoffs.future), sa.false())


_LAST_OBSERVED = sa.case(
    (_ONLINE, sa.func.greatest(subcloud_probe.c.seen_at, subcloud.c.online_observed_at)),
    else_=sa.func.coalesce(
        sa.func.greatest(subcloud.c.offline_observed_at, subcloud.c.fail_count_observed_at), subcloud.c.created_at
    ),
)
"""When the availability in the row was last observed. That an offline subcloud was seen by a probe does not count: its
row does not say so, which means that no state worker wrote it."""

_IS_COUNTED_OUT = sa.and_(~_ONLINE, subcloud.c.audit_fail_count >= MAX_FAIL_COUNT)
"""Failed probes are counted no further, so its row does not change with them any more."""

_STATUS = endpoint_status.c
_PROOF = sa.case(
    (_STATUS.sync_status != SyncStatus.UNKNOWN, _STATUS.verified_at),
    else_=sa.func.coalesce(
        sa.func.greatest(_STATUS.observed_at, _STATUS.verified_at), subcloud.c.requested_at, subcloud.c.created_at
    ),
)
"""What must be recent. An unknown status is observed as long as anybody reports it; one that was never reported counts
from the request that asked for it."""

_WAITING_SINCE = sa.func.coalesce(subcloud.c.requested_at, subcloud.c.created_at)


def _failing(connection: Connection) -> tuple[FailingFacts, ...]:
    rows = [*connection.execute(_FAILING_SYNCS), *connection.execute(_FAILING_AUDITS)]
    return tuple(
        FailingFacts(
            subcloud_id=row.id,
            name=row.name,
            is_online=row.availability_status is AvailabilityStatus.ONLINE,
            online_since=row.online_observed_at,
            endpoint_type=row.endpoint_type,
            since=row.failing_since,
            failures=row.failures,
            reason=None if row.reason is None else as_written(Reason, row.reason),
            detail=row.detail,
        )
        for row in rows
    )


def _failing_rows(of: Any, endpoint_type: Any, source: Any, *also: sa.ColumnElement[bool]) -> sa.Select[Any]:
    """What failed before a subcloud was last unmanaged does not count."""
    availability = subcloud.c.availability_status, subcloud.c.online_observed_at
    shown = subcloud.c.id, subcloud.c.name, *availability, endpoint_type.label("endpoint_type")
    counts = sa.or_(subcloud.c.unmanaged_at.is_(None), of.failing_since > subcloud.c.unmanaged_at)
    return (
        sa.select(*shown, of.failing_since, of.failures, of.reason, of.detail)
        .select_from(source)
        .where(_MANAGED, of.failing_since.is_not(None), counts, *also)
    )


_FAILING_SYNCS = _failing_rows(subcloud.c, sa.null(), subcloud)
_FAILING_AUDITS = _failing_rows(_AUDIT, _AUDIT.endpoint_type, _AUDITS, _AUDIT.endpoint_type.in_(audited_types()))


def _central(connection: Connection) -> CentralFacts:
    row = connection.execute(sa.select(silence)).one_or_none()
    refused = connection.execute(
        sa.select(
            central_state.c.kind, central_state.c.refused, central_state.c.refused_since, central_state.c.checked_at
        )
        .where(
            central_state.c.refused.is_not(None), central_state.c.kind.in_([type_.value for type_ in audited_types()])
        )
        .order_by(central_state.c.kind)
    )
    return CentralFacts(
        checked_at=row.central_checked_at if row else None,
        readable_since=row.readable_since if row else None,
        unreadable_since=row.unreadable_since if row else None,
        unreadable_reason=(row.unreadable_reason or "") if row else "",
        refused=tuple(
            RefusedFacts(EndpointType(each.kind), each.refused_since or each.checked_at, each.refused)
            for each in refused
        ),
    )


def _keys(connection: Connection, cutoffs: SilenceCutoffs) -> KeysFacts:
    carrier = endpoint_type_of_keys()
    known = connection.execute(
        sa.select(central_state.c.fingerprint, central_state.c.changed_at).where(central_state.c.kind == carrier.value)
    ).one_or_none()
    if known is None:
        return KeysFacts()
    lacks = sa.and_(
        _AUDIT.keys_fingerprint.is_distinct_from(known.fingerprint),
        sa.or_(subcloud.c.requested_at.is_(None), subcloud.c.requested_at <= cutoffs.requested),
    )
    counted = (IS_ELIGIBLE, _AUDIT.endpoint_type == carrier)
    subclouds, behind = connection.execute(
        sa.select(sa.func.count(), sa.func.count().filter(lacks)).select_from(_AUDITS).where(*counted)
    ).one()
    return KeysFacts(
        changed_at=known.changed_at,
        window_until=connection.execute(sa.select(key_rotation.c.window_until)).scalar_one_or_none(),
        subclouds=subclouds,
        behind=behind,
        names=_names(connection, _AUDITS, *counted, lacks) if behind else (),
    )


# --- writing -----------------------------------------------------------------------------------------------------

_OURS = ", ".join(f"'{alarm_id}'" for alarm_id in alarm_ids())
_XID = "pg_current_xact_id()::text::bigint"

# All in one statement, for the rows to be compared and written as they were at one moment. A subcloud that was deleted
# since it was read raises nothing.
# Alarms, and subclouds, that another session holds are skipped: the next check finds them.
_SETTLE = sa.text(
    f"""
    WITH turn AS (
        SELECT FROM silence WHERE checked_at = :checked_at
    ), expected AS (
        SELECT x.* FROM unnest(
            CAST(:alarm_ids AS text[]), CAST(:entities AS text[]), CAST(:subcloud_ids AS bigint[]),
            CAST(:endpoint_types AS text[]), CAST(:severities AS text[]), CAST(:reason_texts AS text[])
        ) AS x (alarm_id, entity, subcloud_id, endpoint_type, severity, reason_text)
        WHERE x.subcloud_id IS NULL OR EXISTS (SELECT FROM subcloud WHERE id = x.subcloud_id)
    ), unlocked AS (
        SELECT a.id FROM alarm AS a WHERE a.cleared_at IS NULL AND a.alarm_id IN ({_OURS}) AND EXISTS (SELECT FROM turn)
        ORDER BY a.id FOR UPDATE SKIP LOCKED
    ), cleared AS (
        UPDATE alarm AS a SET cleared_at = greatest(CAST(:now AS timestamptz), a.raised_at), changed_xid = {_XID}
        FROM unlocked WHERE a.id = unlocked.id AND a.cleared_at IS NULL
          AND NOT EXISTS (SELECT FROM expected AS x WHERE (x.alarm_id, x.entity) = (a.alarm_id, a.entity))
        RETURNING 1
    ), reworded AS (
        UPDATE alarm AS a SET reason_text = x.reason_text FROM expected AS x, unlocked
        WHERE a.id = unlocked.id AND a.cleared_at IS NULL AND (x.alarm_id, x.entity) = (a.alarm_id, a.entity)
          AND a.reason_text <> x.reason_text
    ), missing AS (
        SELECT x.* FROM expected AS x WHERE EXISTS (SELECT FROM turn) AND NOT EXISTS (
            SELECT FROM alarm AS a WHERE a.cleared_at IS NULL AND (a.alarm_id, a.entity) = (x.alarm_id, x.entity))
    ), of_unlocked AS (
        SELECT s.id FROM subcloud AS s WHERE s.id IN (SELECT subcloud_id FROM missing)
        ORDER BY s.id FOR KEY SHARE SKIP LOCKED
    ), raised AS (
        INSERT INTO alarm (alarm_id, entity, subcloud_id, endpoint_type, severity, reason_text, raised_at, changed_xid)
        SELECT alarm_id, entity, subcloud_id, endpoint_type, severity, reason_text, CAST(:now AS timestamptz), {_XID}
        FROM missing WHERE subcloud_id IS NULL OR subcloud_id IN (SELECT id FROM of_unlocked)
        ORDER BY entity
        ON CONFLICT (entity, alarm_id) WHERE cleared_at IS NULL DO NOTHING
        RETURNING 1
    )
    SELECT (SELECT count(*) FROM turn), (SELECT count(*) FROM raised), (SELECT count(*) FROM cleared)
    """  # noqa: S608 - constants
)
