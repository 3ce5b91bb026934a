"""Rotate the central cloud's keys once when it is due, then let the subclouds have them in waves.

What is safe and why is `key_rotation.py`. Exactly one of many beats and workers rotates: the row is claimed by
conditional UPDATE, and whether a rotation that was cut short (crash, deadline, lost answer) was done is told by the
fingerprints kept before it, never guessed. The keys themselves reach a subcloud through its audit, as any difference
does. Source: docs/upstream/generic-sync-and-audit.md section 11; unlike upstream the due time is a row's
(docs/upstream/lessons.md R24, R25), and waves bound how many subclouds get new keys at once (R37).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from dcsync.model.errors import CloudError, KeyRotationFailed
from dcsync.model.identity import FernetKeys, KeySet, key_set
from dcsync.model.states.rotation import RotationEvent, RotationState
from dcsync.rotation.key_rotation import is_rotation_of, next_due, refusal, rotated
from dcsync.rotation.ports import CentralKeys, KeyRotationRow, KeyRotationStore
from dcsync.runs.ports import Loop


class Result(StrEnum):
    """What one look led to."""

    IDLE = "idle"
    ROTATED = "rotated"
    REFUSED = "refused"
    FAILED = "failed"
    SUPERSEDED = "superseded"
    DISTRIBUTING = "distributing"
    DISTRIBUTED = "distributed"


@dataclass(frozen=True)
class Outcome:
    """Plain values, shown in the log and in Flower."""

    result: Result
    detail: str = ""
    asked: int = 0
    """Subclouds that were asked in this wave."""

    @property
    def is_idle(self) -> bool:
        return self.result is Result.IDLE or (self.result is Result.DISTRIBUTING and not self.asked)

    def as_dict(self) -> dict[str, object]:
        told = {"result": self.result.value, "detail": self.detail, "asked": self.asked}
        return {name: value for name, value in told.items() if value not in ("", 0)}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Numbers a rotation keeps to."""

    interval: timedelta
    """Between two rotations; zero is never, but when asked for."""
    window: timedelta
    """How long after a rotation differing keys are planned."""
    max_share_behind: float
    token_lifetime: timedelta
    max_active_keys: int
    max_in_flight: int
    hold_off: timedelta
    """After a refusal or a failure."""
    claim_lifetime: timedelta
    """After which a claim that nobody ended is taken over; longer than a rotation can take."""
    settle: timedelta
    """After which no process compares with keys from before the rotation any more."""


@dataclass(frozen=True, kw_only=True)
class KeyRotation:
    """One object per process; any number of them may look at the same time."""

    store: KeyRotationStore
    central: CentralKeys
    command: Callable[[], None] | None
    """Makes the central cloud rotate by itself; raises KeyRotationFailed. None: a rotated set is written to it."""
    new_key: Callable[[], str]
    loop: Loop
    wake: Callable[[], None]
    """Somebody should look for due audits."""
    limits: Limits
    now: Callable[[], datetime]
    new_run_id: Callable[[], str]

    def look(self) -> Outcome:
        """Rotate if it is due, else let more subclouds have the keys if some lack them, else plan the next rotation."""
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
                return self._finish(run_id, found, "an earlier try had rotated them already")
            why_not = self._why_not(claimed, found)
            if why_not is not None:
                return self._give_up(run_id, claimed, Result.REFUSED, why_not, forget=True)
            before = key_set(found)
            if not self.store.remember(run_id=run_id, before=before, now=self.now()):
                return Outcome(Result.SUPERSEDED, "somebody else took the rotation over")
            return self._finish(run_id, self._carried_out(found, before))
        except (CloudError, KeyRotationFailed) as exc:
            return self._give_up(run_id, claimed, Result.FAILED, str(exc), forget=False)

    def _why_not(self, claimed: KeyRotationRow, found: FernetKeys) -> str | None:
        if claimed.forced:
            return None
        return refusal(
            self.store.spread(found.fingerprint()),
            max_share_behind=self.limits.max_share_behind,
            last_rotated_at=claimed.last_rotated_at,
            token_lifetime=self.limits.token_lifetime,
            now=self.now(),
        )

    def _carried_out(self, found: FernetKeys, before: KeySet) -> FernetKeys:
        """The central cloud's set after the rotation; what cannot be told from an error, its keys tell."""
        try:
            self._ask_central(found)
        except (CloudError, KeyRotationFailed):
            after = self._read()
            if not is_rotation_of(before=before, now=key_set(after)):
                raise
            return after
        after = self._read()
        if not is_rotation_of(before=before, now=key_set(after)):
            raise KeyRotationFailed("the central cloud's primary key is not the one that was staged before")
        return after

    def _ask_central(self, found: FernetKeys) -> None:
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
        mine = self.store.finish(
            run_id=run_id,
            current=key_set(current),
            now=now,
            next_due_at=now + self.limits.interval if self.limits.interval else None,
            window_until=now + self.limits.window,
        )
        return Outcome(Result.ROTATED, detail) if mine else Outcome(Result.SUPERSEDED)

    def _give_up(self, run_id: str, claimed: KeyRotationRow, result: Result, detail: str, *, forget: bool) -> Outcome:
        """Where the keys of an earlier rotation are still being distributed, that goes on."""
        now = self.now()
        event = RotationEvent.RESUMED if claimed.is_window_open(now) else RotationEvent.GIVEN_UP
        mine = self.store.give_up(
            event, run_id=run_id, detail=detail, now=now, retry_at=now + self.limits.hold_off, forget=forget
        )
        return Outcome(result, detail) if mine else Outcome(Result.SUPERSEDED)

    # --- distribute ---

    def _distribute(self, row: KeyRotationRow) -> Outcome:
        now = self.now()
        fresh_from = (row.last_rotated_at or now) + self.limits.settle
        if now < fresh_from:
            return Outcome(Result.DISTRIBUTING)
        fingerprint = self._read().fingerprint()
        spread = self.store.spread(fingerprint)
        if not spread.behind:
            return self._end(f"{spread.subclouds} subclouds hold the current keys")
        if not row.is_window_open(now):
            return self._end(
                f"the window is over, {spread.behind} of {spread.subclouds} subclouds lack the current keys"
            )
        asked = self.store.next_wave(
            fingerprint,
            max_in_flight=row.max_in_flight or self.limits.max_in_flight,
            asked_before=fresh_from,
            now=now,
        )
        if asked:
            self.wake()
        return Outcome(
            Result.DISTRIBUTING, f"{spread.behind} of {spread.subclouds} subclouds still lack the keys", asked
        )

    def _end(self, detail: str) -> Outcome:
        ended = self.store.end_distribution(now=self.now(), detail=detail)
        return Outcome(Result.DISTRIBUTED, detail) if ended else Outcome(Result.SUPERSEDED)
