"""Converts a subcloud's rows to the facts of `rules`, and facts back to the changes to write. Pure.

The rows hold what is shown. Reports that change nothing shown (a repeated status, an endpoint's status while offline)
still decide whether a late report counts; they are kept as a small JSON object beside the rows, the memory. Losing it
is harmless: the facts are then those of the rows alone, and the observers' next reports restore it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from dcsync.model.marks import is_void
from dcsync.model.reports import Mark
from dcsync.model.subcloud import AvailabilityStatus, EndpointType, SyncStatus
from dcsync.state.ports import EndpointRow, ObservedColumns, StateChanges, StateRow
from dcsync.state.rules import LONG_AGO, EndpointFact, Facts


def facts_of(row: StateRow, *, now: datetime) -> Facts:
    """Returns the facts from the subcloud's rows and from anything newer in its memory; future marks are void."""
    facts = _facts_of_rows(_without_void_marks(row, now=now))
    return _with_memory(facts, row.memory, now=now) if row.memory else facts


def _without_void_marks(row: StateRow, *, now: datetime) -> StateRow:
    """Returns the row as it is, with marks that any true report outranks in place of those in the future."""
    online, offline = _believed(row.online_mark, now=now), _believed(row.offline_mark, now=now)
    is_online = row.availability_status is AvailabilityStatus.ONLINE
    if is_online and online is not None and offline is not None and offline >= online:
        offline = None
    oldest_shown = online if is_online and online is not None else LONG_AGO
    return replace(
        row,
        online_mark=online,
        offline_mark=offline,
        fail_mark=None if _is_void(row.fail_mark, now=now) else row.fail_mark,
        unmanaged_at=_moment(row.unmanaged_at, now=now),
        added_at=_moment(row.added_at, now=now),
        endpoints={
            endpoint_type: replace(
                endpoint,
                mark=oldest_shown if _is_void(endpoint.mark, now=now) else endpoint.mark,
                verified_at=_moment(endpoint.verified_at, now=now),
                last_good_at=_moment(endpoint.last_good_at, now=now),
            )
            for endpoint_type, endpoint in row.endpoints.items()
        },
    )


def _moment(moment: datetime | None, *, now: datetime) -> datetime | None:
    return None if moment is None or is_void(moment, now=now) else moment


def _is_void(mark: Mark | None, *, now: datetime) -> bool:
    return mark is not None and is_void(mark.observed_at, now=now)


def _believed(mark: Mark | None, *, now: datetime) -> Mark | None:
    return LONG_AGO if _is_void(mark, now=now) else mark


def _facts_of_rows(row: StateRow) -> Facts:
    is_online = row.availability_status is AvailabilityStatus.ONLINE and row.online_mark is not None
    return Facts(
        management_state=row.management_state,
        initial_sync_state=row.initial_sync_state,
        audited=row.audited,
        offline_mark=row.offline_mark,
        online_marks=(row.online_mark,) if is_online and row.online_mark else (),
        has_been_online=row.online_mark is not None,
        fail_count=row.fail_count,
        fail_mark=row.fail_mark,
        unmanaged_at=row.unmanaged_at,
        added_at=row.added_at,
        endpoints={
            endpoint_type: EndpointFact(
                endpoint.sync_status,
                endpoint.alarmable,
                endpoint.mark,
                endpoint.reason,
                endpoint.verified_at,
                endpoint.last_good_at,
            )
            for endpoint_type, endpoint in row.endpoints.items()
        },
    )


def write_changes(changes: StateChanges, row: StateRow, facts: Facts, *, now: datetime) -> None:
    """Adds to `changes` the writes that make this row and its memory hold these facts, also in place of marks in the
    future."""
    columns = _columns(row, facts, now=now)
    if columns is not None:
        changes.columns.append(columns)
    written: dict[EndpointType, EndpointRow] = {}
    for endpoint_type in facts.endpoints:
        shown = facts.shown(endpoint_type)
        before = row.endpoints.get(endpoint_type)
        endpoint = EndpointRow(
            shown.sync_status, shown.alarmable, shown.mark, shown.reason, shown.verified_at, shown.last_good_at
        )
        if before is None:
            changes.added_endpoints.append((row.subcloud_id, endpoint_type, endpoint))
        elif before != endpoint:
            changes.endpoints.append((row.subcloud_id, endpoint_type, endpoint))
        written[endpoint_type] = endpoint
    changes.removed_endpoints += [(row.subcloud_id, each) for each in row.endpoints if each not in facts.endpoints]
    if facts.online_marks and facts.online_marks != facts_of(row, now=now).online_marks:
        changes.seen.append((row.subcloud_id, facts.online_marks[-1].observed_at))
    after = _without_void_marks(_row_after(row, columns, written), now=now)
    memory = _memory(facts, _facts_of_rows(after))
    _keep_endpoints_not_read(memory, row)
    if memory and memory != row.memory:
        changes.memories.append((row.subcloud_id, memory))


def _columns(row: StateRow, facts: Facts, *, now: datetime) -> ObservedColumns | None:
    """Returns the row's new columns; None if nothing shown changed, there was no outage in between and no mark is
    void."""
    online = facts.online_marks[0] if facts.online_marks else row.online_mark
    if online is None and facts.has_been_online:
        online = facts.offline_mark  # a late report says it was online before that
    same = (
        facts.availability_status is row.availability_status
        and facts.fail_count == row.fail_count
        and (row.online_mark is not None) is facts.has_been_online
    )
    outage = bool(
        facts.online_marks and row.online_mark and facts.offline_mark and row.online_mark <= facts.offline_mark
    )
    is_void_mark = any(_is_void(mark, now=now) for mark in (row.online_mark, row.offline_mark, row.fail_mark))
    if same and not outage and not is_void_mark:
        return None
    return ObservedColumns(
        subcloud_id=row.subcloud_id,
        availability_status=facts.availability_status,
        online_mark=online,
        offline_mark=facts.offline_mark,
        fail_count=facts.fail_count,
        fail_mark=facts.fail_mark,
    )


def _row_after(
    row: StateRow, columns: ObservedColumns | None, endpoints: Mapping[EndpointType, EndpointRow]
) -> StateRow:
    if columns is None:
        return replace(row, endpoints=endpoints)
    return replace(
        row,
        endpoints=endpoints,
        availability_status=columns.availability_status,
        online_mark=columns.online_mark,
        offline_mark=columns.offline_mark,
        fail_count=columns.fail_count,
        fail_mark=columns.fail_mark,
    )


# --- the memory as JSON: {"off": mark, "on": [marks], "fail": mark, "endpoints": {...}, "types": {...}} -----------


def _memory(facts: Facts, rows: Facts) -> dict[str, Any]:
    """Returns what the facts hold beyond the rows; empty if nothing."""
    memory: dict[str, Any] = {}
    if facts.offline_mark and facts.offline_mark != rows.offline_mark:
        memory["off"] = _json(facts.offline_mark)
    if facts.online_marks != rows.online_marks:
        memory["on"] = [_json(mark) for mark in facts.online_marks]
    if facts.fail_mark and facts.fail_mark != rows.fail_mark:
        memory["fail"] = _json(facts.fail_mark)
    endpoints = {
        str(endpoint_type): [str(fact.sync_status), fact.alarmable, *_json(fact.mark), fact.reason]
        for endpoint_type, fact in facts.endpoints.items()
        if fact.mark and fact != rows.endpoints[endpoint_type] and not _is_outdated(fact, facts.offline_mark)
    }
    if endpoints:
        memory["endpoints"] = endpoints
    if facts.type_marks:
        memory["types"] = {str(each): [present, *_json(mark)] for each, (mark, present) in facts.type_marks.items()}
    return memory


def _keep_endpoints_not_read(memory: dict[str, Any], row: StateRow) -> None:
    """Keeps in `memory` what was stored for endpoints that were not read in this transaction."""
    unread = {name: fact for name, fact in row.memory.get("endpoints", {}).items() if name not in row.endpoints}
    if unread:
        memory["endpoints"] = unread | memory.get("endpoints", {})


def _is_outdated(fact: EndpointFact, offline_mark: Mark | None) -> bool:
    """Returns whether the fact is older than the newest "offline", which makes the endpoint `unknown`."""
    return fact.mark is not None and offline_mark is not None and fact.mark <= offline_mark


def _with_memory(rows: Facts, memory: Mapping[str, Any], *, now: datetime) -> Facts:
    """Takes the newer of both for each fact; marks from before the newest outage, or in the future, are dropped."""
    offline = _latest([rows.offline_mark, *_marks([memory["off"]] if "off" in memory else [], now=now)])
    online = sorted({*rows.online_marks, *_marks(memory.get("on", ()), now=now)})
    endpoints = dict(rows.endpoints)
    for name, (status, alarmable, observed_at, sequence, *reason) in memory.get("endpoints", {}).items():
        key = EndpointType(name)
        if key not in endpoints:
            continue
        fact = replace(
            endpoints[key],
            sync_status=SyncStatus(status),
            alarmable=alarmable,
            mark=_mark((observed_at, sequence)),
            reason=reason[0] if reason else None,
        )
        if _is_void(fact.mark, now=now):
            continue
        if fact.is_newer_than(endpoints[key]) and not _is_outdated(fact, offline):
            endpoints[key] = fact
    return replace(
        rows,
        offline_mark=offline,
        online_marks=tuple(mark for mark in online if offline is None or mark > offline),
        fail_mark=_latest([rows.fail_mark, *_marks([memory["fail"]] if "fail" in memory else [], now=now)]),
        endpoints=endpoints,
        type_marks={
            EndpointType(name): (_believed(_mark(mark), now=now) or LONG_AGO, present)
            for name, (present, *mark) in memory.get("types", {}).items()
        },
    )


def _latest(marks: Iterable[Mark | None]) -> Mark | None:
    return max((mark for mark in marks if mark is not None), default=None)


def _json(mark: Mark) -> list[Any]:
    return [mark.observed_at.isoformat(), mark.sequence]


def _mark(stored: Iterable[Any]) -> Mark:
    observed_at, sequence = stored
    return Mark(datetime.fromisoformat(observed_at), sequence)


def _marks(stored: Iterable[Any], *, now: datetime) -> list[Mark]:
    """Those that can be believed."""
    return [mark for mark in map(_mark, stored) if not _is_void(mark, now=now)]
