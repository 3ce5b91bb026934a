"""A TCP proxy in front of a server, which does to connections what networks do.

with Proxy(server.port) as proxy:
    proxy.port               where clients connect
    proxy.swallow()          what is open stays open and nothing passes any more; new connections pass
    proxy.swallow_all()      the same, for new connections as well
    proxy.cut()              what is open is closed
    proxy.delay = 0.5        each piece of traffic waits this many seconds
    proxy.target = port      new connections lead to another server, like an address that moves in a failover
"""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from typing import Self

HOST = "127.0.0.1"
CHUNK = 65536


class _Pair:
    """One client and the server it was connected to."""

    def __init__(self, proxy: Proxy, client: socket.socket, *, swallowed: bool) -> None:
        self._proxy = proxy
        self.swallowed = swallowed
        self._client = client
        self._server = socket.create_connection((HOST, proxy.target), timeout=10)
        self._server.settimeout(None)
        for source, sink in ((client, self._server), (self._server, client)):
            threading.Thread(target=self._pass_on, args=(source, sink), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(CHUNK):
                if self._proxy.delay:
                    time.sleep(self._proxy.delay)
                if not self.swallowed:
                    sink.sendall(data)
        if not self.swallowed:
            self.close()

    def close(self) -> None:
        for end in (self._client, self._server):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


class Proxy:
    def __init__(self, target: int) -> None:
        self.target = target
        self.delay = 0.0
        self.connections = 0
        """How many clients have connected so far."""
        self._swallows_new = False
        self._pairs: list[_Pair] = []
        self._listener = socket.create_server((HOST, 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self.connections += 1
                try:
                    self._pairs.append(_Pair(self, client, swallowed=self._swallows_new))
                except OSError:
                    client.close()

    def swallow(self) -> None:
        for pair in self._pairs:
            pair.swallowed = True

    def swallow_all(self) -> None:
        self._swallows_new = True
        self.swallow()

    def pass_new(self) -> None:
        self._swallows_new = False

    def cut(self) -> None:
        pairs, self._pairs = self._pairs, []
        for pair in pairs:
            pair.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # Closing alone would leave the thread in accept(), which keeps the port open for one more client.
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
