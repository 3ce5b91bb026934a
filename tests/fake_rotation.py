"""Key rotation in memory: its row as commands see it (RotationRequests), and the central repository (CentralKeys).

Trusted because `contract/test_rotation_contract.py` runs on them, on PostgreSQL and on a central cloud over HTTP.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from dcsync.model.errors import CloudError
from dcsync.model.identity import FernetKeys
from dcsync.model.operation import Intent, Operation
from dcsync.model.reasons import Reason
from dcsync.model.states.rotation import RotationState
from dcsync.rotation.ports import KeyHolding, KeyRotationRow, Spread


class FakeRotationRequests:
    """The row of a rotation that is carried out when the test says so; `holds` is the fingerprint each completed
    subcloud was last seen to hold, and `read_at` when, `others` are the rest."""

    def __init__(
        self,
        holds: Sequence[str | None] = (),
        others: Sequence[KeyHolding] = (),
        read_at: Sequence[datetime] = (),
    ) -> None:
        self.holds = list(holds)
        self.read_at = list(read_at)
        self.others = list(others)
        self.operations: list[Operation] = []
        self._row = KeyRotationRow(
            state=RotationState.IDLE,
            detail="",
            next_due_at=None,
            last_rotated_at=None,
            window_until=None,
            requested_at=None,
            requested_by="",
            forced=False,
            max_in_flight=None,
            before=None,
        )

    def put(self, **changes: Any) -> None:
        """As if whoever rotates had written these columns."""
        self._row = replace(self._row, **changes)

    def row(self) -> KeyRotationRow:
        return self._row

    def ask(
        self, *, now: datetime, by: str, forced: bool, max_in_flight: int | None, intent: Intent | None = None
    ) -> None:
        if intent is not None:
            self.operations.append(intent.done((), now=now))
        self.put(requested_at=now, requested_by=by, forced=forced, max_in_flight=max_in_flight)

    def spread(self, fingerprint: str) -> Spread:
        return Spread(**Counter(str(holding) for _, holding in self._holdings(fingerprint)))

    def without_keys(self, fingerprint: str, *, limit: int) -> list[tuple[str, KeyHolding]]:
        counted = (KeyHolding.HAVE, KeyHolding.UNMANAGED)
        return [each for each in self._holdings(fingerprint) if each[1] not in counted][:limit]

    def oldest_reading(self, fingerprint: str) -> datetime | None:
        return min(
            (at for held, at in zip(self.holds, self.read_at, strict=False) if held == fingerprint), default=None
        )

    def _holdings(self, fingerprint: str) -> list[tuple[str, KeyHolding]]:
        completed = [KeyHolding.HAVE if held == fingerprint else KeyHolding.LACK for held in self.holds]
        return [(f"s{number}", holding) for number, holding in enumerate([*completed, *self.others])]


class FakeCentralKeys:
    """A central fernet repository; `failing` plays an answer that is lost, "before" or "after" the write."""

    def __init__(self, keys: FernetKeys) -> None:
        self.keys = keys
        self.rotations = 0
        self.failing: str | None = None

    async def central_keys(self) -> FernetKeys:
        await asyncio.sleep(0)
        return self.keys

    async def replace_central_keys(self, keys: FernetKeys) -> None:
        if not keys.keys:
            raise ValueError("an empty set of keys is never sent")
        if self.failing == "before":
            raise CloudError(Reason.CENTRAL_UNREACHABLE, "refused")
        self.keys = keys
        self.rotations += 1
        if self.failing == "after":
            raise CloudError(Reason.CENTRAL_UNREACHABLE, "the answer was lost")
