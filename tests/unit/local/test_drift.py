"""What the verdict of `dcsync demo --drift` rests on."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from dcsync.fake_cloud.changes import ACTIONS
from dcsync.local.drift import CHANGES, DAMAGES, Seen, summary, what_went_wrong

GOOD = {"audited": 20, "differences": {}, "violations": {}, "violation_count": 0}
SEEN = Seen(damaged=5, noticed=5, repaired_after=2.0, arrived_after={"a new user": 9.0}, rotated_after=12.0)


def wrong(report: dict[str, Any] | None = None, *, completed: int = 20, restarts: int = 0, **seen: Any) -> list[str]:
    told = GOOD | (report or {})
    return what_went_wrong(told, replace(SEEN, **seen), count=20, completed=completed, restarts=restarts)


def test_all_noticed_repaired_and_arrived_is_good() -> None:
    assert wrong() == []


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"report": {"audited": 19, "differences": {"subcloud3": ["keys differ"]}}}, "1 differ: .*subcloud3"),
        ({"report": {"violation_count": 1, "violations": {"two runs": 1}}}, "two runs"),
        ({"completed": 19}, "1 not completed"),
        ({"restarts": 1}, "1 processes"),
        ({"noticed": 4}, "1 damaged and not noticed"),
        ({"repaired_after": None}, "repaired"),
        ({"arrived_after": {"a new user": None}}, "everywhere.*a new user"),
        ({"rotated_after": None}, "rotated keys"),
    ],
)
def test_anything_else_is_told(changes: dict[str, Any], text: str) -> None:
    (told,) = wrong(**changes)
    assert re.search(text, told)


def test_the_story_tells_what_never_came() -> None:
    lines = summary(replace(SEEN, repaired_after=None))
    assert "repaired           never" in lines
    assert "arrived            after 9.0 s: a new user" in lines


def test_the_damage_and_the_changes_are_ones_the_fake_cloud_knows() -> None:
    assert {each.action for each in (*DAMAGES, *CHANGES)} <= set(ACTIONS)
