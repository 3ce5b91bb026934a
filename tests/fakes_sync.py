"""In-memory ports of runs: the rows of the initial sync, locks, and the event loop.

Trusted because `contract/test_run_store_contract.py`, `contract/test_locks_contract.py` and
`contract/test_loop_contract.py` run on them and on PostgreSQL, Redis and a worker's loop.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from dcsync.initial_sync.ports import Claim, Run
from dcsync.initial_sync.standing import RunAndRow, standing_of
from dcsync.model.ending import Ending, Failure
from dcsync.model.errors import BrokerUnreachable, WorkerStopping
from dcsync.model.identity import NewIds, Placed
from dcsync.model.marks import is_void, is_void_deadline
from dcsync.model.messages import SyncHint
from dcsync.model.states.initial_sync import INITIAL_SYNC, InitialSyncEvent, InitialSyncState
from dcsync.model.subcloud import Step, Subcloud
from dcsync.runs.abandoned import ANY_DEATHS, RunInProgress, Suspects
from dcsync.runs.ports import Standing
from tests.builders import a_subcloud

T = TypeVar("T")


@dataclass
class Row:
    """What a row of `subcloud` holds beyond the Subcloud itself."""

    subcloud: Subcloud
    abandoned: int = 0
    dispatched_at: datetime | None = None
    identity_fingerprint: str | None = None
    groups_to_refill: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    placed: Placed = field(default_factory=Placed)
    audit_is_due: bool = False


@dataclass
class Attempt:
    region_name: str
    generation: int
    started_at: datetime
    ending: Ending | None = None
    detail: str = ""
    steps: list[tuple[Step, str | None]] = field(default_factory=list)


class MemoryRunStore:
    """RunStore over dictionaries."""

    def __init__(self, *subclouds: Subcloud) -> None:
        self.rows = {subcloud.region_name: Row(subcloud) for subcloud in subclouds}
        self.attempts: dict[str, Attempt] = {}
        self.started_at = datetime(2026, 1, 1, tzinfo=UTC)

    # --- what operators and observers do, told to the rows directly ---

    def leave(self, region_name: str) -> None:
        self._set(region_name, initial_sync_state=InitialSyncState.NONE, run_id=None, claimed_at=None)

    def ask(self, region_name: str, *, now: datetime) -> None:
        row = self.rows[region_name]
        row.dispatched_at, row.abandoned = None, 0
        self._set(
            region_name,
            initial_sync_state=InitialSyncState.REQUESTED,
            generation=row.subcloud.generation + 1,
            attempt=0,
            run_id=None,
            claimed_at=None,
            requested_at=now,
        )

    def delete(self, region_name: str) -> None:
        del self.rows[region_name]
        self.attempts = {k: v for k, v in self.attempts.items() if v.region_name != region_name}

    def state(self, region_name: str) -> InitialSyncState:
        return self.rows[region_name].subcloud.initial_sync_state

    # --- the sweep ---

    def requeue_due(self, *, now: datetime, longest: timedelta) -> int:
        due = [
            row.subcloud
            for row in self.rows.values()
            if row.subcloud.initial_sync_state is InitialSyncState.FAILED
            and row.subcloud.retry_at is not None
            and (row.subcloud.retry_at <= now or is_void_deadline(row.subcloud.retry_at, now=now, longest=longest))
        ]
        for subcloud in due:
            self.rows[subcloud.region_name].dispatched_at = None
            self._move(subcloud.region_name, InitialSyncEvent.RETRY_DUE, retry_at=None, requested_at=now)
        return len(due)

    def in_progress_since_before(self, moment: datetime, *, now: datetime) -> list[RunInProgress]:
        return [
            RunInProgress(s.region_name, s.run_id, s.claimed_at, self.rows[s.region_name].abandoned)
            for s in self._in(InitialSyncState.IN_PROGRESS)
            if s.run_id is not None and s.claimed_at is not None and was_before(moment, s.claimed_at, now=now)
        ]

    def take_back(self, abandoned: Collection[RunInProgress], *, now: datetime, counted: bool = True) -> list[str]:
        return self._end_abandoned(abandoned, InitialSyncEvent.ABANDONED, deaths=int(counted))

    def quarantine(
        self, abandoned: Collection[RunInProgress], failure: Failure, *, now: datetime, retry_at: datetime
    ) -> list[str]:
        failed = {"retry_at": retry_at, "reason": failure.reason, "detail": failure.detail}
        return self._end_abandoned(abandoned, InitialSyncEvent.QUARANTINED, **failed)

    def _end_abandoned(
        self, runs: Collection[RunInProgress], event: InitialSyncEvent, *, deaths: int = 0, **changes: Any
    ) -> list[str]:
        changed = []
        for run in runs:
            row = self.rows.get(run.region_name)
            if row is None or row.subcloud.run_id != run.run_id:
                continue
            row.dispatched_at = None
            row.abandoned = row.abandoned + deaths if event is InitialSyncEvent.ABANDONED else 0
            self._end(run.run_id, Ending.ABANDONED, "")
            self._move(run.region_name, event, run_id=None, claimed_at=None, step=None, **changes)
            changed.append(run.region_name)
        return changed

    def unowned_attempts(self, *, started_before: datetime, now: datetime) -> list[tuple[str, str]]:
        return [
            (attempt.region_name, run_id)
            for run_id, attempt in self.attempts.items()
            if attempt.ending is None
            and was_before(started_before, attempt.started_at, now=now)
            and self.rows[attempt.region_name].subcloud.run_id != run_id
        ]

    def end_unowned(self, run_ids: Collection[str], *, now: datetime) -> None:
        for run_id in run_ids:
            self._end(run_id, Ending.ABANDONED, "")

    def server_started_at(self) -> datetime:
        return self.started_at

    def suspects(self, *, lost: Collection[SyncHint]) -> Suspects:
        again = {hint.region_name for hint in lost}
        found: Counter[tuple[int, bool]] = Counter()
        for state in (InitialSyncState.REQUESTED, InitialSyncState.IN_PROGRESS):
            for s in self._in(state):
                row = self.rows[s.region_name]
                is_hinted = row.dispatched_at is not None and s.region_name not in again
                if row.abandoned:
                    found[row.abandoned, state is InitialSyncState.IN_PROGRESS or is_hinted] += 1
        return found

    def unstarted_hints(self) -> list[tuple[SyncHint, datetime]]:
        return [
            (_hint(s), row.dispatched_at)
            for s in self._in(InitialSyncState.REQUESTED)
            if (row := self.rows[s.region_name]).dispatched_at is not None
        ]

    def in_progress_count(self) -> int:
        return len(self._in(InitialSyncState.IN_PROGRESS))

    def dispatch(
        self, *, room: int, lost: Collection[SyncHint], now: datetime, deaths: range = ANY_DEATHS
    ) -> list[SyncHint]:
        again = {hint.region_name for hint in lost}
        due = [
            s
            for s in self._in(InitialSyncState.REQUESTED)
            if self.rows[s.region_name].abandoned in deaths
            and (self.rows[s.region_name].dispatched_at is None or s.region_name in again)
        ]
        due.sort(key=lambda s: (s.requested_at or now, s.id))
        for subcloud in due[:room]:
            self.rows[subcloud.region_name].dispatched_at = now
        return [_hint(subcloud) for subcloud in due[:room]]

    def undo_dispatch(self, hints: Collection[SyncHint]) -> None:
        for hint in hints:
            self.rows[hint.region_name].dispatched_at = None

    # --- one run ---

    def claim(self, claims: Sequence[Claim], *, worker: str, now: datetime) -> list[Run]:
        found = (self._claim(each.region_name, each.generation, each.run_id, now) for each in claims)
        return [run for run in found if run is not None]

    def _claim(self, region_name: str, generation: int, run_id: str, now: datetime) -> Run | None:
        row = self.rows.get(region_name)
        if row is None or row.subcloud.generation != generation:
            return None
        if INITIAL_SYNC.next_state(row.subcloud.initial_sync_state, InitialSyncEvent.CLAIMED) is None:
            return None
        row.dispatched_at = None
        self._move(
            region_name,
            InitialSyncEvent.CLAIMED,
            run_id=run_id,
            claimed_at=now,
            step=None,
            attempt=row.subcloud.attempt + 1,
        )
        self.attempts[run_id] = Attempt(region_name, generation, started_at=now)
        return Run(run_id, row.subcloud, row.identity_fingerprint, dict(row.groups_to_refill))

    def standing(self, run_ids: Collection[str]) -> dict[str, Standing | None]:
        return {run_id: standing_of(self._run_and_row(run_id)) for run_id in run_ids}

    def _run_and_row(self, run_id: str) -> RunAndRow | None:
        attempt = self.attempts.get(run_id)
        if attempt is None:
            return None
        subcloud = self.rows[attempt.region_name].subcloud
        return RunAndRow(
            run_id=run_id,
            run_generation=attempt.generation,
            row_run_id=subcloud.run_id,
            row_generation=subcloud.generation,
            row_state=subcloud.initial_sync_state,
        )

    def start_step(self, run: Run, step: Step, *, now: datetime) -> bool:
        if not self._owns(run):
            return False
        self._set(run.subcloud.region_name, step=step)
        self.attempts[run.run_id].steps.append((step, None))
        return True

    def end_step(self, run: Run, step: Step, *, now: datetime, outcome: str, detail: str = "") -> None:
        if run.run_id in self.attempts:
            steps = self.attempts[run.run_id].steps
            self.attempts[run.run_id].steps = [(s, outcome if s is step else o) for s, o in steps]

    def record_identity(self, run: Run, *, fingerprint: str | None) -> bool:
        if not self._owns(run):
            return False
        self.rows[run.subcloud.region_name].identity_fingerprint = fingerprint
        self._set(run.subcloud.region_name, subsequent_sync=True)
        return True

    def remember_groups(self, run: Run, groups: Mapping[str, tuple[str, ...]]) -> bool:
        if not self._owns(run):
            return False
        self.rows[run.subcloud.region_name].groups_to_refill = dict(groups)
        return True

    def remember_placed(self, run: Run, placed: Placed, new_ids: NewIds) -> bool:
        if not self._owns(run):
            return False
        row = self.rows[run.subcloud.region_name]
        row.placed = row.placed.followed(new_ids) | placed
        return True

    def init_audit(self, run: Run, *, now: datetime) -> bool:
        if not self._owns(run):
            return False
        self.rows[run.subcloud.region_name].audit_is_due = True
        return True

    def complete(self, run: Run, *, now: datetime, audits_due_at: datetime) -> bool:
        return self._finish(
            run, InitialSyncEvent.SUCCEEDED, Ending.COMPLETED, "", attempt=0, reason=None, retry_at=None, detail=""
        )

    def fail(self, run: Run, failure: Failure, *, now: datetime, retry_at: datetime) -> bool:
        return self._finish(
            run,
            InitialSyncEvent.STEP_FAILED,
            Ending.FAILED,
            failure.detail,
            reason=failure.reason,
            detail=failure.detail,
            retry_at=retry_at,
        )

    def give_back(self, run: Run, *, ending: Ending, detail: str, now: datetime) -> bool:
        if not self._owns(run):
            return False
        attempt = self.rows[run.subcloud.region_name].subcloud.attempt - 1
        return self._finish(run, InitialSyncEvent.GIVEN_BACK, ending, detail, attempt=attempt)

    def end_attempt(self, run: Run, ending: Ending, *, detail: str, now: datetime) -> None:
        self._end(run.run_id, ending, detail)

    def _finish(self, run: Run, event: InitialSyncEvent, ending: Ending, told: str, **changes: Any) -> bool:
        if not self._owns(run):
            return False
        row = self.rows[run.subcloud.region_name]
        row.dispatched_at = None
        if event is not InitialSyncEvent.GIVEN_BACK:
            row.abandoned = 0
        self._move(run.subcloud.region_name, event, run_id=None, claimed_at=None, step=None, **changes)
        self._end(run.run_id, ending, told)
        return True

    def _end(self, run_id: str, ending: Ending, detail: str) -> None:
        attempt = self.attempts.get(run_id)
        if attempt is not None and attempt.ending is None:
            attempt.ending, attempt.detail = ending, detail

    def _owns(self, run: Run) -> bool:
        row = self.rows.get(run.subcloud.region_name)
        return row is not None and row.subcloud.run_id == run.run_id

    def _in(self, state: InitialSyncState) -> list[Subcloud]:
        return [row.subcloud for row in self.rows.values() if row.subcloud.initial_sync_state is state]

    def _move(self, region_name: str, event: InitialSyncEvent, **changes: Any) -> None:
        after = INITIAL_SYNC.next_state(self.state(region_name), event)
        assert after is not None, f"{self.state(region_name)} does not know {event}"
        self._set(region_name, initial_sync_state=after, **changes)

    def _set(self, region_name: str, **changes: Any) -> None:
        row = self.rows[region_name]
        row.subcloud = replace(row.subcloud, **changes)


def was_before(moment: datetime, stamped: datetime, *, now: datetime) -> bool:
    """As the real stores have it: what is stamped in the future counts as long ago."""
    return stamped < moment or is_void(stamped, now=now)


def _hint(subcloud: Subcloud) -> SyncHint:
    return SyncHint(subcloud.region_name, subcloud.generation, subcloud.attempt + 1)


class MemoryLocks:
    """Locks over a dictionary; they do not expire. `is_away` plays a broker that does not answer."""

    def __init__(self) -> None:
        self.held: dict[str, str] = {}
        self.is_away = False
        self.uptime: timedelta | None = timedelta(days=9)

    def acquire(self, wanted: Mapping[str, str]) -> set[str]:
        self._reach()
        return {owner for owner, region in wanted.items() if self.held.setdefault(region, owner) == owner}

    def release(self, held: Mapping[str, str]) -> set[str]:
        if self.is_away:
            return set()
        ours = {owner for owner, region in held.items() if self.held.get(region) == owner}
        for owner in ours:
            del self.held[held[owner]]
        return ours

    def renew(self, held: Mapping[str, str]) -> set[str]:
        self._reach()
        return {owner for owner, region in held.items() if self.held.get(region) == owner}

    def owners(self, region_names: Sequence[str]) -> dict[str, str | None]:
        self._reach()
        return {name: self.held.get(name) for name in region_names}

    def server_uptime(self) -> timedelta | None:
        self._reach()
        return self.uptime

    def _reach(self) -> None:
        if self.is_away:
            raise BrokerUnreachable("Redis: ConnectionError")


class OwnLoop:
    """Runs each coroutine to its end on a loop of its own; `stop` cancels it, as a worker that stops does."""

    def __init__(self) -> None:
        self._running: asyncio.Task[Any] | None = None

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        async def noted() -> T:
            self._running = asyncio.current_task()
            return await coroutine

        try:
            return asyncio.run(noted())
        except asyncio.CancelledError:
            raise WorkerStopping("the worker stops") from None

    def stop(self) -> None:
        assert self._running is not None
        self._running.cancel()


def a_requested_store(*region_names: str) -> MemoryRunStore:
    """Rows that are managed, online and requested, of generation 1."""
    names = region_names or ("subcloud1",)
    return MemoryRunStore(*(a_subcloud(name, id=number) for number, name in enumerate(names, start=1)))
