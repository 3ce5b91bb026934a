"""A test run that is interrupted leaves no process and no folder."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import psutil
import pytest

from tests.processes import Processes

SOMETHING_RUNS = """
import time

def test_it(own_redis, processes):
    child = processes.start("sleep", "600", name="child")
    print("pids", own_redis.pid, child.pid, flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: str(number.name))
def test_an_interrupted_run_ends_what_it_started(
    processes: Processes, own_data_dir: Path, number: signal.Signals
) -> None:
    file = processes.folder / "test_something.py"
    file.write_text(SOMETHING_RUNS)
    words = (
        "-m",
        "pytest",
        "-s",
        "-p",
        "tests.conftest",
        "-p",
        "no:cacheprovider",
        "--basetemp",
        str(own_data_dir / "tmp"),
    )
    run = processes.start(
        sys.executable, *words, str(file), name="pytest", environ={"TMPDIR": str(own_data_dir)}, ready="pids "
    )
    pids = run.output().split("pids ")[1].split("\n")[0].split()
    family = [psutil.Process(int(pid)) for pid in pids]
    run.signal(number)
    assert run.wait() == pytest.ExitCode.INTERRUPTED
    assert psutil.wait_procs(family, timeout=60)[1] == []
    assert list(own_data_dir.glob("dcsync-test-*")) == []
