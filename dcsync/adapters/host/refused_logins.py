"""Refused logins as one process remembers them (port `RefusedLogins`): in commands without a broker, and while it is
away. `adapters/broker/refused_logins.py` shares them between processes."""

from __future__ import annotations

import hashlib
import os
import random
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from dcsync.runs.logins import Account, Admitted, Busy, HeldBack, LoginCounts, LoginLimits, RefusedUser, Verdict


@dataclass
class _Held:
    """One refused password, by times in seconds since the epoch."""

    in_a_row: int
    refused_at: float
    retry_at: float

    def shown(self) -> HeldBack:
        return HeldBack(refused_at=_moment(self.refused_at), retry_at=_moment(self.retry_at), in_a_row=self.in_a_row)


@dataclass
class _Memory:
    """What is remembered of one user at one cloud."""

    refused: list[float] = field(default_factory=list)
    held: dict[bytes, _Held] = field(default_factory=dict)
    permit: str | None = None
    permit_until: float = 0.0


class ProcessRefusedLogins:
    """The refused logins of this process, for all of its threads."""

    def __init__(
        self,
        *,
        limits: LoginLimits | None = None,
        now: Callable[[], float] = time.time,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._limits = limits or LoginLimits()
        self._now = now
        self._jitter = jitter
        self._salt = os.urandom(32)
        self._guard = threading.Lock()
        self._counts = LoginCounts()
        self._memories: dict[tuple[str, str], _Memory] = {}

    def admit(self, account: Account) -> Admitted | Busy | HeldBack:
        now, window = self._now(), self._limits.window.total_seconds()
        with self._guard:
            memory = self._memory(account)
            held = memory.held.get(self._fingerprint(account))
            if held is None or held.retry_at <= now:
                is_bounded = len(memory.refused) >= self._limits.refusals
                held = _Held(0, memory.refused[-1], memory.refused[0] + window) if is_bounded else None
            if held is not None:
                self._counts = replace(self._counts, held_back=self._counts.held_back + 1)
                return held.shown()
            if memory.permit is not None and memory.permit_until > now:
                return Busy()
            memory.permit, memory.permit_until = uuid.uuid4().hex, now + self._limits.permit.total_seconds()
            return Admitted(memory.permit)

    def settle(self, account: Account, permit: str, verdict: Verdict) -> HeldBack | None:
        with self._guard:
            memory = self._memory(account)
            if memory.permit == permit:
                memory.permit = None
            found = self._refused(memory, account) if verdict is Verdict.REFUSED else None
            if verdict is Verdict.ACCEPTED:
                memory.held.pop(self._fingerprint(account), None)
            if not (memory.permit or memory.held or memory.refused):
                del self._memories[account.cloud, account.user]
            return found

    def forget(self, account: Account) -> None:
        with self._guard:
            self._memory(account).held.pop(self._fingerprint(account), None)

    def counts(self) -> LoginCounts:
        return self._counts

    def remembered(self) -> list[RefusedUser]:
        with self._guard:
            found = [
                RefusedUser(cloud=cloud, user=user, **vars(newest.shown()))
                for (cloud, user), memory in self._memories.items()
                for newest in sorted(memory.held.values(), key=lambda held: held.refused_at)[-1:]
            ]
        return sorted(found, key=lambda each: each.refused_at, reverse=True)

    def forget_all(self, cloud: str | None = None) -> int:
        with self._guard:
            keys = [key for key, memory in self._memories.items() if memory.held and cloud in (None, key[0])]
            for key in keys:
                del self._memories[key]
        return len(keys)

    def _memory(self, account: Account) -> _Memory:
        """Returns what is remembered and not too old."""
        memory = self._memories.setdefault((account.cloud, account.user), _Memory())
        now = self._now()
        memory.refused = [at for at in memory.refused if now - at < self._limits.window.total_seconds()]
        remembered = self._limits.remembered.total_seconds()
        memory.held = {word: held for word, held in memory.held.items() if now - held.refused_at < remembered}
        return memory

    def _refused(self, memory: _Memory, account: Account) -> HeldBack:
        now, word = self._now(), self._fingerprint(account)
        in_a_row = 1 + (memory.held[word].in_a_row if word in memory.held else 0)
        delays = self._limits.hold_offs(jitter=self._jitter(), is_last_resort=account.is_last_resort)
        held = _Held(in_a_row, now, now + delays[min(in_a_row, len(delays)) - 1].total_seconds())
        memory.held[word] = held
        memory.refused.append(now)
        self._counts = replace(self._counts, refused=self._counts.refused + 1)
        return held.shown()

    def _fingerprint(self, account: Account) -> bytes:
        return hashlib.sha256(self._salt + account.secret.encode()).digest()


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
