"""How `audit_status` of a subcloud's endpoint type may change."""

from __future__ import annotations

from enum import StrEnum

from dcsync.model.states.table import StateTable


class AuditStatus(StrEnum):
    """How the last audit of one endpoint ended. Source: docs/upstream/generic-sync-and-audit.md section 2."""

    NONE = "none"
    IN_PROGRESS = "in-progress"
    COMPLETED = "completed"
    FAILED = "failed"


NONE, IN_PROGRESS, COMPLETED, FAILED = AuditStatus


class AuditEvent(StrEnum):
    """Events of the audit of one endpoint type. A request is not an event: it increases the row's generation and makes
    the row due in any state."""

    CLAIMED = "run claimed it"
    SUCCEEDED = "compared, and repaired what differed"
    FAILED = "comparison or repair failed"
    RELEASED = "run ended without a finding"
    ABANDONED = "its worker died"
    QUARANTINED = "killed its worker too often"
    RESET = "initial sync reset it"


AUDIT = StateTable(
    states=AuditStatus,
    events=AuditEvent,
    first=NONE,
    transitions={
        (NONE, AuditEvent.CLAIMED): IN_PROGRESS,
        (COMPLETED, AuditEvent.CLAIMED): IN_PROGRESS,
        (FAILED, AuditEvent.CLAIMED): IN_PROGRESS,
        (IN_PROGRESS, AuditEvent.SUCCEEDED): COMPLETED,
        (IN_PROGRESS, AuditEvent.FAILED): FAILED,
        (IN_PROGRESS, AuditEvent.RELEASED): NONE,
        # Both are due again: the first immediately, the second after the longest hold-off.
        (IN_PROGRESS, AuditEvent.ABANDONED): FAILED,
        (IN_PROGRESS, AuditEvent.QUARANTINED): FAILED,
        # Source: docs/upstream/initial-sync.md section 9.
        **{(status, AuditEvent.RESET): NONE for status in AuditStatus},
    },
)
