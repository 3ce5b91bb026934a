"""Login to Keystone, and requests with its token, which is renewed before it expires and once when it is rejected.

One `Authenticated` is for one session with one cloud; a token is sent only to the cloud that issued it. Each login asks
`RefusedLogins` first what was refused before, by this or another process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import assert_never

import structlog

from dcsync.adapters.cloud.http import Http, Reply
from dcsync.model.errors import CloudError
from dcsync.model.reasons import Reason
from dcsync.runs.logins import Account, Admitted, Busy, HeldBack, RefusedLogins, Verdict

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(__name__)

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


class PasswordLogin:
    """Sends logins with the password as it is at that moment, unless it was refused and must wait."""

    def __init__(
        self,
        credentials: Credentials,
        *,
        refused: RefusedLogins,
        password: Callable[[], str] | None = None,
        is_last_resort: bool = False,
        patience_seconds: float = 30,
        monotonic: Callable[[], float],
    ) -> None:
        """`password` returns it as it is now; by default it is that of the credentials. `patience_seconds`: how long to
        wait for another login of this user that is in progress at the same cloud."""
        self._credentials = credentials
        self._refused = refused
        self._password = password or (lambda: credentials.password)
        self._is_last_resort = is_last_resort
        self._patience = patience_seconds
        self._monotonic = monotonic

    async def send(self, http: Http, *, auth_url: str) -> Reply:
        """Returns the reply to a login, without a catalog, which may list thousands of endpoints. Raises CloudError, as
        auth-failed without any I/O while it must wait."""
        account, permit = await self._admitted(auth_url)
        verdict = Verdict.UNKNOWN
        try:
            body = replace(self._credentials, password=account.password).body()
            reply = await http.send("POST", f"{auth_url}/auth/tokens?nocatalog", body=body)
            verdict = _VERDICTS.get(reply.status, Verdict.UNKNOWN)
        finally:
            held = await asyncio.shield(asyncio.to_thread(self._refused.settle, account, permit, verdict))
        if held is not None:
            log.warning(
                "login refused",
                cloud=account.cloud,
                user=account.user,
                in_a_row=held.in_a_row,
                retry_at=_shown(held.retry_at),
            )
        return reply

    async def forget_refusal(self, auth_url: str) -> None:
        """Lets the next login send the current password although this cloud refused it: it has the password now."""
        await asyncio.to_thread(lambda: self._refused.forget(self._account(auth_url)))

    async def _admitted(self, auth_url: str) -> tuple[Account, str]:
        deadline, pause = self._monotonic() + self._patience, FIRST_PAUSE_SECONDS
        while True:
            account, found = await self._ask(auth_url)
            match found:
                case Admitted(permit):
                    return account, permit
                case HeldBack():
                    raise CloudError(Reason.AUTH_FAILED, _held_back(account, found))
                case Busy():
                    if self._monotonic() >= deadline:
                        raise CloudError(Reason.TIMEOUT, _busy(account, self._patience))
                case _:
                    assert_never(found)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    async def _ask(self, auth_url: str) -> tuple[Account, Admitted | Busy | HeldBack]:
        """Asks for a permit; one that is given after this coroutine was cancelled is given back."""
        asking = asyncio.ensure_future(asyncio.to_thread(self._ask_now, auth_url))
        try:
            return await asyncio.shield(asking)
        except asyncio.CancelledError:
            asking.add_done_callback(self._give_back)
            raise

    def _ask_now(self, auth_url: str) -> tuple[Account, Admitted | Busy | HeldBack]:
        account = self._account(auth_url)
        return account, self._refused.admit(account)

    def _give_back(self, asked: asyncio.Future[tuple[Account, Admitted | Busy | HeldBack]]) -> None:
        if asked.cancelled() or asked.exception() is not None:
            return
        account, found = asked.result()
        if isinstance(found, Admitted):
            asked.get_loop().run_in_executor(None, self._refused.settle, account, found.permit, Verdict.UNKNOWN)

    def _account(self, auth_url: str) -> Account:
        scheme, _, rest = auth_url.partition("://")
        host, slash, path = rest.partition("/")
        credentials = self._credentials
        return Account(
            cloud=f"{scheme}://{host.rpartition('@')[2]}{slash}{path}",
            user=credentials.username,
            password=self._password(),
            scope="\0".join((credentials.user_domain_name, credentials.project_name, credentials.project_domain_name)),
            is_last_resort=self._is_last_resort,
        )


FIRST_PAUSE_SECONDS = 0.02
LONGEST_PAUSE_SECONDS = 0.25
"""Between two looks whether another login of the same user has ended; most take a third of a second."""

_VERDICTS = {201: Verdict.ACCEPTED, 401: Verdict.REFUSED}


def _busy(account: Account, seconds: float) -> str:
    return f"POST {account.cloud}/auth/tokens: another login of {account.user} takes longer than {seconds:g} s"


def _held_back(account: Account, held: HeldBack) -> str:
    """Returns a text that stays the same until the next try."""
    call = f"POST {account.cloud}/auth/tokens"
    if held.in_a_row == 0:
        what = f"too many logins of {account.user} were refused, the last one at {_shown(held.refused_at)}"
    else:
        what = f"401 at {_shown(held.refused_at)}"
    return f"{call}: {what}; not tried again with this password before {_shown(held.retry_at)}"


def _shown(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")


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
        login: PasswordLogin,
        monotonic: Callable[[], float],
        token: Token | None = None,
    ) -> None:
        self._http = http
        self._auth_url = auth_url
        self._login = login
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
            reply = await self._login.send(self._http, auth_url=self._auth_url)
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
