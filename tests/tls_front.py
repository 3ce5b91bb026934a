"""TLS in front of a real server that has none, for tests of its clients: what Redis and PostgreSQL do themselves."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

SSL_REQUEST = struct.pack("!ii", 8, 80877103)
"""What libpq sends first where it wants TLS; PostgreSQL answers S."""


class TlsFront:
    """Listens on a port of 127.0.0.1 with `certificate` and passes on to `port` what arrives.

    `received` counts the bytes that clients sent after they accepted the certificate; a client that refuses it sends
    none.
    """

    def __init__(self, port: int, *, certificate: Path, postgresql: bool = False) -> None:
        self._behind = port
        self._postgresql = postgresql
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate)
        self.received = 0
        self.connections = 0

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # A blocked accept() is not ended by close() alone.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self.connections += 1
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client:
            if self._postgresql:
                assert client.recv(8, socket.MSG_WAITALL) == SSL_REQUEST
                client.sendall(b"S")
            with (
                self._context.wrap_socket(client, server_side=True) as clear,
                socket.create_connection(("127.0.0.1", self._behind)) as server,
            ):
                threading.Thread(target=self._pass_back, args=(server, clear), daemon=True).start()
                while data := clear.recv(65536):
                    self.received += len(data)
                    server.sendall(data)

    @staticmethod
    def _pass_back(server: socket.socket, client: ssl.SSLSocket) -> None:
        with contextlib.suppress(OSError, ValueError):
            while data := server.recv(65536):
                client.sendall(data)
            client.shutdown(socket.SHUT_RDWR)
