"""`dcsync service status|monitor` against real processes that run, hang, die and come back."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator

import pytest

from tests.processes import Running
from tests.system import FAST, System, open_system

pytestmark = [pytest.mark.xdist_group("service"), pytest.mark.timeout(600)]

RUNNING, FAILED, NOT_RUNNING = 0, 1, 7
ROLES = ("sync", "state", "beat")


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with open_system(tmp_path_factory.mktemp("service"), subclouds=1, settings=FAST) as system:
        yield system


@pytest.fixture
def running(system: System) -> Iterator[dict[str, Running]]:
    """One process of each role; ended after the test."""
    start = {"sync": system.start_sync_worker, "state": system.start_state_worker, "beat": system.start_beat}
    started: dict[str, Running] = {}
    try:
        for role in ROLES:
            started[role] = start[role]()
        for role in ROLES:
            until(system, "monitor", role, RUNNING)
        yield started
    finally:
        for process in started.values():
            process.kill()


def asked(system: System, action: str, role: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return system.processes.cli("service", action, "--role", role, environ=system.environ | environ)


def until(
    system: System, action: str, role: str, code: int, told: str = "", **environ: str
) -> subprocess.CompletedProcess[str]:
    """The answer with this exit code that tells this, once it comes: a process without CPU hangs for a while."""
    answers: list[subprocess.CompletedProcess[str]] = []

    def given() -> bool:
        answers.append(asked(system, action, role, **environ))
        return answers[-1].returncode == code and told in answers[-1].stdout + answers[-1].stderr

    system.until(given, lambda: f"{action} of {role} is {code} {told!r}; it is {answers[-1]}")
    return answers[-1]


def test_nothing_runs_where_nothing_was_started_or_all_was_killed(system: System) -> None:
    for action, role in (("status", "sync"), ("monitor", "state"), ("monitor", "beat")):
        done = asked(system, action, role)
        assert (done.returncode, done.stdout) == (NOT_RUNNING, ""), done.stderr
        assert done.stderr.startswith(f"no {role} process runs on this host")


def test_a_healthy_process_runs_a_stopped_one_failed_and_a_killed_one_does_not_run(
    system: System, running: dict[str, Running]
) -> None:
    for role, action in (("sync", "monitor"), ("state", "status"), ("beat", "monitor")):
        process = running[role]
        assert str(process.pid) in until(system, "status", role, RUNNING).stdout
        process.signal(signal.SIGSTOP)
        until(system, action, role, FAILED, "is stopped by a signal")
        process.signal(signal.SIGCONT)
        until(system, action, role, RUNNING)
        process.kill()
        told = asked(system, action, role)
        assert told.returncode == NOT_RUNNING, told
        assert "ended unexpectedly" in told.stderr


def test_processes_that_ended_in_order_leave_no_record(system: System, running: dict[str, Running]) -> None:
    for process in running.values():
        process.signal(signal.SIGTERM)
    for role, process in running.items():
        process.wait()
        assert asked(system, "status", role).stderr == f"no {role} process runs on this host\n"


def test_a_server_that_is_away_fails_the_monitor_and_not_the_status(
    system: System, running: dict[str, Running]
) -> None:
    nowhere = {"DCSYNC_DATABASE_URL": "postgresql://dcsync:s3cret@127.0.0.1:1/dcsync"}
    told = until(system, "monitor", "sync", FAILED, "the database does not answer: ", **nowhere)
    assert told.stdout == ""
    assert "s3cret" not in told.stderr
    system.redis.stop()
    try:
        until(system, "status", "sync", RUNNING)
        for role in ROLES:
            until(system, "monitor", role, FAILED, "the broker does not answer: ")
    finally:
        system.redis.start()
    for role in ROLES:
        until(system, "monitor", role, RUNNING)


def test_a_process_of_another_dcsync_on_this_host_is_not_taken_for_ours(
    system: System, running: dict[str, Running]
) -> None:
    told = asked(system, "status", "sync", DCSYNC_REDIS_URL="redis://127.0.0.1:1/0")
    assert told.returncode == NOT_RUNNING
