"""Workers that are killed, stopped for a while, or asked to end, with runs in progress. What must hold at the end: all
completed by themselves, every attempt with one end, at most one run at a time on a subcloud, contents as they must be.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Sequence
from datetime import timedelta
from itertools import pairwise

import pytest

from dcsync.adapters.host.clock import utc_now
from dcsync.fake_cloud.faults import Fault
from dcsync.model.ending import Ending
from dcsync.model.states.initial_sync import InitialSyncState
from tests.faults.conftest import BrokenSystem
from tests.processes import Running
from tests.system import System

pytestmark = [pytest.mark.timeout(900)]

SLOW = Fault("latency", verb="write", seconds=3)
"""A run then takes about half a minute. What is under way when its worker is killed arrives before a lock runs out."""
LOCK_TTL = "10"
"""Not long to wait for, and longer than a living worker gets no CPU. It is renewed every third of it."""
USERS_AT_ONCE = 4
ROUNDS = 10


def begin_slow_runs(system: System, *names: str) -> None:
    """All of these are in the middle of a run."""
    for name in names:
        system.cloud.set_fault(name, SLOW)
    system.manage(*names)
    system.until(lambda: all(system.carried_out(name).get("PUT dbsync users") for name in names), "users are written")


def be_quick(system: System, *names: str) -> None:
    for name in names:
        system.cloud.set_fault(name, None)


def assert_every_attempt_ended_once(system: System, *names: str) -> None:
    """History is complete: attempts of a request have ends, numbers that grow, and do not overlap."""
    for name in names:
        for request in system.inventory.history(name)[0].requests:
            attempts = request.attempts
            assert all(attempt.ending and attempt.ended_at for attempt in attempts), (name, attempts)
            for before, after in pairwise(attempts):
                assert before.ended_at is not None
                assert before.ended_at <= after.started_at
                assert before.ending is not Ending.COMPLETED


def assert_all_is_well(system: System, *names: str) -> None:
    system.assert_good(*names)
    assert_every_attempt_ended_once(system, *names)
    for name in names:
        row = system.row(name)
        assert (row.initial_sync_state, row.run_id, row.reason) == (InitialSyncState.COMPLETED, None, None)


def worker_of(system: System, name: str, workers: Sequence[Running]) -> Running:
    """The worker that runs this subcloud now."""
    told = system.attempts(name)[-1].worker
    (found,) = [worker for worker in workers if told.startswith(f"{worker.name}@")]
    return found


def test_a_killed_worker_costs_its_subclouds_less_than_a_minute(broken_system: BrokenSystem) -> None:
    """With the real defaults: a lock that lives 10 s, a sweep every 10 s. The worker is back at once."""
    system = broken_system(subclouds=3, fast=False)
    system.start_dcsync()
    names = system.add_online(count=3)
    begin_slow_runs(system, *names)
    system.running[0].kill()
    killed_at = utc_now()
    be_quick(system, *names)
    system.start_sync_worker("sync-again")
    system.until_completed(*names)
    assert [system.endings(name) for name in names] == [[Ending.ABANDONED, Ending.COMPLETED]] * 3
    # How long a run then takes is the machine's affair.
    assert all(system.attempts(name)[-1].started_at - killed_at < timedelta(seconds=60) for name in names)
    assert_all_is_well(system, *names)


@pytest.mark.faults
def test_another_worker_takes_over_what_a_killed_one_had(broken_system: BrokenSystem) -> None:
    system = broken_system(subclouds=6, DCSYNC_LOCK_TTL=LOCK_TTL)
    system.start_dcsync()
    workers = [system.running[0], system.start_sync_worker("second")]
    names = system.add_online(count=6)
    begin_slow_runs(system, *names)
    victim = worker_of(system, names[0], workers)
    its_own = [name for name in names if worker_of(system, name, workers) is victim]
    victim.kill()
    be_quick(system, *names)
    system.until_completed(*names)
    for name in names:
        assert (Ending.ABANDONED in system.endings(name)) is (name in its_own)
    assert_all_is_well(system, *names)


@pytest.mark.faults
def test_a_worker_that_slept_longer_than_its_locks_writes_nothing_more_to_rows(broken_system: BrokenSystem) -> None:
    system = broken_system(subclouds=2, DCSYNC_LOCK_TTL=LOCK_TTL)
    system.start_dcsync()
    sleeper = system.running[0]
    names = system.add_online(count=2)
    begin_slow_runs(system, *names)
    sleeper.signal(signal.SIGSTOP)
    try:
        system.start_sync_worker("second")
        be_quick(system, *names)
        system.until_at_rest(*names)
        rows = [system.row(name) for name in names]
        writes = {name: system.writes(name) for name in names}
    finally:
        sleeper.signal(signal.SIGCONT)
    run_ids = {name: system.all_attempts(name)[0].run_id for name in names}
    system.until(
        lambda: all(f'"run_id": "{run_id}"' in sleeper.output() for run_id in run_ids.values()),
        "the sleeper has told how its runs ended",
    )
    told = [line for line in sleeper.output().splitlines() if any(run_id in line for run_id in run_ids.values())]
    assert all('"result": "superseded"' in line for line in told), told
    assert [system.row(name) for name in names] == rows
    assert [system.endings(name) for name in names] == [[Ending.ABANDONED, Ending.COMPLETED]] * 2
    for name in names:
        # At most what it was allowed to write just before it fell asleep, four users at a time.
        assert system.writes(name) <= writes[name] + USERS_AT_ONCE
        assert sum(system.cloud.state(name)["violations"].values()) <= USERS_AT_ONCE
        assert system.problems(name) == []


@pytest.mark.faults
def test_a_worker_asked_to_end_lets_short_runs_end(broken_system: BrokenSystem) -> None:
    system = broken_system(subclouds=4, DCSYNC_STOP_GRACE="120")
    system.start_dcsync()
    names = system.add_online(count=4)
    begin_slow_runs(system, *names)
    system.running[0].signal(signal.SIGTERM)
    be_quick(system, *names)
    assert system.running[0].wait() == 0
    assert [system.endings(name) for name in names] == [[Ending.COMPLETED]] * 4
    assert_all_is_well(system, *names)


@pytest.mark.faults
@pytest.mark.parametrize(
    ("signals", "grace"),
    [
        pytest.param([signal.SIGTERM], "1", id="SIGTERM"),
        pytest.param([signal.SIGQUIT], "300", id="SIGQUIT"),
        pytest.param([signal.SIGTERM, signal.SIGQUIT], "300", id="SIGTERM, then SIGQUIT"),
        pytest.param([signal.SIGINT, signal.SIGINT], "300", id="Ctrl-C twice"),
    ],
)
def test_a_worker_asked_to_end_gives_long_runs_back_at_once(
    broken_system: BrokenSystem, signals: Sequence[signal.Signals], grace: str
) -> None:
    """Nobody waits for the lock's life of 30 s: it was released, and the row says requested."""
    system = broken_system(subclouds=4, DCSYNC_STOP_GRACE=grace, DCSYNC_LOCK_TTL="30")
    system.start_dcsync()
    names = system.add_online(count=4)
    begin_slow_runs(system, *names)
    worker = system.running[0]
    for number, each in enumerate(signals, start=1):
        worker.signal(each)
        system.until(lambda: worker.output().count("shutdown (MainProcess)") >= number, "it is shutting down")  # noqa: B023
    assert worker.wait() == 0
    assert "Traceback" not in worker.output()
    rows = [system.row(name) for name in names]
    assert {(row.initial_sync_state, row.attempt) for row in rows} == {(InitialSyncState.REQUESTED, 0)}
    assert [attempt.ending for name in names for attempt in system.attempts(name)] == [Ending.GIVEN_BACK] * 4
    assert system.are_free(*names)
    be_quick(system, *names)
    system.start_sync_worker("second")
    system.until_completed(*names)
    assert [system.endings(name) for name in names] == [[Ending.GIVEN_BACK, Ending.COMPLETED]] * 4
    assert_all_is_well(system, *names)


@pytest.mark.faults
def test_two_beats_and_two_workers_run_every_subcloud_once(broken_system: BrokenSystem) -> None:
    """Each answers so slowly that one worker cannot have run them all before the other takes any."""
    system = broken_system(subclouds=40)
    system.cloud.set_latency(0.5)
    system.start_dcsync()
    system.start_beat("second-beat")
    system.start_sync_worker("second")
    names = system.add_online(count=40)
    system.manage(*names)
    system.until_completed(*names)
    assert [system.endings(name) for name in names] == [[Ending.COMPLETED]] * 40
    assert len({system.attempts(name)[0].worker for name in names}) == 2
    assert_all_is_well(system, *names)


@pytest.mark.faults
def test_without_beat_the_workers_sweep_themselves(broken_system: BrokenSystem) -> None:
    """A retry is found by nothing but a sweep: no hint is sent when a hold-off is over."""
    system = broken_system(subclouds=3)
    system.start_dcsync()
    names = system.add_online(count=3)
    system.running[2].kill()
    for name in names:
        system.cloud.set_fault(name, Fault("status", status=500, times=1))
    system.manage(*names)
    system.until_completed(*names)
    assert [system.endings(name) for name in names] == [[Ending.FAILED, Ending.COMPLETED]] * 3
    assert "the sweep is late, sweeping in this worker" in system.running[0].output()
    assert_all_is_well(system, *names)
    system.cloud.change_central("add-user", user="newcomer", password="Newcomer-pw-1!")
    system.until(
        lambda: all(is_audited(system, name) for name in names),
        "what else beat sends goes on: the watch and the audits",
    )


def is_audited(system: System, name: str) -> bool:
    """Whether the subcloud holds everything an audit brings of the central cloud."""
    return bool(system.cloud.state(name)["audited"])


@pytest.mark.faults
@pytest.mark.parametrize("left_by", ["sync", "unmanage"])
def test_the_attempt_of_a_killed_worker_gets_its_end_although_its_request_was_overtaken(
    broken_system: BrokenSystem, left_by: str
) -> None:
    system = broken_system(subclouds=1, DCSYNC_LOCK_TTL=LOCK_TTL)
    system.start_dcsync()
    (name,) = system.add_online(count=1)
    begin_slow_runs(system, name)
    system.running[0].kill()
    system.cli(*(["subcloud"] if left_by == "unmanage" else []), left_by, name)
    be_quick(system, name)
    system.start_sync_worker("second")
    if left_by == "sync":
        system.until_completed(name)
    system.until(lambda: system.all_attempts(name)[0].ended_at, "the attempt that was cut short has an end")
    assert system.all_attempts(name)[0].ending is Ending.ABANDONED
    assert_every_attempt_ended_once(system, name)
    assert system.cloud.state(name)["violations"] == {}


@pytest.mark.faults
@pytest.mark.parametrize("seed", [1, 2])
def test_workers_killed_at_random_moments_leave_nothing_undone(broken_system: BrokenSystem, seed: int) -> None:
    """Each round asks for all anew, and kills the worker somewhere between the request and the last write."""
    dice = random.Random(seed)
    system = broken_system(subclouds=8, DCSYNC_LOCK_TTL="5")  # so that in most rounds there are runs to be killed
    system.start_dcsync()
    names = system.add_online(count=8)
    for name in names:
        system.cloud.set_fault(name, Fault("latency", seconds=0.1))
    system.manage(*names)
    worker = system.running[0]
    for number in range(ROUNDS):
        time.sleep(dice.uniform(0.2, 2.5))  # the moment is the point
        worker.kill()
        worker = system.start_sync_worker(f"round{number}")
        if number % 2:
            system.inventory.request(names, now=utc_now(), by="test")
    system.until_completed(*names, seconds=240)
    system.until(
        lambda: all(attempt.ended_at for name in names for attempt in system.all_attempts(name)), "all have ends"
    )
    assert_all_is_well(system, *names)
    assert any(attempt.ending is Ending.ABANDONED for name in names for attempt in system.all_attempts(name))
