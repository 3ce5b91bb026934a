"""Carries out audits: compares, repairs and compares again per endpoint type, then stores and reports findings.

The runner (`runs/runner.py`) handles start, lock, deadline and errors of a run; `endpoints/` compares and writes,
`guards` refuses repairs, `sweep` finds what is due. Every run ends with a `Finding` per endpoint type.
Source: docs/upstream/generic-sync-and-audit.md sections 7 to 9, without the defects R4 to R13 of
docs/upstream/lessons.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from dcsync.audit import guards
from dcsync.audit.endpoints import REGISTRY, endpoint_of
from dcsync.audit.endpoints.base import AuditedEndpoint, Comparison, Memory, Scope, Writer
from dcsync.audit.ports import SETTLED, AuditPart, AuditReports, AuditRun, AuditStore, Finding
from dcsync.audit.settlement import settlement
from dcsync.model.ending import Ending, Failure
from dcsync.model.errors import CloudError
from dcsync.model.hold_off import hold_off
from dcsync.model.identity import CentralData
from dcsync.model.messages import AuditHint
from dcsync.model.reasons import Reason
from dcsync.model.subcloud import EndpointType, SyncStatus
from dcsync.planner.differences import Difference, digest
from dcsync.planner.refused import NotWritten, failure_of
from dcsync.runs.clouds import Clouds, SubcloudSession
from dcsync.runs.delivery import require_ownership, write_own
from dcsync.runs.login import Login
from dcsync.runs.outcome import Outcome, Result
from dcsync.runs.ports import Loop, Ownership
from dcsync.runs.runner import Ended, within

PASSES = 3
"""How often one run compares and repairs: some differences become visible only after a repair."""

MIN_CENTRAL_AGE_SECONDS = 0.1
"""Many audits requested just now, or by a clock that is ahead, must not each read the whole central cloud."""

NAMED_IN_DETAIL = 3
MAX_NAMED = 20


def _summary(finding: Finding) -> str:
    if finding.failure:
        return f"{finding.failure.reason.value}: {finding.failure.detail}"
    return "repaired" if finding.repaired else str(finding.result)


LONGEST_AUDIT_INTERVALS = 1.1
"""Audits are spread by a tenth of their interval before and after its end."""


@dataclass(frozen=True)
class AuditLimits:
    """Limits of an audit. `preview_seconds` is the deadline of a preview; `max_deletes` applies to one run on one
    subcloud."""

    preview_seconds: float
    users_at_once: int
    max_deletes: int
    interval: timedelta
    hold_off: timedelta
    hold_off_max: timedelta
    token_lifetime: timedelta
    """Lifetime of the central cloud's tokens; older revocations have no effect any more."""


@dataclass(frozen=True)
class AuditPreview:
    """What an audit of one endpoint type would find and write; names and fields only, never values."""

    endpoint_type: EndpointType
    differences: tuple[str, ...]
    writes: tuple[str, ...] = ()
    deletions: int = 0
    refused: Failure | None = None
    """Why an audit would refuse to repair it."""


class _Refused(Exception):
    """A guard refuses to repair one endpoint type."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure)
        self.failure = failure


@dataclass
class _Progress:
    """The progress of one endpoint type, which becomes its finding however the run ends."""

    part: AuditPart
    found: tuple[str, ...] | None = None
    """The differences of the first comparison; None before it is completed."""
    difference: str | None = None
    read_at: datetime | None = None
    """When the reading that was compared last began: what was read may have changed since."""
    was_repair_started: bool = False
    is_partial: bool = False
    """The requested resource types are repaired; others still differ."""
    failure: Failure | None = None
    is_done: bool = False
    held_fingerprint: str | None = None
    """Fingerprint of what the subcloud was last seen to hold."""
    planned: Counter[str] = field(default_factory=Counter)
    """Writes of this pass that are still to be made, in words and in order."""
    written: list[str] = field(default_factory=list)
    """Writes of all passes that were carried out."""
    refused: list[NotWritten] = field(default_factory=list)
    """What the last repair could not write, because it was refused or depends on what was."""
    kept: tuple[NotWritten, ...] = ()
    """What the last comparison would not write."""

    def record_first(self, differences: tuple[str, ...], difference: str | None) -> None:
        self.found, self.difference = differences, difference

    def plan(self, comparison: Comparison) -> None:
        """Begins another pass: what an earlier one left is planned again if it is still needed."""
        self.planned, self.kept = Counter(comparison.writes), comparison.refused

    def note_written(self, write: str) -> None:
        self.written.append(write)
        self.planned[write] -= 1

    @property
    def lost(self) -> tuple[NotWritten, ...]:
        """What still differs because it was refused, or was not sent for that."""
        return tuple(dict.fromkeys((*self.kept, *self.refused)))

    @property
    def not_written(self) -> tuple[str, ...]:
        """In words, refused ones first and with the cause."""
        left = self.planned - Counter(each.action.words for each in self.refused)
        lost = sorted(self.lost, key=lambda each: each.reason is None)
        return (*map(str, lost), *left.elements())


@dataclass(frozen=True)
class AuditJob:
    """One claimed run and the progress of its endpoint types."""

    run: AuditRun
    progress: list[_Progress]
    work: Callable[[AuditRun, list[_Progress], Login], Awaitable[None]]

    async def carry_out(self, login: Login) -> None:
        await self.work(self.run, self.progress, login)


@dataclass(frozen=True, kw_only=True)
class Audit:
    """The audit service as the runner uses it. One object per process, used by many runs concurrently."""

    store: AuditStore
    ownership: Ownership
    clouds: Clouds
    loop: Loop
    reports: AuditReports
    limits: AuditLimits
    now: Callable[[], datetime]
    new_run_id: Callable[[], str]
    jitter: Callable[[], float]
    admin_password: str | None = field(default=None, repr=False)
    worker: str = ""
    """The name of this process, for the history."""
    noun: str = "audit"

    # --- called by the runner ---

    def claim(self, hints: Mapping[str, AuditHint], *, now: datetime) -> list[AuditJob]:
        regions = {run_id: hint.region_name for run_id, hint in hints.items()}
        return [
            AuditJob(run, [_Progress(part) for part in _in_order(run.parts)], self._audit)
            for run in self.store.claim(regions, now=now)
        ]

    def settle(self, ended: Sequence[tuple[AuditJob, Ended]]) -> list[Outcome]:
        return [self._settle(job, end) for job, end in ended]

    def no_run(self, hint: AuditHint, result: Result) -> Outcome:
        return Outcome(result=result, region_name=hint.region_name)

    # --- called by the command line ---

    def preview(
        self, name: str, endpoint_types: frozenset[EndpointType], resource_types: frozenset[str] | None = None
    ) -> tuple[AuditPreview, ...]:
        """Compares without writing anywhere and without a lock. Raises UnknownSubcloud or CloudError.

        `resource_types`: previews a repair of these alone (None: all)."""
        run = self.store.read_run(name)
        parts = [part for part in _in_order(run.parts) if part.endpoint_type in endpoint_types]
        return self.loop.run(self._preview(run, [replace(part, resource_types=resource_types) for part in parts]))

    # --- the work ---

    async def _audit(self, run: AuditRun, progress: list[_Progress], login: Login) -> None:
        """Audits one endpoint type after another, identity before keys, with one login: that of the initial sync, if
        the run has just completed one."""
        central = await self.clouds.central_audit_data(max_age=self._max_central_age(run))
        session = await login.session(central=central.records, check_ownership=lambda: self._check_ownership(run))
        for each in progress:
            await self._audit_endpoint(run, each, session, central)
            if each.failure is not None and each.failure.reason is Reason.IDS_NOT_ALIGNED:
                # Keys are not sent to a subcloud whose ids were seen not to be the central ones.
                _fail_unfinished(progress, each.failure)
                break
        await self._check_ownership(run)

    def _max_central_age(self, run: AuditRun) -> float | None:
        """Returns the seconds since the newest request of this run, None without one: central data cached from before
        a central change would hide that change."""
        requests = [part.requested_at for part in run.parts if part.requested_at is not None]
        return max(MIN_CENTRAL_AGE_SECONDS, (self.now() - max(requests)).total_seconds()) if requests else None

    async def _audit_endpoint(
        self, run: AuditRun, progress: _Progress, session: SubcloudSession, central: CentralData
    ) -> None:
        """Audits one endpoint type. Its failure does not stop the others, unless the subcloud is unavailable or its ids
        are not aligned."""
        endpoint = endpoint_of(progress.part.endpoint_type)
        try:
            _guard_central(run, progress.part, endpoint, central)
            await self._compare_and_repair(endpoint, run, progress, session, central)
        except _Refused as refused:
            progress.failure = refused.failure
        except CloudError as exc:
            if exc.reason in _SUBCLOUD_UNAVAILABLE:
                raise
            progress.failure = Failure(exc.reason, exc.detail, exc.retry_after)
            if exc.reason is Reason.IDS_NOT_ALIGNED:
                progress.record_first((exc.detail,), exc.detail)
        progress.is_done = True

    async def _compare_and_repair(
        self,
        endpoint: AuditedEndpoint[Any],
        run: AuditRun,
        progress: _Progress,
        session: SubcloudSession,
        central: CentralData,
    ) -> None:
        """Compares and repairs until nothing differs, or a repair changes nothing.

        What was refused counts where it still differs: some writes are answered with an error and stored."""
        memory = _memory_of(run)
        writer = self._writer(run, session, progress)
        before: tuple[str | None, tuple[str, ...]] | None = None
        read_back: Any = None
        progress.read_at = self.now()
        deletions = 0
        for passes_left in reversed(range(PASSES + 1)):
            held = read_back if read_back is not None else await endpoint.read(session)
            progress.held_fingerprint = endpoint.held_fingerprint(held)
            comparison = endpoint.compare(central, held, self._scope(run, progress, memory))
            found = digest(comparison.differences)
            if progress.found is None:
                progress.record_first(_named(comparison.differences), found)
            deletions += comparison.deletions
            progress.plan(comparison)
            self._guard(progress, comparison, found, deletions=deletions)
            if comparison.is_in_sync:
                progress.refused.clear()
                await self._remember(run, old=memory, new=comparison.memory_in_sync)
                return
            during_repair = replace(comparison.memory_during_repair, groups_to_refill=memory.groups_to_refill)
            await self._remember(run, old=memory, new=during_repair)
            memory = during_repair
            if not comparison.writes or (found, comparison.writes) == before or not passes_left:
                break
            before = found, comparison.writes
            progress.refused.clear()
            await self._remember(run, old=memory, new=comparison.memory_during_repair)
            memory = comparison.memory_during_repair
            progress.read_at = self.now()
            read_back = await endpoint.repair(comparison, central=central, writer=writer)
        if any(each.reason is not None for each in progress.lost):
            raise failure_of(progress.lost)
        progress.is_partial = progress.part.resource_types is not None and not comparison.writes
        if not progress.is_partial:
            raise CloudError(endpoint.not_verified, f"still differs: {_first_few(_named(comparison.differences))}")

    def _scope(self, run: AuditRun, progress: _Progress, memory: Memory) -> Scope:
        return Scope(
            region_name=run.subcloud.region_name,
            memory=memory,
            only=progress.part.resource_types,
            now=self.now(),
            token_lifetime=self.limits.token_lifetime,
            knows_admin_password=self.admin_password is not None,
            refused=progress.lost,
        )

    def _writer(self, run: AuditRun, session: SubcloudSession, progress: _Progress) -> Writer:
        return Writer(
            session=session,
            check_ownership=lambda: self._check_ownership(run),
            note=progress.note_written,
            note_not_written=progress.refused.append,
            users_at_once=self.limits.users_at_once,
            admin_password=self.admin_password,
        )

    def _guard(self, progress: _Progress, comparison: Comparison, found: str | None, *, deletions: int) -> None:
        """Raises _Refused if the repair must not start. Called before each pass, since a repair may reveal further
        deletions. `found` is the digest of the differences, `deletions` the number in this run so far."""
        refused = self._refusal(progress.part, comparison, found, deletions=deletions)
        if refused is not None:
            raise _Refused(refused)
        progress.was_repair_started = progress.was_repair_started or not comparison.is_in_sync

    def _refusal(self, part: AuditPart, comparison: Comparison, found: str | None, *, deletions: int) -> Failure | None:
        named = _first_few(_named(comparison.differences))
        return guards.not_converging(part=part, difference=found, named=named) or guards.too_many_deletions(
            deletions=deletions, allowed=self.limits.max_deletes, part=part
        )

    async def _preview(self, run: AuditRun, parts: list[AuditPart]) -> tuple[AuditPreview, ...]:
        async with within(self.limits.preview_seconds, "the preview"):
            central = await self.clouds.central_audit_data()
            async with self.clouds.subcloud(run.subcloud, request_id=f"req-{self.new_run_id()}") as session:
                return tuple([await self._preview_of(run, part, session, central) for part in parts])

    async def _preview_of(
        self, run: AuditRun, part: AuditPart, session: SubcloudSession, central: CentralData
    ) -> AuditPreview:
        endpoint = endpoint_of(part.endpoint_type)
        held = await endpoint.read(session)
        comparison = endpoint.compare(central, held, self._scope(run, _Progress(part), _memory_of(run)))
        return AuditPreview(
            part.endpoint_type,
            endpoint.describe(comparison, central=central, held=held, only=part.resource_types),
            comparison.writes,
            comparison.deletions,
            _shrunk(run, part, endpoint, central)
            or self._refusal(part, comparison, digest(comparison.differences), deletions=comparison.deletions)
            or _kept(comparison),
        )

    # --- ownership and memory ---

    async def _check_ownership(self, run: AuditRun) -> None:
        await require_ownership(self.ownership, run)

    async def _own(self, run: AuditRun, write: Callable[..., bool], *args: object) -> None:
        await write_own(self.ownership, run, write, *args)

    async def _remember(self, run: AuditRun, *, old: Memory, new: Memory) -> None:
        """Stores what changed in the memory: before writes what they may place, at the end what is there."""
        if old.placed != new.placed:
            await self._own(run, self.store.remember_placed, run, new.placed)
        if old.groups_to_refill != new.groups_to_refill:
            await self._own(run, self.store.remember_groups, run, new.groups_to_refill)

    # --- endings ---

    def _settle(self, job: AuditJob, ended: Ended) -> Outcome:
        """Stores the findings of a completed or failed run; after any other ending its rows are due again."""
        run, now = job.run, ended.ended_at
        if ended.ending not in (Ending.COMPLETED, Ending.FAILED):
            self.store.release(run, now=now)
            return _outcome(run, Result(ended.ending.value), ended, detail=ended.detail)
        if ended.failure is not None:
            _fail_unfinished(job.progress, ended.failure)
        next_due = self._next_due(now)
        findings = tuple(self._finding(each, now=now, next_due=next_due) for each in job.progress)
        settlements = [
            settlement(run, finding, now=now, started_at=ended.started_at, worker=self.worker) for finding in findings
        ]
        if run.run_id in self.store.settle(settlements):
            self._report(run, findings, now=now)
        return _outcome(run, Result.DONE, ended, findings=findings)

    def _finding(self, progress: _Progress, *, now: datetime, next_due: datetime) -> Finding:
        part, failure = progress.part, progress.failure
        is_in_sync = failure is None and not progress.is_partial
        result = None if progress.found is None else SyncStatus.IN_SYNC if is_in_sync else SyncStatus.OUT_OF_SYNC
        is_observed = failure is None or failure.reason in SETTLED
        was_compared = progress.found is not None
        reported = _reported(result, failure)
        return Finding(
            endpoint_type=part.endpoint_type,
            generation=part.generation,
            result=result,
            reported=reported,
            is_observed=is_observed,
            differences=progress.found or (),
            difference=progress.difference,
            difference_repairs=_repairs(progress),
            repaired=is_in_sync and progress.was_repair_started,
            failure=failure,
            due_at=next_due if is_observed and was_compared else now + self._hold_off(part, failure),
            keys_fingerprint=progress.held_fingerprint,
            observed_at=now if reported is not result or progress.read_at is None else progress.read_at,
            written=tuple(progress.written),
            not_written=progress.not_written,
        )

    def _report(self, run: AuditRun, findings: tuple[Finding, ...], *, now: datetime) -> None:
        """Reports every completed comparison, even an unchanged one, so that a lost report is replaced."""
        for finding in findings:
            if finding.reported is not None:
                is_planned = endpoint_of(finding.endpoint_type).is_planned(run.keys_planned_until, now=now)
                self.reports(
                    run.subcloud.region_name,
                    finding.endpoint_type,
                    finding.reported,
                    alarmable=not is_planned,
                    reason=finding.failure.reason if finding.failure else None,
                    observed_at=finding.observed_at,
                )

    def _next_due(self, now: datetime) -> datetime:
        """Returns the next due time: the interval +-10 %, so that subclouds audited together spread out."""
        return now + self.limits.interval * (0.9 + (LONGEST_AUDIT_INTERVALS - 0.9) * self.jitter())

    def _hold_off(self, part: AuditPart, failure: Failure | None) -> timedelta:
        back_off = hold_off(
            attempt=max(part.attempt, 1),
            base=self.limits.hold_off,
            cap=self.limits.hold_off_max,
            jitter=self.jitter(),
        )
        requested = timedelta(seconds=failure.retry_after or 0) if failure else timedelta()
        return max(back_off, min(requested, self.limits.hold_off_max))


def _outcome(
    run: AuditRun, result: Result, ended: Ended, *, findings: tuple[Finding, ...] = (), detail: str = ""
) -> Outcome:
    shown: dict[str, object] = {str(finding.endpoint_type): _summary(finding) for finding in findings}
    named = [each for finding in findings for each in finding.differences]
    return Outcome(
        result=result,
        region_name=run.subcloud.region_name,
        run_id=run.run_id,
        is_failure=any(finding.failure for finding in findings),
        shown=shown | ({"differences": named[:MAX_NAMED]} if named else {}),
        detail=detail,
        seconds=ended.seconds if result is Result.DONE else None,
    )


_SUBCLOUD_UNAVAILABLE = frozenset(
    {
        Reason.UNREACHABLE,
        Reason.TIMEOUT,
        Reason.TLS_FAILED,
        Reason.AUTH_FAILED,
        Reason.ADDRESS_REFUSED,
        Reason.TOO_MANY_REQUESTS,
    }
)
"""The subcloud cannot be used at all: its status is unknown, and other endpoint types are not tried."""

_NOT_ABOUT_THE_SUBCLOUD = frozenset(
    {
        Reason.CENTRAL_UNREACHABLE,
        Reason.CENTRAL_AUTH_FAILED,
        Reason.CENTRAL_BAD_REPLY,
        Reason.CENTRAL_EMPTY,
        Reason.CENTRAL_KEYS_INVALID,
        Reason.GUARD_REFUSED,
        Reason.INTERNAL_ERROR,
    }
)
"""Without a comparison, these failures keep the last report."""


def _in_order(parts: Iterable[AuditPart]) -> list[AuditPart]:
    """Returns the parts in the order of the registry: identity before the keys."""
    place = {endpoint_type: number for number, endpoint_type in enumerate(REGISTRY)}
    return sorted(parts, key=lambda part: place[part.endpoint_type])


def _memory_of(run: AuditRun) -> Memory:
    return Memory(placed=run.placed, groups_to_refill=run.groups_to_refill)


def _fail_unfinished(progress: list[_Progress], failure: Failure) -> None:
    for each in progress:
        if not each.is_done:
            each.failure = failure


def _reported(result: SyncStatus | None, failure: Failure | None) -> SyncStatus | None:
    """Returns the status to report to the state service; None keeps the last report."""
    if failure is None or (result is not None and failure.reason not in _SUBCLOUD_UNAVAILABLE):
        return result
    return None if failure.reason in _NOT_ABOUT_THE_SUBCLOUD else SyncStatus.UNKNOWN


def _repairs(progress: _Progress) -> int:
    """Returns how often the difference found was repaired in a row, this run included.

    A repair that was refused or interrupted is not counted: it is retried after the hold-off, because its cause may be
    temporary.
    """
    if not progress.found:
        return 0
    part, failure = progress.part, progress.failure
    earlier = part.difference_repairs if part.difference == progress.difference else 0
    was_carried_out = failure is None or failure.reason in {endpoint.not_verified for endpoint in REGISTRY.values()}
    return earlier + (progress.was_repair_started and was_carried_out)


def _shrunk(run: AuditRun, part: AuditPart, endpoint: AuditedEndpoint[Any], central: CentralData) -> Failure | None:
    if part.deletes_allowed:
        return None
    counts = endpoint.central_counts(central)
    return guards.shrunk(before={what: run.central_counts.get(what, 0) for what in counts}, now=counts)


def _kept(comparison: Comparison) -> Failure | None:
    """Returns what an audit would refuse to write, although it writes the rest."""
    if not comparison.refused:
        return None
    error = failure_of(comparison.refused)
    return Failure(error.reason, error.detail)


def _guard_central(run: AuditRun, part: AuditPart, endpoint: AuditedEndpoint[Any], central: CentralData) -> None:
    """Raises _Refused if the central cloud has shrunk too much since it was last accepted."""
    refused = _shrunk(run, part, endpoint, central)
    if refused is not None:
        raise _Refused(refused)


def _named(differences: tuple[Difference, ...]) -> tuple[str, ...]:
    return tuple(map(str, differences))


def _first_few(named: tuple[str, ...]) -> str:
    more = len(named) - NAMED_IN_DETAIL
    return "; ".join(named[:NAMED_IN_DETAIL]) + (f" and {more} more" if more > 0 else "")
