"""Status files of dcsync's processes on this host, and whether each process is still running.

Each process writes its record every second. It contains the start time from the kernel, so that another process with
the same id is not mistaken for it. `dcsync.local.health` evaluates the records. Linux only: start times and states are
read from /proc.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from pathlib import Path
from urllib.parse import urlsplit


class Role(StrEnum):
    """The role of a process; a worker may have two."""

    STATE = "state"
    SYNC = "sync"
    BEAT = "beat"


class Phase(StrEnum):
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessRecord:
    """The status of one process. Times are seconds of the host's monotonic clock, which all processes share."""

    pid: int
    started: int
    """Its start time, in the kernel's ticks since boot."""
    system: str
    """The dcsync installation it belongs to, see `system_of`."""
    roles: tuple[str, ...]
    name: str
    phase: Phase
    shown_at: float
    turned_at: float
    """When its main loop last completed a turn."""
    is_connected: bool
    """Whether it is connected to the broker."""
    queues: tuple[str, ...] = ()
    """The queues it was started for."""
    consumed: tuple[str, ...] = ()
    """The queues it consumes now."""
    threads: int = 0
    active: int = 0
    """Running tasks."""
    taken: int = 0
    """Tasks started since its start; for beat: messages sent."""
    progressed_at: float
    """When a task last ended, or beat last sent a message; its start before that."""
    clock_ahead: float | None = None
    """Seconds by which its wall clock is ahead of the database's; None: not measured."""


class Life(StrEnum):
    ALIVE = "alive"
    STOPPED = "stopped"
    """Suspended by SIGSTOP or a debugger."""
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Found:
    """A record, and the state of the process that wrote it."""

    record: ProcessRecord
    life: Life


def system_of(redis_url: str) -> str:
    """Returns what distinguishes dcsync installations on one host: the broker's address, without the password."""
    parts = urlsplit(redis_url)
    return f"{parts.netloc.rpartition('@')[2]}{parts.path}"


def start_of(pid: int) -> int | None:
    """Returns the start time of this process, in the kernel's ticks since boot; None if there is no such process."""
    found = _stat(pid)
    return None if found is None else int(found[19])


def life_of(record: ProcessRecord) -> Life:
    """Returns whether the process that wrote the record is still running."""
    found = _stat(record.pid)
    if found is None or int(found[19]) != record.started or found[0] in "ZXx":
        return Life.ENDED
    return Life.STOPPED if found[0] in "Tt" else Life.ALIVE


def _stat(pid: int) -> list[str] | None:
    """Returns the fields of /proc/<pid>/stat after the program's name, which may contain spaces and brackets."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()


class RecordFile:
    """The record file of this process. Write errors are ignored."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / f"{os.getpid()}.json"
        self._pid = os.getpid()
        self._is_prepared = False
        self._is_removed = False
        self._guard = threading.Lock()

    def write(self, record: ProcessRecord) -> None:
        """Replaces the file atomically; the first call removes files of ended processes. Does nothing after `remove`,
        because the writing thread may run slightly longer."""
        with self._guard, contextlib.suppress(OSError):
            if self._is_removed:
                return
            if not self._is_prepared:
                _make_private(self._folder)
                remove_old(self._folder)
                self._is_prepared = True
            temporary = self._folder / f".{self._path.name}"
            temporary.write_text(json.dumps(asdict(record)), encoding="utf-8")
            temporary.replace(self._path)

    def remove(self) -> None:
        """Removes the file at the end of the process; does nothing in a child process."""
        if os.getpid() == self._pid:
            with self._guard, contextlib.suppress(OSError):
                self._is_removed = True
                self._path.unlink(missing_ok=True)


def _make_private(folder: Path) -> None:
    """Raises OSError for a folder owned by another user, who could forge records."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (os.geteuid(), 0):
        raise PermissionError(f"{folder} belongs to another user")


def find(folder: Path, *, role: Role, system: str | None) -> list[Found]:
    """Returns the records with this role and system (None: any), in the folder and its direct subfolders."""
    found = [record for path in (*folder.glob("*.json"), *folder.glob("*/*.json")) if (record := _read(path))]
    own = [record for record in found if role in record.roles and system in (None, record.system)]
    return [Found(record, life_of(record)) for record in sorted(own, key=lambda record: record.pid)]


def remove_old(folder: Path) -> None:
    """Removes the records of ended processes."""
    for path in folder.glob("*.json"):
        record = _read(path)
        if record is None or life_of(record) is Life.ENDED:
            path.unlink(missing_ok=True)


def _read(path: Path) -> ProcessRecord | None:
    """Returns None for an invalid or missing file."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        return _record(stored)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _record(stored: Mapping[str, object]) -> ProcessRecord:
    known = {field.name for field in fields(ProcessRecord)}
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in stored.items()}
    record = ProcessRecord(**{name: value for name, value in values.items() if name in known})  # type: ignore[arg-type]
    if not isinstance(record.pid, int) or record.pid <= 0:
        raise ValueError("no process id")
    return record
