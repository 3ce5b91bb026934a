"""What beat fires: everything that makes a lost message good is there whatever is switched off."""

from __future__ import annotations

import pytest

import beat_schedule as of_the_root
from dcsync.beat_schedule import beat_schedule
from dcsync.model.messages import QUEUE_OF, TaskName

USUAL = {"sweep_interval": 10.0, "probe_interval": 30.0, "audit_interval": 1200.0, "central_watch_interval": 10.0}


def test_all_sweeps_are_fired_and_none_expires() -> None:
    schedule = beat_schedule(**USUAL)
    assert {"sweep", "audit-sweep", "availability-sweep", "watch-central", "housekeeping"} < set(schedule)
    for entry in schedule.values():
        queue = QUEUE_OF[TaskName(str(entry["task"]))].value
        assert entry["options"] == {"queue": queue}


def test_nothing_that_is_fired_waits_behind_the_work_of_subclouds() -> None:
    """After a change at the central cloud a hint for each subcloud waits in its queue."""
    fired = {TaskName(str(entry["task"])) for entry in beat_schedule(**USUAL).values()}
    behind = {QUEUE_OF[TaskName.INITIAL_SYNC], QUEUE_OF[TaskName.AUDIT]}
    assert {task for task in fired if QUEUE_OF[task] in behind} == set()


@pytest.mark.parametrize(
    ("switched_off", "missing"), [("audit_interval", "watch-central"), ("probe_interval", "availability-sweep")]
)
def test_what_is_switched_off_is_not_fired_but_what_was_asked_for_is_swept_up(switched_off: str, missing: str) -> None:
    usual, less = set(beat_schedule(**USUAL)), set(beat_schedule(**(USUAL | {switched_off: 0.0})))
    assert usual - less == {missing}


def test_the_schedule_is_found_at_the_root_of_the_repository() -> None:
    assert of_the_root.beat_schedule is beat_schedule
