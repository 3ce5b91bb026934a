"""Rotates the central cloud's keys when due, then distributes them to the subclouds in waves.

`key_rotation.py` explains when this is safe. The row is claimed by conditional UPDATE, so only one process rotates. If
a rotation is interrupted (crash, deadline, lost reply), fingerprints stored before it show whether it was done. Audits
deliver the keys to the subclouds. Source: docs/upstream/generic-sync-and-audit.md section 11; unlike upstream the due
time is in a row (docs/upstream/lessons.md R24, R25), and waves limit how many subclouds get new keys at once (R37).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from dcsync.model.errors import CloudError, KeyRotationFailed
from dcsync.model.identity import FernetKeys, KeySet, key_set
from dcsync.model.marks import is_void
from dcsync.model.states.rotation import RotationEvent, RotationState
from dcsync.rotation.key_rotation import is_rotation_of, next_due, refusal, rotated
from dcsync.rotation.ports import CentralKeys, KeyRotationRow, KeyRotationStore
from dcsync.runs.ports import Loop


class Result(StrEnum):
    """The result of one call of `KeyRotation.run`."""

    IDLE = "idle"
    ROTATED = "rotated"
    REFUSED = "refused"
    FAILED = "failed"
    SUPERSEDED = "superseded"
    DISTRIBUTING = "distributing"
    DISTRIBUTED = "distributed"


@dataclass(frozen=True)
class Outcome:
    """The result as plain values for the log and Flower."""

    result: Result
    detail: str = ""
    requested: int = 0
    """The number of audits requested in this wave."""

    @property
    def is_idle(self) -> bool:
        return self.result is Result.IDLE or (self.result is Result.DISTRIBUTING and not self.requested)

    def as_dict(self) -> dict[str, object]:
        values = {"result": self.result.value, "detail": self.detail, "requested": self.requested}
        return {name: value for name, value in values.items() if value not in ("", 0)}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of a rotation."""

    interval: timedelta
    """Between two rotations; zero: only on request."""
    window: timedelta
    """How long after a rotation differing keys are expected."""
    max_share_behind: float
    token_lifetime: timedelta
    max_active_keys: int
    max_in_flight: int
    hold_off: timedelta
    """After a refusal or a failure."""
    claim_lifetime: timedelta
    """After this time an unfinished claim may be taken over; longer than a rotation can take."""
    distribution_delay: timedelta
    """After this time no process uses cached keys from before the rotation."""


@dataclass(frozen=True, kw_only=True)
class KeyRotation:
    """The key rotation service. One object per process; any number of them may run concurrently."""

    store: KeyRotationStore
    central: CentralKeys
    command: Callable[[], None] | None
    """Runs the central cloud's own rotation; raises KeyRotationFailed. None: dcsync writes a rotated set to it."""
    new_key: Callable[[], str]
    loop: Loop
    trigger_audit_sweep: Callable[[], None]
    """Sends a message to sweep due audits."""
    limits: Limits
    now: Callable[[], datetime]
    new_run_id: Callable[[], str]

    def run(self) -> Outcome:
        """Rotates if due, else continues a distribution; schedules the next rotation."""
        row = self._scheduled()
        now = self.now()
        if row.is_due(now) or row.state is RotationState.ROTATING:
            run_id = self.new_run_id()
            claimed = self.store.claim(run_id=run_id, now=now, stale_before=now - self.limits.claim_lifetime)
            return self._rotate(run_id, claimed) if claimed is not None else Outcome(Result.IDLE)
        if row.state is RotationState.DISTRIBUTING:
            return self._distribute(row)
        return Outcome(Result.IDLE)

    def _scheduled(self) -> KeyRotationRow:
        row = self.store.row()
        due = next_due(
            interval=self.limits.interval, last_rotated_at=row.last_rotated_at, due=row.next_due_at, now=self.now()
        )
        if due != row.next_due_at:
            self.store.schedule(due, was=row.next_due_at)
            return self.store.row()
        return row

    # --- rotate ---

    def _rotate(self, run_id: str, claimed: KeyRotationRow) -> Outcome:
        try:
            found = self._read()
            before = claimed.before
            if before is not None and is_rotation_of(before=before, now=key_set(found)):
                return self._finish(run_id, found, "an earlier attempt had already rotated them")
            refused = self._refusal(claimed, found)
            if refused is not None:
                return self._give_up(run_id, claimed, Result.REFUSED, refused, forget=True)
            before = key_set(found)
            if not self.store.remember(run_id=run_id, before=before, now=self.now()):
                return Outcome(Result.SUPERSEDED, "another process took over the rotation")
            return self._finish(run_id, self._rotate_central(found, before))
        except (CloudError, KeyRotationFailed) as exc:
            return self._give_up(run_id, claimed, Result.FAILED, str(exc), forget=False)

    def _refusal(self, claimed: KeyRotationRow, found: FernetKeys) -> str | None:
        if claimed.forced:
            return None
        return refusal(
            self.store.spread(found.fingerprint()),
            max_share_behind=self.limits.max_share_behind,
            last_rotated_at=claimed.last_rotated_at,
            token_lifetime=self.limits.token_lifetime,
            now=self.now(),
        )

    def _rotate_central(self, found: FernetKeys, before: KeySet) -> FernetKeys:
        """Rotates and returns the central keys read afterwards; after an error, these show whether it was done."""
        try:
            self._apply_rotation(found)
        except (CloudError, KeyRotationFailed):
            after = self._read()
            if not is_rotation_of(before=before, now=key_set(after)):
                raise
            return after
        after = self._read()
        if not is_rotation_of(before=before, now=key_set(after)):
            raise KeyRotationFailed("the central cloud's primary key is not the key that was staged before")
        return after

    def _apply_rotation(self, found: FernetKeys) -> None:
        if self.command is not None:
            self.command()
            return
        try:
            wanted = rotated(found, staged=self.new_key(), max_active_keys=self.limits.max_active_keys)
        except ValueError as exc:
            raise KeyRotationFailed(str(exc)) from exc
        self.loop.run(self.central.replace_central_keys(wanted))

    def _read(self) -> FernetKeys:
        found = self.loop.run(self.central.central_keys())
        problems = found.problems()
        if problems:
            raise KeyRotationFailed(f"the central cloud's keys cannot be used: {'; '.join(problems)}")
        return found

    def _finish(self, run_id: str, current: FernetKeys, detail: str = "") -> Outcome:
        now = self.now()
        is_own = self.store.finish(
            run_id=run_id,
            current=key_set(current),
            now=now,
            next_due_at=now + self.limits.interval if self.limits.interval else None,
            window_until=now + self.limits.window,
        )
        return Outcome(Result.ROTATED, detail) if is_own else Outcome(Result.SUPERSEDED)

    def _give_up(self, run_id: str, claimed: KeyRotationRow, result: Result, detail: str, *, forget: bool) -> Outcome:
        """Ends the attempt; a distribution of keys from an earlier rotation is resumed."""
        now = self.now()
        event = RotationEvent.RESUMED if claimed.is_window_open(now) else RotationEvent.GIVEN_UP
        is_own = self.store.give_up(
            event, run_id=run_id, detail=detail, now=now, retry_at=now + self.limits.hold_off, forget=forget
        )
        return Outcome(result, detail) if is_own else Outcome(Result.SUPERSEDED)

    # --- distribute ---

    def _distribute(self, row: KeyRotationRow) -> Outcome:
        now = self.now()
        rotated_at = row.last_rotated_at
        if rotated_at is None or is_void(rotated_at, now=now):
            rotated_at = now - self.limits.distribution_delay
        start = rotated_at + self.limits.distribution_delay
        if now < start:
            return Outcome(Result.DISTRIBUTING)
        fingerprint = self._read().fingerprint()
        spread = self.store.spread(fingerprint)
        # Subclouds that are away or not completed get the keys from their initial sync.
        if not spread.lack:
            return self._end(str(spread))
        if not row.is_window_open(now):
            return self._end(f"the window is over, {spread}")
        requested = self.store.next_wave(
            fingerprint,
            max_in_flight=row.max_in_flight or self.limits.max_in_flight,
            requested_before=start,
            now=now,
        )
        if requested:
            self.trigger_audit_sweep()
        return Outcome(
            Result.DISTRIBUTING,
            str(spread),
            requested,
        )

    def _end(self, detail: str) -> Outcome:
        ended = self.store.end_distribution(now=self.now(), detail=detail)
        return Outcome(Result.DISTRIBUTED, detail) if ended else Outcome(Result.SUPERSEDED)
