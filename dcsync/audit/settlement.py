"""What a finding means for the row of its endpoint type: pure, finding in, values to write out."""

from __future__ import annotations

from datetime import datetime

from dcsync.audit.ports import AuditChanges, AuditRun, Finding, Settlement
from dcsync.model.states.audit import AuditEvent
from dcsync.model.subcloud import SyncStatus


def settlement(run: AuditRun, finding: Finding, *, now: datetime) -> Settlement:
    """What settling writes: whatever happened meanwhile, and what depends on whether more was asked meanwhile.

    A request, or a central change, that came during the run wants another one at once. It keeps what it allowed and
    restricted, and the next repair of the same difference counts as the first. A failure keeps the count of attempts;
    a finding without a comparison keeps the last answer beside its reason.
    """
    failure = finding.failure
    always = AuditChanges(
        abandoned=0,
        reason=failure.reason if failure else None,
        detail=failure.detail if failure else "",
    )
    as_found = AuditChanges(due_at=finding.due_at)
    asked_meanwhile = AuditChanges(due_at=now)
    if failure is None:
        always["attempt"] = 0
    if finding.keys_fingerprint is not None:
        always["keys_fingerprint"] = finding.keys_fingerprint
    if finding.reported is not None:
        always |= AuditChanges(reported=finding.reported, reported_at=now)
    if finding.result is not None:
        always |= AuditChanges(last_audit_time=now, result=finding.result, difference=finding.difference)
        as_found["difference_repairs"] = finding.difference_repairs
        asked_meanwhile["difference_repairs"] = 0
        if finding.repaired:
            always["repaired_at"] = now
    if finding.result is SyncStatus.IN_SYNC:
        always["last_good_at"] = now
    if finding.differences:
        always |= AuditChanges(differences=finding.differences, difference_at=now)
    if finding.is_observed:
        always["observed_generation"] = finding.generation
        as_found |= AuditChanges(deletes_allowed=False, resource_types=None)
    return Settlement(
        run=run,
        endpoint_type=finding.endpoint_type,
        event=AuditEvent.FAILED if failure else AuditEvent.SUCCEEDED,
        generation=finding.generation,
        always=always,
        as_found=as_found,
        asked_meanwhile=asked_meanwhile,
    )
