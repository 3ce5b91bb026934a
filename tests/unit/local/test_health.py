"""What is concluded from the records of processes; time and queues are the test's."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from dcsync.adapters.host.process_records import (
    Found,
    Life,
    Phase,
    ProcessRecord,
    RecordFile,
    Role,
    find,
    life_of,
    start_of,
    system_of,
)
from dcsync.local.health import Code, Health, World, monitor, status
from dcsync.model.errors import BrokerUnreachable
from dcsync.model.messages import Queue

NOW = 10_000.0
BUSY = 300.0
SYNC_QUEUES = ("audit", "control", "sync")


def a_record(**changes: object) -> ProcessRecord:
    values: dict[str, object] = {
        "pid": 4711,
        "started": 123,
        "system": "redis:6379/0",
        "roles": (Role.SYNC,),
        "name": "sync@host",
        "phase": Phase.RUNNING,
        "shown_at": NOW - 0.5,
        "turned_at": NOW - 4,
        "is_connected": True,
        "queues": SYNC_QUEUES,
        "consumed": SYNC_QUEUES,
        "threads": 10,
        "progressed_at": NOW - 30,
    }
    return ProcessRecord(**(values | changes))  # type: ignore[arg-type]


def alive(**changes: object) -> Found:
    return Found(a_record(**changes), Life.ALIVE)


class Play(World):
    """A world in which each sleep brings the next of these records and queue lengths."""

    late: Mapping[str, int] = {}
    clock_ahead_seconds: float | None = None

    def __init__(self, *steps: tuple[Found, Mapping[Queue, int]]) -> None:
        self._steps = list(steps)
        self._now = NOW
        super().__init__(
            find=lambda: [self._steps[0][0]],
            check_database=lambda: None,
            waiting=self._waiting,
            late_totals=lambda: self.late,
            clock_ahead=lambda: self.clock_ahead_seconds,
            monotonic=lambda: self._now,
            sleep=self._pass,
        )

    def __setattr__(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _waiting(self, queues: Sequence[Queue]) -> dict[Queue, int]:
        return {queue: self._steps[0][1].get(queue, 0) for queue in queues}

    def _pass(self, seconds: float) -> None:
        self._now += seconds
        if len(self._steps) > 1:
            self._steps.pop(0)


def told(*steps: tuple[Found, Mapping[Queue, int]], role: Role = Role.SYNC) -> Health:
    return monitor(Play(*steps), role=role, busy_seconds=BUSY)


# --- status ---


def test_no_record_is_not_running() -> None:
    assert status([], role=Role.SYNC, now=NOW) == Health(Code.NOT_RUNNING, "no sync process runs on this host")


def test_a_process_that_died_beside_one_that_lives_does_not_count() -> None:
    dead = Found(a_record(pid=1), Life.ENDED)
    assert status([dead, alive()], role=Role.SYNC, now=NOW).code is Code.RUNNING
    assert status([dead], role=Role.SYNC, now=NOW).code is Code.NOT_RUNNING


@pytest.mark.parametrize(
    "hanging", [Found(a_record(pid=1), Life.STOPPED), Found(a_record(pid=1, shown_at=NOW - 16), Life.ALIVE)]
)
def test_one_that_hangs_counts_also_beside_one_that_does_not(hanging: Found) -> None:
    assert status([hanging, alive()], role=Role.SYNC, now=NOW).code is Code.FAILED


# --- monitor ---


def test_a_worker_with_nothing_to_do_is_well() -> None:
    assert told((alive(), {})).code is Code.RUNNING


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (alive(phase=Phase.STARTING, is_connected=False), "has not started"),
        (alive(is_connected=False), "not connected"),
        (alive(turned_at=NOW - 21), "loop"),
        (alive(consumed=("control", "sync")), "does not consume audit"),
    ],
)
def test_what_keeps_a_worker_from_its_work_is_told(found: Found, text: str) -> None:
    health = told((found, {}))
    assert health.code is Code.FAILED
    assert text in health.text


def test_a_worker_that_is_coming_up_does_not_run_yet() -> None:
    """A resource agent that starts it asks again until it runs, and gives up at "failed"."""
    health = told((alive(phase=Phase.STARTING, is_connected=False, progressed_at=NOW - 2), {}))
    assert health.code is Code.NOT_RUNNING
    assert "is starting" in health.text


def test_a_worker_that_is_coming_up_says_nothing_about_the_others() -> None:
    fresh = alive(pid=2, phase=Phase.STARTING, is_connected=False, progressed_at=NOW - 2, consumed=())
    busy = alive(active=10, progressed_at=NOW - 2)
    play = Play((busy, {Queue.SYNC: 3}))
    play.find = lambda: [busy, fresh]  # type: ignore[misc]
    assert monitor(play, role=Role.SYNC, busy_seconds=BUSY).code is Code.RUNNING


def test_a_worker_that_stops_in_order_is_left_alone() -> None:
    assert told((alive(phase=Phase.STOPPING, consumed=()), {Queue.SYNC: 5})).code is Code.RUNNING


def test_a_worker_that_takes_none_of_what_waits_is_deaf() -> None:
    health = told((alive(), {Queue.AUDIT: 3}))
    assert health.code is Code.FAILED
    assert "3 in audit" in health.text


@pytest.mark.parametrize("then", [(alive(taken=1), {Queue.SYNC: 9}), (alive(), {})])
def test_waiting_work_that_is_taken_is_well(then: tuple[Found, Mapping[Queue, int]]) -> None:
    assert told((alive(), {Queue.SYNC: 10}), then).code is Code.RUNNING


@pytest.mark.parametrize(("ended", "code"), [(BUSY - 10, Code.RUNNING), (BUSY + 10, Code.FAILED)])
def test_a_worker_all_of_whose_threads_are_at_work_is_given_time(ended: float, code: Code) -> None:
    assert told((alive(active=10, progressed_at=NOW - ended), {Queue.SYNC: 10})).code is code


def test_what_waits_in_queues_of_others_is_not_this_roles_affair() -> None:
    assert told((alive(), {Queue.STATE: 10})).code is Code.RUNNING


def test_beat_that_sends_nothing_does_not_do_its_work() -> None:
    beat = {"roles": (Role.BEAT,), "queues": (), "consumed": ()}
    assert told((alive(**beat), {}), role=Role.BEAT).code is Code.RUNNING
    assert told((alive(**beat, progressed_at=NOW - 61), {}), role=Role.BEAT).code is Code.FAILED


def test_a_broker_that_is_away_is_an_error_for_the_command_to_tell() -> None:
    def away(queues: Sequence[Queue]) -> dict[Queue, int]:
        raise BrokerUnreachable("Redis: ConnectionError")

    world = Play((alive(), {}))
    world.waiting = away  # type: ignore[misc]
    with pytest.raises(BrokerUnreachable):
        monitor(world, role=Role.SYNC, busy_seconds=BUSY)


# --- records ---


def our_record(**changes: object) -> ProcessRecord:
    return replace(a_record(pid=os.getpid(), started=start_of(os.getpid())), **changes)  # type: ignore[arg-type]


def test_a_process_that_was_given_the_id_of_a_dead_one_is_not_taken_for_it() -> None:
    ours = our_record()
    assert life_of(ours) is Life.ALIVE
    assert life_of(replace(ours, started=ours.started - 1)) is Life.ENDED


def test_records_are_found_by_role_and_system_also_one_folder_below(tmp_path: Path) -> None:
    RecordFile(tmp_path / "sync-1").write(our_record())
    (found,) = find(tmp_path, role=Role.SYNC, system="redis:6379/0")
    assert found == Found(our_record(), Life.ALIVE)
    assert find(tmp_path, role=Role.SYNC, system=None) == [found]
    assert find(tmp_path, role=Role.STATE, system=None) == []
    assert find(tmp_path, role=Role.SYNC, system="redis:6379/1") == []


def test_a_new_process_removes_the_records_of_dead_ones(tmp_path: Path) -> None:
    dead = tmp_path / "1.json"
    RecordFile(tmp_path).write(our_record(started=1))
    (tmp_path / f"{os.getpid()}.json").rename(dead)
    (tmp_path / "2.json").write_text('{"pid": "nonsense"}')
    file = RecordFile(tmp_path)
    file.write(our_record())
    assert [path.name for path in tmp_path.iterdir()] == [f"{os.getpid()}.json"]
    file.remove()
    assert list(tmp_path.iterdir()) == []


def test_once_removed_a_record_is_not_written_again(tmp_path: Path) -> None:
    file = RecordFile(tmp_path)
    file.write(our_record())
    file.remove()
    file.write(our_record())
    assert list(tmp_path.iterdir()) == []


def test_a_record_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    RecordFile(tmp_path / "file").write(our_record())


def test_a_system_is_told_by_its_broker_without_the_password() -> None:
    assert system_of("redis://user:s3cret@redis.example:6380/2") == "redis.example:6380/2"


# --- what does not fail the check, and is shown ---


def test_what_was_late_is_shown_and_fails_nothing() -> None:
    world = Play((alive(), {}))
    world.late = {"dcsync.control.sweep": 3}
    found = monitor(world, role=Role.SYNC, busy_seconds=BUSY)
    assert (found.code, found.late) == (Code.RUNNING, {"dcsync.control.sweep": 3})


@pytest.mark.parametrize(
    ("own", "recorded", "wrong"),
    [(1.9, None, []), (-2.1, 0.1, ["this command"]), (None, 20.0, ["sync@host (process 4711)"])],
)
def test_a_clock_that_differs_from_the_databases_is_named_and_fails_nothing(
    own: float | None, recorded: float | None, wrong: list[str]
) -> None:
    world = Play((alive(clock_ahead=recorded), {}))
    world.clock_ahead_seconds = own
    found = monitor(world, role=Role.SYNC, busy_seconds=BUSY)
    assert (found.code, list(found.wrong_clocks)) == (Code.RUNNING, wrong)
