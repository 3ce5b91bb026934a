"""The messenger in memory: what services and commands send to workers, kept until a test takes it.

Trusted because `contract/test_messenger_contract.py` runs on it and on Celery with Redis.
"""

from __future__ import annotations

from collections.abc import Sequence

from dcsync.model.errors import BrokerUnreachable
from dcsync.model.messages import AuditHint, SyncHint


class FakeMessenger:
    """SyncMessenger, AuditMessenger, ProbeMessenger, SweepTrigger and Triggers; `is_away` plays a broker that does not
    answer."""

    def __init__(self, *, is_away: bool = False) -> None:
        self.is_away = is_away
        self.syncs: list[SyncHint] = []
        self.audits: list[AuditHint] = []
        self.sweeps = self.audit_sweeps = self.availability_sweeps = self.key_rotations = 0

    def send_sync(self, hints: Sequence[SyncHint]) -> None:
        self._reach()
        self.syncs.extend(hints)

    def send_audits(self, hints: Sequence[AuditHint]) -> None:
        self._reach()
        self.audits.extend(hints)

    def send_sweep(self) -> None:
        self._reach()
        self.sweeps += 1

    def send_audit_sweep(self) -> None:
        self._reach()
        self.audit_sweeps += 1

    def send_availability_sweep(self) -> None:
        self._reach()
        self.availability_sweeps += 1

    def send_key_rotation(self) -> None:
        self._reach()
        self.key_rotations += 1

    def waiting_sync_ids(self) -> set[str]:
        self._reach()
        return {hint.task_id for hint in self.syncs}

    def waiting_audit_ids(self) -> set[str]:
        self._reach()
        return {hint.task_id for hint in self.audits}

    def _reach(self) -> None:
        if self.is_away:
            raise BrokerUnreachable("Redis: ConnectionError")
