"""One TCP connection to a cloud: cuts the byte stream into requests, and sends answers, broken ones where asked to.

One request at a time; a second one on the same connection waits. HTTP/1.1 as far as ordinary clients speak it.
"""

from __future__ import annotations

import asyncio
from typing import Protocol, cast

from dcsync.fake_cloud.faults import DRIP_SECONDS, Fault
from dcsync.fake_cloud.wire import Request, Response

_MAX_HEAD = 65536
_FLOOD = b"10000\r\n" + b"[1, 2, 3, 4, 5],"[:16] * 4096 + b"\r\n"
_GARBAGE = b"\x15\x03\x01\x00\x02\x02\x28 this is not HTTP \x00\xff\r\n\r\n"


class Receiver(Protocol):
    """Whoever answers the requests of a connection."""

    connections: set[Connection]

    def take(self, request: Request, connection: Connection) -> None:
        """Answers by calling `connection.deliver`, at once, later or never."""


class Connection(asyncio.Protocol):
    """The server's end of one connection."""

    __slots__ = ("_buffer", "_busy", "_closing", "_flooding", "_paused", "_receiver", "_transport", "loop")

    def __init__(self, receiver: Receiver, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._receiver = receiver
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._busy = self._closing = self._paused = self._flooding = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own transports are no subclass
        self._receiver.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._receiver.connections.discard(self)
        self._transport = None

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        if self._flooding:
            self._flood()

    def data_received(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        if not self._busy:
            self._next()

    def abort(self) -> None:
        """Cuts the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    def _next(self) -> None:
        try:
            parsed = parse(self._buffer)
        except ValueError:
            self._buffer = b""
            self._closing = True
            self.deliver(Response(400, b'{"error": "not HTTP"}'), None)
            return
        if parsed is None:
            return
        request, length = parsed
        self._buffer = self._buffer[length:]
        self._busy = True
        self._closing = request.headers.get("connection", "").lower() == "close"
        self._receiver.take(request, self)

    def _written(self) -> None:
        self._busy = False
        if self._closing and self._transport is not None:
            self._transport.close()
        elif self._buffer:
            self._next()

    def deliver(self, response: Response, fault: Fault | None) -> None:
        """Sends the answer, spoilt as the fault says. On a closed connection it is discarded."""
        if self._transport is None:
            return
        kind = fault.kind if fault else ""
        if kind in ("reset", "lost-answer"):
            self._transport.abort()
        elif kind == "garbage":
            self._transport.write(_GARBAGE)
            self._transport.close()
        elif kind in ("hang-mid-body", "truncated"):
            self._stop_midway(response, cut=kind == "truncated")
        elif kind == "endless":
            self._begin_flood()
        elif kind == "drip":
            self._drip(response.head() + response.body, 0, (fault.seconds if fault else 0) or DRIP_SECONDS)
        elif kind != "hang":
            self._transport.write(response.head() + response.body)
            self._written()

    def _stop_midway(self, response: Response, *, cut: bool) -> None:
        assert self._transport is not None  # deliver() looked
        body = response.body
        length = max(len(body), 2)
        self._transport.write(response.head(length=length) + body[: length // 2])
        if cut:
            self._transport.close()

    def _drip(self, data: bytes, position: int, seconds: float) -> None:
        if self._transport is None:
            return
        self._transport.write(data[position : position + 1])
        if position + 1 < len(data):
            self.loop.call_later(seconds, self._drip, data, position + 1, seconds)
        else:
            self._written()

    def _begin_flood(self) -> None:
        assert self._transport is not None  # deliver() looked
        self._flooding = True
        self._transport.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n[\r\n"
        )
        self._flood()

    def _flood(self) -> None:
        if self._transport is not None and not self._paused and not self._transport.is_closing():
            self._transport.write(_FLOOD)
            self.loop.call_soon(self._flood)


def parse(data: bytes) -> tuple[Request, int] | None:
    """The first whole request of `data` and its length, None when more must come; raises ValueError if it is not."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        if len(data) > _MAX_HEAD:
            raise ValueError("head too long")
        return None
    lines = data[:end].decode("latin-1").split("\r\n")
    verb, target, _version = lines[0].split(" ")
    headers = {}
    for line in lines[1:]:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    start = end + 4
    if "chunked" in headers.get("transfer-encoding", "").lower():
        body, stop = _chunks(data, start)
    else:
        stop = start + int(headers.get("content-length") or 0)
        body = data[start:stop] if len(data) >= stop else None
    if body is None:
        return None
    path, _, query = target.partition("?")
    return Request(verb, path, query, headers, body), stop


def _chunks(data: bytes, position: int) -> tuple[bytes | None, int]:
    body = b""
    while (line_end := data.find(b"\r\n", position)) >= 0:
        size = int(data[position:line_end].split(b";")[0], 16)
        position = line_end + 2 + size + 2
        if len(data) < position:
            break
        if not size:
            return body, position
        body += data[line_end + 2 : position - 2]
    return None, 0
