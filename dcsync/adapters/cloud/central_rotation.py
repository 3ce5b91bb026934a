"""New key material, and the command that rotates the central cloud's keys.

Neither keys nor the command's output are kept or shown.
"""

from __future__ import annotations

import base64
import os
import shlex
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress

from dcsync.model.errors import KeyRotationFailed


def new_key() -> str:
    """Returns a fernet key: 32 random bytes from the operating system, encoded as in Keystone."""
    return base64.urlsafe_b64encode(os.urandom(32)).decode()


class RotateCommand:
    """Runs the command without a shell, and never retries it, because a second run would rotate again."""

    def __init__(self, arguments: Sequence[str], *, deadline_seconds: float) -> None:
        self._arguments = list(arguments)
        self._deadline = deadline_seconds

    def __call__(self) -> None:
        """Raises KeyRotationFailed when the command cannot be started, times out or fails."""
        try:
            process = subprocess.Popen(
                self._arguments,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=_environment(),
                start_new_session=True,
            )
        except OSError as exc:
            raise KeyRotationFailed(f"{self._arguments[0]} cannot be run: {exc.strerror}") from exc
        try:
            code = process.wait(self._deadline)
        except subprocess.TimeoutExpired as exc:
            raise KeyRotationFailed(f"{self._arguments[0]} took longer than {self._deadline:g} s") from exc
        finally:
            _end(process)
        if code != 0:
            raise KeyRotationFailed(f"{self._arguments[0]} ended with exit code {code}")


def rotate_command(text: str, *, deadline_seconds: float) -> RotateCommand:
    """Returns the command of DCSYNC_KEY_ROTATE_COMMAND, which the settings have validated."""
    return RotateCommand(shlex.split(text), deadline_seconds=deadline_seconds)


def _environment() -> dict[str, str]:
    """Returns the environment without dcsync's settings, so that the command does not receive its passwords."""
    return {name: value for name, value in os.environ.items() if not name.startswith("DCSYNC_")}


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kills the command and the processes it started, unless it has ended."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
