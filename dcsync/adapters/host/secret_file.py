"""A secret in a file, read again whenever it is needed: it may be changed while the process runs."""

from __future__ import annotations

from pathlib import Path


class SecretFile:
    """Calling it returns the secret as the file has it now.

    While the file is empty or cannot be read, as it may be during its replacement, that is what it had last.
    """

    def __init__(self, path: Path, *, last: str) -> None:
        self._path = path
        self._last = last

    def __call__(self) -> str:
        try:
            found = self._path.read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError):
            found = ""
        self._last = found or self._last
        return self._last
