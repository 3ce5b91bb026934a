"""Initial sync and audits of one subcloud, with the runner that carries out both, over stores in memory.

What both stores keep of a subcloud is copied from one to the other; PostgreSQL has it in one row.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from dcsync.audit.engine import Audit, AuditLimits
from dcsync.initial_sync.engine import InitialSync, SyncLimits
from dcsync.initial_sync.ports import Run
from dcsync.model.messages import AuditHint, SyncHint
from dcsync.model.states.audit import AuditEvent
from dcsync.model.subcloud import EndpointType, Subcloud, SyncStatus
from dcsync.runs.clouds import Clouds
from dcsync.runs.outcome import Outcome
from dcsync.runs.ownership import BatchedOwnership
from dcsync.runs.runner import FollowUp, Runner
from tests.builders import NOON, a_subcloud
from tests.fakes_audit import MemoryAuditStore
from tests.fakes_sync import MemoryLocks, MemoryRunStore, OwnLoop

HOLD_OFF, HOLD_OFF_MAX = timedelta(seconds=60), timedelta(minutes=15)


class SharedRows(MemoryRunStore):
    """Rows of initial syncs that also change the rows of the audits, as the statements of `run_statements` do."""

    def __init__(self, audits: MemoryAuditStore, *subclouds: Subcloud) -> None:
        super().__init__(*subclouds)
        self.audits = audits

    def init_audit(self, run: Run, *, now: datetime) -> bool:
        is_own = super().init_audit(run, now=now)
        for (region_name, _), row in self.audits.rows.items():
            if is_own and region_name == run.subcloud.region_name:
                row.free()
                row.move(AuditEvent.RESET, attempt=0, difference=None, difference_repairs=0)
        return is_own

    def complete(self, run: Run, *, now: datetime, audits_due_at: datetime) -> bool:
        is_own = super().complete(run, now=now, audits_due_at=audits_due_at)
        for (region_name, _), row in self.audits.rows.items():
            if is_own and region_name == run.subcloud.region_name:
                row.due_at = now if row.generation > row.observed_generation else audits_due_at
        return is_own

    def _set(self, region_name: str, **changes: Any) -> None:
        super()._set(region_name, **changes)
        self.audits.subclouds[region_name] = self.rows[region_name].subcloud
        self.audits.placed[region_name] = self.rows[region_name].placed
        self.audits.groups[region_name] = self.rows[region_name].groups_to_refill


@dataclass
class OneWorker:
    """`subcloud` is requested; `run` does what a worker's task does with its hint."""

    clouds: Clouds
    subcloud: Subcloud = field(default_factory=a_subcloud)
    first_audit: timedelta = timedelta(0)
    deadline_seconds: float = 3600
    audits: MemoryAuditStore = field(default_factory=MemoryAuditStore)
    locks: MemoryLocks = field(default_factory=MemoryLocks)
    faults: list[BaseException] = field(default_factory=list)
    reports: list[tuple[EndpointType, SyncStatus]] = field(default_factory=list)
    told: list[tuple[str, Outcome]] = field(default_factory=list)
    """Outcomes of the latest run."""
    numbers: Iterator[int] = field(default_factory=itertools.count)
    rows: SharedRows = field(init=False)

    def __post_init__(self) -> None:
        self.audits.add(self.subcloud)
        self.rows = SharedRows(self.audits, self.subcloud)

    @property
    def region_name(self) -> str:
        return self.subcloud.region_name

    @property
    def endings(self) -> list[tuple[str, str]]:
        """What the latest run did, and how each of it ended."""
        return [(noun, outcome.result.value) for noun, outcome in self.told]

    async def run(self) -> Outcome:
        hint = SyncHint(self.region_name, self.rows.rows[self.region_name].subcloud.generation)
        self.told.clear()
        (outcome,) = await self._runner().run(
            self._initial_sync(),
            [hint],
            then=FollowUp(self._audit(), AuditHint),
            on_end=lambda noun, outcome: self.told.append((noun, outcome)),
        )
        return outcome

    async def audit(self) -> Outcome:
        """Audits what is due."""
        (outcome,) = await self._runner().run(self._audit(), [AuditHint(self.region_name)])
        return outcome

    def returns(self) -> None:
        """Was offline and is online again: requested anew, as a subsequent sync."""
        self.rows.leave(self.region_name)
        self.rows.ask(self.region_name, now=NOON)

    def asked_for(self) -> None:
        """An operator requests its sync."""
        self.rows.ask(self.region_name, now=NOON)
        self.rows.rows[self.region_name].identity_fingerprint = None

    def _runner(self) -> Runner:
        return Runner(
            locks=self.locks,
            clouds=self.clouds,
            deadline_seconds=self.deadline_seconds,
            now=lambda: NOON,
            new_run_id=lambda: f"run-{next(self.numbers)}",
            log_fault=lambda run, error: self.faults.append(error),
        )

    def _initial_sync(self) -> InitialSync:
        return InitialSync(
            store=self.rows,
            ownership=BatchedOwnership(self.rows, self.locks, lock_ttl_seconds=30, elapsed=time.monotonic),
            clouds=self.clouds,
            progress=lambda run, step: None,
            limits=SyncLimits(
                users_at_once=4, hold_off=HOLD_OFF, hold_off_max=HOLD_OFF_MAX, first_audit=self.first_audit
            ),
            now=lambda: NOON,
            jitter=lambda: 0.0,
            worker="w1",
        )

    def _audit(self) -> Audit:
        def report(region_name: str, endpoint_type: EndpointType, status: SyncStatus, **_: object) -> None:
            self.reports.append((endpoint_type, status))

        return Audit(
            store=self.audits,
            ownership=BatchedOwnership(self.audits, self.locks, lock_ttl_seconds=30, elapsed=time.monotonic),
            clouds=self.clouds,
            loop=OwnLoop(),
            reports=report,
            limits=AuditLimits(
                preview_seconds=3600,
                users_at_once=4,
                max_deletes=5,
                interval=timedelta(minutes=20),
                hold_off=HOLD_OFF,
                hold_off_max=HOLD_OFF_MAX,
                token_lifetime=timedelta(hours=1),
            ),
            now=lambda: NOON,
            new_run_id=lambda: f"run-{next(self.numbers)}",
            jitter=lambda: 0.5,
        )
