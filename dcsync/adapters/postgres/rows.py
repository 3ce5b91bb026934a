"""Conversion between rows and the records of the services, and conditions shared by several stores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from dcsync.adapters.postgres.moves import AUDIT_MOVES, INITIAL_SYNC_MOVES
from dcsync.adapters.postgres.tables import subcloud, subcloud_sync
from dcsync.audit.ports import SETTLED
from dcsync.model.identity import ActorType, Assignment, Placed, ResourceType
from dcsync.model.marks import CLOCK_TOLERANCE
from dcsync.model.reasons import Reason
from dcsync.model.states.audit import AuditEvent
from dcsync.model.states.initial_sync import InitialSyncEvent
from dcsync.model.subcloud import AvailabilityStatus, EndpointStatus, EndpointType, ManagementState, Subcloud
from dcsync.model.written import as_written

_JOINED = ("reason", "last_seen_at", "shares_ip_with", "endpoints")
_COLUMNS = tuple(field.name for field in fields(Subcloud) if field.name not in _JOINED)


def subcloud_from_row(
    row: Mapping[str, Any], *, endpoints: Mapping[EndpointType, EndpointStatus] | None = None
) -> Subcloud:
    """Returns a Subcloud from a row with (at least) its columns, and its endpoint statuses if they were read."""
    return Subcloud(
        **{column: row[column] for column in _COLUMNS},
        reason=as_written(Reason, row["reason"]) if row["reason"] is not None else None,
        last_seen_at=row.get("last_seen_at"),
        shares_ip_with=row.get("shares_ip_with"),
        endpoints=endpoints or {},
    )


def shares_ip_with(row: sa.FromClause = subcloud) -> sa.Label[Any]:
    """Returns the column with the name of another subcloud that has this row's management IP."""
    other = subcloud.alias("other")
    named = sa.select(sa.func.min(other.c.name))
    return named.where(other.c.management_ip == row.c.management_ip, other.c.id != row.c.id).label("shares_ip_with")


IS_ELIGIBLE = sa.and_(
    subcloud.c.management_state == ManagementState.MANAGED,
    subcloud.c.availability_status == AvailabilityStatus.ONLINE,
    INITIAL_SYNC_MOVES.after(InitialSyncEvent.SUCCEEDED),
)
"""Subclouds that are audited and receive keys. Source: docs/upstream/generic-sync-and-audit.md section 1."""


def is_held_off() -> sa.ColumnElement[bool]:
    """Returns the condition for rows of `subcloud_sync` whose audit failed and is retried after its hold-off."""
    reason = subcloud_sync.c.reason
    is_settled = reason.is_not(None) & reason.in_([settled.value for settled in SETTLED])
    return sa.and_(AUDIT_MOVES.after(AuditEvent.FAILED), ~is_settled)


def was_before(moment: datetime, column: sa.Column[Any], *, now: datetime) -> sa.ColumnElement[bool]:
    """Rows in which this happened before `moment`; also where it is said to happen in the future, which is void."""
    return sa.or_(column < moment, column > now + CLOCK_TOLERANCE)


def has_passed(column: sa.Column[Any], *, now: datetime, longest: timedelta) -> sa.ColumnElement[bool]:
    """Rows whose deadline has passed; also where it lies further away than anybody sets one, which is void."""
    return sa.or_(column <= now, column > now + longest + CLOCK_TOLERANCE)


def has_deaths(column: sa.Column[Any], deaths: range) -> sa.ColumnElement[bool]:
    """Rows whose preceding runs died so often."""
    return sa.and_(column >= deaths.start, column < deaths.stop)


def server_started_at(engine: Engine) -> datetime:
    """Returns when the database server was started, by its own clock."""
    with engine.connect() as connection:
        started_at: datetime = connection.execute(sa.select(sa.func.pg_postmaster_start_time())).scalar_one()
        return started_at


def placed_body(placed: Placed) -> dict[str, Any]:
    """Returns it as JSON: lists of ids by type, and assignments as [project, actor type, actor, role]."""
    return {
        "ids": {type_.value: sorted(placed.of(type_)) for type_ in ResourceType},
        "assignments": [
            [each.project_id, each.actor_type.value, each.actor_id, each.role_id] for each in sorted(placed.assignments)
        ],
    }


def placed_from_body(body: Mapping[str, Any]) -> Placed:
    """Returns the inverse of `placed_body`; a resource type missing in an older body counts as nothing placed."""
    return Placed(
        ids={type_: frozenset(body["ids"].get(type_.value, ())) for type_ in ResourceType},
        assignments=frozenset(
            Assignment(project_id=project, actor_type=ActorType(actor_type), actor_id=actor, role_id=role)
            for project, actor_type, actor, role in body["assignments"]
        ),
    )
