"""Carries out runs of every service: lock, claim, work within a deadline, settle, release.

Each service supplies its `Work`. Runs are coroutines on the process's event loop, so they proceed while others wait for
their subclouds. This is the one boundary where errors become an `Ended`: only errors that end the process, or that
prevent the end from being recorded, are raised to the task.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, Protocol, TypeVar

from dcsync.model.ending import Ending, Failure
from dcsync.model.errors import BrokerUnreachable, CloudError, DatabaseUnreachable
from dcsync.model.reasons import Reason
from dcsync.runs.clouds import Clouds
from dcsync.runs.delivery import Stopped
from dcsync.runs.login import Login
from dcsync.runs.outcome import Outcome, Result
from dcsync.runs.ports import Locks, Owner

T = TypeVar("T")


class Hint(Protocol):
    """Triggers work on this subcloud."""

    @property
    def region_name(self) -> str: ...


class Job(Protocol):
    """One claimed run and its progress."""

    @property
    def run(self) -> Owner: ...

    async def carry_out(self, login: Login) -> None:
        """Does the work under the run's login. Raises CloudError when a request failed, Stopped when the run no longer
        owns its subcloud."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How the work of one run ended, before it is recorded; `failure` is set if it failed."""

    ending: Ending
    started_at: datetime
    ended_at: datetime
    failure: Failure | None = None
    detail: str = ""

    @property
    def seconds(self) -> float:
        return round((self.ended_at - self.started_at).total_seconds(), 3)


HintT_contra = TypeVar("HintT_contra", bound=Hint, contravariant=True)
HintT = TypeVar("HintT", bound=Hint)
JobT = TypeVar("JobT", bound=Job)


class Work(Protocol[HintT_contra, JobT]):
    """The runs of one service. Calls block, handle many runs at once, and raise BrokerUnreachable or
    DatabaseUnreachable."""

    @property
    def noun(self) -> str:
        """Name shown to operators: "the <noun> took longer than ...", and of the line logged at its end."""

    def claim(self, hints: Mapping[str, HintT_contra], *, now: datetime) -> list[JobT]:
        """Claims the rows of these hints, each for the run id that is its key; stale hints are omitted."""

    def settle(self, ended: Sequence[tuple[JobT, Ended]]) -> list[Outcome]:
        """Records each end if the run still owns its row; returns the actual outcome of each, in order."""

    def no_run(self, hint: HintT_contra, result: Result) -> Outcome:
        """Returns the outcome of a hint that led to no run: busy or stale."""


@dataclass(frozen=True)
class FollowUp(Generic[HintT, JobT]):
    """The work a run goes on with after it was recorded as completed.

    It keeps the lock, the run id and the login. Its deadline and its end are its own: whatever becomes of it, what was
    completed stays completed. Nothing follows where `work` finds nothing to claim.
    """

    work: Work[HintT, JobT]
    hint: Callable[[str], HintT]
    """Takes the region name."""


OnEnd = Callable[[str, Outcome], None]
"""Called with the noun of the work and its outcome, once that is recorded. Must not raise: the run may still hold its
lock."""


def _ignore(noun: str, outcome: Outcome) -> None:
    pass


@dataclass(frozen=True, kw_only=True)
class Runner:
    """One object per process, on one event loop."""

    locks: Locks
    clouds: Clouds
    deadline_seconds: float
    now: Callable[[], datetime]
    new_run_id: Callable[[], str]
    log_fault: Callable[[Owner, BaseException], None]
    """Called with an unexpected exception to log its traceback; the run then fails with internal-error."""

    async def run(
        self,
        work: Work[HintT, JobT],
        hints: Sequence[HintT],
        *,
        then: FollowUp[Any, Any] | None = None,
        on_end: OnEnd = _ignore,
    ) -> list[Outcome]:
        """Acts on all hints concurrently; returns their outcomes in order. A duplicate or late hint ends as busy or
        stale.

        `then`: what a run that completed goes on with. `on_end`: called with each outcome, that of the follow-up
        included. When the coroutine is cancelled because the worker stops, its runs are returned to the queue first.
        """
        wanted = {self.new_run_id(): hint for hint in hints}
        (locked, jobs), is_stopping = await _in_thread(lambda: self._take(work, wanted))
        claimed = {job.run.run_id: job for job in jobs}
        outcomes = {
            run_id: work.no_run(hint, Result.STALE if run_id in locked else Result.BUSY)
            for run_id, hint in wanted.items()
            if run_id not in claimed
        }
        for outcome in outcomes.values():
            on_end(work.noun, outcome)
        runs = [self._carry_out(work, job, then, on_end, is_stopping=is_stopping) for job in jobs]
        ends = await _each_to_its_end(runs)
        outcomes |= dict(zip(claimed, ends, strict=True))
        return [outcomes[run_id] for run_id in wanted]

    def _take(self, work: Work[HintT, JobT], wanted: Mapping[str, HintT]) -> tuple[set[str], list[JobT]]:
        """Returns the run ids that acquired their subcloud's lock, and the jobs of those that also claimed its row; the
        locks of the others are released."""
        regions = {run_id: hint.region_name for run_id, hint in wanted.items()}
        locked = self.locks.acquire(regions)
        jobs: list[JobT] = []
        try:
            if locked:
                jobs = work.claim({run_id: wanted[run_id] for run_id in wanted if run_id in locked}, now=self.now())
        finally:
            unclaimed = locked - {job.run.run_id for job in jobs}
            self.locks.release({run_id: regions[run_id] for run_id in unclaimed})
        return locked, jobs

    async def _carry_out(
        self, work: Work[Any, JobT], job: JobT, then: FollowUp[Any, Any] | None, on_end: OnEnd, *, is_stopping: bool
    ) -> Outcome:
        """Carries out the run, and what it goes on with; returns the outcome of the first."""
        login = Login(self.clouds, job.run)
        try:
            outcome, following, is_stopping = await self._to_its_end(work, job, login, then, is_stopping=is_stopping)
            on_end(work.noun, outcome)
            if then is not None and following is not None:
                last, _, _ = await self._to_its_end(then.work, following, login, None, is_stopping=is_stopping)
                on_end(then.work.noun, last)
            return outcome
        finally:
            await _to_the_end(login.close())

    async def _to_its_end(
        self, work: Work[Any, JobT], job: JobT, login: Login, then: FollowUp[Any, Any] | None, *, is_stopping: bool
    ) -> tuple[Outcome, Job | None, bool]:
        """Works and settles; returns the outcome, the claimed job that follows, and whether the worker stops."""
        started_at = self.now()
        ending, failure, detail = _GIVEN_BACK if is_stopping else await self._work(work, job, login)
        ended = Ended(ending=ending, started_at=started_at, ended_at=self.now(), failure=failure, detail=detail)
        (outcome, following), was_cancelled = await _in_thread(lambda: self._settle(work, job, ended, then))
        return outcome, following, is_stopping or was_cancelled

    async def _work(self, work: Work[Any, JobT], job: JobT, login: Login) -> tuple[Ending, Failure | None, str]:
        """Does the work and returns how it ended: the one place where errors become an ending."""
        try:
            async with within(self.deadline_seconds, f"the {work.noun}"):
                await job.carry_out(login)
        except Stopped as stopped:
            return stopped.standing.ending, None, stopped.standing.detail
        except asyncio.CancelledError:
            return _GIVEN_BACK
        except (BrokerUnreachable, DatabaseUnreachable) as exc:
            server = "PostgreSQL" if isinstance(exc, DatabaseUnreachable) else "Redis"
            detail = str(exc).removeprefix(f"{server}: ")
            return Ending.LOCK_LOST, None, f"ownership could not be checked in {server}: {detail}"
        except CloudError as exc:
            return Ending.FAILED, Failure(exc.reason, exc.detail, exc.retry_after), exc.detail
        except Exception as exc:  # noqa: BLE001 - the boundary: an unexpected error must end the run
            self.log_fault(job.run, exc)
            failure = Failure(Reason.INTERNAL_ERROR, type(exc).__name__)
            return Ending.FAILED, failure, failure.detail
        return Ending.COMPLETED, None, ""

    def _settle(
        self, work: Work[Any, JobT], job: JobT, ended: Ended, then: FollowUp[Any, Any] | None
    ) -> tuple[Outcome, Job | None]:
        """Records the end and claims what follows; releases the lock unless something does."""
        following: Job | None = None
        try:
            (outcome,) = work.settle([(job, ended)])
            if then is not None and outcome.result is Result.COMPLETED:
                following = self._claim_next(then, job.run, now=ended.ended_at)
            return outcome, following
        finally:
            if following is None:
                self.locks.release({job.run.run_id: job.run.subcloud.region_name})

    def _claim_next(self, then: FollowUp[Any, Any], run: Owner, *, now: datetime) -> Job | None:
        """Returns the job the run goes on with, None if there is none. One that cannot be claimed now is left to the
        sweep, for the outcome before it is recorded and must be returned."""
        try:
            jobs: list[Job] = then.work.claim({run.run_id: then.hint(run.subcloud.region_name)}, now=now)
        except (BrokerUnreachable, DatabaseUnreachable):
            return None
        return jobs[0] if jobs else None


_GIVEN_BACK = (Ending.GIVEN_BACK, None, "the worker was stopped")


@asynccontextmanager
async def within(seconds: float, what: str) -> AsyncIterator[None]:
    """Limits the block to `seconds`: raises CloudError (timeout) for this deadline only, not for other timeouts."""
    try:
        async with asyncio.timeout(seconds) as deadline:
            yield
    except TimeoutError as exc:
        if not deadline.expired():
            raise
        raise CloudError(Reason.TIMEOUT, f"{what} took longer than {seconds:g} s") from exc


async def _in_thread(call: Callable[[], T]) -> tuple[T, bool]:
    """As `_to_the_end`, of a blocking call: acquiring a lock and recording an end must not be interrupted."""
    return await _to_the_end(asyncio.to_thread(call))


async def _to_the_end(coroutine: Coroutine[Any, Any, T]) -> tuple[T, bool]:
    """Completes the coroutine even if cancelled; returns its result and whether the caller was cancelled."""
    calling = asyncio.ensure_future(coroutine)
    was_cancelled = False
    while not calling.done():
        try:
            await asyncio.wait([calling])
        except asyncio.CancelledError:
            was_cancelled = True
    return calling.result(), was_cancelled


async def _each_to_its_end(coroutines: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Runs the coroutines concurrently and returns their results in order. A cancellation is passed to all of them.
    Raises the first error once all have ended."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    while waiting := [task for task in tasks if not task.done()]:
        try:
            await asyncio.wait(waiting)
        except asyncio.CancelledError:
            for task in waiting:
                task.cancel()
    return [task.result() for task in tasks]
