"""What the demo's verdict rests on, and how it shows progress."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest

from dcsync.local.demo import LINE_SECONDS, Outage, Progress, probe_interval, what_is_wrong
from dcsync.model.states.initial_sync import InitialSyncState

SEEN = Outage(5, 2.0, 3.0, 4.0)
GOOD = {"good": 20, "problems": {}, "violations": {}, "violation_count": 0}


def test_all_completed_and_verified_is_good() -> None:
    assert what_is_wrong(GOOD, count=20, completed=20, restarts=0, outage=SEEN) == []


@pytest.mark.parametrize(
    ("report", "completed", "restarts", "text"),
    [
        ({}, 19, 0, "1 not completed"),
        ({"good": 18, "problems": {"subcloud3": ["keys differ"]}}, 20, 0, "2 not as they should be.*subcloud3"),
        ({"violation_count": 1, "violations": {"keys before identity": 1}}, 20, 0, "keys before identity"),
        ({}, 20, 1, "1 processes had to be started again"),
    ],
)
def test_anything_else_is_told(report: dict[str, Any], completed: int, restarts: int, text: str) -> None:
    (told,) = what_is_wrong(GOOD | report, count=20, completed=completed, restarts=restarts, outage=SEEN)
    assert re.search(text, told)


@pytest.mark.parametrize(
    ("outage", "text"),
    [
        (Outage(5, None, 3.0, 4.0), "alarms.*raised never"),
        (Outage(5, 2.0, None, 4.0), "alarms.*cleared never"),
        (Outage(5, 2.0, 3.0, None), "completed again"),
    ],
)
def test_an_outage_that_is_not_seen_or_not_over_is_told(outage: Outage, text: str) -> None:
    (told,) = what_is_wrong(GOOD, count=20, completed=20, restarts=0, outage=outage)
    assert re.search(text, told)


@pytest.mark.parametrize(("count", "seconds"), [(1, 5), (20, 5), (500, 10), (5000, 30)])
def test_a_large_demo_probes_less_often(count: int, seconds: float) -> None:
    assert probe_interval(count) == seconds


def test_progress_is_plain_lines_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    now = 1000.0
    monkeypatch.setattr("dcsync.local.demo.time", SimpleNamespace(monotonic=lambda: now))
    progress = Progress(said.append, count=4, is_terminal=lambda: False)
    progress.show({InitialSyncState.COMPLETED: 1, InitialSyncState.FAILED: 3})
    now += LINE_SECONDS - 1
    progress.show({InitialSyncState.COMPLETED: 2, InitialSyncState.FAILED: 2})  # too soon after the last line
    now += 1
    progress.show({InitialSyncState.COMPLETED: 3, InitialSyncState.FAILED: 1})
    progress.show({InitialSyncState.COMPLETED: 4})
    progress.end()
    assert said == [
        "    0.0 s  completed 1/4, failed 3",
        "    5.0 s  completed 3/4, failed 1",
        "    5.0 s  completed 4/4",
    ]


def test_progress_is_one_changing_line_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(lambda line: None, count=3, is_terminal=lambda: True)
    progress.show({InitialSyncState.COMPLETED: 1})
    progress.show({InitialSyncState.COMPLETED: 3})
    progress.end()
    printed = capsys.readouterr().out
    assert printed.count("\r") == 2
    assert printed.count("\n") == 1
