"""Signs of life of a worker or beat, for its supervisor: a touched file and systemd's notify socket.

A worker is responsive while its consumer's loop turns. Waiting for an unavailable broker, and letting runs end while
stopping, count as responsive, because a restart would not help. Whether work is done is checked by `dcsync service
monitor`, from the record each process writes (see `dcsync.tasks.record`).
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
"""The interval of signs; supervisors tolerate several missing ones."""
STUCK_SECONDS = 30.0
"""A loop that has not turned for this long is stuck; a timer makes it turn every SIGN_SECONDS."""


class SignsOfLife:
    """Shows that this process is responsive. Errors in doing so are ignored."""

    def __init__(self, *, file: Path | None, notify_socket: str | None) -> None:
        self._file = file
        self._notify_socket = notify_socket
        self._is_ready = False

    def show(self) -> None:
        """Touches the file and notifies systemd; the first time also that this process is ready."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.touch()
        if self._notify_socket:
            self._notify_systemd("WATCHDOG=1" if self._is_ready else "READY=1\nWATCHDOG=1")
        self._is_ready = True

    def _notify_systemd(self, text: str) -> None:
        """Sends one datagram as sd_notify(3) does; a name that begins with @ is in the abstract namespace."""
        assert self._notify_socket is not None
        address = f"\0{self._notify_socket[1:]}" if self._notify_socket.startswith("@") else self._notify_socket
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.setblocking(False)
            channel.sendto(text.encode(), address)


def signs_of_life(settings: Settings) -> SignsOfLife:
    """Returns those of this process: DCSYNC_ALIVE_FILE, and the socket systemd sets for a Type=notify service."""
    return SignsOfLife(file=settings.alive_file, notify_socket=os.environ.get("NOTIFY_SOCKET"))


class ConsumerWatch:
    """Watches whether Celery's consumer is responsive."""

    def __init__(self, consumer: Any, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._consumer = consumer
        self._monotonic = monotonic
        self._entry: Any = None
        self.is_stopping = False
        self.turned()

    def watch(self) -> None:
        """Starts the timer that records turns; again after each new connection, whose loss may have cleared it."""
        self.turned()
        if self._entry is not None:
            self._entry.cancel()
        self._entry = self._consumer.timer.call_repeatedly(SIGN_SECONDS, self.turned)

    def turned(self) -> None:
        """Records that the loop turned."""
        self.last_turn = self._monotonic()

    def is_responsive(self) -> bool:
        is_connecting = self._consumer.connection is None
        return is_connecting or self.is_stopping or self._monotonic() - self.last_turn < STUCK_SECONDS


_watches: list[ConsumerWatch] = []
"""The watch of this process, once its worker is ready."""


@worker_ready.connect
def _watch_consumer(sender: Any, **_: Any) -> None:
    """Celery sends this signal after each new connection to the broker."""
    if not _watches:
        _watches.append(ConsumerWatch(sender))
        signs = signs_of_life(process_of(sender.app).settings)
        threading.Thread(target=_show_while_responsive, args=(signs,), name="signs-of-life", daemon=True).start()
    _watches[0].watch()
    record.note_consumer(sender, last_turn=lambda: _watches[0].last_turn)


def _show_while_responsive(signs: SignsOfLife) -> None:
    forever = threading.Event()
    while True:
        if _watches[0].is_responsive():
            signs.show()
        forever.wait(SIGN_SECONDS)


@worker_shutting_down.connect
def _stopping(**_: Any) -> None:
    for watch in _watches:
        watch.is_stopping = True


class BeatScheduler(PersistentScheduler):
    """Celery's scheduler with a sign of life at each tick; `beat_max_loop_interval` limits the time between
    ticks. A clock that is set back does not stop it."""

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
        self._forget_the_future()
        return super().tick(*args, **kwargs)

    def _forget_the_future(self) -> None:
        """What was sent in the future was sent before this host's clock was set back, and is due again an interval from
        now: Celery would send nothing until that clock has caught up, also after a restart, for it keeps the times in a
        file."""
        now = self.app.now()
        ahead = [entry for entry in self.schedule.values() if entry.last_run_at > now]
        for entry in ahead:
            entry.last_run_at = now
        if ahead:
            self._heap = None

    def apply_entry(self, entry: Any, producer: Any = None) -> None:
        """Logs one line when sending fails; Celery would log two tracebacks for every entry at every tick."""
        try:
            self.apply_async(entry, producer=producer, advance=False)
        except SchedulingError as exc:
            is_away = isinstance(exc.__context__, OperationalError | OSError)
            log.warning(
                "scheduled task not sent",
                task=entry.task,
                error=str(exc.__context__),
                exc_info=None if is_away else exc,
            )

    def apply_async(self, *args: Any, **kwargs: Any) -> Any:
        sent = super().apply_async(*args, **kwargs)
        self._record.sent()
        return sent
