"""Messages between processes: queues, task names, and the small payloads they carry.

A task name is a wire contract: it is never renamed. A new name is accepted beside the old one for a release.
A message carries a region name, a generation and small plain values; never a secret, never a record.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

PAYLOAD_VERSION = 1
"""Increased when a payload changes its meaning; a worker accepts this version and the previous one."""


class Queue(StrEnum):
    CONTROL = "control"
    SYNC = "sync"
    AUDIT = "audit"
    STATE = "state"


class TaskName(StrEnum):
    SWEEP = "dcsync.control.sweep"
    HOUSEKEEPING = "dcsync.control.housekeeping"
    INITIAL_SYNC = "dcsync.sync.initial_sync"
    AUDIT_SWEEP = "dcsync.control.audit_sweep"
    WATCH_CENTRAL = "dcsync.control.watch_central"
    ROTATE_KEYS = "dcsync.control.rotate_keys"
    AUDIT = "dcsync.audit.audit_subcloud"
    AVAILABILITY_SWEEP = "dcsync.audit.availability_sweep"
    STATE_UPDATES = "dcsync.state.apply_updates"
    DELIVER_ALARMS = "dcsync.control.deliver_alarms"
    RECONCILE_ALARMS = "dcsync.control.reconcile_alarms"


QUEUE_OF = {
    TaskName.SWEEP: Queue.CONTROL,
    TaskName.HOUSEKEEPING: Queue.CONTROL,
    TaskName.INITIAL_SYNC: Queue.SYNC,
    TaskName.AUDIT_SWEEP: Queue.CONTROL,
    TaskName.WATCH_CENTRAL: Queue.CONTROL,
    TaskName.ROTATE_KEYS: Queue.CONTROL,
    TaskName.AUDIT: Queue.AUDIT,
    # Not the audit queue: after a central change thousands of audits wait there, and availability would be detected
    # late.
    TaskName.AVAILABILITY_SWEEP: Queue.CONTROL,
    TaskName.STATE_UPDATES: Queue.STATE,
    TaskName.DELIVER_ALARMS: Queue.CONTROL,
    TaskName.RECONCILE_ALARMS: Queue.CONTROL,
}


_SENDING = "~"


def sending_id(task_id: str, sending: str) -> str:
    """Returns Celery's id of one sending of a hint. Workers discard every message with an id that was revoked, for
    hours: a hint that is sent again must not have the id of the one before."""
    return f"{task_id}{_SENDING}{sending}"


def sent_task_id(sending: str) -> str:
    """Returns the hint's id of a sending; an id without such a word is the hint's own."""
    return sending.rpartition(_SENDING)[0] or sending


@dataclass(frozen=True)
class SyncHint:
    """A hint that a subcloud is due for initial sync. It may be lost, duplicated or late: the row decides."""

    region_name: str
    generation: int
    attempt: int = 0
    """As the sweep counted; a worker does not need it."""

    @property
    def task_id(self) -> str:
        """Identifies the attempt in Flower, and the hints that are still queued to the sweep. Each sending of the hint
        adds a word of its own, see `sending_id`."""
        return f"{self.region_name}.g{self.generation}.a{self.attempt}"

    def payload(self) -> dict[str, object]:
        return {"version": PAYLOAD_VERSION, "region_name": self.region_name, "generation": self.generation}


@dataclass(frozen=True)
class AuditHint:
    """A hint that audits of this subcloud are due; `number` counts the hints sent for it."""

    region_name: str
    number: int = 0
    """As the sweep counted; a worker does not need it."""

    @property
    def task_id(self) -> str:
        """As SyncHint.task_id."""
        return f"{self.region_name}.audit.{self.number}"

    def payload(self) -> dict[str, object]:
        return {"version": PAYLOAD_VERSION, "region_name": self.region_name}
