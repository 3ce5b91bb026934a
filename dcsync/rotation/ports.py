"""What the key rotation asks of the world."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from dcsync.model.identity import FernetKeys, KeySet
from dcsync.model.states.rotation import RotationEvent, RotationState


@dataclass(frozen=True, slots=True)
class Spread:
    """How far the central cloud's current keys have got, in numbers of subclouds that are managed, online and
    completed."""

    subclouds: int
    behind: int
    """Not seen to hold exactly these keys."""

    @property
    def share_behind(self) -> float:
        return self.behind / self.subclouds if self.subclouds else 0.0


@dataclass(frozen=True, kw_only=True)
class KeyRotationRow:
    """What is planned and what was done, as the one row says."""

    state: RotationState
    detail: str
    """Why the last try was refused or failed, or what became of it."""
    next_due_at: datetime | None
    last_rotated_at: datetime | None
    window_until: datetime | None
    """Until then differing keys are planned, and worth no alarm."""
    requested_at: datetime | None
    requested_by: str
    forced: bool
    max_in_flight: int | None
    before: KeySet | None
    """What an unfinished try found before it rotated."""

    def is_due(self, now: datetime) -> bool:
        return self.requested_at is not None or (self.next_due_at is not None and self.next_due_at <= now)

    def is_window_open(self, now: datetime) -> bool:
        return self.window_until is not None and now < self.window_until


class KeyRotationStore(Protocol):
    """The one row of key rotation, and the subclouds' rows as far as their keys go."""

    def row(self) -> KeyRotationRow: ...

    def schedule(self, due: datetime | None, *, was: datetime | None) -> None:
        """The next one is due then, if it was due at `was`."""

    def claim(self, *, run_id: str, now: datetime, stale_before: datetime) -> KeyRotationRow | None:
        """The right to rotate: when one is due and nobody rotates, or whoever does has not been heard of since
        `stale_before`. None is an answer: not due, or somebody else was faster."""

    def remember(self, *, run_id: str, before: KeySet, now: datetime) -> bool:
        """Keep what was found, right before it is rotated; False when the claim is lost, and then nothing may be."""

    def finish(
        self, *, run_id: str, current: KeySet, now: datetime, next_due_at: datetime | None, window_until: datetime
    ) -> bool:
        """Rotated: the central cloud is known with `current` from now on, which is distributed in waves; all of it in
        one transaction. False when the claim is lost."""

    def give_up(
        self, event: RotationEvent, *, run_id: str, detail: str, now: datetime, retry_at: datetime, forget: bool
    ) -> bool:
        """Not rotated, GIVEN_UP or RESUMED: a request ends, a schedule that is due is put off until `retry_at`; with
        `forget` what was found before is, too. False when the claim is lost."""

    def spread(self, fingerprint: str) -> Spread:
        """How many subclouds hold the set with this fingerprint."""

    def next_wave(self, fingerprint: str, *, max_in_flight: int, asked_before: datetime, now: datetime) -> int:
        """Ask so many subclouds that lack this set to be audited that `max_in_flight` are being served, each once after
        `asked_before`; how many were asked. 0 as well while another process does the same."""

    def end_distribution(self, *, now: datetime, detail: str) -> bool:
        """The window closes; False when it is not open any more."""


class CentralKeys(Protocol):
    """The central cloud's fernet repository, read and written past every cache. Raises CloudError with a central-*
    reason."""

    async def central_keys(self) -> FernetKeys:
        """What it holds now, possibly nothing."""

    async def replace_central_keys(self, keys: FernetKeys) -> None:
        """Write the whole set; refuses an empty one."""
