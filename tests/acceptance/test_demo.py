"""`dcsync demo`: the main job from added to completed with real processes, and the verdict of the fake cloud."""

from __future__ import annotations

import re
import signal
import sys
from pathlib import Path

import psutil
import pytest

from dcsync.local.servers import free_port
from tests.processes import Processes

pytestmark = [pytest.mark.timeout(600)]

DEMO_SECONDS = 540.0
"""It takes twenty, where nothing else is at work."""


@pytest.fixture
def folder(own_data_dir: Path) -> Path:
    """Where the demo makes the folder it removes again."""
    return own_data_dir


def six_subclouds() -> tuple[str, ...]:
    """With a port for Flower that is not another test's, nor a person's."""
    return ("--subclouds", "6", "--flower-port", str(free_port()))


def test_demo_brings_every_subcloud_from_added_to_completed(processes: Processes, folder: Path) -> None:
    done = processes.cli("demo", *six_subclouds(), environ={"TMPDIR": str(folder)}, seconds=DEMO_SECONDS, expect=0)
    lines = done.stdout.splitlines()
    assert lines[-1] == "verdict: OK: all 6 subclouds completed, verified at the far end, no violation"
    told = dict(re.findall(r"^(\S.*?)  +(\S.*)$", done.stdout, re.MULTILINE))
    assert told["completed"] == "6 of 6"
    assert told["verified"].startswith("6 of 6 ")
    assert told["violations"] == "0"
    assert re.search(r"^  subcloud1 .* managed +online +completed", done.stdout, re.MULTILINE)
    assert "\033" not in done.stdout, "escapes belong on terminals only"
    assert list(folder.iterdir()) == []


def test_interrupted_demo_stops_and_removes_everything(processes: Processes, folder: Path) -> None:
    demo = processes.start(
        *(sys.executable, "-m", "dcsync.cli", "demo", *six_subclouds()),
        name="demo",
        environ={"TMPDIR": str(folder)},
        ready="data and logs:",
    )
    family = psutil.Process(demo.pid).children(recursive=True)
    assert len(family) > 7
    demo.signal(signal.SIGINT)
    assert demo.wait() == 130
    assert psutil.wait_procs(family, timeout=120)[1] == []
    assert list(folder.iterdir()) == []
