"""The supervisor, over small stand-in programs: order, restarts with backoff, deadlines, signals, logs."""

from __future__ import annotations

import os
import signal
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from dcsync.local.supervisor import ChildProcess, StopSignals, Supervisor, Tails, shrink_log
from dcsync.model.errors import LocalProcessFailed
from tests.processes import Processes, wait_until

STEADY = "import time; print('up', flush=True); time.sleep(600)"
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
)
FAILING = "print('cannot go on', flush=True); raise SystemExit(3)"
COUNTING = """
import signal, sys, time
heard = []
signal.signal(signal.SIGTERM, lambda *_: heard.append(1))
print('up', flush=True)
while not heard:
    time.sleep(0.01)
time.sleep(0.3)
print('heard', len(heard), flush=True)
"""

Make = Callable[..., ChildProcess]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Makes a stand-in child; all of them are gone at the end."""
    made: list[ChildProcess] = []

    def child(name: str, code: str = STEADY, stop_seconds: float = 60.0) -> ChildProcess:
        environ = {"PATH": os.environ["PATH"], "PYTHONUNBUFFERED": "1"}
        argv = (sys.executable, "-c", code)
        log_file = tmp_path / f"{name}.log"
        made.append(
            ChildProcess(name, argv, environ=environ, cwd=tmp_path, log_file=log_file, stop_seconds=stop_seconds)
        )
        return made[-1]

    yield child
    for child_process in made:
        child_process.kill()


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class StandIn:
    """Runs no program: ends when the test says so, and may refuse to start."""

    name: str
    events: list[str]
    log_file: Path
    pid: int | None = None
    exit_code: int | None = None
    refuses: bool = False
    starts: int = field(default=0)

    def start(self) -> None:
        self.starts += 1
        if self.refuses:
            raise LocalProcessFailed(f"{self.name} did not start")
        self.pid = 1000 + self.starts
        self.events.append(f"start {self.name}")

    def end(self, exit_code: int) -> None:
        self.pid, self.exit_code = None, exit_code

    def ask_to_stop(self) -> None:
        self.events.append(f"ask {self.name}")

    def stop(self) -> None:
        self.events.append(f"stop {self.name}")
        self.pid = None

    def kill(self) -> None:
        self.events.append(f"kill {self.name}")
        self.pid = None


def _pause(supervisor: Supervisor, child: StandIn, clock: Clock) -> float:
    """Seconds until it is started again."""
    began = clock.now
    for _ in range(1000):
        seconds = supervisor.look()
        if child.pid is not None:
            return clock.now - began
        clock.now += seconds
    raise AssertionError(f"{child.name} was never started again")


def _printed(child: ChildProcess, text: str) -> None:
    wait_until(lambda: child.log_file.exists() and text in child.log_file.read_text(), seconds=60, what=text)


def test_stages_start_in_order_and_stop_in_the_opposite_one_with_their_members_asked_together(tmp_path: Path) -> None:
    events: list[str] = []
    database, one, two = (StandIn(name, events, tmp_path / name) for name in ("database", "one", "two"))
    supervisor = Supervisor([[database], [one, two]], say=lambda line: None)
    supervisor.start()
    supervisor.stop()
    assert events == [
        *("start database", "start one", "start two"),
        *("ask one", "ask two", "stop one", "stop two", "ask database", "stop database"),
    ]


def test_nothing_more_starts_once_interrupted(tmp_path: Path) -> None:
    events: list[str] = []
    children = [StandIn(name, events, tmp_path / name) for name in ("one", "two")]
    Supervisor([children], say=lambda line: None).start(interrupted=lambda: bool(events))
    assert events == ["start one"]


def test_what_ends_again_and_again_is_started_with_growing_pauses(tmp_path: Path) -> None:
    clock, said = Clock(), list[str]()
    child = StandIn("worker", [], tmp_path / "worker.log")
    supervisor = Supervisor([[child]], say=said.append, clock=clock)
    supervisor.start()
    pauses = []
    for _ in range(9):
        child.end(3)
        pauses.append(_pause(supervisor, child, clock))
    assert pauses == pytest.approx([0.5, 1, 2, 4, 8, 16, 30, 30, 30])
    assert supervisor.restarts == 9
    assert "worker ended with exit code 3; it starts again in 0.5 s" in said[1]


def test_long_steady_run_is_forgiven(tmp_path: Path) -> None:
    clock = Clock()
    child = StandIn("worker", [], tmp_path / "worker.log")
    supervisor = Supervisor([[child]], say=lambda line: None, clock=clock)
    supervisor.start()
    for steady_seconds in (0, 0, 0, 31):
        clock.now += steady_seconds
        child.end(1)
        pause = _pause(supervisor, child, clock)
    assert pause == pytest.approx(0.5)


def test_start_that_fails_is_said_and_tried_again(tmp_path: Path) -> None:
    clock, said = Clock(), list[str]()
    child = StandIn("database", [], tmp_path / "database.log")
    supervisor = Supervisor([[child]], say=said.append, clock=clock)
    supervisor.start()
    child.end(-9)
    child.refuses = True
    for _ in range(20):
        clock.now += supervisor.look()
    child.refuses = False
    _pause(supervisor, child, clock)
    assert "database ended by SIGKILL" in said[1]
    assert "database did not start" in said
    assert child.starts > 3


def test_real_child_that_is_killed_is_replaced(make: Make) -> None:
    child = make("worker")
    supervisor = Supervisor([[child]], say=lambda line: None)
    supervisor.start()
    first = child.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)

    def replaced() -> bool:
        supervisor.look()
        return child.pid not in {None, first}

    wait_until(replaced, seconds=60, what="another process")
    supervisor.stop()
    assert child.pid is None


def test_end_of_a_failing_program_is_told_with_its_last_words(make: Make) -> None:
    said: list[str] = []
    child = make("worker", FAILING)
    supervisor = Supervisor([[child]], say=said.append)
    supervisor.start()
    wait_until(lambda: child.pid is None, seconds=60, what="it ended")
    supervisor.look()
    assert "exit code 3" in said[-1]
    assert said[-1].endswith("cannot go on")


def test_program_that_ignores_the_request_is_killed_at_its_deadline(make: Make) -> None:
    said: list[str] = []
    child = make("worker", STUBBORN, stop_seconds=0.3)
    supervisor = Supervisor([[child]], say=said.append)
    supervisor.start()
    _printed(child, "up")
    supervisor.stop()
    assert child.pid is None
    assert said[-1] == "worker stopped by SIGKILL"


def test_a_deadline_counts_from_the_request_so_that_several_take_the_longest_and_not_their_sum(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a stage are asked together, as the first of these tests tells."""
    clock = Clock()
    monkeypatch.setattr("dcsync.local.supervisor.time", SimpleNamespace(monotonic=clock))
    children = [make(f"worker-{number}", STUBBORN, stop_seconds=3600) for number in range(4)]
    for child in children:
        child.start()
        _printed(child, "up")
    for child in children:
        child.ask_to_stop()
    clock.now += 3600
    for child in children:
        child.stop()
        assert child.exit_code == -signal.SIGKILL


def test_program_is_asked_once(make: Make) -> None:
    child = make("worker", COUNTING)
    supervisor = Supervisor([[child]], say=lambda line: None)
    supervisor.start()
    _printed(child, "up")
    supervisor.stop()
    assert child.log_file.read_text().splitlines()[-1] == "heard 1"


def test_missing_program_is_an_error_in_the_log_and_tried_again(tmp_path: Path) -> None:
    child = ChildProcess(
        "worker", ["/nowhere/program"], environ={}, cwd=tmp_path, log_file=tmp_path / "worker.log", stop_seconds=1
    )
    child.start()
    wait_until(lambda: child.pid is None, seconds=60, what="it ended")
    assert child.exit_code == 1
    assert "/nowhere/program" in child.log_file.read_text() or "No such file" in child.log_file.read_text()


def test_missing_folder_is_an_error(tmp_path: Path) -> None:
    child = ChildProcess(
        "worker", ["x"], environ={}, cwd=tmp_path / "gone", log_file=tmp_path / "worker.log", stop_seconds=1
    )
    with pytest.raises(LocalProcessFailed, match="worker cannot be started"):
        child.start()


# --- signals, in a process of their own --------------------------------------------------------------------------

SUPERVISING = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from dcsync.local.supervisor import ChildProcess, StopSignals, Supervisor
    folder, code = Path(sys.argv[1]), sys.argv[2]
    children = [
        ChildProcess(name, (sys.executable, "-u", "-c", code), environ={}, cwd=folder, log_file=folder / f"{name}.log",
                     stop_seconds=float(sys.argv[3]))
        for name in ("one", "two")
    ]
    supervisor = Supervisor([[child] for child in children], say=lambda line: print(line, flush=True))
    with StopSignals() as signals:
        try:
            supervisor.start()
            print("pids", *(child.pid for child in children), flush=True)
            while not signals.wait(supervisor.look()):
                pass
            print("stopping", flush=True)
            supervisor.stop()
        except KeyboardInterrupt:
            supervisor.kill()
            print("killed", flush=True)
    """
)


def _supervising(processes: Processes, folder: Path, code: str, stop_seconds: float) -> list[psutil.Process]:
    running = processes.start(
        *(sys.executable, "-c", SUPERVISING, folder, code, str(stop_seconds)), name="supervisor", ready="pids"
    )
    for name in ("one", "two"):
        log = folder / f"{name}.log"
        wait_until(lambda log=log: log.exists() and "up" in log.read_text(), seconds=60, what=f"{name} is up")  # type: ignore[misc]
    line = next(line for line in running.output().splitlines() if line.startswith("pids"))
    return [psutil.Process(running.pid), *(psutil.Process(int(pid)) for pid in line.split()[1:])]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_signal_stops_everything_politely(processes: Processes, tmp_path: Path, number: signal.Signals) -> None:
    family = _supervising(processes, tmp_path, STEADY, 60)
    family[0].send_signal(number)
    assert psutil.wait_procs(family, timeout=60)[1] == []
    output = next(tmp_path.glob("*supervisor.log")).read_text()
    assert output.splitlines()[-3:] == ["stopping", "two stopped", "one stopped"]


def test_second_signal_kills_what_is_still_stopping(processes: Processes, tmp_path: Path) -> None:
    family = _supervising(processes, tmp_path, STUBBORN, 600)
    family[0].send_signal(signal.SIGINT)
    log = next(tmp_path.glob("*supervisor.log"))
    wait_until(lambda: "stopping" in log.read_text(), seconds=60, what="it stops")
    family[0].send_signal(signal.SIGINT)
    assert psutil.wait_procs(family, timeout=60)[1] == []
    assert log.read_text().splitlines()[-1] == "killed"


def test_children_of_a_killed_supervisor_die_with_it(processes: Processes, tmp_path: Path) -> None:
    family = _supervising(processes, tmp_path, STUBBORN, 600)
    family[0].kill()
    assert psutil.wait_procs(family, timeout=60)[1] == []


def test_end_of_a_child_wakes_the_waiting_supervisor(make: Make) -> None:
    with StopSignals() as signals:
        child = make("worker", "pass")
        began = time.monotonic()
        child.start()
        assert signals.wait(200) is False
        assert time.monotonic() - began < 100
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


# --- logs ----------------------------------------------------------------------------------------------------------


def test_tails_show_whole_new_lines_of_each_file(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("from before\n")
    tails = Tails({"one": one, "two": two})
    assert tails.new_lines() == []
    with one.open("a") as file:
        file.write("first\nhal")
    two.write_text("second\n")
    assert tails.new_lines() == ["one | first", "two | second"]
    with one.open("a") as file:
        file.write("f\n\n")
    assert tails.new_lines() == ["one | half", "one | "]
    one.write_text("x\n")
    assert tails.new_lines() == ["one | x"]


def test_large_log_is_put_aside_while_its_writer_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("ab", buffering=0) as writer:
        writer.write(b"a" * 100)
        shrink_log(path, limit=100)
        assert not (tmp_path / "log.1").exists()
        writer.write(b"b")
        shrink_log(path, limit=100)
        writer.write(b"c")
    assert (tmp_path / "log.1").read_bytes() == b"a" * 100 + b"b"
    assert path.read_bytes() == b"c"
