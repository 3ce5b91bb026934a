"""Logging in at a Keystone, and requests that carry the token: renewed in time, and once when it is not taken.

One `Authenticated` belongs to one cloud and one use of it; a token never goes anywhere but to the cloud it came from.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from dcsync.adapters.cloud.http import Http, Reply
from dcsync.model.errors import CloudError

RENEW_SECONDS_BEFORE_EXPIRY = 60
STALE_TOKEN_STATUSES = (401, 404)
"""401 says so. 404 as well: a token that names a rewritten user or project is answered 404 by Keystone on every call,
so who logs in again only on 401 is stuck. Source: docs/upstream/real-keystone.md K4."""


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """The one login dcsync has, the same at the central cloud and on every subcloud."""

    username: str
    password: str = field(repr=False)
    project_name: str
    user_domain_name: str
    project_domain_name: str

    def body(self) -> dict[str, object]:
        """What Keystone wants to see. Source: docs/upstream/http-contracts.md section 2.1."""
        user = {"name": self.username, "domain": {"name": self.user_domain_name}, "password": self.password}
        project = {"name": self.project_name, "domain": {"name": self.project_domain_name}}
        identity = {"methods": ["password"], "password": {"user": user}}
        return {"auth": {"identity": identity, "scope": {"project": project}}}


@dataclass(frozen=True, eq=False)
class Token:
    """A token, when to renew it (by the process's monotonic clock; None: when it is refused), and its catalog."""

    value: str = field(repr=False)
    renew_at: float | None
    catalog: object = field(repr=False)


class Authenticated:
    """Requests under one login. Concurrent requests share it, and share its renewal: a storm of 401 is one login.

    A login that failed is not tried again until `login` is called, for wrong passwords lock the user out
    (docs/upstream/real-keystone.md K12).
    """

    def __init__(
        self,
        http: Http,
        *,
        auth_url: str,
        credentials: Credentials,
        monotonic: Callable[[], float],
        token: Token | None = None,
    ) -> None:
        self._http = http
        self._auth_url = auth_url
        self._credentials = credentials
        self._monotonic = monotonic
        self._token = token
        self._refusal: CloudError | None = None
        self._one_login = asyncio.Lock()

    @property
    def held(self) -> Token | None:
        """The token in use; None before the first login and after one that failed."""
        return self._token

    async def login(self) -> Token:
        """Log in anew, whatever is held; raises CloudError."""
        async with self._one_login:
            self._refusal = None
            return await self._log_in()

    async def token(self) -> Token:
        """A token with life left in it; logs in where there is none."""
        held = self._token
        if held is not None and (held.renew_at is None or self._monotonic() < held.renew_at):
            return held
        return await self._replaced(held)

    async def request(self, method: str, url: str, *, expected: tuple[int, ...], body: object = None) -> Reply:
        """A request with the token; when the token is not taken, once more with a fresh one. Raises CloudError."""
        token = await self.token()
        reply = await self._http.send(method, url, token=token.value, body=body)
        if reply.status in STALE_TOKEN_STATUSES:
            token = await self._replaced(token)
            reply = await self._http.send(method, url, token=token.value, body=body)
        return reply.expect(*expected)

    async def _replaced(self, spent: Token | None) -> Token:
        """A token other than `spent`: the one somebody else fetched meanwhile, or a fresh one."""
        async with self._one_login:
            if self._token is not None and self._token is not spent:
                return self._token
            return await self._log_in()

    async def _log_in(self) -> Token:
        self._token = None
        if self._refusal is not None:
            raise CloudError(self._refusal.reason, self._refusal.detail)
        started = self._monotonic()
        try:
            reply = await self._http.send("POST", f"{self._auth_url}/auth/tokens", body=self._credentials.body())
            self._token = _token(reply.expect(201), issued_at=started)
        except CloudError as exc:
            self._refusal = exc
            raise
        return self._token


def _token(reply: Reply, *, issued_at: float) -> Token:
    value = reply.subject_token
    if not value or not value.isascii() or not value.isprintable():
        raise reply.bad("no usable X-Subject-Token")
    answer = reply.json()
    described = answer.get("token") if isinstance(answer, dict) else None
    if not isinstance(described, dict):
        raise reply.bad("no token described")
    life = _life_seconds(described.get("issued_at"), described.get("expires_at"))
    renew_at = None if life is None else issued_at + life - RENEW_SECONDS_BEFORE_EXPIRY
    return Token(value, renew_at, described.get("catalog"))


def _life_seconds(issued_at: object, expires_at: object) -> float | None:
    """How long a token lives, by its issuer's clock alone, for ours may differ from it by hours.

    None where that cannot be known, or is too short to renew ahead of: such a token is kept until it is refused.
    """
    try:
        life = (_moment(expires_at) - _moment(issued_at)).total_seconds()
    except (TypeError, ValueError):
        return None
    return life if life > 2 * RENEW_SECONDS_BEFORE_EXPIRY else None


def _moment(text: object) -> datetime:
    if not isinstance(text, str):
        raise TypeError("not a date")
    return datetime.fromisoformat(text)
