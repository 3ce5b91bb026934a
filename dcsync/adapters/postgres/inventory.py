"""Subclouds as operators change them: add, find, delete, manage, request, history. Implements `cli.ports.Inventory`.

What a change of state causes is decided by `dcsync.model.pair` and written by `transitions.apply_event`; reports of
observers are written by `states`. Rows are locked in id order, so that operators and observers never deadlock.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Engine,
    RowMapping,
    Select,
    Text,
    and_,
    any_,
    bindparam,
    column,
    delete,
    func,
    insert,
    literal,
    or_,
    select,
    true,
    update,
    values,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.dialects.postgresql import insert as postgresql_insert

from dcsync.adapters.postgres import history, operations
from dcsync.adapters.postgres.database import database_errors
from dcsync.adapters.postgres.rows import shares_ip_with, subcloud_from_row
from dcsync.adapters.postgres.tables import endpoint_status, subcloud, subcloud_probe, subcloud_sync
from dcsync.adapters.postgres.transitions import apply_event, clear_alarms, forget_proof, reset_endpoints
from dcsync.audit.endpoints import audited_types
from dcsync.model.errors import (
    AddressClash,
    DuplicateSubcloud,
    RefusedByGuard,
    listed,
    refuse_shared,
    refuse_unknown,
)
from dcsync.model.history import Life
from dcsync.model.natural_order import in_natural_order
from dcsync.model.operation import Intent
from dcsync.model.pair import Pair, PairChange, pair_change
from dcsync.model.reasons import known_reason
from dcsync.model.states.initial_sync import InitialSyncEvent, InitialSyncState, Transition
from dcsync.model.subcloud import (
    DEFAULT_ENDPOINT_TYPES,
    AvailabilityStatus,
    EndpointStatus,
    EndpointType,
    ManagementState,
    NewSubcloud,
    Subcloud,
    SubcloudUpdate,
    SyncStatus,
    Updated,
    changed_fields,
)


class SqlInventory:
    """`cli.ports.Inventory` on PostgreSQL; each call is one transaction.

    A new subcloud gets a status row for each of `endpoint_types`.
    """

    def __init__(self, engine: Engine, *, endpoint_types: Collection[EndpointType] = DEFAULT_ENDPOINT_TYPES) -> None:
        self._engine = engine
        self._endpoint_types = endpoint_types

    @database_errors()
    def add(self, subclouds: Sequence[NewSubcloud], *, now: datetime, intent: Intent | None = None) -> None:
        _refuse_duplicates(subclouds)
        with self._engine.begin() as connection:
            _hold_addresses(connection)
            ids = self._add(connection, subclouds, now=now)
            _refuse_shared_addresses(connection, ids)
            _record(connection, intent, ids, [new.name for new in subclouds], now=now, detail=_added(subclouds))

    def _add(self, connection: Connection, subclouds: Sequence[NewSubcloud], *, now: datetime) -> list[int]:
        ids = _insert_subclouds(connection, subclouds, now=now)
        if len(ids) < len(subclouds):
            raise _already_there(connection, subclouds, added=ids)
        _insert_endpoints(connection, ids, self._endpoint_types)
        return ids

    @database_errors()
    def update(
        self,
        updates: Sequence[SubcloudUpdate],
        *,
        new: Sequence[NewSubcloud] = (),
        now: datetime,
        by: str,
        intent: Intent | None = None,
    ) -> list[Updated]:
        _refuse_duplicates(new)
        with self._engine.begin() as connection:
            _hold_addresses(connection)
            rows = {row.name: row for row in _lock(connection, [each.name for each in updates])}
            changed = [(rows[each.name], each) for each in updates if _changes(rows[each.name], each)]
            moved = [row for row, each in changed if _is_moved(row, each)]
            _write_updates(connection, changed, now=now)
            asked = _at_new_addresses(connection, moved, now=now, by=by)
            ids = self._add(connection, new, now=now)
            _refuse_shared_addresses(connection, [*(row.id for row in moved), *ids])
            done = [
                Updated(
                    name=each.name,
                    changes=_changes(rows[each.name], each),
                    event=InitialSyncEvent.ASKED if rows[each.name].id in asked else None,
                )
                for each in updates
            ]
            concerned = [*(row.id for row, _ in changed), *ids]
            names = [*(row.name for row, _ in changed), *(each.name for each in new)]
            _record(connection, intent, concerned, names, now=now, detail=_updated(done, new))
            return done

    @database_errors()
    def find(self, names: Sequence[str]) -> list[Subcloud]:
        with self._engine.connect() as connection:
            found = {row["name"]: row for row in connection.execute(_subclouds().where(_named(names))).mappings()}
        refuse_unknown(names, found)
        return [_subcloud_of(found[name]) for name in names]

    @database_errors()
    def all(self) -> list[Subcloud]:
        with self._engine.connect() as connection:
            known = [_subcloud_of(row) for row in connection.execute(_subclouds()).mappings()]
        return sorted(known, key=lambda each: in_natural_order(each.name))

    @database_errors()
    def names_starting_with(self, prefix: str, *, limit: int) -> list[str]:
        pattern = subcloud.c.name.startswith(prefix, autoescape=True)
        with self._engine.connect() as connection:
            return list(
                connection.scalars(select(subcloud.c.name).where(pattern).order_by(subcloud.c.name).limit(limit))
            )

    @database_errors()
    def delete(self, names: Sequence[str], *, now: datetime, intent: Intent | None = None) -> list[Subcloud]:
        with self._engine.begin() as connection:
            locked = _subclouds().where(_named(names)).order_by(subcloud.c.id).with_for_update(of=subcloud)
            found = {row["name"]: _subcloud_of(row) for row in connection.execute(locked).mappings()}
            refuse_unknown(names, found)
            ids = [each.id for each in found.values()]
            clear_alarms(connection, true(), ids, now=now)
            for id_ in ids:
                history.bury(connection, id_, now=now)
            connection.execute(delete(subcloud).where(_with_id(ids)))
            deleted = [found[name] for name in dict.fromkeys(names)]
            _record(connection, intent, ids, list(found), now=now, detail=_as_they_were(deleted))
            return deleted

    @database_errors()
    def set_management(
        self,
        names: Sequence[str] | None,
        state: ManagementState,
        *,
        now: datetime,
        by: str,
        online_only: bool = False,
        intent: Intent | None = None,
    ) -> list[Transition]:
        with self._engine.begin() as connection:
            rows = _lock(connection, names)
            if online_only:
                _refuse_offline([row for row in rows if row.pair.management_state is not state])
            changes = {row.id: pair_change(old=row.pair, new=Pair(state, row.pair.availability_status)) for row in rows}
            changed = [id_ for id_, change in changes.items() if change is not None]
            columns = {"management_state": state, "updated_at": now}
            if state is ManagementState.UNMANAGED:
                columns["unmanaged_at"] = now
            connection.execute(update(subcloud).where(_with_id(changed)).values(columns))
            for change, ids in _by_change(changes).items():
                apply_event(
                    connection,
                    change.event,
                    ids,
                    now=now,
                    by=by,
                    cause=str(state),
                    forget_subsequent_sync=change.forget_subsequent_sync,
                )
            if state is ManagementState.UNMANAGED:
                reset_endpoints(connection, changed, now=now)
            detail = f"{len(changed)} of {len(rows)} changed"
            _record(connection, intent, [row.id for row in rows], [row.name for row in rows], now=now, detail=detail)
            return _transitions(connection, rows, {id_: change.event for id_, change in changes.items() if change})

    @database_errors()
    def request(
        self, names: Sequence[str] | None, *, now: datetime, by: str, intent: Intent | None = None
    ) -> list[Transition]:
        with self._engine.begin() as connection:
            rows = _lock(connection, names)
            eligible = [row for row in rows if row.pair.is_eligible]
            if names is not None:
                _refuse_ineligible(rows)
            moved = apply_event(
                connection,
                InitialSyncEvent.ASKED,
                [row.id for row in eligible],
                now=now,
                by=by,
                cause=str(InitialSyncEvent.ASKED),
                forget_subsequent_sync=True,
            )
            asked = [row.name for row in eligible]
            _record(connection, intent, [row.id for row in eligible], asked, now=now, detail=f"{len(moved)} requested")
            return _transitions(connection, eligible, dict.fromkeys(moved, InitialSyncEvent.ASKED))

    @database_errors()
    def history(self, name: str) -> list[Life]:
        with self._engine.connect() as connection:
            return history.lives(connection, name)


# --- reading -----------------------------------------------------------------------------------------------------


def _subclouds() -> Select[Any]:
    """Subclouds with their endpoint statuses folded into JSON: one statement, so one moment in time."""
    audited = and_(
        subcloud_sync.c.subcloud_id == endpoint_status.c.subcloud_id,
        subcloud_sync.c.endpoint_type == endpoint_status.c.endpoint_type,
    )
    status = func.json_build_array(
        endpoint_status.c.endpoint_type,
        endpoint_status.c.sync_status,
        endpoint_status.c.reason,
        endpoint_status.c.verified_at,
        endpoint_status.c.last_good_at,
        subcloud_sync.c.subcloud_id.is_not(None),
        func.greatest(subcloud_sync.c.requested_at, subcloud.c.requested_at),
        or_(subcloud_sync.c.generation > subcloud_sync.c.observed_generation, _is_report_on_its_way()),
    )
    statuses = (
        select(func.json_agg(status))
        .select_from(endpoint_status.outerjoin(subcloud_sync, audited))
        .where(endpoint_status.c.subcloud_id == subcloud.c.id)
        .scalar_subquery()
    )
    seen = func.greatest(subcloud_probe.c.seen_at, subcloud.c.online_observed_at)
    columns = (subcloud, seen.label("last_seen_at"), shares_ip_with(), statuses.label("endpoints"))
    return select(*columns).select_from(
        subcloud.outerjoin(subcloud_probe, subcloud_probe.c.subcloud_id == subcloud.c.id)
    )


def _is_report_on_its_way() -> ColumnElement[bool]:
    """Returns the condition that an audit has reported what no state worker has written yet."""
    reported_at, written_at = subcloud_sync.c.sync_status_report_time, endpoint_status.c.observed_at
    return and_(reported_at.is_not(None), or_(written_at.is_(None), written_at < reported_at))


def _subcloud_of(row: RowMapping) -> Subcloud:
    found = {type_: _status_of(*columns) for type_, *columns in row["endpoints"] or ()}
    return subcloud_from_row(dict(row), endpoints={type_: found[type_] for type_ in EndpointType if type_ in found})


def _status_of(
    sync_status: str,
    reason: str | None,
    verified_at: str | None,
    last_good_at: str | None,
    is_audited: bool,
    requested_at: str | None,
    is_pending: bool | None,
) -> EndpointStatus:
    return EndpointStatus(
        sync_status=SyncStatus(sync_status),
        reason=known_reason(reason),
        verified_at=_moment(verified_at),
        last_good_at=_moment(last_good_at),
        is_audited=is_audited,
        requested_at=_moment(requested_at) if is_audited else None,
        is_pending=bool(is_pending),
    )


def _moment(stored: str | None) -> datetime | None:
    return None if stored is None else datetime.fromisoformat(stored)


# --- adding ------------------------------------------------------------------------------------------------------


def _refuse_duplicates(subclouds: Sequence[NewSubcloud]) -> None:
    """Raises DuplicateSubcloud for a name or region name that occurs twice among the new subclouds."""
    names, regions = _duplicates(new.name for new in subclouds), _duplicates(new.region_name for new in subclouds)
    if names or regions:
        raise DuplicateSubcloud.given_twice(names, regions)


def _duplicates(given: Iterable[str]) -> list[str]:
    return [value for value, count in Counter(given).items() if count > 1]


def _insert_subclouds(connection: Connection, subclouds: Sequence[NewSubcloud], *, now: datetime) -> list[int]:
    """Inserts the subclouds whose name and region name are not in use; returns their ids."""
    if not subclouds:
        return []
    rows = [
        {
            "name": new.name,
            "region_name": new.region_name,
            "management_ip": new.management_ip,
            "software_version": new.software_version,
            "created_at": now,
            "updated_at": now,
        }
        # By name, so that concurrent bulk additions wait for each other instead of deadlocking.
        for new in sorted(subclouds, key=lambda new: new.name)
    ]
    insertion = postgresql_insert(subcloud).on_conflict_do_nothing().returning(subcloud.c.id)
    return list(connection.scalars(insertion, rows))


def _already_there(
    connection: Connection, subclouds: Sequence[NewSubcloud], *, added: Collection[int]
) -> DuplicateSubcloud:
    """Returns the error that lists the names and region names already in use."""
    names = {new.name for new in subclouds}
    regions = {new.region_name for new in subclouds}
    existing = connection.execute(
        select(subcloud.c.name, subcloud.c.region_name)
        .where(or_(subcloud.c.name == any_(_texts(names)), subcloud.c.region_name == any_(_texts(regions))))
        .where(~_with_id(added))
    ).all()
    return DuplicateSubcloud.already_there(
        names & {row.name for row in existing}, regions & {row.region_name for row in existing}
    )


def _insert_endpoints(connection: Connection, ids: Collection[int], endpoint_types: Collection[EndpointType]) -> None:
    """Inserts a status row for each endpoint type, and an audit row for each that dcsync audits."""
    if not ids:
        return
    new = func.unnest(_ids(ids)).table_valued("id").render_derived(name="new")
    for table, types in ((endpoint_status, endpoint_types), (subcloud_sync, audited_types())):
        listed = values(column("endpoint_type", Text), name="types").data([(str(type_),) for type_ in types])
        connection.execute(
            insert(table).from_select(
                ["subcloud_id", "endpoint_type"],
                select(new.c.id, listed.c.endpoint_type).select_from(new.join(listed, literal(True))),
            )
        )


# --- addresses ---------------------------------------------------------------------------------------------------

ADDRESS_LOCK = 0x6463_7379_6E64
"""The advisory lock of transactions that write management IPs. No unique index: rows that share one may exist."""

CHANGED_ADDRESS = "management IP changed"
"""The cause of the request that follows from a new address, as history shows it."""


def _hold_addresses(connection: Connection) -> None:
    """Until the transaction ends, no other one writes a management IP."""
    connection.execute(select(func.pg_advisory_xact_lock(ADDRESS_LOCK)))


def _refuse_shared_addresses(connection: Connection, ids: Collection[int]) -> None:
    """Raises RefusedByGuard when one of these, as written, has the management IP of another subcloud."""
    other = subcloud.alias("other")
    is_same = and_(other.c.management_ip == subcloud.c.management_ip, other.c.id != subcloud.c.id)
    shared = (
        select(subcloud.c.name, subcloud.c.management_ip, func.min(other.c.name).label("other"))
        .join(other, is_same)
        .where(_with_id(ids))
        .group_by(subcloud.c.name, subcloud.c.management_ip)
        .order_by(subcloud.c.name)
    )
    if found := [AddressClash(row.name, row.management_ip, row.other) for row in connection.execute(shared)]:
        raise refuse_shared(found)


def _is_moved(row: _Locked, given: SubcloudUpdate) -> bool:
    return given.management_ip not in (None, row.management_ip)


def _changes(row: _Locked, given: SubcloudUpdate) -> tuple[str, ...]:
    return changed_fields(given, management_ip=row.management_ip, software_version=row.software_version)


def _write_updates(connection: Connection, changed: Sequence[tuple[_Locked, SubcloudUpdate]], *, now: datetime) -> None:
    if not changed:
        return
    rows = [
        {
            "of_id": row.id,
            "to_ip": given.management_ip or row.management_ip,
            "to_version": row.software_version if given.software_version is None else given.software_version,
        }
        for row, given in changed
    ]
    written = update(subcloud).where(subcloud.c.id == bindparam("of_id"))
    connection.execute(
        written.values(management_ip=bindparam("to_ip"), software_version=bindparam("to_version"), updated_at=now), rows
    )


def _at_new_addresses(connection: Connection, rows: Sequence[_Locked], *, now: datetime, by: str) -> list[int]:
    """What follows from new addresses: the next probe is due, nothing counts as proven, and what is eligible is synced
    from the first step, which ends a run in progress. Returns the ids for which a sync was requested."""
    ids = [row.id for row in rows]
    if not ids:
        return []
    forget_proof(connection, ids, now=now)
    probes = update(subcloud_probe).where(subcloud_probe.c.subcloud_id == any_(_ids(ids)))
    connection.execute(probes.values(next_probe_at=now))
    return apply_event(
        connection,
        InitialSyncEvent.ASKED,
        [row.id for row in rows if row.pair.is_eligible],
        now=now,
        by=by,
        cause=CHANGED_ADDRESS,
        forget_subsequent_sync=True,
    )


# --- changing ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Locked:
    id: int
    name: str
    region_name: str
    pair: Pair
    management_ip: str
    software_version: str


def _lock(connection: Connection, names: Sequence[str] | None) -> list[_Locked]:
    """Locks these subclouds (None: all) until the transaction ends and returns them; raises UnknownSubcloud."""
    wanted = select(
        subcloud.c.id,
        subcloud.c.name,
        subcloud.c.region_name,
        subcloud.c.management_state,
        subcloud.c.availability_status,
        subcloud.c.management_ip,
        subcloud.c.software_version,
    ).order_by(subcloud.c.id)
    if names is not None:
        wanted = wanted.where(_named(names))
    rows = [
        _Locked(
            row.id,
            row.name,
            row.region_name,
            Pair(row.management_state, row.availability_status),
            row.management_ip,
            row.software_version,
        )
        for row in connection.execute(wanted.with_for_update(key_share=True))
    ]
    if names is not None:
        refuse_unknown(names, {row.name for row in rows})
    return rows


def _by_change(changes: Mapping[int, PairChange | None]) -> dict[PairChange, list[int]]:
    grouped: dict[PairChange, list[int]] = defaultdict(list)
    for id_, change in changes.items():
        if change is not None:
            grouped[change].append(id_)
    return grouped


def _transitions(
    connection: Connection, rows: Sequence[_Locked], events: Mapping[int, InitialSyncEvent | None]
) -> list[Transition]:
    """Returns the transitions of the locked rows, sorted by name."""
    states: dict[int, InitialSyncState] = {
        row.id: row.initial_sync_state
        for row in connection.execute(
            select(subcloud.c.id, subcloud.c.initial_sync_state).where(_with_id([row.id for row in rows]))
        )
    }
    transitions = [
        Transition(region_name=row.region_name, name=row.name, event=events.get(row.id), state=states[row.id])
        for row in rows
    ]
    return sorted(transitions, key=lambda transition: in_natural_order(transition.name))


def _refuse_ineligible(rows: Sequence[_Locked]) -> None:
    """Raises RefusedByGuard unless all subclouds are managed and online."""
    refused = [f"{row.name} is {_ineligible_because(row.pair)}" for row in rows if not row.pair.is_eligible]
    if refused:
        names = listed(sorted(refused, key=in_natural_order))
        raise RefusedByGuard(f"only managed and online subclouds can be synced: {names}; nothing was requested")


def _refuse_offline(rows: Sequence[_Locked]) -> None:
    """Raises RefusedByGuard unless all subclouds are online. Source: docs/upstream/state-service.md section 8.1 step
    1."""
    names = (row.name for row in rows if row.pair.availability_status is AvailabilityStatus.OFFLINE)
    offline = sorted(names, key=in_natural_order)
    if offline:
        raise RefusedByGuard(f"offline: {listed(offline)}; nothing was changed")


def _ineligible_because(pair: Pair) -> str:
    wrong = [
        str(value)
        for value in (pair.management_state, pair.availability_status)
        if value in (ManagementState.UNMANAGED, AvailabilityStatus.OFFLINE)
    ]
    return " and ".join(wrong)


# --- operations --------------------------------------------------------------------------------------------------


def _record(
    connection: Connection,
    intent: Intent | None,
    ids: Collection[int],
    names: Collection[str],
    *,
    now: datetime,
    detail: str,
) -> None:
    """Records what the transaction did, where an operator asked for it."""
    if intent is not None:
        operations.record(connection, intent.done(names, now=now, detail=detail), ids)


def _added(subclouds: Sequence[NewSubcloud]) -> str:
    return f"at {subclouds[0].management_ip}" if len(subclouds) == 1 else f"{len(subclouds)} added"


def _updated(done: Sequence[Updated], new: Sequence[NewSubcloud]) -> str:
    changed = [each for each in done if each.changes]
    if len(done) == 1 and not new:
        return ", ".join(done[0].changes) or "nothing changed"
    return f"{len(changed)} changed, {len(new)} added"


def _as_they_were(deleted: Sequence[Subcloud]) -> str:
    if len(deleted) > 1:
        return f"{len(deleted)} deleted"
    return ", ".join(map(_as_it_was, deleted))


def _as_it_was(deleted: Subcloud) -> str:
    return f"was {deleted.management_state} and {deleted.availability_status}, at {deleted.management_ip}"


# --- arrays ------------------------------------------------------------------------------------------------------


def _ids(ids: Collection[int]) -> ColumnElement[list[int]]:
    return literal(list(ids), ARRAY(BigInteger))


def _texts(texts: Collection[str]) -> ColumnElement[list[str]]:
    return literal(list(texts), ARRAY(Text))


def _with_id(ids: Collection[int]) -> ColumnElement[bool]:
    return subcloud.c.id == any_(_ids(ids))


def _named(names: Collection[str]) -> ColumnElement[bool]:
    return subcloud.c.name == any_(_texts(names))
