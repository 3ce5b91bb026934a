"""5,000 subclouds go offline and come back within ten seconds, reported one by one by several observers at once."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sqlalchemy import insert, select, text

from dcsync.adapters.broker.reporter import StateReporter
from dcsync.adapters.postgres.states import SqlStateStore
from dcsync.adapters.postgres.tables import subcloud
from dcsync.model.report_payloads import report_payload
from dcsync.model.reports import Report
from dcsync.model.states.initial_sync import InitialSyncState
from dcsync.model.subcloud import AvailabilityStatus
from dcsync.state.service import StateService
from tests.builders import an_address
from tests.fake_messenger import FakeMessenger
from tests.integration.state.conftest import Rows
from tests.reports import FIRMWARE, NOW, OUT_OF_SYNC, SEVEN_TYPES, endpoint, offline, online

SUBCLOUDS = 5_000
OBSERVERS = 8


class Queue:
    """Stands for the broker: messages wait in it, are taken in any order, and some are delivered twice."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._messages: list[list[object]] = []
        self._guard = threading.Lock()

    def send(self, reports: Sequence[Report]) -> None:
        message: list[object] = [report_payload(report) for report in reports]
        with self._guard:
            self._messages += [message] * (1 + (self._random.random() < 0.1))

    def take(self) -> list[object] | None:
        with self._guard:
            if not self._messages:
                return None
            return self._messages.pop(self._random.randrange(len(self._messages)))


def add_subclouds(rows: Rows) -> list[str]:
    """Managed, online, synced, each with an alarm on its platform."""
    regions = [f"subcloud{number}" for number in range(SUBCLOUDS)]
    new: list[dict[str, Any]] = [
        {
            "name": f"name-of-{region}",
            "region_name": region,
            "management_ip": an_address(region),
            "management_state": "managed",
        }
        for region in regions
    ]
    with rows.engine.begin() as connection:
        connection.execute(insert(subcloud), new)
        connection.execute(
            text(
                "INSERT INTO endpoint_status (subcloud_id, endpoint_type) SELECT id, t FROM subcloud, unnest(:types) t"
            ),
            {"types": [str(type_) for type_ in SEVEN_TYPES]},
        )
    rows.service.apply([report for region in regions for report in _before(region)])
    with rows.engine.begin() as connection:
        connection.execute(text("UPDATE subcloud SET initial_sync_state = 'completed'"))
        connection.execute(text("DELETE FROM sync_request"))
    return regions


def _before(region: str) -> list[Report]:
    return [online(-100, region), endpoint(-99, FIRMWARE, OUT_OF_SYNC, region)]


def test_a_flood_ends_in_exactly_the_right_rows_and_alarms_with_one_request_each(rows: Rows) -> None:
    regions = add_subclouds(rows)
    queue = Queue(seed=7)
    reporter = StateReporter(queue)
    all_told = threading.Event()

    def observe(observer: int) -> None:
        """Each goes away and comes back, at moments of its own within ten seconds; every fifth stays away."""
        mine = regions[observer::OBSERVERS]
        for number, region in enumerate(mine):
            reporter.report(offline(number % 5, region, fail_count=2))
        for number, region in enumerate(mine):
            if not stays_away(region):
                reporter.report(online(5 + number % 5, region))
                reporter.report(endpoint(9.5, FIRMWARE, OUT_OF_SYNC, region))

    def work() -> int:
        """A state worker: takes what is there until all was told and the queue is empty."""
        service = StateService(store=SqlStateStore(rows.engine), messenger=FakeMessenger(), now=lambda: NOW)
        applied = 0
        while True:
            last = all_told.is_set()
            message = queue.take()
            if message is not None:
                applied += service.apply_payloads(message).rejected == 0
            elif last:
                return applied
            else:
                time.sleep(0.002)

    with ThreadPoolExecutor(OBSERVERS + 2) as pool:
        workers = [pool.submit(work) for _ in range(2)]
        for observing in [pool.submit(observe, observer) for observer in range(OBSERVERS)]:
            observing.result(timeout=120)
        assert reporter.close(timeout_seconds=120)
        all_told.set()
        assert sum(worker.result(timeout=200) for worker in workers) > 0
    assert reporter.dropped == 0
    assert_exactly_right(rows, regions)


def stays_away(region: str) -> bool:
    return int(region.removeprefix("subcloud")) % 5 == 0


def assert_exactly_right(rows: Rows, regions: list[str]) -> None:
    away = {region for region in regions if stays_away(region)}
    back = set(regions) - away
    with rows.engine.connect() as connection:
        found = connection.execute(
            select(
                subcloud.c.region_name,
                subcloud.c.availability_status,
                subcloud.c.initial_sync_state,
                subcloud.c.audit_fail_count,
                subcloud.c.generation,
            )
        ).all()
        shown = connection.execute(
            text(
                "SELECT s.region_name, e.endpoint_type, e.sync_status FROM endpoint_status e"
                " JOIN subcloud s ON s.id = e.subcloud_id WHERE e.sync_status <> 'unknown'"
            )
        ).all()
        alarms = connection.execute(text("SELECT alarm_id, entity FROM alarm WHERE cleared_at IS NULL")).all()
        outages = connection.execute(
            text("SELECT entity, count(*) FROM alarm WHERE alarm_id = '280.001' GROUP BY entity")
        ).all()
    online_, offline_ = AvailabilityStatus.ONLINE, AvailabilityStatus.OFFLINE
    assert {tuple(row[:4]) for row in found} == {
        *((region, online_, InitialSyncState.REQUESTED, 0) for region in back),
        *((region, offline_, InitialSyncState.NONE, 2) for region in away),
    }
    assert {row.generation for row in found if row.region_name in back} == {2}, "asked for once before, once now"
    assert len(rows.requests()) == len(back)
    assert {tuple(row) for row in shown} == {(region, "firmware", "out-of-sync") for region in back}
    assert sorted(tuple(row) for row in alarms) == sorted(
        [
            *(("280.001", f"subcloud=name-of-{region}") for region in away),
            *(("280.002", f"subcloud=name-of-{region}.resource=firmware") for region in back),
        ]
    )
    assert {tuple(row) for row in outages} == {(f"subcloud=name-of-{region}", 1) for region in regions}
