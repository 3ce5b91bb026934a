"""The keys that sign reports to the state service, from a file that is read again when it changes.

One key per line. The first signs; a second one is accepted as well, so that a key can be replaced without a pause.
"""

from __future__ import annotations

import os
from pathlib import Path

import structlog

from dcsync.model.errors import MisconfiguredError

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(__name__)

MOST_KEYS = 2
SHORTEST_KEY = 32
"""Characters; `openssl rand -hex 32` makes 64."""

Stamp = tuple[int, int, int]


def read_keys(path: Path) -> tuple[bytes, ...]:
    """Returns the keys of the file; raises ValueError, which shows none of them."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as exc:
        raise ValueError(f"{type(exc).__name__}: {path} cannot be read") from None
    keys = tuple(line.strip().encode() for line in lines if line.strip())
    if not 1 <= len(keys) <= MOST_KEYS:
        raise ValueError(f"{path} has {len(keys)} keys, one per line; must be 1 or {MOST_KEYS}")
    if any(len(key) < SHORTEST_KEY for key in keys):
        raise ValueError(f"{path}: a key has fewer than {SHORTEST_KEY} characters")
    return keys


class ReportKeys:
    """The keys of `path`; none where that is None. Raises MisconfiguredError for a file that is not valid.

    Thread-safe: a race reads the file twice.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._found: tuple[Stamp | None, tuple[bytes, ...]] = (None, ())
        self()

    def __call__(self) -> tuple[bytes, ...]:
        """Returns the keys as the file has them now, or the last valid ones while it is missing or invalid."""
        if self._path is None:
            return ()
        stamp = _stamp(self._path)
        last_stamp, keys = self._found
        if keys and stamp in (None, last_stamp):
            return keys
        try:
            keys = read_keys(self._path)
        except ValueError as exc:
            if not keys:
                raise MisconfiguredError(f"DCSYNC_REPORT_KEY_FILE: {exc}") from None
            log.warning("no usable report keys; the previous ones stay in use", error=str(exc))
        self._found = (stamp, keys)
        return keys


def _stamp(path: Path) -> Stamp | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size
