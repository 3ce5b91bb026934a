"""`dcsync demo`: the whole system on this machine with a fake central cloud and N fake subclouds, and a verdict.

It runs like `dcsync up`, in a folder that is removed afterwards. The subclouds are added, and managed once they are
online, with the commands an operator would use. Then some of them have an outage. The verdict is based on the fake
cloud's own report, which is independent of dcsync.
"""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import psutil
import redis
from sqlalchemy import Engine, func, select

from dcsync.adapters.postgres.database import database_errors, make_engine
from dcsync.adapters.postgres.tables import alarm, subcloud, sync_attempt, sync_request
from dcsync.fake_cloud.control import FakeCloud
from dcsync.fake_cloud.faults import Fault
from dcsync.local.folder import make_data_dir
from dcsync.local.supervisor import StopSignals
from dcsync.local.up import STOP_GRACE_SECONDS, Machine, Options, Say, with_own_modules
from dcsync.model.errors import LocalProcessFailed
from dcsync.model.states.initial_sync import InitialSyncState
from dcsync.settings import load

INTERRUPTED = 130
WORKERS_UP_SECONDS = 180.0
LOOK_SECONDS = 0.5
LINE_SECONDS = 5.0
"""The interval of progress lines without a terminal."""
FIRST_ROWS = 10
FIRST_LINES = 4
COMMAND_SECONDS = 300.0
OFFLINE_ALARM = "280.001"
OUTAGE_SUBCLOUDS = 5
PROBES_A_SECOND = 50
"""Limits probes, so that they do not distort the measured cost of syncs."""
PROBE_INTERVALS = (5.0, 30.0)
"""The minimum and maximum, in seconds. A probe may take as long, 5 s at most: with less, a machine that is busy, for
example with a second demo, takes healthy subclouds for offline."""
CHANGE_SECONDS = 180.0
"""How long the detection of an outage or of its end may take, in addition to a few probe intervals."""


@dataclass(frozen=True)
class Measured:
    """The measurements of the run; times in seconds."""

    start_up: float
    wall: float
    """From the first request to the end of the last run, according to the database."""
    worker_cpu: float
    """User and system time of the sync workers meanwhile."""


class Interrupted(Exception):
    """The demo was stopped by a signal."""


def run(
    subclouds: int = 20,
    *,
    latency: float = 0.0,
    options: Options | None = None,
    say: Say = click.echo,
    demo_class: type[Demo] | None = None,
) -> int:
    """Runs the demo with `subclouds` fake subclouds; returns 0 when all are completed and verified, otherwise 1.

    `latency` in seconds is added to every request to a subcloud. Stops and removes everything, also on Ctrl-C (130).
    `demo_class` replaces the demo of an outage.
    """
    with StopSignals() as signals, ExitStack() as closing:
        try:
            return _run(
                subclouds,
                latency=latency,
                options=options or Options(),
                say=say,
                signals=signals,
                to=closing,
                demo_class=demo_class or Demo,
            )
        except Interrupted:
            say("\ninterrupted; stopping everything")
            return INTERRUPTED


def _run(
    count: int,
    *,
    latency: float,
    options: Options,
    say: Say,
    signals: StopSignals,
    to: ExitStack,
    demo_class: type[Demo],
) -> int:
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="dcsync-demo-"))
    to.callback(shutil.rmtree, folder, ignore_errors=True)
    folder.chmod(0o711)
    say(f"starting PostgreSQL, Valkey, the processes of dcsync and a fake cloud of {_many(count)} in {folder}")
    cloud = to.enter_context(FakeCloud.start(subclouds=count, latency=latency))
    quiet: Say = lambda line: say(line) if " ended" in line else None  # noqa: E731
    environ = _environment(cloud, folder=folder, count=count)
    machine = to.enter_context(Machine(make_data_dir(folder), environ=environ, say=quiet))
    machine.start_servers(interrupted=signals.interrupted)
    settings = load(machine.environ)
    machine.start_processes(options=options, settings=settings, interrupted=signals.interrupted)
    demo = demo_class(machine=machine, cloud=cloud, count=count, signals=signals, say=say)
    demo.wait_for_workers()
    start_up = time.monotonic() - began
    say(machine.table())
    try:
        return demo.bring_into_line(start_up=start_up)
    finally:
        demo.close()


def _environment(cloud: FakeCloud, *, folder: Path, count: int) -> dict[str, str]:
    """Returns this environment with the fake cloud's settings instead of all DCSYNC_ settings for a real cloud."""
    rest = {name: value for name, value in os.environ.items() if not name.startswith("DCSYNC_")}
    interval = probe_interval(count)
    own = {
        "DCSYNC_RUN_DIR": str(folder / "processes"),
        "DCSYNC_STOP_GRACE": f"{STOP_GRACE_SECONDS:g}",
        "DCSYNC_PROBE_INTERVAL": f"{interval:g}",
        "DCSYNC_PROBE_TIMEOUT": f"{min(interval, 5):g}",
    }
    return with_own_modules({**rest, **cloud.environment(), **own})


def probe_interval(count: int) -> float:
    """Returns the probe interval in seconds for this many subclouds: short, so that an outage is detected quickly."""
    least, most = PROBE_INTERVALS
    return min(most, max(least, count / PROBES_A_SECOND))


@dataclass(frozen=True)
class Outage:
    """The results of an outage; times in seconds from its begin or from its end. None: not in time."""

    subclouds: int
    raised_after: float | None
    cleared_after: float | None
    completed_after: float | None


class Demo:
    """One demo, after all processes were started."""

    def __init__(self, *, machine: Machine, cloud: FakeCloud, count: int, signals: StopSignals, say: Say) -> None:
        self.machine = machine
        self.cloud = cloud
        self.count = count
        self._signals = signals
        self._say = say
        self._engine: Engine = make_engine(machine.environ["DCSYNC_DATABASE_URL"], application_name="dcsync demo")

    def close(self) -> None:
        self._engine.dispose()

    def wait_for_workers(self) -> None:
        """Returns when each worker waits for messages in Redis; raises LocalProcessFailed after a time limit."""
        workers = [child for child in self.machine.processes if "worker" in child.name]
        deadline = time.monotonic() + WORKERS_UP_SECONDS
        with redis.Redis.from_url(self.machine.environ["DCSYNC_REDIS_URL"]) as client:
            while _blocked_clients(client) < len(workers):
                self._pause(0.1)
                if time.monotonic() > deadline:
                    self._say(self._logs())
                    raise LocalProcessFailed(f"the workers did not start within {WORKERS_UP_SECONDS:.0f} s")

    def bring_into_line(self, *, start_up: float) -> int:
        """Adds subclouds, manages them once online, waits, simulates an outage and verifies; returns the exit code."""
        self._command("subcloud", "import", str(self._write_import_file()))
        self._command("wait", "--for", "online", "--all", "--timeout", str(self._patience))
        cpu_before = self._worker_cpu()
        self._command("subcloud", "manage", "--all", "--yes")
        states = self._wait_until_completed()
        completed = states.get(InitialSyncState.COMPLETED, 0)
        measured = Measured(start_up=start_up, wall=self._wall(), worker_cpu=self._worker_cpu() - cpu_before)
        self._show_list()
        outage = self._outage() if completed == self.count else Outage(0, None, None, None)
        report = self.cloud.report()
        completed = self._states().get(InitialSyncState.COMPLETED, 0)
        self._say("")
        for line in self._results(report, measured, outage, completed=completed):
            self._say(line)
        wrong = what_is_wrong(
            report, count=self.count, completed=completed, restarts=self.machine.restarts, outage=outage
        )
        if wrong:
            self._say(self._logs())
            self._say(f"verdict: FAILED: {'; '.join(wrong)}")
            return 1
        self._say(f"verdict: OK: all {_many(self.count)} completed, verified at the far end, no violation")
        return 0

    # --- the outage ---

    def _outage(self) -> Outage:
        """Makes some subclouds refuse connections for a while: alarms are raised and cleared, and all sync again."""
        names = [place["name"] for place in self.cloud.subclouds()][: min(OUTAGE_SUBCLOUDS, max(1, self.count // 4))]
        self._say(f"outage: connections are refused by {', '.join(names)}")
        for name in names:
            self.cloud.set_fault(name, Fault("refuse"))
        raised = self._until(lambda: self._offline_alarms() == (len(names), 0))
        self._command("alarm", "list", lines=OUTAGE_SUBCLOUDS + 1)
        self._command("subcloud", "list", "--sort-by", "state", lines=FIRST_ROWS + 1)
        self._say(f"end of the outage: {', '.join(names)}")
        for name in names:
            self.cloud.set_fault(name, None)
        began = time.monotonic()
        cleared = self._until(lambda: self._offline_alarms() == (0, len(names)))
        self._until(lambda: self._states().get(InitialSyncState.COMPLETED, 0) == self.count)
        completed = time.monotonic() - began
        is_completed = self._states().get(InitialSyncState.COMPLETED, 0) == self.count
        self._command("alarm", "list", "--history", lines=OUTAGE_SUBCLOUDS + 1)
        return Outage(len(names), raised, cleared, completed if is_completed else None)

    @property
    def _patience(self) -> int:
        return int(CHANGE_SECONDS + 3 * probe_interval(self.count))

    def _until(self, question: Callable[[], bool]) -> float | None:
        """Seconds until it is true; None when that takes too long."""
        began = time.monotonic()
        while not question():
            if time.monotonic() - began > self._patience:
                return None
            self._pause(LOOK_SECONDS)
        return time.monotonic() - began

    @database_errors()
    def _offline_alarms(self) -> tuple[int, int]:
        """Returns how many offline alarms are active, and how many were cleared."""
        with self._engine.connect() as rows:
            counted = select(func.count(alarm.c.id) - func.count(alarm.c.cleared_at), func.count(alarm.c.cleared_at))
            active, cleared = rows.execute(counted.where(alarm.c.alarm_id == OFFLINE_ALARM)).one()
        return active, cleared

    def _write_import_file(self) -> Path:
        path = self.machine.data_dir / "subclouds.csv"
        columns = ("name", "management_ip", "region_name", "software_version")
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(self.cloud.subclouds())
        return path

    def _command(self, *arguments: str, lines: int = FIRST_LINES) -> None:
        """Runs one command of the CLI, and prints it as an operator would type it."""
        self._say(f"$ dcsync {' '.join(arguments)}")
        done = self._cli(arguments)
        self._show((done.stdout + done.stderr).splitlines(), lines)
        self._pause(0)
        if done.returncode != 0:
            self._say(self._logs())
            raise LocalProcessFailed(f"dcsync {' '.join(arguments)} ended with exit code {done.returncode}")

    def _cli(self, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "dcsync.cli", *arguments],
            env={**self.machine.environ, "COLUMNS": str(shutil.get_terminal_size((120, 24)).columns)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )

    def _wait_until_completed(self) -> Mapping[InitialSyncState, int]:
        """Returns the number of subclouds in each state, when all are completed or the time is up."""
        deadline = time.monotonic() + 120 + self.count
        progress = Progress(self._say, count=self.count)
        while True:
            states = self._states()
            progress.show(states)
            if states.get(InitialSyncState.COMPLETED, 0) == self.count or time.monotonic() > deadline:
                progress.end()
                return states
            self._pause(LOOK_SECONDS)

    @database_errors()
    def _states(self) -> dict[InitialSyncState, int]:
        with self._engine.connect() as rows:
            counted = rows.execute(
                select(subcloud.c.initial_sync_state, func.count()).group_by(subcloud.c.initial_sync_state)
            )
            return dict(counted.tuples().all())

    @database_errors()
    def _wall(self) -> float:
        with self._engine.connect() as rows:
            began = rows.execute(select(func.min(sync_request.c.requested_at))).scalar_one()
            ended = rows.execute(select(func.max(sync_attempt.c.ended_at))).scalar_one()
        return (ended - began).total_seconds() if began and ended else 0.0

    def _worker_cpu(self) -> float:
        """Returns the user and system time of the running sync workers, in seconds."""
        pids = [child.pid for child in self.machine.processes if child.name.startswith("sync-worker")]
        times = [psutil.Process(pid).cpu_times() for pid in pids if pid is not None]
        return sum(each.user + each.system for each in times)

    def _show_list(self) -> None:
        self._say("$ dcsync subcloud list")
        self._show(self._cli(("subcloud", "list")).stdout.splitlines(), FIRST_ROWS + 1)

    def _show(self, lines: Sequence[str], count: int) -> None:
        for line in lines[:count]:
            self._say(f"  {line}")
        if len(lines) > count:
            self._say(f"  ... {len(lines) - count} more lines")

    def _results(self, report: Mapping[str, Any], measured: Measured, outage: Outage, *, completed: int) -> list[str]:
        rate = completed / measured.wall if measured.wall else 0.0
        return [
            f"completed          {completed} of {self.count}",
            f"verified           {report['good']} of {self.count} carry the central ids and keys, nothing else touched",
            f"violations         {report['violation_count']}",
            f"alarms             {_outage_line(outage)}",
            f"start-up           {measured.start_up:.1f} s",
            f"sync               {measured.wall:.1f} s from the first request to the last end, {rate:.1f} subclouds/s",
            f"sync workers' CPU  {1000 * measured.worker_cpu / self.count:.1f} ms per subcloud",
        ]

    def _pause(self, seconds: float) -> None:
        """Restarts ended processes and waits; raises Interrupted after a stop signal."""
        self.machine.look()
        if self._signals.wait(seconds):
            raise Interrupted

    def _logs(self) -> str:
        """Returns the last lines of all logs, which are removed with the folder."""
        return "\n".join(f"--- {name}\n{_end_of(path)}" for name, path in self.machine.log_files.items())


def what_is_wrong(report: Mapping[str, Any], *, count: int, completed: int, restarts: int, outage: Outage) -> list[str]:
    """Returns the problems found in dcsync's rows and in the fake cloud's report; none is a good verdict."""
    checks = {
        f"{count - completed} not completed": completed != count,
        f"{count - report['good']} not as they should be: {report['problems']}": report["good"] != count,
        f"violations: {report['violations']}": report["violation_count"] != 0,
        f"the alarms of the outage were not as they should be: {_outage_line(outage)}": None
        in (outage.raised_after, outage.cleared_after),
        "not all were completed again after the outage": outage.completed_after is None,
        f"{restarts} processes had to be started again": restarts != 0,
    }
    return [text for text, is_wrong in checks.items() if is_wrong]


def _outage_line(outage: Outage) -> str:
    def after(seconds: float | None) -> str:
        return "never" if seconds is None else f"after {seconds:.1f} s"

    return (
        f"{outage.subclouds} subclouds away: raised {after(outage.raised_after)}; back: cleared "
        f"{after(outage.cleared_after)}, completed again {after(outage.completed_after)}"
    )


class Progress:
    """One line that is updated on a terminal, and a line every LINE_SECONDS elsewhere."""

    def __init__(self, say: Say, *, count: int, is_terminal: Callable[[], bool] = sys.stdout.isatty) -> None:
        self._say = say
        self._count = count
        self._is_terminal = is_terminal()
        self._began = time.monotonic()
        self._said_at = 0.0

    def show(self, states: Mapping[InitialSyncState, int]) -> None:
        if self._is_terminal:
            click.echo(f"\r{self._line(states)}\033[K", nl=False)
            return
        done = states.get(InitialSyncState.COMPLETED, 0) == self._count
        if done or time.monotonic() - self._said_at >= LINE_SECONDS:
            self._said_at = time.monotonic()
            self._say(self._line(states))

    def end(self) -> None:
        if self._is_terminal:
            click.echo()

    def _line(self, states: Mapping[InitialSyncState, int]) -> str:
        others = [
            f"{state} {states[state]}"
            for state in InitialSyncState
            if state is not InitialSyncState.COMPLETED and states.get(state)
        ]
        completed = f"completed {states.get(InitialSyncState.COMPLETED, 0)}/{self._count}"
        return f"  {time.monotonic() - self._began:5.1f} s  {', '.join([completed, *others])}"


def _blocked_clients(client: redis.Redis) -> int:
    return int(client.info("clients")["blocked_clients"])


def _end_of(path: Path, count: int = 10) -> str:
    if not path.exists():
        return ""
    return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-count:])


def _many(count: int) -> str:
    return f"{count} subcloud{'s' if count != 1 else ''}"
