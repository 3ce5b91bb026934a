"""Turns a finding into the values to write to the row of its endpoint type. Pure."""

from __future__ import annotations

from datetime import datetime

from dcsync.audit.ports import AuditChanges, AuditRun, Finding, Settlement
from dcsync.model.history import AuditHistory, Named, cut
from dcsync.model.states.audit import AuditEvent
from dcsync.model.subcloud import SyncStatus


def settlement(
    run: AuditRun, finding: Finding, *, now: datetime, started_at: datetime | None = None, worker: str = ""
) -> Settlement:
    """Returns what settling writes: always, and depending on whether another audit was requested during the run.

    After a request or a central change during the run, the next audit is due at once, with the options of that request,
    and repairs of the same difference are counted from zero. A failure keeps the attempt count and the time of the
    first of the failures in a row; a finding without a comparison keeps the last result beside its reason.
    """
    failure = finding.failure
    (part,) = (part for part in run.parts if part.endpoint_type is finding.endpoint_type)
    always = AuditChanges(
        abandoned=0,
        failing_since=min(part.failing_since or now, now) if failure else None,
        failures=part.failures + 1 if failure else 0,
        reason=failure.reason if failure else None,
        detail=failure.detail if failure else "",
    )
    unless_requested = AuditChanges(due_at=finding.due_at)
    if_requested = AuditChanges(due_at=now)
    if failure is None:
        always["attempt"] = 0
    if finding.keys_fingerprint is not None:
        always["keys_fingerprint"] = finding.keys_fingerprint
    if finding.reported is not None:
        always |= AuditChanges(reported=finding.reported, reported_at=finding.observed_at or now)
    if finding.result is not None:
        always |= AuditChanges(last_audit_time=now, result=finding.result, difference=finding.difference)
        unless_requested["difference_repairs"] = finding.difference_repairs
        if_requested["difference_repairs"] = 0
        if finding.repaired:
            always["repaired_at"] = now
    if finding.result is SyncStatus.IN_SYNC:
        always["last_good_at"] = now
    if finding.differences:
        always |= AuditChanges(differences=finding.differences, difference_at=now)
    if finding.is_observed:
        always["observed_generation"] = finding.generation
        unless_requested |= AuditChanges(deletes_allowed=False, resource_types=None)
    return Settlement(
        run=run,
        endpoint_type=finding.endpoint_type,
        event=AuditEvent.FAILED if failure else AuditEvent.SUCCEEDED,
        generation=finding.generation,
        always=always,
        unless_requested=unless_requested,
        if_requested=if_requested,
        history=_history(run, finding, now=now, started_at=started_at or now, worker=worker),
    )


def _history(
    run: AuditRun, finding: Finding, *, now: datetime, started_at: datetime, worker: str
) -> AuditHistory | None:
    """Returns None for an audit that found no difference, since the row of the endpoint type proves it, and for the
    repetition of a failure that found none: while a central cloud is away, each would add rows for the whole fleet.
    The audit that ends such failures says how many there were, and since when."""
    failure = finding.failure
    (part,) = (part for part in run.parts if part.endpoint_type is finding.endpoint_type)
    ends_failures = failure is None and part.failures > 0
    if not finding.differences and not ends_failures and (failure is None or part.failures):
        return None
    detail = failure.detail if failure else ""
    if ends_failures and part.failing_since is not None:
        detail = f"after {part.failures} failed in a row, the first {part.failing_since:%Y-%m-%d %H:%M:%S}Z"
    return AuditHistory(
        run_id=run.run_id,
        endpoint_type=finding.endpoint_type,
        worker=worker,
        started_at=started_at,
        ended_at=now,
        result=finding.result,
        reason=failure.reason.value if failure else None,
        detail=cut(detail),
        differences=Named.of(finding.differences),
        written=Named.of(finding.written),
        not_written=Named.of(finding.not_written),
    )
