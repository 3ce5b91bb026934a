"""The rows of the state service in memory: StateStore, Alarms and RejectedReports; and a sink of alarms.

Trusted because `contract/test_state_store_contract.py`, `contract/test_rejected_reports_contract.py` and
`contract/test_alarm_sinks_contract.py` run on them and on PostgreSQL, a log and a webhook.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from datetime import datetime

from dcsync.model.errors import TemporaryError
from dcsync.model.reports import Mark
from dcsync.model.states.initial_sync import INITIAL_SYNC, InitialSyncEvent, InitialSyncState
from dcsync.model.subcloud import AvailabilityStatus, EndpointType, SyncStatus
from dcsync.state.ports import (
    AlarmNotice,
    AlarmRow,
    EndpointRow,
    NoticesRefused,
    RefusedNotice,
    RefusedNotices,
    RejectedNotice,
    RejectedReport,
    StateChanges,
    StateRow,
)
from dcsync.state.rules import Alarm, AlarmId


class FakeStateStore:
    """StateStore and StateTransaction over rows by region name, and what was written beside them."""

    def __init__(self, *rows: StateRow) -> None:
        self.rows = {row.region_name: row for row in rows}
        self.active: dict[tuple[str, str], AlarmRow] = {}
        self.alarm_history: list[AlarmRow] = []
        self.events: list[tuple[str, InitialSyncEvent]] = []
        self.audits: list[tuple[int | None, EndpointType]] = []
        self.rejected: list[RejectedReport] = []
        self.writes = 0
        """Rows written that anybody can see; the memory is not one of them."""

    @contextmanager
    def transaction(self) -> Iterator[FakeStateStore]:
        before = {name: copy(value) for name, value in vars(self).items()}
        try:
            yield self
        except BaseException:
            vars(self).update(before)
            raise

    def add_missing_endpoints(self, endpoint_types: Collection[EndpointType]) -> int:
        missing = [
            (row, type_)
            for row in self.rows.values()
            for type_ in endpoint_types
            if type_ not in row.endpoints and row.memory.get("types", {}).get(type_.value, [True])[0]
        ]
        for row, type_ in missing:
            forgotten_at = None if type_ is EndpointType.DC_CERT else row.unmanaged_at
            shown = EndpointRow(SyncStatus.UNKNOWN, True, Mark(forgotten_at, 0) if forgotten_at else None)
            self._put(row.subcloud_id, endpoints={**self._row(row.subcloud_id).endpoints, type_: shown})
        return len(missing)

    def region_names(self, *, after: str, limit: int) -> list[str]:
        return sorted(name for name in self.rows if name > after)[:limit]

    def lock(
        self, region_names: Collection[str], *, endpoint_types: Collection[EndpointType] | None = None
    ) -> list[StateRow]:
        found = sorted((self.rows[name] for name in region_names if name in self.rows), key=lambda row: row.subcloud_id)
        if endpoint_types is None:
            return found
        return [
            replace(row, endpoints={t: shown for t, shown in row.endpoints.items() if t in endpoint_types})
            for row in found
        ]

    def write(self, changes: StateChanges, *, now: datetime) -> None:
        for columns in changes.columns:
            self._put(
                columns.subcloud_id,
                availability_status=columns.availability_status,
                online_mark=columns.online_mark,
                offline_mark=columns.offline_mark,
                fail_count=columns.fail_count,
                fail_mark=columns.fail_mark,
            )
        for event, ids in changes.events.items():
            for id_ in ids:
                row = self._row(id_)
                after = INITIAL_SYNC.next_state(row.initial_sync_state, event)
                if after is not None:
                    self._put(id_, initial_sync_state=after)
                    self.events.append((row.region_name, event))
        known = [each for each in changes.endpoints if each[1] in self._row(each[0]).endpoints]
        for id_, type_, shown in known + changes.added_endpoints:
            self._put(id_, endpoints={**self._row(id_).endpoints, type_: shown})
        for id_, type_ in changes.removed_endpoints:
            self._put(id_, endpoints={t: shown for t, shown in self._row(id_).endpoints.items() if t is not type_})
        for id_, memory in changes.memories:
            self._put(id_, visible=False, memory=json.loads(json.dumps(memory)))
        for alarm_id, entity, cleared_at in changes.cleared_alarms:
            self.writes += 1
            self._clear(alarm_id, entity, cleared_at)
        for alarm in changes.raised_alarms:
            self.writes += 1
            if alarm.cleared_at is not None:
                self.alarm_history.append(alarm)
            else:
                self.active.setdefault((alarm.alarm_id, alarm.entity), alarm)
        for id_, type_, _cause in changes.audits:
            if (id_, type_) not in self.audits:
                self.audits.append((id_, type_))
        for id_ in changes.realigned:
            self._realign_alarms(self._row(id_), now=now)
        self.rejected += changes.rejected

    def _clear(self, alarm_id: str, entity: str, cleared_at: datetime) -> None:
        if alarm := self.active.pop((alarm_id, entity), None):
            self.alarm_history.append(replace(alarm, cleared_at=max(cleared_at, alarm.raised_at)))

    def _realign_alarms(self, row: StateRow, *, now: datetime) -> None:
        expected = {
            Alarm(AlarmId.OUT_OF_SYNC, type_)
            for type_, shown in row.endpoints.items()
            if shown.sync_status is SyncStatus.OUT_OF_SYNC and shown.alarmable
        }
        if row.availability_status is AvailabilityStatus.OFFLINE and row.online_mark is not None:
            expected.add(Alarm(AlarmId.OFFLINE))
        keys = {(alarm.alarm_id.value, alarm.entity(row.name)): alarm for alarm in expected}
        for alarm_id, entity in [key for key, alarm in self.active.items() if alarm.subcloud_id == row.subcloud_id]:
            if (alarm_id, entity) not in keys:
                self._clear(alarm_id, entity, now)
        for (alarm_id, entity), alarm in keys.items():
            raised = AlarmRow(
                alarm_id=alarm_id,
                entity=entity,
                subcloud_id=row.subcloud_id,
                endpoint_type=alarm.endpoint_type,
                severity=alarm.severity,
                reason_text=alarm.reason_text(row.name),
                raised_at=now,
            )
            self.active.setdefault((alarm_id, entity), raised)

    def _row(self, id_: int) -> StateRow:
        (row,) = (row for row in self.rows.values() if row.subcloud_id == id_)
        return row

    def _put(self, id_: int, *, visible: bool = True, **columns: object) -> None:
        row = self._row(id_)
        self.rows[row.region_name] = replace(row, **columns)  # type: ignore[arg-type]
        self.writes += visible

    def alarms(self, region_name: str = "subcloud1") -> set[tuple[str, str]]:
        """(alarm id, resource or "") of the subcloud's active alarms."""
        entity = f"subcloud={self.rows[region_name].name}"
        return {
            (alarm_id, name.removeprefix(entity).removeprefix(".resource="))
            for alarm_id, name in self.active
            if name == entity or name.startswith(f"{entity}.")
        }

    def status(self, endpoint_type: EndpointType, region_name: str = "subcloud1") -> SyncStatus:
        return self.rows[region_name].endpoints[endpoint_type].sync_status

    def state(self, region_name: str = "subcloud1") -> InitialSyncState:
        return self.rows[region_name].initial_sync_state


class FakeAlarms:
    """Alarms as operators read them, of what was written to a FakeStateStore."""

    def __init__(self, store: FakeStateStore, *, checked_at: datetime | None = None) -> None:
        self._store = store
        self.refused: list[RefusedNotice] = []
        """Newest first."""
        self._checked_at = checked_at

    def check(self, now: datetime) -> None:
        self._checked_at = now

    def checked_at(self) -> datetime | None:
        return self._checked_at

    def refused_notices(self, *, limit: int) -> RefusedNotices:
        return RefusedNotices(len(self.refused), tuple(self.refused[:limit]))

    def alarms(self, *, history: bool, limit: int) -> list[AlarmNotice]:
        active = sorted(self._store.active.values(), key=lambda alarm: (alarm.alarm_id, alarm.raised_at))
        if not history:
            return [_notice(alarm) for alarm in active[:limit]]
        every = sorted([*active, *self._store.alarm_history], key=lambda alarm: alarm.raised_at, reverse=True)
        return [_notice(alarm) for alarm in every[:limit]]


def _notice(alarm: AlarmRow) -> AlarmNotice:
    return AlarmNotice(
        alarm_id=alarm.alarm_id,
        entity=alarm.entity,
        severity=alarm.severity,
        reason_text=alarm.reason_text,
        raised_at=alarm.raised_at,
        cleared_at=alarm.cleared_at,
    )


class FakeAlarmSink:
    """AlarmSink that keeps what it is told, or refuses it."""

    def __init__(self, name: str = "sink") -> None:
        self.name = name
        self.told: list[AlarmNotice] = []
        self.refuses = False
        self.poison: set[str] = set()
        """Entities of alarms that it does not accept, alone or among others."""
        self.sizes: list[int] = []

    def send(self, notices: Sequence[AlarmNotice]) -> None:
        self.sizes.append(len(notices))
        if self.refuses:
            raise TemporaryError("away")
        if any(notice.entity in self.poison for notice in notices):
            raise NoticesRefused("status 413")
        self.told += notices


class FakeRejectedReports:
    """`ports.RejectedReports` in memory. Trusted because `contract/test_rejected_reports_contract.py` runs on it."""

    def __init__(self) -> None:
        self._rejected: list[RejectedNotice] = []

    def reject(self, report: RejectedReport, *, now: datetime) -> None:
        self._rejected.append(
            RejectedNotice(received_at=now, region_name=report.region_name, reason=report.reason, report=report.report)
        )

    def newest(self, *, limit: int) -> list[RejectedNotice]:
        return self._rejected[::-1][:limit]
