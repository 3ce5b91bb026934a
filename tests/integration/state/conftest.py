"""A PostgreSQL with subclouds in it, and the state service on top."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Engine, select, text, update

from dcsync.adapters.postgres.inventory import SqlInventory
from dcsync.adapters.postgres.states import SqlStateStore
from dcsync.adapters.postgres.tables import alarm, audit_request, rejected_report, subcloud, subcloud_sync, sync_request
from dcsync.model.report_payloads import report_payload
from dcsync.model.reports import Report
from dcsync.model.subcloud import EndpointType, ManagementState, Subcloud, SyncStatus, new_subcloud
from dcsync.state.service import StateService, Tally
from tests.builders import NOON, an_address
from tests.fake_messenger import FakeMessenger
from tests.reports import SEVEN_TYPES, at


class Rows:
    """Subclouds with seven endpoint types in PostgreSQL, reports about them, and what became of both."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.now = at(0)
        """The moment of the newest observation that was reported."""
        self.inventory = SqlInventory(engine, endpoint_types=SEVEN_TYPES)
        self.messenger = FakeMessenger()
        self.service = StateService(
            store=SqlStateStore(engine),
            messenger=self.messenger,
            now=lambda: self.now,
            endpoint_types=SEVEN_TYPES,
            follow_ups=frozenset(EndpointType),
        )

    def add(self, count: int = 1, *, managed: bool = True) -> list[str]:
        """Region names: subcloud1, subcloud2, ... (the names are `name-of-` them)."""
        regions = [f"subcloud{number}" for number in range(1, count + 1)]
        new = [
            new_subcloud(
                name=f"name-of-{region}", management_ip=an_address(region), region_name=region, software_version=None
            )
            for region in regions
        ]
        self.inventory.add(new, now=at(-60))
        if managed:
            self.inventory.set_management(None, ManagementState.MANAGED, now=NOON, by="test")
        return regions

    def tell(self, *reports: Report) -> Tally:
        """In one message."""
        self.now = max([self.now, *(report.mark.observed_at for report in reports)])
        return self.service.apply_payloads([report_payload(report) for report in reports])

    def subcloud(self, region_name: str = "subcloud1") -> Subcloud:
        (found,) = self.inventory.find([f"name-of-{region_name}"])
        return found

    def put(self, region_name: str = "subcloud1", **columns: Any) -> None:
        with self.engine.begin() as connection:
            connection.execute(update(subcloud).where(subcloud.c.region_name == region_name).values(**columns))

    def status(self, type_: EndpointType, region_name: str = "subcloud1") -> SyncStatus:
        return self.subcloud(region_name).sync_status[type_]

    def active_alarms(self) -> set[tuple[str, str]]:
        wanted = select(alarm.c.alarm_id, alarm.c.entity).where(alarm.c.cleared_at.is_(None))
        with self.engine.connect() as connection:
            found = [(row.alarm_id, row.entity) for row in connection.execute(wanted)]
        assert len(set(found)) == len(found)
        return set(found)

    def requests(self) -> list[tuple[int, int]]:
        """(subcloud id, generation) of every initial sync asked for."""
        with self.engine.connect() as connection:
            return [
                tuple(row) for row in connection.execute(select(sync_request.c.subcloud_id, sync_request.c.generation))
            ]

    def audits(self) -> set[tuple[int | None, str]]:
        with self.engine.connect() as connection:
            wanted = select(audit_request.c.subcloud_id, audit_request.c.endpoint_type)
            return {(row.subcloud_id, str(row.endpoint_type)) for row in connection.execute(wanted)}

    def audited(self) -> set[str]:
        """The endpoint types with an audit row, of one subcloud."""
        with self.engine.connect() as connection:
            return {str(type_) for type_ in connection.scalars(select(subcloud_sync.c.endpoint_type))}

    def rejected(self) -> list[tuple[str | None, str]]:
        with self.engine.connect() as connection:
            wanted = select(rejected_report.c.region_name, rejected_report.c.reason).order_by(rejected_report.c.id)
            return [tuple(row) for row in connection.execute(wanted)]

    def versions(self) -> set[tuple[str, str]]:
        """Where every row that anybody can see was last written: changes with any write, whatever it writes."""
        with self.engine.connect() as connection:
            return {
                (table, f"{row.xmin} {row.ctid}")
                for table in ("subcloud", "endpoint_status", "alarm", "audit_request", "sync_request")
                for row in connection.execute(text(f"SELECT xmin::text, ctid::text FROM {table}"))
            }


@pytest.fixture
def rows(engine: Engine) -> Rows:
    return Rows(engine)
