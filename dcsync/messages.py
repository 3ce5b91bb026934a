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
    DISTRIBUTE_KEYS = "dcsync.sync.distribute_keys"
    INIT_AUDIT = "dcsync.audit.init_audit"
    STATE_UPDATES = "dcsync.state.apply_updates"


QUEUE_OF = {
    TaskName.SWEEP: Queue.CONTROL,
    TaskName.HOUSEKEEPING: Queue.CONTROL,
    TaskName.INITIAL_SYNC: Queue.SYNC,
    TaskName.DISTRIBUTE_KEYS: Queue.SYNC,
    TaskName.INIT_AUDIT: Queue.AUDIT,
    TaskName.STATE_UPDATES: Queue.STATE,
}


@dataclass(frozen=True)
class SyncHint:
    """ "Somebody should sync this subcloud": lost, doubled, late or stale, the row decides what it is worth."""

    region_name: str
    generation: int
    attempt: int

    @property
    def task_id(self) -> str:
        """Tells the story in Flower, and lets the sweep see which hints still wait in the queue."""
        return f"{self.region_name}.g{self.generation}.a{self.attempt}"

    def payload(self) -> dict[str, object]:
        return {"version": PAYLOAD_VERSION, "region_name": self.region_name, "generation": self.generation}
