"""Login to Keystone, and requests with its token, which is renewed before it expires and once when it is rejected.

One `Authenticated` is for one session with one cloud; a token is sent only to the cloud that issued it.
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
"""401, and also 404: Keystone answers 404 to every call with a token of a rewritten user or project, and a client that
logs in again only on 401 never recovers. Source: docs/upstream/real-keystone.md K4."""


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """The login of dcsync, the same on the central cloud and on every subcloud."""

    username: str
    password: str = field(repr=False)
    project_name: str
    user_domain_name: str
    project_domain_name: str

    def body(self) -> dict[str, object]:
        """Returns the body of the login request. Source: docs/upstream/http-contracts.md section 2.1."""
        user = {"name": self.username, "domain": {"name": self.user_domain_name}, "password": self.password}
        project = {"name": self.project_name, "domain": {"name": self.project_domain_name}}
        identity = {"methods": ["password"], "password": {"user": user}}
        return {"auth": {"identity": identity, "scope": {"project": project}}}


@dataclass(frozen=True, eq=False)
class Token:
    """A token, and when to renew it, by the process's monotonic clock; None: when it is rejected."""

    value: str = field(repr=False)
    renew_at: float | None


class Authenticated:
    """Requests with one login. Concurrent requests share the token and its renewal: many 401 cause one login.

    A failed login is not retried until `login` is called, because wrong passwords lock the user out
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
        self._login_error: CloudError | None = None
        self._one_login = asyncio.Lock()

    @property
    def held(self) -> Token | None:
        """The current token; None before the first login and after a failed one."""
        return self._token

    async def login(self) -> Token:
        """Logs in again, also with a valid token; raises CloudError."""
        async with self._one_login:
            self._login_error = None
            return await self._log_in()

    async def token(self) -> Token:
        """Returns a token that is not about to expire; logs in if there is none."""
        held = self._token
        if held is not None and (held.renew_at is None or self._monotonic() < held.renew_at):
            return held
        return await self._renewed(held)

    async def request(self, method: str, url: str, *, expected: tuple[int, ...], body: object = None) -> Reply:
        """Sends a request with the token; if it is rejected, once more with a new one. Raises CloudError."""
        token = await self.token()
        reply = await self._http.send(method, url, token=token.value, body=body)
        if reply.status in STALE_TOKEN_STATUSES:
            token = await self._renewed(token)
            reply = await self._http.send(method, url, token=token.value, body=body)
        return reply.expect(*expected)

    async def _renewed(self, rejected: Token | None) -> Token:
        """Returns a token other than `rejected`: the one another request fetched meanwhile, or a new one."""
        async with self._one_login:
            if self._token is not None and self._token is not rejected:
                return self._token
            return await self._log_in()

    async def _log_in(self) -> Token:
        self._token = None
        if self._login_error is not None:
            raise CloudError(self._login_error.reason, self._login_error.detail)
        started = self._monotonic()
        try:
            url = f"{self._auth_url}/auth/tokens?nocatalog"
            reply = await self._http.send("POST", url, body=self._credentials.body())
            self._token = _token(reply.expect(201), issued_at=started)
        except CloudError as exc:
            self._login_error = exc
            raise
        return self._token


def _token(reply: Reply, *, issued_at: float) -> Token:
    value = reply.subject_token
    if not value or not value.isascii() or not value.isprintable():
        raise reply.bad("no usable X-Subject-Token")
    answer = reply.json()
    body = answer.get("token") if isinstance(answer, dict) else None
    if not isinstance(body, dict):
        raise reply.bad("no token in the body")
    life = _life_seconds(body.get("issued_at"), body.get("expires_at"))
    renew_at = None if life is None else issued_at + life - RENEW_SECONDS_BEFORE_EXPIRY
    return Token(value, renew_at)


def _life_seconds(issued_at: object, expires_at: object) -> float | None:
    """Returns the lifetime of a token by its issuer's clock, from which the local clock may differ by hours.

    None where it is unknown or too short to renew in advance: such a token is used until it is rejected.
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
