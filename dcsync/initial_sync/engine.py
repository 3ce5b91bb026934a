"""Carries out initial syncs: runs the steps in order and records how each run ends.

The runner (`runs/runner.py`) handles start, lock, deadline and errors of a run; `steps.py` aligns the identity data,
`sweep.py` finds what is due.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar

from dcsync.initial_sync.ports import Claim, Progress, Run, RunStore
from dcsync.initial_sync.steps import IdentityWritten, align_identity, give_fernet_keys
from dcsync.model.ending import Ending, Failure
from dcsync.model.errors import CloudError
from dcsync.model.hold_off import hold_off
from dcsync.model.identity import NewIds, Placed, Records
from dcsync.model.messages import SyncHint
from dcsync.model.subcloud import Step
from dcsync.planner.plan import ALWAYS_WRITTEN_USERS
from dcsync.runs.clouds import Clouds, SubcloudSession
from dcsync.runs.delivery import Stopped, require_ownership, write_own
from dcsync.runs.login import Login
from dcsync.runs.outcome import Outcome, Result
from dcsync.runs.ports import Ownership
from dcsync.runs.runner import Ended

T = TypeVar("T")


@dataclass(frozen=True)
class SyncLimits:
    """Limits of an initial sync."""

    users_at_once: int
    hold_off: timedelta
    hold_off_max: timedelta
    first_audit: timedelta
    """The time from `completed` to the first audit."""


@dataclass(frozen=True)
class SyncJob:
    """One claimed run."""

    run: Run
    steps: Callable[[Run, Login], Awaitable[None]]

    async def carry_out(self, login: Login) -> None:
        await self.steps(self.run, login)


@dataclass(frozen=True, kw_only=True)
class InitialSync:
    """The initial sync as the runner uses it. One object per process, used by many runs concurrently."""

    store: RunStore
    ownership: Ownership
    clouds: Clouds
    progress: Progress
    limits: SyncLimits
    now: Callable[[], datetime]
    jitter: Callable[[], float]
    worker: str
    noun: str = "initial sync"

    # --- called by the runner ---

    def claim(self, hints: Mapping[str, SyncHint], *, now: datetime) -> list[SyncJob]:
        claims = [Claim(run_id, hint.region_name, hint.generation) for run_id, hint in hints.items()]
        return [SyncJob(run, self._steps) for run in self.store.claim(claims, worker=self.worker, now=now)]

    def settle(self, ended: Sequence[tuple[SyncJob, Ended]]) -> list[Outcome]:
        return [self._settle(job.run, end) for job, end in ended]

    def no_run(self, hint: SyncHint, result: Result) -> Outcome:
        return Outcome(result=result, region_name=hint.region_name, shown={"generation": hint.generation})

    # --- the work ---

    async def _steps(self, run: Run, login: Login) -> None:
        """Runs identity, fernet keys and audit init, in this order, with one login.

        A subcloud that came back and was last given the current central identity data is read like any other, and
        written only where it differs. What it was given is recorded after its keys were read, and cleared before its
        ids change: only sending the keys makes it discard tokens that refer to old ids, and if this run dies before it
        does, the next one must send them.
        """
        central = await self.clouds.central_data()
        session = await login.session(central=central.records, check_ownership=lambda: self._check_ownership(run))
        was_given = run.subcloud.subsequent_sync and run.identity_fingerprint == central.identity_fingerprint
        identity = await self._identity(run, session, central.records, always=() if was_given else ALWAYS_WRITTEN_USERS)
        is_given_anew = not was_given or identity.ids_changed > 0
        await self._in_step(
            run,
            Step.FERNET_KEYS,
            lambda: give_fernet_keys(
                session=session,
                keys=central.keys,
                check_ownership=lambda: self._check_ownership(run),
                always=is_given_anew,
            ),
        )
        if is_given_anew:
            await self._own(run, lambda: self.store.record_identity(run, fingerprint=central.identity_fingerprint))
        await self._in_step(run, Step.AUDIT_INIT, lambda: self._init_audit(run))
        await self._check_ownership(run)

    async def _identity(
        self, run: Run, session: SubcloudSession, central: Records, *, always: Collection[str]
    ) -> IdentityWritten:
        async def remember(groups: Mapping[str, tuple[str, ...]]) -> None:
            await self._own(run, self.store.remember_groups, run, groups)

        async def remember_placed(placed: Placed, new_ids: NewIds) -> None:
            if new_ids and run.identity_fingerprint is not None:
                await self._own(run, lambda: self.store.record_identity(run, fingerprint=None))
            await self._own(run, self.store.remember_placed, run, placed, new_ids)

        return await self._in_step(
            run,
            Step.IDENTITY,
            lambda: align_identity(
                session=session,
                central=central,
                region_name=run.subcloud.region_name,
                groups_to_refill=run.groups_to_refill,
                remember_groups=remember,
                remember_placed=remember_placed,
                check_ownership=lambda: self._check_ownership(run),
                users_at_once=self.limits.users_at_once,
                always=always,
            ),
        )

    async def _init_audit(self, run: Run) -> None:
        await self._own(run, lambda: self.store.init_audit(run, now=self.now()))

    async def _in_step(self, run: Run, step: Step, work: Callable[[], Awaitable[T]]) -> T:
        """Runs one step and records its start and end in the history."""
        await self._own(run, lambda: self._start_step(run, step))
        outcome, detail = "interrupted", ""
        try:
            result = await work()
            outcome, detail = "done", str(result or "")
            return result
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

    def _start_step(self, run: Run, step: Step) -> bool:
        is_own = self.store.start_step(run, step, now=self.now())
        if is_own:
            self.progress(run, step)
        return is_own

    async def _check_ownership(self, run: Run) -> None:
        await require_ownership(self.ownership, run)

    async def _own(self, run: Run, write: Callable[..., bool], *args: object) -> None:
        await write_own(self.ownership, run, write, *args)

    # --- endings ---

    def _settle(self, run: Run, ended: Ended) -> Outcome:
        """Records the end; if the run no longer owns its row, records why instead."""
        ending, detail = ended.ending, ended.detail
        if not self._is_recorded(run, ended):
            standing = self.store.standing([run.run_id])[run.run_id]
            ending, detail = (standing.ending, standing.detail) if standing else (ending, detail)
            self.store.end_attempt(run, ending, detail=detail, now=ended.ended_at)
        failure = ended.failure if ending is Ending.FAILED else None
        return Outcome(
            result=Result(ending.value),
            region_name=run.subcloud.region_name,
            run_id=run.run_id,
            reason=failure.reason if failure else None,
            is_failure=ending is Ending.FAILED,
            shown={"generation": run.subcloud.generation, "attempt": run.subcloud.attempt},
            detail=detail if ending is ended.ending else "",
            seconds=ended.seconds,
        )

    def _is_recorded(self, run: Run, ended: Ended) -> bool:
        now = ended.ended_at
        match ended.ending:
            case Ending.COMPLETED:
                return self.store.complete(run, now=now, audits_due_at=now + self.limits.first_audit)
            case Ending.FAILED if ended.failure is not None:
                retry_at = now + self._hold_off(run, ended.failure)
                return self.store.fail(run, ended.failure, now=now, retry_at=retry_at)
            case Ending.GIVEN_BACK | Ending.LOCK_LOST:
                return self.store.give_back(run, ending=ended.ending, detail=ended.detail, now=now)
            case _:
                return False

    def _hold_off(self, run: Run, failure: Failure) -> timedelta:
        back_off = hold_off(
            attempt=run.subcloud.attempt,
            base=self.limits.hold_off,
            cap=self.limits.hold_off_max,
            jitter=self.jitter(),
        )
        requested = min(timedelta(seconds=failure.retry_after or 0), self.limits.hold_off_max)
        return max(back_off, requested)
