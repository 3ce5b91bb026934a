"""The URLs of the embedded servers of a running `dcsync up`, for the other commands on this machine.

They are in a file in the data folder that only its owner may read. It is used only while the `dcsync up` that wrote it
runs, which holds a lock that the kernel releases when the process ends.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from dcsync.local.folder import FolderLock, default_data_dir, write_private

FILE_NAME = "endpoints.json"
LOCK_NAME = "up.lock"


def up_lock(data_dir: Path) -> FolderLock:
    """Returns the lock held by a `dcsync up` that uses this data folder."""
    return FolderLock(data_dir / LOCK_NAME, what="dcsync up")


def find_endpoints(environ: Mapping[str, str]) -> dict[str, str]:
    """Returns DCSYNC_DATABASE_URL and DCSYNC_REDIS_URL of the embedded servers, where `environ` does not set them.

    Empty when no `dcsync up` uses the data folder, or when the folder belongs to another user.
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
    """Returns whether the setting is given, directly or as a file."""
    return bool(environ.get(name) or environ.get(f"{name}_FILE"))


def write_endpoints(data_dir: Path, urls: Mapping[str, str]) -> None:
    write_private(data_dir / FILE_NAME, json.dumps(dict(urls)))


def remove_endpoints(data_dir: Path) -> None:
    (data_dir / FILE_NAME).unlink(missing_ok=True)
