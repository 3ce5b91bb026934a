"""What each process of dcsync on this host says of itself, in a small file of its own, and whether it still lives.

A record is written every second by the process it is about. It carries the process's start time as the kernel tells
it, so that another process that was given the same id is never taken for it. What a record means for whoever
supervises the process is `dcsync.local.health`. Linux only: start times and states are read from /proc.
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
    """What a process is for; a worker may have two."""

    STATE = "state"
    SYNC = "sync"
    BEAT = "beat"


class Phase(StrEnum):
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessRecord:
    """One process as it sees itself. Moments are seconds of the host's monotonic clock, which all processes share."""

    pid: int
    started: int
    """Its start, as the kernel counts it."""
    system: str
    """Which dcsync it belongs to, see `system_of`."""
    roles: tuple[str, ...]
    name: str
    phase: Phase
    shown_at: float
    turned_at: float
    """When its loop last came round."""
    is_connected: bool
    """To the broker."""
    queues: tuple[str, ...] = ()
    """Those it is there for."""
    consumed: tuple[str, ...] = ()
    """Those it consumes at this moment."""
    threads: int = 0
    active: int = 0
    """Tasks at work."""
    taken: int = 0
    """Tasks begun since its start; of beat: messages sent."""
    progressed_at: float
    """When a task last ended, or beat last sent something; its start before that."""


class Life(StrEnum):
    ALIVE = "alive"
    STOPPED = "stopped"
    """By SIGSTOP, or by a debugger."""
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class Found:
    """A record, and what became of the process that wrote it."""

    record: ProcessRecord
    life: Life


def system_of(redis_url: str) -> str:
    """What tells one dcsync from another on the same host: its broker's address, without any password."""
    parts = urlsplit(redis_url)
    return f"{parts.netloc.rpartition('@')[2]}{parts.path}"


def start_of(pid: int) -> int | None:
    """When the process with this id was started, in the kernel's ticks since boot; None: there is none."""
    found = _stat(pid)
    return None if found is None else int(found[19])


def life_of(record: ProcessRecord) -> Life:
    """Whether the process that wrote it still runs."""
    found = _stat(record.pid)
    if found is None or int(found[19]) != record.started or found[0] in "ZXx":
        return Life.GONE
    return Life.STOPPED if found[0] in "Tt" else Life.ALIVE


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/<pid>/stat that follow the program's name, which may hold blanks and brackets."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()


class RecordFile:
    """The file of this process. That it cannot be written is no reason to stop working."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / f"{os.getpid()}.json"
        self._pid = os.getpid()
        self._is_prepared = False
        self._is_removed = False
        self._guard = threading.Lock()

    def write(self, record: ProcessRecord) -> None:
        """Replaces the file in one step; the first time files of processes that are gone are removed. Does nothing
        after `remove`: the thread that keeps a record may outlive its removal by a moment."""
        with self._guard, contextlib.suppress(OSError):
            if self._is_removed:
                return
            if not self._is_prepared:
                _make_private(self._folder)
                remove_old(self._folder)
                self._is_prepared = True
            fresh = self._folder / f".{self._path.name}"
            fresh.write_text(json.dumps(asdict(record)), encoding="utf-8")
            fresh.replace(self._path)

    def remove(self) -> None:
        """At the end of the process; does nothing in a child of it."""
        if os.getpid() == self._pid:
            with self._guard, contextlib.suppress(OSError):
                self._is_removed = True
                self._path.unlink(missing_ok=True)


def _make_private(folder: Path) -> None:
    """Raises OSError for a folder that somebody else made: he could write what he likes about our processes."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (os.geteuid(), 0):
        raise PermissionError(f"{folder} belongs to somebody else")


def find(folder: Path, *, role: Role, system: str | None) -> list[Found]:
    """Records of processes with this role of this system (None: any), in the folder and one below it."""
    found = [record for path in (*folder.glob("*.json"), *folder.glob("*/*.json")) if (record := _read(path))]
    own = [record for record in found if role in record.roles and system in (None, record.system)]
    return [Found(record, life_of(record)) for record in sorted(own, key=lambda record: record.pid)]


def remove_old(folder: Path) -> None:
    """Remove the records of processes that are gone."""
    for path in folder.glob("*.json"):
        record = _read(path)
        if record is None or life_of(record) is Life.GONE:
            path.unlink(missing_ok=True)


def _read(path: Path) -> ProcessRecord | None:
    """None for what is no record, or is gone meanwhile."""
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
