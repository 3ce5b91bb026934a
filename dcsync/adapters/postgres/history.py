"""The history of subclouds, deleted ones included: read by name, and removed when it is old.

Its rows are written where what they record happens: requests in `transitions`, attempts and steps in `run_statements`,
audits in `audits`, operations in `operations`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine, Row

from dcsync.adapters.postgres.database import database_errors
from dcsync.adapters.postgres.operations import operation_of
from dcsync.adapters.postgres.tables import (
    audit_history,
    deleted_subcloud,
    operation,
    subcloud,
    sync_attempt,
    sync_request,
    sync_step,
)
from dcsync.model.ending import Ending
from dcsync.model.errors import UnknownSubcloud
from dcsync.model.history import AttemptHistory, AuditHistory, Life, Named, RequestHistory, StepHistory
from dcsync.model.operation import Operation


def lives(connection: Connection, name: str) -> list[Life]:
    """The subclouds of this name, newest first: the one that exists, and deleted ones whose history is kept. Raises
    UnknownSubcloud where there is none."""
    known = sa.select(
        subcloud.c.id, subcloud.c.name, subcloud.c.region_name, subcloud.c.created_at.label("added_at"),
        sa.null().label("deleted_at"),
    ).where(subcloud.c.name == name)  # fmt: skip
    deleted = sa.select(deleted_subcloud).where(deleted_subcloud.c.name == name)
    rows = [
        *connection.execute(known),
        *connection.execute(deleted.order_by(deleted_subcloud.c.deleted_at.desc(), deleted_subcloud.c.id.desc())),
    ]
    if not rows:
        raise UnknownSubcloud(name)
    return [_life(connection, row) for row in rows]


def bury(connection: Connection, subcloud_id: int, *, now: datetime) -> None:
    """Keeps what is needed to find the history of a subcloud that the caller is about to delete, and ends its open
    attempts: a run that goes on finds its attempt ended, and stops before its next write."""
    columns = ["id", "name", "region_name", "added_at", "deleted_at"]
    row = sa.select(
        subcloud.c.id, subcloud.c.name, subcloud.c.region_name, subcloud.c.created_at, sa.literal(now)
    ).where(subcloud.c.id == subcloud_id)
    connection.execute(sa.insert(deleted_subcloud).from_select(columns, row))
    connection.execute(
        sa.update(sync_attempt)
        .where(sync_attempt.c.subcloud_id == subcloud_id, sync_attempt.c.ended_at.is_(None))
        .values(ended_at=now, ending=Ending.CANCELLED, detail="the subcloud was deleted")
    )


class SqlHistory:
    """What housekeeping asks, on an engine that is this process's own."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @database_errors()
    def delete_older(self, *, than: datetime, limit: int) -> int:
        """Removes up to `limit` old rows of each table; how many rows of the table that had most.

        Of a subcloud that exists, the latest attempt and the latest request are kept whatever their age; of a deleted
        one nothing is, once it was deleted before `than`. Operations carry the time until which they are kept.
        """
        given = {"before": than, "most": limit}
        removed = []
        for statement in _OLD:
            with self._engine.begin() as connection:
                removed.append(connection.execute(statement, given).rowcount)
        return max(removed)


# --- reading -----------------------------------------------------------------------------------------------------


def _life(connection: Connection, row: Row[Any]) -> Life:
    entries: list[RequestHistory | AuditHistory | Operation] = [
        *_requests(connection, row.id),
        *_audits(connection, row.id),
        *_operations(connection, row.id),
    ]
    return Life(
        subcloud_id=row.id,
        name=row.name,
        region_name=row.region_name,
        added_at=row.added_at,
        deleted_at=row.deleted_at,
        # The sort is stable: of one moment, an operation comes after what followed from it, as all else newest first.
        entries=tuple(sorted(entries, key=lambda entry: entry.at, reverse=True)),
    )


def _requests(connection: Connection, subcloud_id: int) -> Iterator[RequestHistory]:
    attempts = _attempts(connection, subcloud_id)
    own = sa.select(sync_request).where(sync_request.c.subcloud_id == subcloud_id)
    for row in connection.execute(own.order_by(sync_request.c.generation.desc())):
        yield RequestHistory(
            generation=row.generation,
            requested_at=row.requested_at,
            requested_by=row.requested_by,
            cause=row.cause,
            attempts=tuple(attempts[row.generation]),
        )


def _attempts(connection: Connection, subcloud_id: int) -> dict[int, list[AttemptHistory]]:
    """Generation -> its attempts, oldest first."""
    own = sync_attempt.c.subcloud_id == subcloud_id
    steps: dict[str, list[StepHistory]] = defaultdict(list)
    joined = sa.select(sync_step).join(sync_attempt, sync_attempt.c.run_id == sync_step.c.run_id)
    for row in connection.execute(joined.where(own).order_by(sync_step.c.started_at)).mappings():
        steps[row["run_id"]].append(StepHistory(**{name: value for name, value in row.items() if name != "run_id"}))
    attempts: dict[int, list[AttemptHistory]] = defaultdict(list)
    for row in connection.execute(sa.select(sync_attempt).where(own).order_by(sync_attempt.c.started_at)).mappings():
        fields = {name: value for name, value in row.items() if name not in ("subcloud_id", "generation")}
        attempts[row["generation"]].append(AttemptHistory(**fields, steps=tuple(steps[row["run_id"]])))
    return attempts


def _audits(connection: Connection, subcloud_id: int) -> Iterator[AuditHistory]:
    own = sa.select(audit_history).where(audit_history.c.subcloud_id == subcloud_id)
    for row in connection.execute(own.order_by(audit_history.c.id.desc())):
        yield AuditHistory(
            run_id=row.run_id,
            endpoint_type=row.endpoint_type,
            worker=row.worker,
            started_at=row.started_at,
            ended_at=row.ended_at,
            result=row.result,
            reason=row.reason,
            detail=row.detail,
            differences=_named(row.differences),
            written=_named(row.written),
            not_written=_named(row.not_written),
        )


def _operations(connection: Connection, subcloud_id: int) -> Iterator[Operation]:
    own = sa.select(operation).where(operation.c.subcloud_ids.contains([subcloud_id]))
    for row in connection.execute(own.order_by(operation.c.id.desc())):
        yield operation_of(row)


def _named(body: dict[str, Any]) -> Named:
    return Named(tuple(body["names"]), body["count"])


# --- removing ----------------------------------------------------------------------------------------------------

# A request that fails for ever, and a subcloud that comes and goes for ever, leave rows for ever: of either, only the
# latest is kept whatever its age. Of deleted subclouds not even that; their own row is the last that is removed.
_OLD = (
    sa.text("""
        DELETE FROM sync_attempt WHERE run_id IN (
            SELECT a.run_id FROM sync_attempt AS a
            WHERE a.ended_at < :before AND (
                EXISTS (SELECT FROM sync_attempt AS l
                        WHERE l.subcloud_id = a.subcloud_id AND l.started_at > a.started_at)
                OR EXISTS (SELECT FROM deleted_subcloud AS d WHERE d.id = a.subcloud_id AND d.deleted_at < :before))
            LIMIT :most FOR UPDATE OF a SKIP LOCKED)
    """),
    sa.text("""
        DELETE FROM sync_request WHERE (subcloud_id, generation) IN (
            SELECT r.subcloud_id, r.generation FROM sync_request AS r
            LEFT JOIN subcloud AS s ON s.id = r.subcloud_id
            LEFT JOIN deleted_subcloud AS d ON d.id = r.subcloud_id
            WHERE r.requested_at < :before AND (r.generation < s.generation OR d.deleted_at < :before)
              AND NOT EXISTS (
                SELECT FROM sync_attempt AS a WHERE a.subcloud_id = r.subcloud_id AND a.generation = r.generation)
            LIMIT :most FOR UPDATE OF r SKIP LOCKED)
    """),
    sa.text("""
        DELETE FROM audit_history WHERE id IN (
            SELECT id FROM audit_history WHERE ended_at < :before ORDER BY ended_at LIMIT :most
            FOR UPDATE SKIP LOCKED)
    """),
    # By the server's clock, as the trigger has it.
    sa.text("""
        DELETE FROM operation WHERE id IN (
            SELECT id FROM operation WHERE keep_until <= clock_timestamp() ORDER BY keep_until LIMIT :most
            FOR UPDATE SKIP LOCKED)
    """),
    sa.text("""
        DELETE FROM deleted_subcloud WHERE id IN (
            SELECT d.id FROM deleted_subcloud AS d WHERE d.deleted_at < :before
              AND NOT EXISTS (SELECT FROM sync_request AS r WHERE r.subcloud_id = d.id)
              AND NOT EXISTS (SELECT FROM sync_attempt AS a WHERE a.subcloud_id = d.id)
              AND NOT EXISTS (SELECT FROM audit_history AS a WHERE a.subcloud_id = d.id)
            LIMIT :most FOR UPDATE OF d SKIP LOCKED)
    """),
)
