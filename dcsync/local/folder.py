"""The data folder: where it is, who may reach it, and that only one process uses it at a time.

PostgreSQL refuses to run as root, so root's servers run as `nobody`, and that user must be able to reach their files.
Folders that dcsync makes are made so; the permissions of any other folder are never changed, only reported.
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
    """The user the servers run as when we are root; None: our own."""
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
    """DCSYNC_DATA_DIR; else /var/lib/dcsync for root; else the user's data home."""
    if chosen := environ.get("DCSYNC_DATA_DIR"):
        return Path(chosen).expanduser().absolute()
    if os.geteuid() == 0:
        return Path("/var/lib/dcsync")
    home = environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(home).absolute() / "dcsync"


def make_folder(path: Path, *, mode: int, owner: User | None = None) -> Path:
    """Make `path`; its missing parents become searchable for all. An existing folder is left as it is."""
    try:
        for parent in reversed(path.parents):
            _make_one(parent, mode=0o711, owner=None)
        _make_one(path, mode=mode, owner=owner)
    except OSError as exc:
        raise MisconfiguredError(f"{exc.filename}: {exc.strerror}; set DCSYNC_DATA_DIR to a folder you own") from exc
    return path


def _make_one(path: Path, *, mode: int, owner: User | None) -> None:
    if path.is_dir():
        return
    path.mkdir()
    path.chmod(mode)
    if owner is not None:
        os.chown(path, owner.uid, owner.gid)


def make_data_dir(path: Path) -> Path:
    """Make the data folder if need be, and check that the servers' user reaches it; MisconfiguredError if not."""
    user = server_user()
    make_folder(path, mode=0o711 if user else 0o700)
    if user and (obstacle := folder_in_the_way(path, user)):
        raise MisconfiguredError(
            f"PostgreSQL runs as {user.name} when dcsync is root, and {user.name} may not pass {obstacle}: "
            f"allow it (chmod o+x {obstacle}), or set DCSYNC_DATA_DIR to a folder that everybody can reach"
        )
    return path


def folder_in_the_way(path: Path, user: User) -> Path | None:
    """The first folder on the way to `path`, itself included, that `user` may not pass."""
    path = path.resolve()
    for folder in (*reversed(path.parents), path):
        if folder.is_dir() and not _may_pass(folder.stat(), user):
            return folder
    return None


def _may_pass(status: os.stat_result, user: User) -> bool:
    if status.st_uid == user.uid:
        return bool(status.st_mode & stat.S_IXUSR)
    if status.st_gid == user.gid:
        return bool(status.st_mode & stat.S_IXGRP)
    return bool(status.st_mode & stat.S_IXOTH)


def write_private(path: Path, text: str, *, owner: User | None = None) -> None:
    """Replace the file in one step; only `owner` (or we) may read it."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    if owner is not None:
        os.chown(fresh, owner.uid, owner.gid)
    fresh.replace(path)


class FolderLock:
    """Held by one process at a time, and let go by the kernel when that process ends, however it ends."""

    def __init__(self, path: Path, *, what: str) -> None:
        self.path = path
        self._what = what
        self._descriptor: int | None = None

    @property
    def held(self) -> bool:
        return self._descriptor is not None

    def take(self) -> None:
        """RefusedByGuard, naming the holder, when another process has it."""
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if not _lock_soon(descriptor):
            holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            raise RefusedByGuard(f"{self._what} is already running on {self.path.parent} (process {holder})")
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        self._descriptor = descriptor

    def is_taken(self) -> bool:
        """By some process, ours included, at this moment."""
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
    """Whoever only looks whether the lock is taken holds it for an instant: so try for a moment."""
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
