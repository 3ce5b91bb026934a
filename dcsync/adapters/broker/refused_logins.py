"""Refused logins in Redis, shared by all workers and commands (port `RefusedLogins`).

Of a password only a fingerprint is kept: scrypt with a random salt that is kept beside it, so that whoever reads Redis
must spend a twentieth of a second on each guess. The record of a user at a cloud is changed by one script at a time;
times are Redis's own. While Redis is away, each process remembers its own refusals.
"""

from __future__ import annotations

import hashlib
import json
import random
import secrets
import threading
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import redis
import structlog

from dcsync.adapters.broker.redis_client import translated_errors
from dcsync.adapters.host.refused_logins import ProcessRefusedLogins
from dcsync.model.errors import BrokerUnreachable
from dcsync.runs.logins import Account, Admitted, Busy, HeldBack, LoginCounts, LoginLimits, RefusedUser, Verdict

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(__name__)

_SALT = "dcsync:login:salt"
_COUNTS = "dcsync:login:counts"
_ACCOUNT = "dcsync:login:account:"

_READ = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local raw = redis.call('GET', KEYS[1])
local memory = raw and cjson.decode(raw) or {refused = {}, held = {}}
local refused = {}
for _, at in ipairs(memory.refused) do
    if now - at < tonumber(ARGV[1]) then table.insert(refused, at) end
end
memory.refused = refused
local word = ARGV[2]
local held = memory.held[word]
"""

_ADMIT = (
    _READ
    + """
if held and held.retry_at > now then
    redis.call('HINCRBY', KEYS[2], 'held_back', 1)
    return {'held', held.refused_at, held.retry_at, held.in_a_row}
end
if #refused >= tonumber(ARGV[5]) then
    redis.call('HINCRBY', KEYS[2], 'held_back', 1)
    return {'held', refused[#refused], refused[1] + tonumber(ARGV[1]), 0}
end
if memory.permit and memory.permit_until > now then return {'busy'} end
memory.permit, memory.permit_until = ARGV[3], now + tonumber(ARGV[4])
local life = tonumber(ARGV[4])
if next(memory.held) or #refused > 0 then life = math.max(life, redis.call('PTTL', KEYS[1])) end
redis.call('SET', KEYS[1], cjson.encode(memory), 'PX', life)
return {'admitted'}
"""
)

_SETTLE = (
    _READ
    + """
if memory.permit == ARGV[3] then memory.permit, memory.permit_until = nil, nil end
local answer = {'noted'}
if ARGV[4] == 'refused' then
    local in_a_row = 1 + (held and held.in_a_row or 0)
    local delay = tonumber(ARGV[7 + math.min(in_a_row, #ARGV - 7)])
    memory.held[word] = {in_a_row = in_a_row, refused_at = now, retry_at = now + delay}
    table.insert(refused, now)
    local shown = cjson.decode(ARGV[6])
    memory.cloud, memory.user = shown.cloud, shown.user
    redis.call('HINCRBY', KEYS[2], 'refused', 1)
    answer = {'held', now, now + delay, in_a_row}
elseif ARGV[4] == 'accepted' or ARGV[4] == 'forget' then
    memory.held[word] = nil
end
for other, each in pairs(memory.held) do
    if now - each.refused_at >= tonumber(ARGV[5]) then memory.held[other] = nil end
end
if next(memory.held) or #refused > 0 or memory.permit then
    redis.call('SET', KEYS[1], cjson.encode(memory), 'PX', ARGV[5])
elseif raw then
    redis.call('DEL', KEYS[1])
end
return answer
"""
)


class RedisRefusedLogins:
    """The refused logins of all processes that use this Redis."""

    def __init__(
        self,
        client: redis.Redis,
        *,
        limits: LoginLimits | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._client = client
        self._limits = limits or LoginLimits()
        self._jitter = jitter
        self._own = ProcessRefusedLogins(limits=self._limits, jitter=jitter)
        self._is_away = False
        self._admit = client.register_script(_ADMIT)
        self._settle = client.register_script(_SETTLE)
        self._fingerprints: dict[str, str] = {}
        self._one_fingerprint = threading.Lock()

    def admit(self, account: Account) -> Admitted | Busy | HeldBack:
        try:
            found = self._admitted(account)
        except BrokerUnreachable as exc:
            if not self._is_away:
                log.warning("refused logins are remembered by this process only", error=str(exc))
            self._is_away = True
            return self._own.admit(account)
        self._is_away = False
        return found

    def settle(self, account: Account, permit: str, verdict: Verdict) -> HeldBack | None:
        own = self._own.settle(account, permit, verdict)
        try:
            answer = self._settled(account, permit, verdict.value)
        except BrokerUnreachable:
            return own  # The permit in Redis, if there is one, expires.
        return _held_back(answer) if answer[0] == "held" else None

    def forget(self, account: Account) -> None:
        self._own.forget(account)
        try:
            self._settled(account, "", "forget")
        except BrokerUnreachable as exc:
            log.warning("a refused login is not forgotten", cloud=account.cloud, user=account.user, error=str(exc))

    @translated_errors
    def counts(self) -> LoginCounts:
        found: dict[Any, Any] = self._client.hgetall(_COUNTS)
        return LoginCounts(refused=int(found.get("refused", 0)), held_back=int(found.get("held_back", 0)))

    @translated_errors
    def remembered(self) -> list[RefusedUser]:
        names = list(self._client.scan_iter(f"{_ACCOUNT}*", count=1000))
        found = [_shown(json.loads(raw)) for raw in (self._client.mget(names) if names else []) if raw]
        return sorted((each for each in found if each), key=lambda each: each.refused_at, reverse=True)

    @translated_errors
    def forget_all(self, cloud: str | None = None) -> int:
        forgotten = 0
        for name in list(self._client.scan_iter(f"{_ACCOUNT}*", count=1000)):
            raw = self._client.get(name)
            shown = _shown(json.loads(raw)) if raw else None
            if shown is not None and cloud in (None, shown.cloud):
                forgotten += int(self._client.delete(name))
        return forgotten

    @translated_errors
    def _admitted(self, account: Account) -> Admitted | Busy | HeldBack:
        permit = uuid.uuid4().hex
        words: list[str | int] = [
            _milliseconds(self._limits.window),
            self._fingerprint(account.secret),
            permit,
            _milliseconds(self._limits.permit),
            self._limits.refusals,
        ]
        answer: list[Any] = self._admit(keys=[_key(account), _COUNTS], args=words)
        if answer[0] == "admitted":
            return Admitted(permit)
        return Busy() if answer[0] == "busy" else _held_back(answer)

    @translated_errors
    def _settled(self, account: Account, permit: str, verdict: str) -> list[Any]:
        delays = self._limits.hold_offs(jitter=self._jitter(), is_last_resort=account.is_last_resort)
        words: list[str | int] = [
            _milliseconds(self._limits.window),
            self._fingerprint(account.secret),
            permit,
            verdict,
            _milliseconds(self._limits.remembered),
            json.dumps({"cloud": account.cloud, "user": account.user}),
            len(delays),
            *map(_milliseconds, delays),
        ]
        answer: list[Any] = self._settle(keys=[_key(account), _COUNTS], args=words)
        return answer

    def _fingerprint(self, secret: str) -> str:
        """Returns the fingerprint of a secret, made once per process. The lock is held while it is made, so that many
        runs that start together do not all make it."""
        known = self._fingerprints.get(secret)
        if known is not None:
            return known
        salt = self._salt()
        with self._one_fingerprint:
            if secret not in self._fingerprints:
                digest = hashlib.scrypt(secret.encode(), salt=salt.encode(), n=2**14, r=8, p=1, dklen=16)
                self._fingerprints = {**self._fingerprints, secret: digest.hex()}
            return self._fingerprints[secret]

    def _salt(self) -> str:
        new = secrets.token_hex(32)
        return new if self._client.set(_SALT, new, nx=True) else str(self._client.get(_SALT) or new)


def _key(account: Account) -> str:
    return _ACCOUNT + hashlib.sha256(f"{account.cloud}\n{account.user}".encode()).hexdigest()[:32]


def _milliseconds(time: timedelta) -> int:
    return max(1, round(time.total_seconds() * 1000))


def _held_back(answer: Sequence[Any]) -> HeldBack:
    _, refused_at, retry_at, in_a_row = answer
    return HeldBack(refused_at=_moment(refused_at), retry_at=_moment(retry_at), in_a_row=int(in_a_row))


def _shown(memory: dict[str, Any]) -> RefusedUser | None:
    held = memory["held"].values() if memory["held"] else ()
    if not held:
        return None
    newest = max(held, key=lambda each: each["refused_at"])
    return RefusedUser(
        cloud=memory["cloud"],
        user=memory["user"],
        refused_at=_moment(newest["refused_at"]),
        retry_at=_moment(newest["retry_at"]),
        in_a_row=newest["in_a_row"],
    )


def _moment(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(int(milliseconds) / 1000, UTC)
