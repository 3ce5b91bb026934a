"""A real PgBouncer in transaction mode in front of a PostgreSQL, where it is installed."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from dcsync.local.folder import server_user
from dcsync.local.servers import free_port
from tests.processes import wait_until

PROGRAM = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin")
is_installed = pytest.mark.skipif(
    PROGRAM is None, reason="PgBouncer is not installed (Debian: apt-get install pgbouncer)"
)


@contextmanager
def pgbouncer(url: str, folder: Path, *, options: str = "") -> Iterator[str]:
    """Yields the URL of the same database through PgBouncer, with two sessions at PostgreSQL for all clients."""
    parts = urlsplit(url)
    port = free_port()
    (folder / "users.txt").write_text(f'"{parts.username}" "{parts.password}"\n')
    config = folder / "pgbouncer.ini"
    config.write_text(
        f"[databases]\n* = host={parts.hostname} port={parts.port}\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = plain\n"
        f"auth_file = {folder}/users.txt\npool_mode = transaction\n"
        f"default_pool_size = 2\nmax_client_conn = 200\n{options}\n"
    )
    user = server_user()
    if user is not None:
        for path in (folder, config, folder / "users.txt"):
            os.chown(path, user.uid, user.gid)
    assert PROGRAM is not None
    with (folder / "pgbouncer.log").open("wb") as log:
        process = subprocess.Popen(
            [PROGRAM, str(config)],
            stdout=log,
            stderr=subprocess.STDOUT,
            user=user.uid if user else None,
            group=user.gid if user else None,
            extra_groups=[] if user else None,
        )
    try:
        wait_until(lambda: _listens(port), seconds=20, what="PgBouncer listens")
        yield f"postgresql://{parts.username}:{parts.password}@127.0.0.1:{port}{parts.path}"
    finally:
        process.kill()
        process.wait()


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
