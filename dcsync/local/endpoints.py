"""Where the embedded servers of a running `dcsync up` are, for the other commands on this machine.

A file in the data folder that only its owner may read. It is believed only while the `dcsync up` that wrote it runs:
that one holds a lock which the kernel takes back when the process ends.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from dcsync.local.folder import FolderLock, default_data_dir, write_private

FILE_NAME = "endpoints.json"
LOCK_NAME = "up.lock"


def up_lock(data_dir: Path) -> FolderLock:
    """Held by the `dcsync up` that runs on this data folder."""
    return FolderLock(data_dir / LOCK_NAME, what="dcsync up")


def find_endpoints(environ: Mapping[str, str]) -> dict[str, str]:
    """DCSYNC_DATABASE_URL and DCSYNC_REDIS_URL of the servers that `dcsync up` has embedded, where `environ` has none.

    Empty when no `dcsync up` runs on this machine's data folder, or when it is another user's.
    """
    data_dir = default_data_dir(environ)
    try:
        stored = json.loads((data_dir / FILE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not up_lock(data_dir).is_taken():
        return {}
    return {name: url for name, url in stored.items() if not is_set(environ, name)}


def is_set(environ: Mapping[str, str], name: str) -> bool:
    """By itself, or as the name of a file."""
    return bool(environ.get(name) or environ.get(f"{name}_FILE"))


def write_endpoints(data_dir: Path, urls: Mapping[str, str]) -> None:
    write_private(data_dir / FILE_NAME, json.dumps(dict(urls)))


def remove_endpoints(data_dir: Path) -> None:
    (data_dir / FILE_NAME).unlink(missing_ok=True)
