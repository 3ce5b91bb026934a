"""One HTTP request to a cloud that is not trusted: deadlines, a size limit, and the one place that names failures.

No redirects, no proxies from the environment, no cookies, no compression. Logging in and repeating after a 401 is
`keystone.py`; what is asked of whom is `dbsync.py` and `sysinv.py`.
"""

from __future__ import annotations

import errno
import json
import os
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from yarl import URL

from dcsync.adapters.cloud.tls import Trust
from dcsync.model.errors import CloudError
from dcsync.model.reasons import Reason

LONGEST_RETRY_AFTER = 86400.0
"""Seconds: the longest hold-off there can be. A subcloud may ask for more than any clock can count."""

CONNECTIONS_PER_CLOUD = 16
"""At most; a run has four lists or a few users under way at once."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one request may cost; seconds and bytes."""

    connect_timeout: float = 10
    """To open a connection, TLS included."""
    read_timeout: float = 15
    """Between two pieces of an answer."""
    request_timeout: float = 30
    """All of one request."""
    max_reply_bytes: int = 16 * 1024 * 1024


@dataclass(frozen=True)
class Reply:
    """An answer. Its body may hold keys and hashes, its headers a token: neither is ever shown."""

    call: str
    status: int
    subject_token: str | None = field(repr=False)
    body: bytes = field(repr=False)
    retry_after: float | None = None

    def expect(self, *statuses: int) -> Reply:
        """Itself, if it has one of these statuses; else raises the CloudError its status stands for."""
        if self.status in statuses:
            return self
        raise CloudError(reason_for_status(self.status), f"{self.call}: {self.status}", self.retry_after)

    def json(self) -> Any:
        """The body as JSON; raises CloudError(bad-reply) for anything else, also for nesting without end."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            pass  # Raised below, unchained: the error's text would quote the body.
        raise self.bad("not JSON")

    def bad(self, what: str) -> CloudError:
        """The error for an answer of the wrong shape; `what` names shapes and fields, never their content."""
        return CloudError(Reason.BAD_REPLY, f"{self.call}: {self.status}, {what}")


class Http:
    """The connections of one use of one cloud. Made by `open_http`, which closes them."""

    def __init__(self, session: aiohttp.ClientSession, *, limits: Limits, trust: Trust) -> None:
        self._session = session
        self._limits = limits
        self._trust = trust

    async def send(self, method: str, url: str, *, token: str | None = None, body: object = None) -> Reply:
        """One request and its answer, whatever its status; only the body of a 2xx is read.

        `url` is already quoted. Raises CloudError for everything that is no answer.
        """
        headers = {"X-Auth-Token": token} if token else {}
        data = None
        if body is not None:
            headers["Content-Type"] = "application/json"
            data = json.dumps(body).encode()
        call = _call(method, url)
        try:
            return await self._exchange(method, url, call=call, headers=headers, data=data)
        except (aiohttp.ClientError, OSError, ValueError) as exc:
            failure = _failure(exc, call=call, limits=self._limits)
        raise failure  # Out here, so that only the cause chosen in _failure hangs on it.

    async def _exchange(
        self, method: str, url: str, *, call: str, headers: dict[str, str], data: bytes | None
    ) -> Reply:
        context = self._trust.context() if url.startswith("https:") else True
        async with self._session.request(
            method, URL(url, encoded=True), headers=headers, data=data, allow_redirects=False, ssl=context
        ) as response:
            body = await self._body(response, call=call) if 200 <= response.status < 300 else b""
            retry_after = _seconds(response.headers.get("Retry-After"))
            return Reply(call, response.status, response.headers.get("X-Subject-Token"), body, retry_after)

    async def _body(self, response: aiohttp.ClientResponse, *, call: str) -> bytes:
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise CloudError(Reason.BAD_REPLY, f"{call}: {response.status}, compressed although not asked for")
        limit = self._limits.max_reply_bytes
        if (response.content_length or 0) > limit:
            raise CloudError(Reason.REPLY_TOO_LARGE, f"{call}: {response.status}, more than {limit} bytes announced")
        pieces: list[bytes] = []
        size = 0
        async for piece in response.content.iter_any():
            size += len(piece)
            if size > limit:
                raise CloudError(Reason.REPLY_TOO_LARGE, f"{call}: {response.status}, more than {limit} bytes")
            pieces.append(piece)
        return b"".join(pieces)


@asynccontextmanager
async def open_http(*, limits: Limits, trust: Trust, request_id: str, reuse: bool = True) -> AsyncIterator[Http]:
    """Connections whose every request carries `request_id`; leaving closes their sockets.

    For one cloud; `reuse` False is for one request to each of many: any number at once, each closed when answered.
    """
    timeout = aiohttp.ClientTimeout(
        total=limits.request_timeout, sock_connect=limits.connect_timeout, sock_read=limits.read_timeout
    )
    headers = {
        "Accept": "application/json",
        "Accept-Encoding": "identity",
        "User-Agent": "dcsync",
        "User-Header": "distcloud",
        "X-Openstack-Request-Id": request_id,
    }
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=CONNECTIONS_PER_CLOUD if reuse else 0, force_close=not reuse),
        timeout=timeout,
        headers=headers,
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
        auto_decompress=False,
    ) as session:
        yield Http(session, limits=limits, trust=trust)


def _call(method: str, url: str) -> str:
    """ "PUT https://host:port/path", without the user and password a configured address may carry."""
    scheme, _, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    return f"{method} {scheme}://{host.rpartition('@')[2]}{slash}{path}"


# --- what a failure is called, all of it -------------------------------------------------------------------------


def _seconds(retry_after: str | None) -> float | None:
    """The number of seconds a Retry-After header asks for, a day at most; a date, and nonsense, count as none."""
    if not (retry_after and retry_after.isascii() and retry_after.isdigit()):
        return None
    return min(float(retry_after), LONGEST_RETRY_AFTER)


def reason_for_status(status: int) -> Reason:
    """What a status means that was not hoped for."""
    if status == 401:
        return Reason.AUTH_FAILED
    if status == 429:
        return Reason.TOO_MANY_REQUESTS
    if 400 <= status < 500:
        return Reason.REFUSED
    if status >= 500:
        return Reason.SERVER_ERROR
    return Reason.BAD_REPLY


_KINDS: tuple[tuple[type[BaseException], Reason, Callable[[Limits], str]], ...] = (
    # In this order: some of these are kinds of others. A certificate error is a connection error too.
    (aiohttp.ClientConnectorCertificateError, Reason.TLS_FAILED, lambda _: "its certificate is not trusted"),
    (aiohttp.ClientSSLError, Reason.TLS_FAILED, lambda _: "no TLS connection"),
    (ssl.SSLError, Reason.TLS_FAILED, lambda _: "the TLS connection broke"),
    (aiohttp.ConnectionTimeoutError, Reason.UNREACHABLE, lambda it: f"no connection within {it.connect_timeout:g} s"),
    (aiohttp.SocketTimeoutError, Reason.TIMEOUT, lambda it: f"silent for {it.read_timeout:g} s"),
    (TimeoutError, Reason.TIMEOUT, lambda it: f"no complete answer within {it.request_timeout:g} s"),
    (aiohttp.ClientConnectorDNSError, Reason.UNREACHABLE, lambda _: "no such host name"),
    (aiohttp.ClientConnectorError, Reason.UNREACHABLE, lambda _: "no connection"),
    (aiohttp.ServerDisconnectedError, Reason.UNREACHABLE, lambda _: "disconnected without an answer"),
    (OSError, Reason.UNREACHABLE, lambda _: "the connection broke"),
    (aiohttp.ClientPayloadError, Reason.BAD_REPLY, lambda _: "the answer is incomplete or garbled"),
    (ValueError, Reason.BAD_REPLY, lambda _: "not a usable address"),
    (aiohttp.ClientError, Reason.BAD_REPLY, lambda _: "not an HTTP answer"),
)


def _failure(exc: BaseException, *, call: str, limits: Limits) -> CloudError:
    """The CloudError for what aiohttp raised.

    Only errors of the operating system and of TLS are chained: aiohttp's own quote the answer, and an answer may
    echo the token it was sent (docs/upstream/recorded-traffic.md, 04: 5).
    """
    reason, words = next((reason, words(limits)) for kind, reason, words in _KINDS if isinstance(exc, kind))
    closer = _closer_words(exc)
    failure = CloudError(reason, f"{call}: {words} ({closer})" if closer else f"{call}: {words}")
    failure.__cause__ = exc if isinstance(exc, OSError) else None
    return failure


def _closer_words(exc: BaseException) -> str | None:
    """What the operating system or TLS says of it, as "Connection refused" or "certificate has expired"."""
    if isinstance(exc, aiohttp.ClientConnectorCertificateError):
        exc = exc.certificate_error
    elif isinstance(exc, aiohttp.ClientConnectorError):
        exc = exc.os_error
    if isinstance(exc, ssl.SSLCertVerificationError):
        return exc.verify_message
    if isinstance(exc, ssl.SSLError):
        return exc.reason
    if isinstance(exc, OSError) and exc.errno and exc.errno in errno.errorcode:
        return os.strerror(exc.errno)
    return None


_CENTRAL = {
    Reason.UNREACHABLE: Reason.CENTRAL_UNREACHABLE,
    Reason.TIMEOUT: Reason.CENTRAL_UNREACHABLE,
    Reason.TLS_FAILED: Reason.CENTRAL_UNREACHABLE,
    Reason.SERVER_ERROR: Reason.CENTRAL_UNREACHABLE,
    Reason.TOO_MANY_REQUESTS: Reason.CENTRAL_UNREACHABLE,
    Reason.AUTH_FAILED: Reason.CENTRAL_AUTH_FAILED,
    Reason.REFUSED: Reason.CENTRAL_BAD_REPLY,
    Reason.BAD_REPLY: Reason.CENTRAL_BAD_REPLY,
    Reason.REPLY_TOO_LARGE: Reason.CENTRAL_BAD_REPLY,
}


def of_central(error: CloudError) -> CloudError:
    """The same failure, said of the central cloud; one that is already is left as it is."""
    central = CloudError(_CENTRAL.get(error.reason, error.reason), error.detail, error.retry_after)
    central.__cause__ = error.__cause__
    return central
