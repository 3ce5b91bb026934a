"""The data folder: its location, its permissions, and the lock that lets only one process use it.

PostgreSQL refuses to run as root, so root's servers run as `nobody`, and that user needs access to their files. Folders
that dcsync creates allow it; the permissions of any other folder are never changed, only reported.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import stat
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dcsync.model.errors import MisconfiguredError, RefusedByGuard

SERVER_USER = "nobody"
LOCK_PATIENCE_SECONDS = 0.5


@dataclass(frozen=True)
class User:
    name: str
    uid: int
    gid: int


def server_user() -> User | None:
    """Returns the user the servers run as when dcsync is root; None for the current user."""
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam(SERVER_USER)
    except KeyError:
        raise MisconfiguredError(
            f"PostgreSQL does not run as root, and this system has no user {SERVER_USER}; run dcsync as another user"
        ) from None
    return User(name=entry.pw_name, uid=entry.pw_uid, gid=entry.pw_gid)


def default_data_dir(environ: Mapping[str, str]) -> Path:
    """Returns DCSYNC_DATA_DIR; by default /var/lib/dcsync for root, and the user's data home for others."""
    if chosen := environ.get("DCSYNC_DATA_DIR"):
        return Path(chosen).expanduser().absolute()
    if os.geteuid() == 0:
        return Path("/var/lib/dcsync")
    home = environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(home).absolute() / "dcsync"


def make_folder(path: Path, *, mode: int, owner: User | None = None) -> Path:
    """Creates `path`, and missing parents searchable for all. An existing folder is not changed."""
    try:
        for parent in reversed(path.parents):
            _create_folder(parent, mode=0o711, owner=None)
        _create_folder(path, mode=mode, owner=owner)
    except OSError as exc:
        raise MisconfiguredError(f"{exc.filename}: {exc.strerror}; set DCSYNC_DATA_DIR to a folder you own") from exc
    return path


def _create_folder(path: Path, *, mode: int, owner: User | None) -> None:
    if path.is_dir():
        return
    path.mkdir()
    path.chmod(mode)
    if owner is not None:
        os.chown(path, owner.uid, owner.gid)


def make_data_dir(path: Path) -> Path:
    """Creates the data folder if needed; raises MisconfiguredError when the servers' user has no access to it."""
    user = server_user()
    make_folder(path, mode=0o711 if user else 0o700)
    if user and (obstacle := inaccessible_folder(path, user)):
        raise MisconfiguredError(
            f"PostgreSQL runs as {user.name} when dcsync is root, and {user.name} has no access to {obstacle}: "
            f"allow it (chmod o+x {obstacle}), or set DCSYNC_DATA_DIR to a folder that all users can access"
        )
    return path


def inaccessible_folder(path: Path, user: User) -> Path | None:
    """Returns the first of `path` and its parents that `user` may not search."""
    path = path.resolve()
    for folder in (*reversed(path.parents), path):
        if folder.is_dir() and not _may_search(folder.stat(), user):
            return folder
    return None


def _may_search(status: os.stat_result, user: User) -> bool:
    if status.st_uid == user.uid:
        return bool(status.st_mode & stat.S_IXUSR)
    if status.st_gid == user.gid:
        return bool(status.st_mode & stat.S_IXGRP)
    return bool(status.st_mode & stat.S_IXOTH)


def write_private(path: Path, text: str, *, owner: User | None = None) -> None:
    """Replaces the file atomically; only `owner` (by default the current user) may read it."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    if owner is not None:
        os.chown(fresh, owner.uid, owner.gid)
    fresh.replace(path)


class FolderLock:
    """A lock held by one process at a time; the kernel releases it when that process ends."""

    def __init__(self, path: Path, *, what: str) -> None:
        self.path = path
        self._what = what
        self._descriptor: int | None = None

    @property
    def held(self) -> bool:
        return self._descriptor is not None

    def take(self) -> None:
        """Acquires the lock; raises RefusedByGuard, naming the holder, when another process holds it."""
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if not _lock_soon(descriptor):
            holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            raise RefusedByGuard(f"{self._what} is already running on {self.path.parent} (process {holder})")
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        self._descriptor = descriptor

    def is_taken(self) -> bool:
        """Returns whether any process, including this one, holds it now."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            return not _try_lock(descriptor, fcntl.LOCK_SH)
        finally:
            os.close(descriptor)

    def give_back(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _lock_soon(descriptor: int) -> bool:
    """Retries briefly, because `is_taken` of another process holds the lock for an instant."""
    deadline = time.monotonic() + LOCK_PATIENCE_SECONDS
    while not _try_lock(descriptor, fcntl.LOCK_EX):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
