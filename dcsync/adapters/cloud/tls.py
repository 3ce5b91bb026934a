"""Trusted certificates: one TLS context per process, replaced when the CA file changes.

Creating a context per connection would take more CPU than a whole sync. Verification cannot be disabled.
"""

from __future__ import annotations

import logging
import os
import ssl
from pathlib import Path

from dcsync.model.errors import CloudError
from dcsync.model.reasons import Reason

_log = logging.getLogger(__name__)

Stamp = tuple[int, int, int]


class Trust:
    """The TLS context of `ca_file`; of the system's certificates where that is None."""

    def __init__(self, ca_file: Path | None) -> None:
        self._ca_file = ca_file
        self._context: ssl.SSLContext | None = None
        self._stamp: Stamp | None = None

    def context(self) -> ssl.SSLContext:
        """Returns the context for a new connection, the same object until the CA file changes.

        While the file is missing or incomplete the last valid context stays in use. Raises CloudError(tls-failed) when
        there is none.
        """
        stamp = self._stamp_on_disk()
        if self._context is not None and (stamp is None or stamp == self._stamp):
            return self._context
        try:
            self._context = ssl.create_default_context(cafile=self._ca_file)
        except (OSError, ssl.SSLError) as exc:
            if self._context is None:
                raise CloudError(Reason.TLS_FAILED, f"{self._ca_file}: no usable CA certificates") from exc
            _log.warning("%s: no usable CA certificates; the previous ones stay in use", self._ca_file)
        self._stamp = stamp
        return self._context

    def _stamp_on_disk(self) -> Stamp | None:
        if self._ca_file is None:
            return None
        try:
            found = os.stat(self._ca_file)
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino, found.st_size
