"""Signs of life of a worker or of beat, for whoever supervises it: a file that is touched, systemd's notify socket.

A worker gets on while its consumer's loop turns. Waiting for a broker that is away, and letting runs end at a stop,
count as getting on, for a restart would mend neither. Whether the work gets on is not asked here: the rows tell, and
`dcsync service monitor`, from the record of itself that each process keeps (see `dcsync.tasks.record`).
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog
from celery.beat import PersistentScheduler, SchedulingError
from celery.signals import worker_ready, worker_shutting_down
from kombu.exceptions import OperationalError

from dcsync.settings import Settings
from dcsync.tasks import record
from dcsync.tasks.base import process_of

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(__name__)

SIGN_SECONDS = 5.0
"""Between two signs; supervisors wait for several of them."""
STUCK_SECONDS = 30.0
"""A loop that has not turned for so long is stuck; it is asked to turn every SIGN_SECONDS."""


class SignsOfLife:
    """Where this process shows that it gets on. A sign that cannot be given is no reason to stop working."""

    def __init__(self, *, file: Path | None, notify_socket: str | None) -> None:
        self._file = file
        self._notify_socket = notify_socket
        self._is_ready = False

    def show(self) -> None:
        """Touch the file, and tell systemd; the first time also that this process is ready."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.touch()
        if self._notify_socket:
            self._tell_systemd("WATCHDOG=1" if self._is_ready else "READY=1\nWATCHDOG=1")
        self._is_ready = True

    def _tell_systemd(self, text: str) -> None:
        """sd_notify(3): one datagram; a name that begins with @ lies in the abstract name space."""
        assert self._notify_socket is not None
        address = f"\0{self._notify_socket[1:]}" if self._notify_socket.startswith("@") else self._notify_socket
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.setblocking(False)
            channel.sendto(text.encode(), address)


def signs_of_life(settings: Settings) -> SignsOfLife:
    """Of this process: DCSYNC_ALIVE_FILE, and the socket systemd names in the environment of a Type=notify service."""
    return SignsOfLife(file=settings.alive_file, notify_socket=os.environ.get("NOTIFY_SOCKET"))


class ConsumerWatch:
    """Does Celery's consumer get on?"""

    def __init__(self, consumer: Any, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._consumer = consumer
        self._monotonic = monotonic
        self._entry: Any = None
        self.is_stopping = False
        self.turned()

    def watch(self) -> None:
        """Ask the loop to tell its turns; anew after each new connection, for its loss may have cleared the timer."""
        self.turned()
        if self._entry is not None:
            self._entry.cancel()
        self._entry = self._consumer.timer.call_repeatedly(SIGN_SECONDS, self.turned)

    def turned(self) -> None:
        """The loop has come round."""
        self.last_turn = self._monotonic()

    def gets_on(self) -> bool:
        is_connecting = self._consumer.connection is None
        return is_connecting or self.is_stopping or self._monotonic() - self.last_turn < STUCK_SECONDS


_watches: list[ConsumerWatch] = []
"""The one of this process, once its worker is ready."""


@worker_ready.connect
def _watch_consumer(sender: Any, **_: Any) -> None:
    """Celery says so after each new connection to the broker."""
    if not _watches:
        _watches.append(ConsumerWatch(sender))
        signs = signs_of_life(process_of(sender.app).settings)
        threading.Thread(target=_show_while_getting_on, args=(signs,), name="signs-of-life", daemon=True).start()
    _watches[0].watch()
    record.note_consumer(sender, last_turn=lambda: _watches[0].last_turn)


def _show_while_getting_on(signs: SignsOfLife) -> None:
    never = threading.Event()
    while True:
        if _watches[0].gets_on():
            signs.show()
        never.wait(SIGN_SECONDS)


@worker_shutting_down.connect
def _stopping(**_: Any) -> None:
    for watch in _watches:
        watch.is_stopping = True


class BeatScheduler(PersistentScheduler):
    """Celery's own, which shows a sign of life at each tick; `beat_max_loop_interval` keeps ticks close enough."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._signs: SignsOfLife | None = None
        self._record: record.BeatRecord
        super().__init__(*args, **kwargs)

    def tick(self, *args: Any, **kwargs: Any) -> Any:
        if self._signs is None:
            self._signs = signs_of_life(process_of(self.app).settings)
            self._record = record.BeatRecord(process_of(self.app).settings)
        self._signs.show()
        self._record.ticked()
        return super().tick(*args, **kwargs)

    def apply_entry(self, entry: Any, producer: Any = None) -> None:
        """One line for what cannot be sent: Celery prints two stacks, for every entry at every tick of an outage."""
        try:
            self.apply_async(entry, producer=producer, advance=False)
        except SchedulingError as exc:
            is_away = isinstance(exc.__context__, OperationalError | OSError)
            log.warning("not sent", task=entry.task, error=str(exc.__context__), exc_info=None if is_away else exc)

    def apply_async(self, *args: Any, **kwargs: Any) -> Any:
        sent = super().apply_async(*args, **kwargs)
        self._record.sent()
        return sent
