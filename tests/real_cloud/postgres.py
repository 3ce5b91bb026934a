"""One PostgreSQL for all Keystones of a test, on a unix socket in a folder of its own; stopped when its parent dies.

The binaries are given by the caller. PostgreSQL refuses to run as root, so root runs it as `nobody`.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psycopg2
import psycopg2.errors

START_TIMEOUT_SECONDS = 120
PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(signal_number: int = signal.SIGKILL) -> None:
    """For a child right after its fork: get this signal when the parent is gone, however it went."""
    _libc.prctl(PR_SET_PDEATHSIG, signal_number, 0, 0, 0)


class Postgres:
    """`start` begins the work and returns; `wait_until_ready` ends it, so that other things can be done meanwhile."""

    def __init__(self, *, binaries: Path, directory: Path) -> None:
        self._data = directory / "postgres"
        self._log = directory / "postgres.log"
        self._identity = _unprivileged()
        self._binaries = _reachable(binaries, directory) if self._identity else binaries
        self._initdb: subprocess.Popen[bytes] | None = None
        self._server: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._data.mkdir(mode=0o700)
        if self._identity:
            os.chown(self._data, self._identity["user"], self._identity["group"])
        self._initdb = self._run(
            "initdb", "-D", str(self._data), "-U", "postgres", "--auth=trust", "--encoding=UTF8", "--no-locale",
            "--no-sync", "--no-instructions", signal_number=signal.SIGKILL,
        )  # fmt: skip

    def wait_until_ready(self) -> None:
        if self._initdb is None or self._initdb.wait(START_TIMEOUT_SECONDS) != 0:
            raise RuntimeError(f"initdb failed: {self._log.read_text(errors='replace')[-2000:]}")
        settings = {"listen_addresses": "", "fsync": "off", "max_connections": "300", "shared_buffers": "32MB"}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        self._server = self._run(
            "postgres", "-D", str(self._data), "-k", str(self._data), *options, signal_number=signal.SIGQUIT
        )
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while not self._answers():
            if self._server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"postgres did not start: {self._log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.02)

    def url(self, database: str) -> str:
        return f"postgresql+psycopg2://postgres@/{database}?host={self._data}"

    def create_database(self, name: str, *, template: str = "template0") -> None:
        """A new database, empty or a copy of `template`, which nobody may be connected to.

        The session of a process that has ended ends a moment later."""
        connection = psycopg2.connect(host=str(self._data), user="postgres", dbname="postgres")
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                while not _created(cursor, name, template=template):
                    if time.monotonic() > deadline:
                        raise RuntimeError(f"database {template} is still in use")
        finally:
            connection.close()

    def stop(self) -> None:
        for process, signal_number in ((self._initdb, signal.SIGTERM), (self._server, signal.SIGINT)):
            if process is not None and process.poll() is None:
                process.send_signal(signal_number)
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    def _answers(self) -> bool:
        try:
            psycopg2.connect(host=str(self._data), user="postgres", dbname="postgres").close()
        except psycopg2.OperationalError:
            return False
        return True

    def _run(self, program: str, *arguments: str, signal_number: int) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [str(self._binaries / program), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._data,
                preexec_fn=lambda: die_with_parent(signal_number),  # noqa: PLW1509 - the host has one thread
                **(self._identity or {}),
            )


def _created(cursor: Any, name: str, *, template: str) -> bool:
    """False while somebody is connected to the template; PostgreSQL waits a few seconds for him to go."""
    try:
        cursor.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
    except psycopg2.errors.ObjectInUse:
        return False
    return True


def _unprivileged() -> dict[str, Any] | None:
    if os.geteuid() != 0:
        return None
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _reachable(binaries: Path, directory: Path) -> Path:
    """The binaries where `nobody` can read them: in place, or copied when a folder above them is closed to others."""
    if all(parent.stat().st_mode & 0o001 for parent in binaries.resolve().parents):
        return binaries
    installation = directory / "postgres-installation"
    shutil.copytree(binaries.resolve().parent, installation, symlinks=True)
    return installation / "bin"
