"""Makes the virtual environment that Keystone runs in, once: `python -m tests.real_cloud.environment`.

It stands in the repository root and is made anew when the pins, the Python or its place change. What runs inside it
is `host.py`.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = Path(__file__).with_name("requirements.txt")
VENV = ROOT / ".keystone-venv"
INSTALL_TIMEOUT_SECONDS = 900


class EnvironmentUnavailableError(Exception):
    """The environment could not be made, for instance because there is no network."""


def ensure() -> Path:
    """The environment's Python, after making the environment if it is not there; safe to call from many processes.

    Raises EnvironmentUnavailableError with the end of what the installer said.
    """
    with _one_at_a_time():
        if not _is_current():
            _build()
    return _python()


def _python() -> Path:
    return VENV / "bin" / "python"


def _stamp() -> Path:
    return VENV / "made-from"


def _wanted() -> str:
    made_from = "\n".join((REQUIREMENTS.read_text(encoding="utf-8"), sys.version, sys.base_prefix, str(VENV)))
    return hashlib.sha256(made_from.encode()).hexdigest()


def _is_current() -> bool:
    return _python().exists() and _stamp().exists() and _stamp().read_text(encoding="utf-8") == _wanted()


def _build() -> None:
    shutil.rmtree(VENV, ignore_errors=True)
    _run(sys.executable, "-m", "venv", str(VENV))
    _run(str(_python()), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", str(REQUIREMENTS))
    _stamp().write_text(_wanted(), encoding="utf-8")  # last: an interrupted build is made anew


def _run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise EnvironmentUnavailableError(f"{command[1:3]}: {exc.__class__.__name__}") from exc
    if done.returncode != 0:
        raise EnvironmentUnavailableError("\n".join(done.stderr.splitlines()[-5:]))


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    with REQUIREMENTS.open(encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    try:
        print(ensure())
    except EnvironmentUnavailableError as exc:
        sys.exit(f"no environment for Keystone: {exc}")
