"""What is said between processes: queues, task names, and the small payloads they carry.

A task name is a wire contract: it is never renamed, only joined by a new one that is accepted beside it for a release.
A message carries a region name, a generation and small plain values; never a secret, never a record.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

PAYLOAD_VERSION = 1
"""Grows when a payload changes its meaning; a worker takes this version and the one before."""


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
    PROBE = "dcsync.audit.probe_availability"
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
    # Not behind the audits: after a change at the central cloud thousands wait there, and nobody would see a subcloud
    # go or come.
    TaskName.AVAILABILITY_SWEEP: Queue.CONTROL,
    TaskName.PROBE: Queue.CONTROL,
    TaskName.STATE_UPDATES: Queue.STATE,
    TaskName.DELIVER_ALARMS: Queue.CONTROL,
    TaskName.RECONCILE_ALARMS: Queue.CONTROL,
}


@dataclass(frozen=True)
class SyncHint:
    """ "Somebody should sync this subcloud": lost, doubled, late or stale, the row decides what it is worth."""

    region_name: str
    generation: int
    attempt: int = 0
    """As the sweep counted; a worker does not need it."""

    @property
    def task_id(self) -> str:
        """Tells the story in Flower, and lets the sweep see which hints still wait in the queue."""
        return f"{self.region_name}.g{self.generation}.a{self.attempt}"

    def payload(self) -> dict[str, object]:
        return {"version": PAYLOAD_VERSION, "region_name": self.region_name, "generation": self.generation}


@dataclass(frozen=True)
class AuditHint:
    """ "Somebody should look what is due of this subcloud's audits"; `number` counts the hints sent for it."""

    region_name: str
    number: int = 0
    """As the sweep counted; a worker does not need it."""

    @property
    def task_id(self) -> str:
        """As SyncHint.task_id."""
        return f"{self.region_name}.audit.{self.number}"

    def payload(self) -> dict[str, object]:
        return {"version": PAYLOAD_VERSION, "region_name": self.region_name}


# --- reports to the state service: facts, acknowledged only after they were committed ----------------------------


# --- the parts of a report ---------------------------------------------------------------------------------------
