"""Real dcsync processes for tests: started with an environment of their own, watched through what they print, and gone
at the end of the test, whatever happened in it.

    worker = processes.celery("worker", "-Q", "control,sync", "-P", "threads", environ=server_urls, ready="ready.")
    worker.wait_for("sweep", seconds=20)
    worker.kill()
    answer = processes.cli("subcloud", "list", "-o", "json", environ=server_urls)
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from dcsync.local.leash import leashed

REPOSITORY = Path(__file__).resolve().parents[1]
PASSED_ON = ("PATH", "HOME", "LANG", "TMPDIR", "COVERAGE_PROCESS_START", "COVERAGE_PROCESS_CONFIG")
START_SECONDS = 180.0
STOP_SECONDS = 180.0
"""Far more than is needed: a deadline costs nothing when all goes well, and the machine may be busy."""


def python_module(name: str, *, clock_ahead: float = 0.0) -> list[str]:
    """The words that run this module, with a wall clock that is ahead (or, below zero, behind) by so many seconds."""
    moved = ["tests.moved_clock", str(clock_ahead)] if clock_ahead else []
    return [sys.executable, "-m", *moved, name]


def clean_environment(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """What a process of a test sees: nothing named DCSYNC_ but what the test gives it."""
    passed = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    return {**passed, "PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1", **(environ or {})}


def wait_until(question: Callable[[], object], *, seconds: float, what: str | Callable[[], str]) -> None:
    """Until `question` answers with something true; AssertionError that says `what` did not come true in time.

    It is asked a last time when the time is up, so that being held up ourselves fails nothing.
    """
    deadline = time.monotonic() + seconds
    while True:
        is_last = time.monotonic() > deadline
        if question():
            return
        if is_last:
            raise AssertionError(f"not in {seconds} s: {what if isinstance(what, str) else what()}")
        time.sleep(0.05)


class Running:
    """One started process. What it prints, on both channels, goes to `output_file`."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], output_file: Path) -> None:
        self.name = name
        self.process = process
        self.output_file = output_file

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def output(self) -> str:
        return self.output_file.read_text(encoding="utf-8", errors="replace")

    def wait_for(self, text: str, *, seconds: float = START_SECONDS) -> None:
        """Until it has printed `text`; AssertionError with its output when it ends before, or takes too long."""

        def printed() -> bool:
            # Asked in this order, for it may print the text and end between the two questions.
            ended = not self.alive
            if text in self.output():
                return True
            assert not ended, f"{self.name} ended ({self.process.returncode}) without {text!r}:\n{self.output()}"
            return False

        wait_until(printed, seconds=seconds, what=lambda: f"{self.name} prints {text!r}; it printed:\n{self.output()}")

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, *, seconds: float = STOP_SECONDS) -> int:
        """Its exit code; AssertionError with its output when it does not end."""
        try:
            return self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} did not end in {seconds} s:\n{self.output()}") from None

    def stop(self, *, seconds: float = STOP_SECONDS) -> int:
        """SIGTERM, and its exit code."""
        self.signal(signal.SIGTERM)
        return self.wait(seconds=seconds)

    def kill(self) -> None:
        """SIGKILL to it and to whatever it started."""
        # The id of one that ended a while ago may be somebody else's by now.
        if self.alive or not psutil.pid_exists(self.pid):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
        self.process.wait()


class Processes:
    """What one test has started. As a context manager it ends all of it, and the children of it too."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._started: list[Running] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        descendants = [child for running in self._started if running.alive for child in _descendants(running.pid)]
        for running in self._started:
            running.kill()
        for child in descendants:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        psutil.wait_procs(descendants, timeout=STOP_SECONDS)

    def start(
        self,
        *argv: str | os.PathLike[str],
        name: str,
        environ: Mapping[str, str] | None = None,
        ready: str | None = None,
        seconds: float = START_SECONDS,
    ) -> Running:
        """Start it, and wait until it has printed `ready` where that is given."""
        output_file = self.folder / f"{len(self._started):02d}-{name}.log"
        with output_file.open("wb") as output:
            process = subprocess.Popen(
                leashed([os.fspath(word) for word in argv], death_signal=signal.SIGKILL),
                cwd=self.folder,
                env=clean_environment(_with_run_dir(environ, self.folder)),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        running = Running(name, process, output_file)
        self._started.append(running)
        if ready is not None:
            running.wait_for(ready, seconds=seconds)
        return running

    def celery(
        self,
        command: str,
        *arguments: str,
        environ: Mapping[str, str],
        name: str | None = None,
        ready: str | None = None,
        seconds: float = START_SECONDS,
        clock_ahead: float = 0.0,
    ) -> Running:
        """`celery -A worker <command> <arguments>`: worker, beat or flower; with its wall clock moved by so many
        seconds."""
        argv = (*python_module("celery", clock_ahead=clock_ahead), "-A", "worker", command, *arguments)
        return self.start(*argv, name=name or command, environ=environ, ready=ready, seconds=seconds)

    def cli(
        self,
        *arguments: str,
        environ: Mapping[str, str],
        seconds: float = STOP_SECONDS,
        expect: int | None = None,
        stdin: str | None = None,
        clock_ahead: float = 0.0,
    ) -> subprocess.CompletedProcess[str]:
        """`dcsync <arguments>`, to its end; with `expect`, AssertionError unless that is its exit code."""
        done = run_cli(
            arguments, environ=environ, seconds=seconds, folder=self.folder, stdin=stdin, clock_ahead=clock_ahead
        )
        assert expect in (None, done.returncode), (
            f"dcsync {' '.join(arguments)} ended with {done.returncode}, not {expect}:\n{done.stdout}{done.stderr}"
        )
        return done


def run_cli(
    arguments: Sequence[str],
    *,
    environ: Mapping[str, str],
    folder: Path,
    seconds: float = STOP_SECONDS,
    stdin: str | None = None,
    clock_ahead: float = 0.0,
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*python_module("dcsync.cli", clock_ahead=clock_ahead), *arguments],
        cwd=folder,
        env=clean_environment(_with_run_dir(environ, folder)),
        input=stdin if stdin is not None else "",
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


def _with_run_dir(environ: Mapping[str, str] | None, folder: Path) -> dict[str, str]:
    """So that processes keep their records in the test's folder, and leave nothing elsewhere."""
    return {"DCSYNC_RUN_DIR": str(folder / "processes"), **(environ or {})}


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
