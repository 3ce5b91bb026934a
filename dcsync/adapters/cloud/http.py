"""HTTP requests to clouds that are not trusted: limits of time, size and cost, and the mapping of failures to reasons.

No redirects, no proxies from the environment, no cookies, no compression. `keystone.py` logs in and repeats after a
401; the requests themselves are in `dbsync.py`, `keystone_api.py` and `sysinv.py`.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import aiohttp
from aiohttp import AddrInfoType
from yarl import URL

from dcsync.adapters.cloud.bounded_json import JsonLimits, Listed, TooDeep, TooMuch, listed, parsed
from dcsync.adapters.cloud.cost import Cost, CountedSocket, ReturnedMemory
from dcsync.adapters.cloud.owned_request import OwnedRequest
from dcsync.adapters.cloud.tls import Trust
from dcsync.model.errors import CloudError
from dcsync.model.outside_text import cut
from dcsync.model.reasons import Reason

T = TypeVar("T")

LONGEST_RETRY_AFTER = 86400.0
"""In seconds, the longest configurable hold-off. A subcloud may request a pause longer than a timedelta can hold."""

CONNECTIONS_PER_CLOUD = 16
"""The maximum; a run sends up to four list requests or a few user updates at once."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The limits of one request, in seconds and bytes, and of all requests of a session."""

    connect_timeout: float = 10
    """To open a connection, including TLS."""
    read_timeout: float = 15
    """Between two parts of a reply."""
    request_timeout: float = 30
    """For the whole request."""
    max_reply_bytes: int = 16 * 1024 * 1024
    json: JsonLimits = field(default_factory=JsonLimits)
    max_run_bytes: int = 64 * 1024 * 1024
    """In all replies of one session."""
    max_run_cpu: float = 10
    """CPU seconds for parsing all replies of one session."""

    def cost(self) -> Cost:
        """Returns the cost of a new session."""
        return Cost(max_bytes=self.max_run_bytes, max_cpu_seconds=self.max_run_cpu)


_memory = ReturnedMemory()


@dataclass(frozen=True)
class Reply:
    """A reply. Its body may contain keys and hashes, its headers a token: neither is ever shown."""

    call: str
    status: int
    subject_token: str | None = field(repr=False)
    body: bytes = field(repr=False)
    retry_after: float | None = None
    limits: JsonLimits = field(default_factory=JsonLimits, repr=False)
    cost: Cost | None = field(default=None, repr=False)

    def expect(self, *statuses: int) -> Reply:
        """Returns the reply if it has one of these statuses; otherwise raises the CloudError for its status."""
        if self.status in statuses:
            return self
        raise CloudError(reason_for_status(self.status), f"{self.call}: {self.status}", self.retry_after)

    def json(self) -> Any:
        """Returns the body of a small reply as JSON; raises CloudError(bad-reply) for anything else, and
        reply-too-large for more values than allowed."""
        started = time.thread_time()
        try:
            value = parsed(self.body, self.limits)
        except (ValueError, TooMuch) as exc:
            failure = self._unusable(exc)
        else:
            self._spend(time.thread_time() - started)
            return value
        raise failure  # Unchained: the error's text would quote the body.

    async def listed(self, read: Callable[[Any], T], *, key: str | None = None) -> Listed[T] | None:
        """Returns what `read` makes of each element of the list that is the body, or its member `key`; None when there
        is no such list. Parsed in slices. Raises CloudError as `json`, and whatever `read` raises."""
        try:
            return await listed(self.body, self.limits, read=read, key=key, spend=self._spend)
        except (ValueError, TooMuch) as exc:
            failure = self._unusable(exc)
        raise failure  # Unchained: the error's text would quote the body.

    def _spend(self, cpu_seconds: float) -> None:
        if self.cost is not None:
            self.cost.spend(cpu_seconds, call=self.call)

    def _unusable(self, exc: ValueError | TooMuch) -> CloudError:
        if isinstance(exc, TooMuch):
            return CloudError(Reason.REPLY_TOO_LARGE, f"{self.call}: {self.status}, {exc}")
        return self.bad(str(exc) if isinstance(exc, TooDeep) else "not JSON")

    def bad(self, what: str) -> CloudError:
        """Returns the error for a malformed reply; `what` names types and fields, never their content."""
        return CloudError(Reason.BAD_REPLY, f"{self.call}: {self.status}, {what}")


class Http:
    """The connections of one session with one cloud, opened and closed by `open_http`."""

    def __init__(self, session: aiohttp.ClientSession, *, limits: Limits, trust: Trust, cost: Cost) -> None:
        self._session = session
        self._limits = limits
        self._trust = trust
        self.cost = cost

    async def send(self, method: str, url: str, *, token: str | None = None, body: object = None) -> Reply:
        """Sends one request and returns the reply, whatever its status; only the body of a 2xx is read.

        `url` is already quoted. Raises CloudError when there is no valid HTTP reply.
        """
        headers = {"X-Auth-Token": token} if token else {}
        data = None
        if body is not None:
            headers["Content-Type"] = "application/json"
            data = json.dumps(body).encode()
        call = _call(method, url)
        self.cost.request()
        try:
            return await self._exchange(method, url, call=call, headers=headers, data=data)
        except (aiohttp.ClientError, OSError, ValueError) as exc:
            failure = _failure(exc, call=call, limits=self._limits)
        if self.cost.is_flooded:
            raise CloudError(Reason.REPLY_TOO_LARGE, f"{call}: a flood of headers, interim replies or chunk sizes")
        raise failure  # Outside the except block, so that only the cause chosen in _failure is chained.

    async def _exchange(
        self, method: str, url: str, *, call: str, headers: dict[str, str], data: bytes | None
    ) -> Reply:
        context = self._trust.context() if url.startswith("https:") else True
        async with self._session.request(
            method, URL(url, encoded=True), headers=headers, data=data, allow_redirects=False, ssl=context
        ) as response:
            body = await self._body(response, call=call) if 200 <= response.status < 300 else b""
            retry_after = _seconds(response.headers.get("Retry-After"))
            token = response.headers.get("X-Subject-Token")
            return Reply(call, response.status, token, body, retry_after, self._limits.json, self.cost)

    async def _body(self, response: aiohttp.ClientResponse, *, call: str) -> bytes:
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise CloudError(Reason.BAD_REPLY, f"{call}: {response.status}, compressed although not requested")
        limit = self._limits.max_reply_bytes
        if (response.content_length or 0) > limit:
            raise CloudError(Reason.REPLY_TOO_LARGE, f"{call}: {response.status}, more than {limit} bytes announced")
        pieces: list[bytes] = []
        size = 0
        async for piece in response.content.iter_any():
            size += len(piece)
            self.cost.receive(len(piece), call=call)
            if size > limit:
                raise CloudError(Reason.REPLY_TOO_LARGE, f"{call}: {response.status}, more than {limit} bytes")
            pieces.append(piece)
        return b"".join(pieces)


@asynccontextmanager
async def open_http(*, limits: Limits, trust: Trust, request_id: str, reuse: bool = True) -> AsyncIterator[Http]:
    """Yields connections whose requests all carry `request_id`, and closes their sockets.

    For one cloud. With `reuse` False for one request to each of many clouds: any number of connections, none reused.
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
    cost = limits.cost()
    connector = aiohttp.TCPConnector(
        limit=CONNECTIONS_PER_CLOUD if reuse else 0,
        force_close=not reuse,
        socket_factory=_counting_sockets(cost.arrive if reuse else None, most_bytes=4 * limits.max_reply_bytes),
    )
    async with aiohttp.ClientSession(
        connector=connector,
        timeout=timeout,
        headers=headers,
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
        auto_decompress=False,
        request_class=OwnedRequest,
    ) as session:
        http = Http(session, limits=limits, trust=trust, cost=cost)
        try:
            yield http
        finally:
            _memory.received(http.cost.received_bytes)


def _counting_sockets(
    count: Callable[[int], None] | None, *, most_bytes: int
) -> Callable[[AddrInfoType], socket.socket]:
    """Returns a factory of sockets counted by `count`; with None each receives `most_bytes` at most."""

    def make(address: AddrInfoType) -> socket.socket:
        family, type_, proto, _, _ = address
        made = CountedSocket(family, type_, proto)
        made.count = count or _at_most(most_bytes)
        return made

    return make


def _at_most(most_bytes: int) -> Callable[[int], None]:
    received = 0

    def count(size: int) -> None:
        nonlocal received
        received += size
        if received > most_bytes:
            raise ConnectionAbortedError("more than a reply")

    return count


def _call(method: str, url: str) -> str:
    """Returns "PUT https://host:port/path", without a user and password in the configured URL, and with the first
    characters of a long path, which may contain ids of up to 255 characters."""
    scheme, _, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    return f"{method} {scheme}://{host.rpartition('@')[2]}{slash}{cut(path)}"


# --- failures and their reasons ----------------------------------------------------------------------------------


def _seconds(retry_after: str | None) -> float | None:
    """Returns the seconds of a Retry-After header, a day at most; None for a date or an invalid value."""
    if not (retry_after and retry_after.isascii() and retry_after.isdigit()):
        return None
    return min(float(retry_after), LONGEST_RETRY_AFTER)


def reason_for_status(status: int) -> Reason:
    """Returns the reason for an unexpected status."""
    if status == 401:
        return Reason.AUTH_FAILED
    if status == 429:
        return Reason.TOO_MANY_REQUESTS
    if 400 <= status < 500:
        return Reason.REFUSED
    if status >= 500:
        return Reason.SERVER_ERROR
    return Reason.BAD_REPLY


_FAILURES: tuple[tuple[type[BaseException], Reason, Callable[[Limits], str]], ...] = (
    # The order matters, because some are subclasses of others: a certificate error is a connection error too.
    (aiohttp.ClientConnectorCertificateError, Reason.TLS_FAILED, lambda _: "its certificate is not trusted"),
    (aiohttp.ClientSSLError, Reason.TLS_FAILED, lambda _: "no TLS connection"),
    (ssl.SSLError, Reason.TLS_FAILED, lambda _: "the TLS connection failed"),
    (aiohttp.ConnectionTimeoutError, Reason.UNREACHABLE, lambda it: f"no connection within {it.connect_timeout:g} s"),
    (aiohttp.SocketTimeoutError, Reason.TIMEOUT, lambda it: f"no data for {it.read_timeout:g} s"),
    (TimeoutError, Reason.TIMEOUT, lambda it: f"no complete reply within {it.request_timeout:g} s"),
    (aiohttp.ClientConnectorDNSError, Reason.UNREACHABLE, lambda _: "no such host name"),
    (aiohttp.ClientConnectorError, Reason.UNREACHABLE, lambda _: "no connection"),
    (aiohttp.ServerDisconnectedError, Reason.UNREACHABLE, lambda _: "disconnected without a reply"),
    (OSError, Reason.UNREACHABLE, lambda _: "the connection was lost"),
    (aiohttp.ClientPayloadError, Reason.BAD_REPLY, lambda _: "the reply is incomplete or malformed"),
    (ValueError, Reason.BAD_REPLY, lambda _: "not a valid URL"),
    (aiohttp.ClientError, Reason.BAD_REPLY, lambda _: "not an HTTP reply"),
)


def _failure(exc: BaseException, *, call: str, limits: Limits) -> CloudError:
    """Returns the CloudError for an exception of aiohttp.

    Only errors of the operating system and of TLS are chained: aiohttp's own quote the reply, and a reply may contain
    the token that was sent (docs/upstream/recorded-traffic.md, 04: 5).
    """
    reason, words = next((reason, words(limits)) for class_, reason, words in _FAILURES if isinstance(exc, class_))
    detail = _system_text(exc)
    failure = CloudError(reason, f"{call}: {words} ({detail})" if detail else f"{call}: {words}")
    failure.__cause__ = exc if isinstance(exc, OSError) else None
    return failure


def _system_text(exc: BaseException) -> str | None:
    """Returns the text of the operating system or TLS, as "Connection refused" or "certificate has expired"."""
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
    """Returns the failure with the corresponding central-* reason; one that has it already is unchanged."""
    central = CloudError(_CENTRAL.get(error.reason, error.reason), error.detail, error.retry_after)
    central.__cause__ = error.__cause__
    return central
