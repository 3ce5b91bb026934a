"""Supervises processes: starts them in order, restarts those that end, stops them in order and within a time limit.

`up` defines the processes. Everything runs in the main thread, because the kernel ties a leashed child to the thread
that started it.
"""

from __future__ import annotations

import select
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Protocol, Self

from dcsync.local.leash import leashed
from dcsync.local.servers import MAX_LOG_BYTES, last_lines, open_log
from dcsync.model.errors import DcsyncError, LocalProcessFailed

FIRST_BACKOFF_SECONDS = 0.5
LONGEST_BACKOFF_SECONDS = 30.0
STEADY_SECONDS = 30.0
"""A process that ran this long before it ended is restarted after the first backoff."""
LOOK_AGAIN_SECONDS = 1.0
SHRINK_LOGS_SECONDS = 15.0


class Supervised(Protocol):
    """One supervised process: an embedded server or a `ChildProcess`."""

    @property
    def name(self) -> str: ...
    @property
    def pid(self) -> int | None:
        """The process id; None when it does not run."""

    @property
    def exit_code(self) -> int | None:
        """The exit code of the last run; negative is the number of the signal that ended it."""

    @property
    def log_file(self) -> Path: ...

    def start(self) -> None:
        """Raises a DcsyncError when it cannot be started."""

    def ask_to_stop(self) -> None:
        """Sends the stop signal without waiting."""

    def stop(self) -> None:
        """Sends the stop signal unless it was sent, waits, and kills the process if needed; harmless when it ended."""

    def kill(self) -> None:
        """Kills it immediately."""


class ChildProcess:
    """A program of dcsync with its output in a log file. It is killed when this process dies."""

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        *,
        environ: Mapping[str, str],
        cwd: Path,
        log_file: Path,
        stop_seconds: float,
    ) -> None:
        self.name = name
        self.argv = tuple(argv)
        self.log_file = log_file
        self._environ = dict(environ)
        self._cwd = cwd
        self._stop_seconds = stop_seconds
        self._stop_by: float | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process and self._process.poll() is None else None

    @property
    def exit_code(self) -> int | None:
        return self._process.poll() if self._process else None

    def start(self) -> None:
        if self.pid is not None:
            return
        self._stop_by = None
        try:
            with open_log(self.log_file) as log:
                self._process = subprocess.Popen(
                    leashed(self.argv, death_signal=signal.SIGKILL),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd=self._cwd,
                    env=self._environ,
                    start_new_session=True,
                )
        except OSError as exc:
            raise LocalProcessFailed(f"{self.name} cannot be started: {exc.filename}: {exc.strerror}") from exc

    def ask_to_stop(self) -> None:
        if self.pid is not None and self._process is not None:
            self._stop_by = time.monotonic() + self._stop_seconds
            self._process.send_signal(signal.SIGTERM)

    def stop(self) -> None:
        if self._stop_by is None:
            self.ask_to_stop()
        if self._process is not None and self._stop_by is not None:
            # The signal is not sent twice, because Celery treats a second one differently.
            try:
                self._process.wait(timeout=max(0.0, self._stop_by - time.monotonic()))
            except subprocess.TimeoutExpired:
                self.kill()

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def __repr__(self) -> str:
        return f"ChildProcess({self.name!r}, pid={self.pid})"


@dataclass
class _Watch:
    """The supervisor's state of one process."""

    child: Supervised
    started_at: float = 0.0
    backoff: float = FIRST_BACKOFF_SECONDS
    start_again_at: float | None = None


@dataclass
class Supervisor:
    """Starts `stages` in order, and stops them in reverse order, the members of a stage together."""

    stages: Sequence[Sequence[Supervised]]
    say: Callable[[str], None]
    clock: Callable[[], float] = time.monotonic
    restarts: int = 0
    _watches: list[_Watch] = field(default_factory=list)
    _shrink_logs_at: float = 0.0

    def start(self, *, interrupted: Callable[[], bool] = lambda: False) -> None:
        """Starts everything in order, until it is interrupted. Raises the error of a failed start."""
        for child in (child for stage in self.stages for child in stage):
            if interrupted():
                return
            child.start()
            self._watches.append(_Watch(child, started_at=self.clock()))
            self.say(f"{child.name} started, process {child.pid}")

    def look(self) -> float:
        """Restarts ended processes after their backoff; returns the seconds until it must be called again."""
        now = self.clock()
        for watch in self._watches:
            self._look_at(watch, now)
        self._shrink_logs(now)
        due = [watch.start_again_at - now for watch in self._watches if watch.start_again_at is not None]
        return max(0.0, min([LOOK_AGAIN_SECONDS, *due]))

    def stop(self) -> None:
        for stage in reversed(self.stages):
            running = [child for child in stage if child.pid is not None]
            for child in running:
                child.ask_to_stop()
            for child in stage:
                child.stop()
                if child in running:
                    self.say(f"{child.name} stopped{_how(child.exit_code, polite=True)}")
        self._watches.clear()

    def kill(self) -> None:
        """Kills everything, in the order of `stop`."""
        for child in (child for stage in reversed(self.stages) for child in stage):
            child.kill()
            child.stop()
        self._watches.clear()

    def _look_at(self, watch: _Watch, now: float) -> None:
        child = watch.child
        if child.pid is not None:
            return
        if watch.start_again_at is None:
            if now - watch.started_at >= STEADY_SECONDS:
                watch.backoff = FIRST_BACKOFF_SECONDS
            watch.start_again_at = now + watch.backoff
            self.say(
                f"{child.name} ended{_how(child.exit_code)}; it starts again in {watch.backoff:g} s. "
                f"{child.log_file} ends with: {last_lines(child.log_file, 1)}"
            )
        if now >= watch.start_again_at:
            self._start_again(watch)

    def _start_again(self, watch: _Watch) -> None:
        watch.backoff = min(watch.backoff * 2, LONGEST_BACKOFF_SECONDS)
        watch.start_again_at = None
        self.restarts += 1
        try:
            watch.child.start()
        except DcsyncError as exc:
            self.say(str(exc))
        else:
            self.say(f"{watch.child.name} started again, process {watch.child.pid}")
        watch.started_at = self.clock()

    def _shrink_logs(self, now: float) -> None:
        if now >= self._shrink_logs_at:
            self._shrink_logs_at = now + SHRINK_LOGS_SECONDS
            for watch in self._watches:
                shrink_log(watch.child.log_file)


def _how(exit_code: int | None, *, polite: bool = False) -> str:
    if exit_code is None or (polite and exit_code in {0, -signal.SIGTERM}):
        return ""
    if exit_code < 0:
        return f" by {signal.Signals(-exit_code).name}"
    return f" with exit code {exit_code}"


def shrink_log(path: Path, *, limit: int = MAX_LOG_BYTES) -> None:
    """Copies a large log to an old file and truncates it; its writer, which appends, continues."""
    if path.exists() and path.stat().st_size > limit:
        shutil.copyfile(path, path.with_name(f"{path.name}.1"))
        with path.open("rb+") as log:
            log.truncate()


class Tails:
    """New complete lines of several growing files, prefixed with the file's name."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = dict(files)
        self._offsets = {name: path.stat().st_size if path.exists() else 0 for name, path in files.items()}

    def new_lines(self) -> list[str]:
        return [f"{name} | {line}" for name, path in self._files.items() for line in self._lines_of(name, path)]

    def _lines_of(self, name: str, path: Path) -> list[str]:
        try:
            with path.open("rb") as file:
                if file.seek(0, 2) < self._offsets[name]:
                    self._offsets[name] = 0
                file.seek(self._offsets[name])
                whole = file.read().rpartition(b"\n")[0]
        except FileNotFoundError:
            return []
        if not whole:
            return []
        self._offsets[name] += len(whole) + 1
        return whole.decode(errors="replace").split("\n")


class StopSignals:
    """Handles SIGINT, SIGTERM and SIGHUP: the first requests a stop, the next raises KeyboardInterrupt.

    `wait` also returns early when a child ends, so that fast polling is not needed.
    """

    ASK_TO_STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> Self:
        self._reader, self._writer = socket.socketpair()
        for end in (self._reader, self._writer):
            end.setblocking(False)
        self._wakeup_before = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        # Signals ignored by nohup or a shell without job control stay ignored.
        handled = [number for number in self.ASK_TO_STOP if signal.getsignal(number) is not signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._on_stop) for number in handled}
        self._before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, _ignore)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        self._reader.close()
        self._writer.close()

    def wait(self, seconds: float) -> bool:
        """Waits for a signal, `seconds` at most; returns whether a stop was requested."""
        if not self.asked and select.select([self._reader], [], [], seconds)[0]:
            self._reader.recv(4096)
        return self.asked

    def interrupted(self) -> bool:
        return self.asked

    def _on_stop(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


def _ignore(number: int, frame: FrameType | None) -> None:
    """Does nothing; Python writes to the wake-up descriptor only for signals with a handler."""
