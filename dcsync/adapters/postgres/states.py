"""Rows of the state service in PostgreSQL (port `StateStore`): a batch of reports in a few statements.

Uses psycopg2 directly, on SQLAlchemy's connection and in its transaction: a batch is hundreds of rows, for which
building a statement costs ten times its execution (docs/upstream/platform-facts.md section 4.2). Rows are locked and
written in the order of their ids, so that two batches wait for each other instead of deadlocking. `dcsync.state`
decides what is written.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import psycopg2
from psycopg2.extras import execute_values
from sqlalchemy import Connection, Engine, exc

from dcsync.adapters.postgres.database import BRIEF_LOCK_MILLISECONDS, database_errors
from dcsync.adapters.postgres.transitions import apply_event
from dcsync.audit.endpoints import audited_types
from dcsync.model.errors import BadReport
from dcsync.model.reports import Mark
from dcsync.model.states.initial_sync import InitialSyncState
from dcsync.model.subcloud import AvailabilityStatus, EndpointType, ManagementState, SyncStatus
from dcsync.state.ports import AlarmRow, EndpointRow, ObservedColumns, StateChanges, StateRow
from dcsync.state.rules import AlarmId

BY = "state service"
REJECTED_KEPT = 10_000
_PAGE = 2_000
_XID = "pg_current_xact_id()::text::bigint"

_MANAGEMENT = {str(word): word for word in ManagementState}
_AVAILABILITY = {str(word): word for word in AvailabilityStatus}
_STATE = {str(word): word for word in InitialSyncState}
_ENDPOINT = {str(word): word for word in EndpointType}
_SYNC = {str(word): word for word in SyncStatus}


class SqlStateStore:
    """StateStore over PostgreSQL; thread-safe, because every transaction uses its own connection."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @contextmanager
    def transaction(self) -> Iterator[SqlStateTransaction]:
        """Commits at the end of the block. Raises DatabaseUnreachable, RowLocked where another session holds a row, and
        BadReport for a value PostgreSQL rejects."""
        with database_errors(), _rejected_values(), self._engine.begin() as connection:
            yield SqlStateTransaction(connection)

    @database_errors()
    def region_names(self, *, after: str, limit: int) -> list[str]:
        with self._engine.connect() as connection, _cursor(connection) as cursor:
            cursor.execute(
                "SELECT region_name FROM subcloud WHERE region_name > %s ORDER BY region_name LIMIT %s", (after, limit)
            )
            return [region_name for (region_name,) in cursor.fetchall()]

    @database_errors()
    def add_missing_endpoints(self, endpoint_types: Collection[EndpointType]) -> int:
        types = {
            "wanted": [type_.value for type_ in endpoint_types],
            "audited": [type_.value for type_ in audited_types()],
            "kept": EndpointType.DC_CERT.value,
        }
        with self._engine.begin() as connection, _cursor(connection) as cursor:
            cursor.execute(_ADD_MISSING, types)
            ((added,),) = cursor.fetchall()
            return int(added)


# `observed_at` is set as if the row had existed when the subcloud was unmanaged: see `transitions.reset_endpoints`.
_ADD_MISSING = """
WITH added AS (
    INSERT INTO endpoint_status (subcloud_id, endpoint_type, observed_at)
    SELECT s.id, wanted.type, CASE WHEN wanted.type <> %(kept)s THEN s.unmanaged_at END
    FROM subcloud AS s CROSS JOIN unnest(%(wanted)s::text[]) AS wanted (type)
    WHERE NOT EXISTS (SELECT FROM endpoint_status WHERE subcloud_id = s.id AND endpoint_type = wanted.type)
      AND NOT EXISTS (SELECT FROM report_memory WHERE subcloud_id = s.id
                      AND memory #>> ARRAY['types', wanted.type, '0'] = 'false')
    ORDER BY s.id, wanted.type
    ON CONFLICT DO NOTHING
    RETURNING subcloud_id, endpoint_type
), audited AS (
    INSERT INTO subcloud_sync (subcloud_id, endpoint_type)
    SELECT subcloud_id, endpoint_type FROM added WHERE endpoint_type = ANY(%(audited)s)
    ON CONFLICT DO NOTHING
)
SELECT count(*) FROM added
"""


@contextmanager
def _rejected_values() -> Iterator[None]:
    """Raises BadReport for a value PostgreSQL rejects, because a retry gives the same result."""
    try:
        yield
    except (psycopg2.DataError, psycopg2.IntegrityError, exc.DataError, exc.IntegrityError) as error:
        cause = error.orig if isinstance(error, exc.DBAPIError) else error
        raise BadReport(f"rejected by the database: {type(cause).__name__}") from error


@contextmanager
def _cursor(connection: Connection) -> Iterator[Any]:
    dbapi_connection: Any = connection.connection.dbapi_connection
    if dbapi_connection is None:
        raise psycopg2.InterfaceError("the connection is closed")
    with dbapi_connection.cursor() as cursor:
        yield cursor


class SqlStateTransaction:
    """StateTransaction on one connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def lock(
        self, region_names: Collection[str], *, endpoint_types: Collection[EndpointType] | None = None
    ) -> list[StateRow]:
        wanted = sorted(EndpointType if endpoint_types is None else endpoint_types)
        with _cursor(self._connection) as cursor:
            cursor.execute(_LOCK, (BRIEF_LOCK_MILLISECONDS, sorted(region_names)))
            rows = cursor.fetchall()
            ids = [row[0] for row in rows]
            # Read after the rows are locked: before, another transaction could still change what belongs to them.
            cursor.execute(_MEMORIES, (ids,))
            memories = dict(cursor.fetchall())
            cursor.execute(_ENDPOINTS, (ids, [type_.value for type_ in wanted]))
            endpoints: dict[int, dict[EndpointType, EndpointRow]] = {id_: {} for id_ in ids}
            for id_, type_, status, alarmable, observed_at, sequence, *proof in cursor.fetchall():
                mark = _mark(observed_at, sequence)
                endpoints[id_][_ENDPOINT[type_]] = EndpointRow(_SYNC[status], alarmable, mark, *proof)
        audited = frozenset(audited_types())
        return [_state_row(row, endpoints[row[0]], memories.get(row[0], {}), audited=audited) for row in rows]

    def write(self, changes: StateChanges, *, now: datetime) -> None:
        with _cursor(self._connection) as cursor:
            _write_columns(cursor, changes.columns, now=now)
            _write_endpoints(cursor, changes, now=now)
            _write_seen(cursor, changes.seen)
            _write_memories(cursor, changes.memories)
            _clear_alarms(cursor, changes.cleared_alarms)
            _raise_alarms(cursor, changes.raised_alarms)
            # A request makes what was reported with it, and before it, unknown.
            _apply_events(self._connection, changes.events, now=now)
            _request_audits(cursor, changes.audits, now=now)
            if changes.realigned:
                reconcile_alarms(cursor, now=now, subcloud_ids=changes.realigned)
            if changes.rejected:
                rejected = [(now, each.region_name, each.reason, each.report) for each in changes.rejected]
                _insert(cursor, "INSERT INTO rejected_report (received_at, region_name, reason, report)", rejected)
                cursor.execute(_PRUNE_REJECTED, (REJECTED_KEPT,))


# --- reading -----------------------------------------------------------------------------------------------------

# The service finds the subcloud whose row somebody else holds by halving the batch.
_LOCK = """
SET LOCAL lock_timeout = %s;
SELECT id, name, region_name, management_state, initial_sync_state, availability_status,
       online_observed_at, online_sequence, offline_observed_at, offline_sequence,
       audit_fail_count, fail_count_observed_at, fail_count_sequence, unmanaged_at, created_at
FROM subcloud WHERE region_name = ANY(%s) ORDER BY id FOR NO KEY UPDATE
"""
_MEMORIES = "SELECT subcloud_id, memory FROM report_memory WHERE subcloud_id = ANY(%s)"
_ENDPOINTS = """
SELECT subcloud_id, endpoint_type, sync_status, alarmable, observed_at, sequence, reason, verified_at, last_good_at
FROM endpoint_status WHERE subcloud_id = ANY(%s) AND endpoint_type = ANY(%s)
"""


def _state_row(
    row: Sequence[Any],
    endpoints: Mapping[EndpointType, EndpointRow],
    memory: Mapping[str, Any],
    *,
    audited: frozenset[EndpointType],
) -> StateRow:
    return StateRow(
        subcloud_id=row[0],
        name=row[1],
        region_name=row[2],
        management_state=_MANAGEMENT[row[3]],
        initial_sync_state=_STATE[row[4]],
        availability_status=_AVAILABILITY[row[5]],
        online_mark=_mark(row[6], row[7]),
        offline_mark=_mark(row[8], row[9]),
        fail_count=row[10],
        fail_mark=_mark(row[11], row[12]),
        unmanaged_at=row[13],
        added_at=row[14],
        endpoints=endpoints,
        memory=memory,
        audited=audited,
    )


def _mark(observed_at: datetime | None, sequence: int) -> Mark | None:
    return None if observed_at is None else Mark(observed_at, sequence)


# --- writing -----------------------------------------------------------------------------------------------------


def _write_columns(cursor: Any, columns: Sequence[ObservedColumns], *, now: datetime) -> None:
    rows = [
        (
            each.subcloud_id,
            each.availability_status.value,
            *_stored(each.online_mark),
            *_stored(each.offline_mark),
            each.fail_count,
            *_stored(each.fail_mark),
            now,
        )
        for each in sorted(columns, key=lambda each: each.subcloud_id)
    ]
    _execute(
        cursor,
        """
        UPDATE subcloud AS s SET
            availability_status = v.status,
            online_observed_at = v.online_at, online_sequence = v.online_sequence,
            offline_observed_at = v.offline_at, offline_sequence = v.offline_sequence,
            audit_fail_count = v.fails,
            fail_count_observed_at = v.fails_at, fail_count_sequence = v.fails_sequence, updated_at = v.now
        FROM (VALUES %s) AS v (id, status, online_at, online_sequence, offline_at, offline_sequence,
                               fails, fails_at, fails_sequence, now)
        WHERE s.id = v.id
        """,
        rows,
        template="(%s::bigint, %s, %s::timestamptz, %s, %s::timestamptz, %s, %s, %s::timestamptz, %s, %s::timestamptz)",
    )


def _apply_events(connection: Connection, events: Mapping[Any, Sequence[int]], *, now: datetime) -> None:
    for event, ids in sorted(events.items()):
        apply_event(connection, event, ids, now=now, by=BY, cause=str(event))


def _write_endpoints(cursor: Any, changes: StateChanges, *, now: datetime) -> None:
    _execute(
        cursor,
        """
        UPDATE endpoint_status AS e SET sync_status = v.status, alarmable = v.alarmable,
            observed_at = v.at, sequence = v.sequence,
            reason = v.reason, verified_at = v.verified_at, last_good_at = v.last_good_at,
            changed_at = CASE WHEN (e.sync_status, e.alarmable) = (v.status, v.alarmable) THEN e.changed_at
                              ELSE v.now END
        FROM (VALUES %s) AS v (id, type, status, alarmable, at, sequence, reason, verified_at, last_good_at, now)
        WHERE e.subcloud_id = v.id AND e.endpoint_type = v.type
        """,
        _endpoint_rows(changes.endpoints, now=now),
        template="(%s::bigint, %s, %s, %s, %s::timestamptz, %s, %s, %s::timestamptz, %s::timestamptz, %s::timestamptz)",
    )
    _insert(
        cursor,
        "INSERT INTO endpoint_status (subcloud_id, endpoint_type, sync_status, alarmable, observed_at, sequence, "
        "reason, verified_at, last_good_at, changed_at)",
        _endpoint_rows(changes.added_endpoints, now=now),
        # A row that `add_missing_endpoints` inserted in the meantime contains no report.
        conflict="ON CONFLICT (subcloud_id, endpoint_type) DO UPDATE SET sync_status = excluded.sync_status,"
        " alarmable = excluded.alarmable, observed_at = excluded.observed_at, sequence = excluded.sequence,"
        " reason = excluded.reason, verified_at = excluded.verified_at, last_good_at = excluded.last_good_at,"
        " changed_at = excluded.changed_at",
    )
    audited = [(id_, type_.value) for id_, type_, _ in changes.added_endpoints if type_ in audited_types()]
    _insert(cursor, "INSERT INTO subcloud_sync (subcloud_id, endpoint_type)", audited)
    removed = sorted((id_, type_.value) for id_, type_ in changes.removed_endpoints)
    for table in ("endpoint_status", "subcloud_sync"):
        _execute(
            cursor,
            f"DELETE FROM {table} AS t USING (VALUES %s) AS v (id, type) "  # noqa: S608 - two constant names
            "WHERE t.subcloud_id = v.id AND t.endpoint_type = v.type",
            removed,
            template="(%s::bigint, %s)",
        )


def _endpoint_rows(
    endpoints: Sequence[tuple[int, EndpointType, EndpointRow]], *, now: datetime
) -> list[tuple[object, ...]]:
    return sorted(
        (
            id_,
            type_.value,
            row.sync_status.value,
            row.alarmable,
            *_stored(row.mark),
            row.reason,
            row.verified_at,
            row.last_good_at,
            now,
        )
        for id_, type_, row in endpoints
    )


def _write_seen(cursor: Any, seen: Sequence[tuple[int, datetime]]) -> None:
    """Of subclouds that are not probed as well: an observer of another system may be the only one."""
    _insert(
        cursor,
        "INSERT INTO subcloud_probe AS p (subcloud_id, next_probe_at, probes, seen_at)",
        sorted((id_, at, 0, at) for id_, at in seen),
        conflict="ON CONFLICT (subcloud_id) DO UPDATE SET seen_at = greatest("
        "CASE WHEN p.seen_at <= clock_timestamp() + interval '2 seconds' THEN p.seen_at END, excluded.seen_at)",
    )


def _write_memories(cursor: Any, memories: Sequence[tuple[int, Mapping[str, Any]]]) -> None:
    _insert(
        cursor,
        "INSERT INTO report_memory (subcloud_id, memory)",
        sorted((id_, json.dumps(memory, separators=(",", ":"))) for id_, memory in memories),
        template="(%s, %s::jsonb)",
        conflict="ON CONFLICT (subcloud_id) DO UPDATE SET memory = excluded.memory",
    )


def _clear_alarms(cursor: Any, cleared: Sequence[tuple[str, str, datetime]]) -> None:
    _execute(
        cursor,
        f"""
        UPDATE alarm AS a SET cleared_at = greatest(v.at, a.raised_at), changed_xid = {_XID}
        FROM (VALUES %s) AS v (alarm_id, entity, at)
        WHERE a.alarm_id = v.alarm_id AND a.entity = v.entity AND a.cleared_at IS NULL
        """,  # noqa: S608 - a constant
        sorted(cleared),
        template="(%s, %s, %s::timestamptz)",
    )


def _raise_alarms(cursor: Any, raised: Sequence[AlarmRow]) -> None:
    """Inserts the alarms; an alarm that is already active keeps the time it was raised."""
    _insert(
        cursor,
        "INSERT INTO alarm (alarm_id, entity, subcloud_id, endpoint_type, severity, reason_text, raised_at, cleared_at,"
        " changed_xid)",
        [
            (
                each.alarm_id,
                each.entity,
                each.subcloud_id,
                each.endpoint_type.value if each.endpoint_type else None,
                each.severity,
                each.reason_text,
                each.raised_at,
                each.cleared_at,
            )
            for each in sorted(raised, key=lambda each: (each.entity, each.alarm_id, each.raised_at))
        ],
        template=f"(%s, %s, %s, %s, %s, %s, %s, %s, {_XID})",
        conflict="ON CONFLICT (entity, alarm_id) WHERE cleared_at IS NULL DO NOTHING",
    )


def _request_audits(cursor: Any, audits: Sequence[tuple[int | None, EndpointType, str]], *, now: datetime) -> None:
    _insert(
        cursor,
        "INSERT INTO audit_request (subcloud_id, endpoint_type, requested_at, cause)",
        [
            (id_, type_.value, now, cause)
            for id_, type_, cause in sorted(audits, key=lambda audit: (audit[0] or 0, audit[1]))
        ],
        conflict="ON CONFLICT (subcloud_id, endpoint_type) DO NOTHING",
    )


_PRUNE_REJECTED = "DELETE FROM rejected_report WHERE id <= (SELECT max(id) FROM rejected_report) - %s"


def _stored(mark: Mark | None) -> tuple[datetime | None, int]:
    return (None, 0) if mark is None else (mark.observed_at, mark.sequence)


def _insert(
    cursor: Any, into: str, rows: Sequence[tuple[object, ...]], *, template: str | None = None, conflict: str = ""
) -> None:
    _execute(cursor, f"{into} VALUES %s {conflict or 'ON CONFLICT DO NOTHING'}", rows, template=template)


def _execute(cursor: Any, statement: str, rows: Sequence[tuple[object, ...]], *, template: str | None = None) -> None:
    """Executes one statement per _PAGE rows; none for no rows."""
    if rows:
        execute_values(cursor, statement, rows, template=template, page_size=_PAGE)


# --- alarms against rows -----------------------------------------------------------------------------------------

_EXPECTED = """
    SELECT '280.001' AS alarm_id, 'subcloud=' || name AS entity, id AS subcloud_id, NULL AS endpoint_type,
           'critical' AS severity, name || ' is offline' AS reason_text
    FROM subcloud WHERE availability_status = 'offline' AND online_observed_at IS NOT NULL AND {subcloud}
    UNION ALL
    SELECT '280.002', 'subcloud=' || s.name || '.resource=' || e.endpoint_type, s.id, e.endpoint_type,
           'major', s.name || ' ' || e.endpoint_type || ' sync_status is out-of-sync'
    FROM endpoint_status AS e JOIN subcloud AS s ON s.id = e.subcloud_id
    WHERE e.sync_status = 'out-of-sync' AND e.alarmable AND {endpoint}
"""


_OF_RULES = ", ".join(f"'{alarm_id}'" for alarm_id in AlarmId)


def reconcile_alarms(cursor: Any, *, now: datetime, subcloud_ids: Sequence[int] | None = None) -> tuple[int, int]:
    """Raises and clears alarms (of these subclouds, None: all) to match the rows; returns (raised, cleared).

    The same rule as `dcsync.state.rules.expected_alarms`; an integration test compares the two. Alarms of other ids,
    which `silence` keeps, are left as they are. Each statement sees rows and alarms of one snapshot: an alarm that a
    state worker clears meanwhile is not raised again.
    """
    if subcloud_ids is None:
        expected, of_these, parameters = _EXPECTED.format(subcloud="true", endpoint="true"), "true", {"now": now}
        skip_locked = "SKIP LOCKED"
    else:
        expected = _EXPECTED.format(subcloud="id = ANY(%(ids)s)", endpoint="s.id = ANY(%(ids)s)")
        of_these, parameters = "a.subcloud_id = ANY(%(ids)s)", {"now": now, "ids": list(subcloud_ids)}  # type: ignore[dict-item]
        skip_locked = ""
    cursor.execute(
        f"""
        UPDATE alarm AS a SET cleared_at = greatest(%(now)s, a.raised_at), changed_xid = {_XID}
        WHERE a.id IN (
            SELECT a.id FROM alarm AS a WHERE a.cleared_at IS NULL AND a.alarm_id IN ({_OF_RULES})
                AND {of_these} AND NOT EXISTS (
                SELECT FROM ({expected}) AS x WHERE (x.alarm_id, x.entity) = (a.alarm_id, a.entity))
            FOR UPDATE {skip_locked})
        """,  # noqa: S608 - constants
        parameters,
    )
    cleared = cursor.rowcount
    cursor.execute(
        f"""
        WITH missing AS (
            SELECT x.* FROM ({expected}) AS x WHERE NOT EXISTS (
                SELECT FROM alarm AS a WHERE a.cleared_at IS NULL AND (a.alarm_id, a.entity) = (x.alarm_id, x.entity))
        ), unlocked AS (
            SELECT id FROM subcloud WHERE id IN (SELECT subcloud_id FROM missing)
            ORDER BY id FOR KEY SHARE {skip_locked}
        )
        INSERT INTO alarm (alarm_id, entity, subcloud_id, endpoint_type, severity, reason_text, raised_at, changed_xid)
        SELECT alarm_id, entity, subcloud_id, endpoint_type, severity, reason_text, %(now)s, {_XID}
        FROM missing WHERE subcloud_id IN (SELECT id FROM unlocked)
        ORDER BY entity
        ON CONFLICT (entity, alarm_id) WHERE cleared_at IS NULL DO NOTHING
        """,  # noqa: S608 - constants
        parameters,
    )
    return cursor.rowcount, cleared
