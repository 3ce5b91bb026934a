"""Ports of the key rotation."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from dcsync.model.identity import FernetKeys, KeySet
from dcsync.model.states.rotation import RotationEvent, RotationState


class KeyHolding(StrEnum):
    """What is known of the keys of a subcloud; each subcloud is counted under exactly one."""

    HAVE = "have"
    LACK = "lack"
    """Managed, online and completed, and not known to hold exactly the current keys: it was last seen to hold others,
    or its latest audit could not read them."""
    FAILED = "failed"
    """Managed and online; its initial sync failed."""
    SYNCING = "syncing"
    """Managed and online; its initial sync has not ended."""
    AWAY = "away"
    """Managed and offline: it gets the keys when it comes back, before anything else."""
    UNMANAGED = "unmanaged"


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """How many subclouds hold the central cloud's current keys. All but `unmanaged` add up to the managed ones."""

    have: int = 0
    lack: int = 0
    failed: int = 0
    syncing: int = 0
    away: int = 0
    unmanaged: int = 0

    @property
    def managed(self) -> int:
        return self.have + self.behind + self.away

    @property
    def behind(self) -> int:
        """Returns the number of managed and online subclouds that are not known to have the keys."""
        return self.lack + self.failed + self.syncing

    @property
    def share_behind(self) -> float:
        """Returns the share of the managed and online subclouds that are behind."""
        online = self.have + self.behind
        return self.behind / online if online else 0.0

    def __str__(self) -> str:
        """`8 of 10 managed subclouds have the keys (1 lack, 1 away)`."""
        others = {"lack": self.lack, "failed": self.failed, "syncing": self.syncing, "away": self.away}
        without = ", ".join(f"{count} {word}" for word, count in others.items() if count)
        return f"{self.have} of {self.managed} managed subclouds have the keys" + (f" ({without})" if without else "")


@dataclass(frozen=True, kw_only=True)
class KeyRotationRow:
    """The one row of the key rotation: what is planned and what was done."""

    state: RotationState
    detail: str
    """Why the last attempt was refused or failed, or how it ended."""
    next_due_at: datetime | None
    last_rotated_at: datetime | None
    window_until: datetime | None
    """Until this time, differing keys are expected and raise no alarm."""
    requested_at: datetime | None
    requested_by: str
    forced: bool
    max_in_flight: int | None
    before: KeySet | None
    """The keys an unfinished attempt found before it rotated."""

    def is_due(self, now: datetime) -> bool:
        return self.requested_at is not None or (self.next_due_at is not None and self.next_due_at <= now)

    def is_window_open(self, now: datetime) -> bool:
        return self.window_until is not None and now < self.window_until


class KeyRotationStore(Protocol):
    """The row of the key rotation, and the key columns of the subclouds' rows."""

    def row(self) -> KeyRotationRow: ...

    def schedule(self, due: datetime | None, *, was: datetime | None) -> None:
        """Sets when the next rotation is due, if it was due at `was`."""

    def claim(self, *, run_id: str, now: datetime, stale_before: datetime) -> KeyRotationRow | None:
        """Claims a rotation that is due and not claimed, or whose claim is older than `stale_before`; a claim from the
        future counts as made now. None: it is not due, or another process was faster."""

    def remember(self, *, run_id: str, before: KeySet, now: datetime) -> bool:
        """Stores the keys found before the rotation; False when the claim is lost, and then nothing may be rotated."""

    def finish(
        self, *, run_id: str, current: KeySet, now: datetime, next_due_at: datetime | None, window_until: datetime
    ) -> bool:
        """Records in one transaction that `current` are the central keys and that their distribution starts. False when
        the claim is lost."""

    def give_up(
        self, event: RotationEvent, *, run_id: str, detail: str, now: datetime, retry_at: datetime, forget: bool
    ) -> bool:
        """Ends the attempt without a rotation (GIVEN_UP or RESUMED): drops the request and moves a due schedule to
        `retry_at`; `forget` also drops the keys found before. False when the claim is lost."""

    def spread(self, fingerprint: str) -> Spread:
        """Returns how many subclouds hold the set with this fingerprint, and how many do not, and why."""

    def next_wave(self, fingerprint: str, *, max_in_flight: int, requested_before: datetime, now: datetime) -> int:
        """Requests audits of subclouds that lack this set, until `max_in_flight` are in progress; each once after
        `requested_before`. Returns the number requested, 0 while another process does the same."""

    def end_distribution(self, *, now: datetime, detail: str) -> bool:
        """Ends the distribution; False when it has already ended."""


class CentralKeys(Protocol):
    """The central cloud's fernet repository, read and written without a cache. Raises CloudError with a central-*
    reason."""

    async def central_keys(self) -> FernetKeys:
        """Returns the keys it holds now, possibly none."""

    async def replace_central_keys(self, keys: FernetKeys) -> None:
        """Writes the whole set; refuses an empty one."""
