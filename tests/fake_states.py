"""`ports.StateStore` in memory, for tests of the state service that are not about SQL."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime

from dcsync.model.states.initial_sync import INITIAL_SYNC, InitialSyncEvent, InitialSyncState
from dcsync.model.subcloud import EndpointType, SyncStatus
from dcsync.state.ports import AlarmRow, RejectedNotice, RejectedReport, StateChanges, StateRow


class FakeStateStore:
    """Rows by region name, and what was written beside them."""

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
        yield self

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
                self._put(id_, initial_sync_state=INITIAL_SYNC.next_state(row.initial_sync_state, event))
                self.events.append((row.region_name, event))
        for id_, type_, shown in changes.endpoints + changes.added_endpoints:
            self._put(id_, endpoints={**self._row(id_).endpoints, type_: shown})
        for id_, type_ in changes.removed_endpoints:
            self._put(id_, endpoints={t: shown for t, shown in self._row(id_).endpoints.items() if t is not type_})
        for id_, memory in changes.memories:
            self._put(id_, visible=False, memory=json.loads(json.dumps(memory)))
        for alarm_id, entity, cleared_at in changes.cleared_alarms:
            self.writes += 1
            if gone := self.active.pop((alarm_id, entity), None):
                self.alarm_history.append(replace(gone, cleared_at=cleared_at))
        for alarm in changes.raised_alarms:
            self.writes += 1
            if alarm.cleared_at is not None:
                self.alarm_history.append(alarm)
            else:
                self.active.setdefault((alarm.alarm_id, alarm.entity), alarm)
        for id_, type_, _cause in changes.audits:
            if (id_, type_) not in self.audits:
                self.audits.append((id_, type_))
        self.rejected += changes.rejected

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
