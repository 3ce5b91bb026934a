"""What the replies of one session may cost this process, and returning its memory afterwards.

A cloud that sends more than its share fails alone: its run ends with reply-too-large, and no other run waits for it.
"""

from __future__ import annotations

import asyncio
import ctypes
import socket
import time
from collections.abc import Callable
from typing import Any

from dcsync.model.errors import CloudError
from dcsync.model.reasons import Reason

RETURN_MEMORY_AFTER_BYTES = 8 * 1024 * 1024
RETURN_MEMORY_DELAY_SECONDS = 5.0
"""After the reply: the run that read it still holds what it needs of it."""


OVERHEAD_BYTES = 4 * 1024 * 1024
OVERHEAD_BYTES_PER_REQUEST = 256 * 1024
"""What may arrive in a session beside bodies: headers, TLS, chunk sizes, and bodies of errors, which are not read."""
WIRE_BYTES_PER_BODY_BYTE = 2


class Cost:
    """The bytes received in one session, and the CPU time spent on parsing them."""

    def __init__(self, *, max_bytes: int, max_cpu_seconds: float) -> None:
        self._max_bytes = max_bytes
        self._max_cpu_seconds = max_cpu_seconds
        self.received_bytes = 0
        self.cpu_seconds = 0.0
        self.is_flooded = False
        self._requests = 0
        self._wire_bytes = 0

    def request(self) -> None:
        """Counts a request, whose reply may have headers."""
        self._requests += 1

    def arrive(self, size: int) -> None:
        """Adds bytes that arrived at a socket of the session; raises ConnectionAbortedError when they are far more than
        belong to replies: endless interim replies (100 Continue) or chunk extensions, which the HTTP client skips
        without end."""
        self._wire_bytes += size
        overhead = OVERHEAD_BYTES + OVERHEAD_BYTES_PER_REQUEST * self._requests
        if self._wire_bytes > overhead + WIRE_BYTES_PER_BODY_BYTE * self.received_bytes:
            self.is_flooded = True
            raise ConnectionAbortedError("flooded")

    def receive(self, size: int, *, call: str) -> None:
        """Adds bytes of a reply; raises CloudError(reply-too-large) above the limit of the session."""
        self.received_bytes += size
        if self.received_bytes > self._max_bytes:
            raise CloudError(Reason.REPLY_TOO_LARGE, f"{call}: more than {self._max_bytes} bytes in one run")

    def spend(self, cpu_seconds: float, *, call: str) -> None:
        """Adds CPU time; raises CloudError(reply-too-large) above the limit of the session."""
        self.cpu_seconds += cpu_seconds
        if self.cpu_seconds > self._max_cpu_seconds:
            raise CloudError(
                Reason.REPLY_TOO_LARGE,
                f"{call}: parsing the replies of one run took more than {self._max_cpu_seconds:g} s of CPU",
            )


class CountedSocket(socket.socket):
    """A socket that passes the size of everything received to `count`, which may raise OSError."""

    count: Callable[[int], None]

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        received = super().recv(bufsize, flags)
        self.count(len(received))
        return received

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0, /) -> int:
        size = super().recv_into(buffer, nbytes, flags)
        self.count(size)
        return size


class ReturnedMemory:
    """Returns freed memory to the operating system some seconds after large replies, at most once in that time.

    glibc keeps what it freed below the last block in use, so that one hostile reply would enlarge a worker for good.
    """

    def __init__(
        self, trim: Callable[[], object] | None = None, *, delay_seconds: float = RETURN_MEMORY_DELAY_SECONDS
    ) -> None:
        self._trim = trim or malloc_trim
        self._delay_seconds = delay_seconds
        self._bytes = 0
        self._due_at = 0.0

    def received(self, size: int) -> None:
        """Counts the bytes of an ended session; schedules a trim on the running loop once they are many."""
        self._bytes += size
        now = time.monotonic()
        if self._bytes >= RETURN_MEMORY_AFTER_BYTES and now >= self._due_at:
            self._bytes = 0
            self._due_at = now + self._delay_seconds
            loop = asyncio.get_running_loop()
            loop.call_later(self._delay_seconds, lambda: loop.run_in_executor(None, self._trim))


def malloc_trim() -> None:
    """Returns glibc's free memory to the operating system; does nothing with another C library."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
