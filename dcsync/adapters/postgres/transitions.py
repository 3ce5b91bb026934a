"""Applies lifecycle events to many rows: the SQL shared by operators (`inventory`) and observers (`states`).

It sets every column such an event changes and inserts the history row; `dcsync.model.pair` decides which event
happens. It also resets endpoints and clears alarms when a subcloud is unmanaged or deleted, in the same transaction.
Claims and endings of runs are in `runs`.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Text,
    any_,
    case,
    func,
    insert,
    literal,
    literal_column,
    null,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY

from dcsync.adapters.postgres.moves import INITIAL_SYNC_MOVES
from dcsync.adapters.postgres.tables import alarm, endpoint_status, report_memory, subcloud, sync_request
from dcsync.audit.endpoints import audited_types
from dcsync.model.reasons import Unproven
from dcsync.model.states.initial_sync import INITIAL_SYNC, InitialSyncEvent, InitialSyncState
from dcsync.model.subcloud import EndpointType, SyncStatus


def apply_event(
    connection: Connection,
    event: InitialSyncEvent,
    subcloud_ids: Collection[int],
    *,
    now: datetime,
    by: str,
    cause: str,
    forget_subsequent_sync: bool = False,
) -> list[int]:
    """Applies `event` to these rows, "set B where it is still A"; returns the ids that changed.

    For BECAME_ELIGIBLE and ASKED (a new request: generation + 1, a `sync_request` history row with `by` and `cause`,
    audited endpoint types unknown until they are compared) and for LEFT (back to none). The columns of an earlier
    request are cleared, its run id included, so its run stops before its next write and ends its own history row.
    `forget_subsequent_sync` also clears the fingerprint of the identity data last written; groups that an attempt
    emptied are kept, because they must still be refilled.

    The caller holds the row locks, taken in id order. Source: docs/upstream/initial-sync.md section 3 (T2, T3) and 3.1.
    """
    if not subcloud_ids:
        return []
    after = INITIAL_SYNC.state_after(event)
    moved = (
        update(subcloud)
        .where(subcloud.c.id == any_(_ids(subcloud_ids)))
        .where(INITIAL_SYNC_MOVES.where(event))
        .values(_columns(after, now=now, forget_subsequent_sync=forget_subsequent_sync))
        .returning(subcloud.c.id, subcloud.c.generation)
    )
    if after is not InitialSyncState.REQUESTED:
        return sorted(row.id for row in connection.execute(moved))
    rows = moved.cte("moved")
    history = (
        insert(sync_request)
        .from_select(
            ["subcloud_id", "generation", "requested_at", "requested_by", "cause"],
            rows.select().with_only_columns(
                rows.c.id, rows.c.generation, literal(now), literal(by), literal(cause), maintain_column_froms=True
            ),
        )
        .returning(sync_request.c.subcloud_id)
    )
    requested = sorted(row.subcloud_id for row in connection.execute(history))
    _make_unknown(connection, requested, audited_types(), reason=Unproven.ASKED, now=now)
    return requested


def _columns(after: InitialSyncState, *, now: datetime, forget_subsequent_sync: bool) -> dict[str, object]:
    requested = after is InitialSyncState.REQUESTED
    columns: dict[str, object] = {
        "initial_sync_state": after,
        "generation": subcloud.c.generation + 1 if requested else subcloud.c.generation,
        "requested_at": now if requested else null(),
        "attempt": 0,
        "runs_begun": 0 if requested else subcloud.c.runs_begun,
        "abandoned": 0,
        "detail": "",
        "updated_at": now,
    }
    columns |= dict.fromkeys(("dispatched_at", "retry_at", "run_id", "claimed_at", "step", "reason"), null())
    if forget_subsequent_sync:
        columns |= {"subsequent_sync": False, "identity_fingerprint": null()}
    return columns


def reset_endpoints(connection: Connection, subcloud_ids: Collection[int], *, now: datetime) -> None:
    """Sets the endpoints of unmanaged subclouds to unknown and clears their alarms, except for dc-cert, which is
    maintained for unmanaged subclouds as well. Reports observed before `now` are ignored from then on.

    The caller holds the row locks. Source: docs/upstream/state-service.md sections 8 and 8.1.
    """
    types = [type_ for type_ in EndpointType if type_ is not EndpointType.DC_CERT]
    _make_unknown(connection, subcloud_ids, types, reason=Unproven.UNMANAGED, now=now)


def forget_proof(connection: Connection, subcloud_ids: Collection[int], *, now: datetime) -> None:
    """Drops what was proven of these subclouds: another cloud answers at their address from now on. What dcsync placed
    there, and groups that are to be refilled, are kept.

    The caller holds the row locks.
    """
    known = subcloud.c.id == any_(_ids(subcloud_ids))
    connection.execute(
        update(subcloud).where(known).values(subsequent_sync=False, identity_fingerprint=null(), updated_at=now)
    )
    _make_unknown(connection, subcloud_ids, audited_types(), reason=Unproven.ASKED, now=now)


def _make_unknown(
    connection: Connection,
    subcloud_ids: Collection[int],
    endpoint_types: Collection[EndpointType],
    *,
    reason: Unproven,
    now: datetime,
) -> None:
    """Makes these endpoint types unknown for this reason and clears their alarms; what was proven of them, and when,
    remains. What observers remember beside the rows is dropped: it may be older than `now`."""
    if not subcloud_ids:
        return
    types = [type_.value for type_ in endpoint_types]
    status = endpoint_status.c.sync_status
    connection.execute(
        update(endpoint_status)
        .where(endpoint_status.c.subcloud_id == any_(_ids(subcloud_ids)), endpoint_status.c.endpoint_type.in_(types))
        .values(
            sync_status=SyncStatus.UNKNOWN,
            alarmable=True,
            reason=reason,
            changed_at=case((status == SyncStatus.UNKNOWN, endpoint_status.c.changed_at), else_=now),
            observed_at=func.greatest(endpoint_status.c.observed_at, now),
            sequence=0,
        )
    )
    connection.execute(
        update(report_memory)
        .where(report_memory.c.subcloud_id == any_(_ids(subcloud_ids)))
        .values(memory=report_memory.c.memory.op("-")(literal("endpoints", Text)))
    )
    clear_alarms(connection, alarm.c.endpoint_type.in_(types), subcloud_ids, now=now)


def clear_alarms(
    connection: Connection, which: ColumnElement[bool], subcloud_ids: Collection[int], *, now: datetime
) -> None:
    """Clears the active alarms of these subclouds that match `which`; sinks receive the change like any other."""
    connection.execute(
        update(alarm)
        .where(alarm.c.subcloud_id == any_(_ids(subcloud_ids)), alarm.c.cleared_at.is_(None), which)
        .values(cleared_at=func.greatest(alarm.c.raised_at, now), changed_xid=CURRENT_XID)
    )


CURRENT_XID: ColumnElement[int] = literal_column("pg_current_xact_id()::text::bigint", BigInteger)
"""The transaction that changes an alarm; see `tables.alarm`."""


def _ids(subcloud_ids: Collection[int]) -> ColumnElement[list[int]]:
    return literal(sorted(subcloud_ids), ARRAY(BigInteger))
