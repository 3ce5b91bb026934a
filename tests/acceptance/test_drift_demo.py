"""`dcsync demo --drift`: damage is noticed and made good, and what changes at the central cloud is soon everywhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.processes import Processes


@pytest.mark.timeout(900)
def test_damaged_subclouds_are_noticed_and_repaired_and_central_changes_arrive(
    processes: Processes, own_data_dir: Path
) -> None:
    done = processes.cli(
        *("demo", "--drift", "--no-flower", "--subclouds", "6"),
        environ={"TMPDIR": str(own_data_dir)},
        seconds=840,
        expect=0,
    )
    assert done.stdout.splitlines()[-1] == "verdict: OK: all 6 subclouds in-sync, verified at the far end, no violation"
    told = dict(re.findall(r"^(\S.*?)  +(\S.*)$", done.stdout, re.MULTILINE))
    assert told["damaged"] == "5, noticed 5"
    assert re.search(r"^  subcloud1 .* out-of-sync ", done.stdout, re.MULTILINE)
    assert "repaired users barbican: password" in done.stdout
    assert list(own_data_dir.iterdir()) == []
