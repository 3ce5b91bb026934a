"""One run: lock, claim, the steps in order, settle. Says in which order things happen, and how each ending is recorded.

What a step does is `steps.py`; what is due is `sweep.py`. This is the one boundary where whatever happened becomes an
`Outcome`: nothing is raised to the task above but what kills the process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from dcsync.initial_sync.ports import Progress, Run, RunStore
from dcsync.initial_sync.steps import align_identity
from dcsync.model.ending import Ending, Failure
from dcsync.model.errors import BrokerUnreachable, CloudError, DatabaseUnreachable, WorkerStopping
from dcsync.model.hold_off import hold_off
from dcsync.model.identity import NewIds, Placed, Records
from dcsync.model.reasons import Reason
from dcsync.model.subcloud import Step
from dcsync.runs.clouds import Clouds, SubcloudSession
from dcsync.runs.delivery import Stopped, replace_fernet_keys, require_ownership, write_own
from dcsync.runs.ports import Locks, Loop, Ownership


class Result(StrEnum):
    """What became of a hint; the words of `Ending`, and two more for hints that led to no attempt."""

    BUSY = "busy"
    STALE = "stale"
    COMPLETED = Ending.COMPLETED.value
    FAILED = Ending.FAILED.value
    CANCELLED = Ending.CANCELLED.value
    SUPERSEDED = Ending.SUPERSEDED.value
    LOCK_LOST = Ending.LOCK_LOST.value
    GIVEN_BACK = Ending.GIVEN_BACK.value
    ABANDONED = Ending.ABANDONED.value


@dataclass(frozen=True)
class Outcome:
    """What a hint led to; plain values, shown in the log and in Flower."""

    result: Result
    region_name: str
    generation: int
    attempt: int | None = None
    run_id: str | None = None
    reason: Reason | None = None
    detail: str = ""
    seconds: float | None = None

    def as_dict(self) -> dict[str, object]:
        return {
            name: (value.value if isinstance(value, StrEnum) else value)
            for name, value in vars(self).items()
            if value not in (None, "")
        }


@dataclass(frozen=True)
class Limits:
    """Numbers a run keeps to; times in seconds where not a timedelta."""

    run_deadline: float
    users_at_once: int
    hold_off: timedelta
    hold_off_max: timedelta
    first_audit: timedelta
    """From completed to the first audit."""


@dataclass(frozen=True, kw_only=True)
class InitialSync:
    """Carries out runs. One object per process, used by many threads at once."""

    store: RunStore
    locks: Locks
    ownership: Ownership
    clouds: Clouds
    loop: Loop
    progress: Progress
    limits: Limits
    now: Callable[[], datetime]
    new_run_id: Callable[[], str]
    jitter: Callable[[], float]
    log_fault: Callable[[Run, BaseException], None]
    """Told of an exception no rule foresees, with its traceback; the run then fails with `internal-error`."""
    worker: str

    def run(self, *, region_name: str, generation: int) -> Outcome:
        """Act on one hint. A hint that came twice, late, or for a subcloud that is gone ends as busy or stale."""
        run_id = self.new_run_id()
        if not self.locks.acquire(region_name, owner=run_id):
            return Outcome(Result.BUSY, region_name, generation)
        try:
            run = self.store.claim(
                region_name=region_name, generation=generation, run_id=run_id, worker=self.worker, now=self.now()
            )
            if run is None:
                return Outcome(Result.STALE, region_name, generation)
            return self._carry_out(run)
        finally:
            self.locks.release(region_name, owner=run_id)

    def _carry_out(self, run: Run) -> Outcome:
        started = self.now()
        ending, failure, detail = self._attempt(run)
        ended = self.now()
        settled = self._settle(run, ending, failure, detail, now=ended)
        return Outcome(
            result=Result(settled.value),
            region_name=run.subcloud.region_name,
            generation=run.subcloud.generation,
            attempt=run.subcloud.attempt,
            run_id=run.run_id,
            reason=failure.reason if failure and settled is Ending.FAILED else None,
            detail=detail if settled is ending else "",
            seconds=round((ended - started).total_seconds(), 3),
        )

    def _attempt(self, run: Run) -> tuple[Ending, Failure | None, str]:
        """How the steps ended: the one place where errors become an ending."""
        try:
            self.loop.run(self._steps(run))
        except Stopped as stopped:
            return stopped.standing.ending, None, stopped.standing.detail
        except WorkerStopping:
            return Ending.GIVEN_BACK, None, "the worker was stopped"
        except (BrokerUnreachable, DatabaseUnreachable) as exc:
            return Ending.LOCK_LOST, None, f"ownership could not be checked: {type(exc).__name__}"
        except CloudError as exc:
            return Ending.FAILED, Failure(exc.reason, exc.detail, exc.retry_after), exc.detail
        except Exception as exc:  # noqa: BLE001 - the boundary: an unforeseen fault must end the attempt, not strand the row
            self.log_fault(run, exc)
            failure = Failure(Reason.INTERNAL_ERROR, type(exc).__name__)
            return Ending.FAILED, failure, failure.detail
        return Ending.COMPLETED, None, ""

    async def _steps(self, run: Run) -> None:
        """Identity, fernet keys, audit init, completed: in this order, under one lock, one login and one deadline."""
        try:
            async with asyncio.timeout(self.limits.run_deadline) as deadline:
                central = await self.clouds.central_data()
                async with self.clouds.subcloud(run.subcloud, request_id=f"req-{run.run_id}") as session:
                    if self._needs_identity(run, central.identity_fingerprint):
                        await self._identity(run, session, central.records, central.identity_fingerprint)
                    await self._in_step(
                        run,
                        Step.FERNET_KEYS,
                        lambda: replace_fernet_keys(
                            session=session, keys=central.keys, may_write=lambda: self._may_write(run)
                        ),
                    )
                await self._in_step(run, Step.AUDIT_INIT, lambda: self._init_audit(run))
                await self._may_write(run)
        except TimeoutError as exc:
            if not deadline.expired():
                raise
            raise CloudError(Reason.TIMEOUT, f"the run took longer than {self.limits.run_deadline:g} s") from exc

    def _needs_identity(self, run: Run, fingerprint: str) -> bool:
        """A subcloud that merely came back skips the step if it was given exactly what the centre holds now."""
        return not (run.subcloud.subsequent_sync and run.identity_fingerprint == fingerprint)

    async def _identity(self, run: Run, session: SubcloudSession, central: Records, fingerprint: str) -> None:
        async def remember(groups: Mapping[str, tuple[str, ...]]) -> None:
            await self._own(run, self.store.remember_groups, run, groups)

        async def remember_placed(placed: Placed, new_ids: NewIds) -> None:
            await self._own(run, self.store.remember_placed, run, placed, new_ids)

        await self._in_step(
            run,
            Step.IDENTITY,
            lambda: align_identity(
                identity=session.identity,
                central=central,
                region_name=run.subcloud.region_name,
                groups_to_refill=run.groups_to_refill,
                remember_groups=remember,
                remember_placed=remember_placed,
                may_write=lambda: self._may_write(run),
                users_at_once=self.limits.users_at_once,
            ),
        )
        await self._own(run, lambda: self.store.record_identity(run, fingerprint=fingerprint))

    async def _init_audit(self, run: Run) -> None:
        await self._own(run, lambda: self.store.init_audit(run, now=self.now()))

    async def _in_step(self, run: Run, step: Step, work: Callable[[], Awaitable[object]]) -> None:
        """Do the work of one step between its two notes in the history."""
        await self._own(run, lambda: self.store.start_step(run, step, now=self.now()))
        await asyncio.to_thread(self.progress, run, step)
        outcome, detail = "interrupted", ""
        try:
            result = await work()
            outcome, detail = "done", str(result or "")
        except CloudError as exc:
            outcome, detail = "failed", str(exc)
            raise
        except Stopped as stopped:
            outcome, detail = "stopped", stopped.standing.detail
            raise
        finally:
            await asyncio.shield(
                asyncio.to_thread(self.store.end_step, run, step, now=self.now(), outcome=outcome, detail=detail)
            )

    async def _may_write(self, run: Run) -> None:
        await require_ownership(self.ownership, run)

    async def _own(self, run: Run, write: Callable[..., bool], *args: object) -> None:
        await write_own(self.ownership, run, write, *args)

    def _settle(self, run: Run, ending: Ending, failure: Failure | None, detail: str, *, now: datetime) -> Ending:
        """Record the end where the row is still the run's own; what is recorded if it is not, is why it is not."""
        if ending is Ending.COMPLETED and self.store.complete(
            run, now=now, audits_due_at=now + self.limits.first_audit
        ):
            return ending
        if failure and self.store.fail(run, failure, now=now, retry_at=now + self._hold_off(run, failure)):
            return ending
        if ending in (Ending.GIVEN_BACK, Ending.LOCK_LOST) and self.store.give_back(
            run, ending=ending, detail=detail, now=now
        ):
            return ending
        standing = self.store.standing([run.run_id])[run.run_id]
        really = standing.ending if standing else ending
        self.store.end_attempt(run, really, detail=standing.detail if standing else detail, now=now)
        return really

    def _hold_off(self, run: Run, failure: Failure) -> timedelta:
        own = hold_off(
            attempt=run.subcloud.attempt,
            base=self.limits.hold_off,
            cap=self.limits.hold_off_max,
            jitter=self.jitter(),
        )
        asked = min(timedelta(seconds=failure.retry_after or 0), self.limits.hold_off_max)
        return max(own, asked)
