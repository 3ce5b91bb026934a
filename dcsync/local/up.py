"""`dcsync up`: everything on this machine, with embedded servers where no URL is set; Ctrl-C stops it.

This module defines the processes and their arguments; `supervisor` keeps them running.
"""

from __future__ import annotations

import os
import re
import secrets
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import click

import dcsync
from dcsync.adapters.postgres.database import upgrade
from dcsync.local.endpoints import is_set, remove_endpoints, up_lock, write_endpoints
from dcsync.local.folder import default_data_dir, make_data_dir, make_folder, write_private
from dcsync.local.servers import HOST, EmbeddedPostgres, EmbeddedRedis, Server, free_port, is_free
from dcsync.local.supervisor import ChildProcess, StopSignals, Supervised, Supervisor, Tails
from dcsync.model.errors import MisconfiguredError
from dcsync.settings import PREFIX, SECRETS, Settings, load

SYNC_WORKERS = 2
SYNC_THREADS = 100
STATE_THREADS = 2
FLOWER_PORT = 5555
FLOWER_USER = "operator"
NEEDED_SECRETS: Mapping[str, frozenset[str]] = {
    "sync-worker": frozenset(SECRETS),
    # It delivers alarms as well, while no sync worker does.
    "state-worker": frozenset({"database_url", "redis_url", "alarm_webhook_url"}),
    "beat": frozenset({"redis_url"}),
    "flower": frozenset({"redis_url"}),
}
"""The secrets each kind of process is given; as in the compose file and the systemd units."""
STOP_GRACE_SECONDS = 5.0
"""What a stopping worker gives its runs unless DCSYNC_STOP_GRACE is set: somebody waits at the terminal, and what
is given back is run at the next start."""
STOP_MARGIN_SECONDS = 10.0
"""Added to the time that a stopping worker gives its runs."""
SERVERS: Mapping[str, type[Server]] = {"DCSYNC_DATABASE_URL": EmbeddedPostgres, "DCSYNC_REDIS_URL": EmbeddedRedis}
SHOW_LINES_SECONDS = 0.25

Say = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """The options of `dcsync up`."""

    flower: bool = True
    flower_port: int | None = None
    """None: 5555, or a free port if that is in use."""
    verbose: bool = False
    """Show the logs of the processes as well."""


def run(settings: Settings | None = None, *, options: Options | None = None, say: Say = click.echo) -> int:
    """Runs everything until Ctrl-C or SIGTERM; returns the exit code. A second Ctrl-C kills what is still stopping.

    Raises MisconfiguredError when a setting is missing or the data folder cannot be used, RefusedByGuard when it is
    already running on this folder, LocalProcessFailed when a server does not start.
    """
    options = options or Options()
    environ = local_environment(os.environ)
    settings = (settings or load(environ)).required("central_auth_url", "password")
    if options.flower and options.flower_port is not None:
        _flower_port(options.flower_port)  # refused before anything starts; the default is chosen when Flower does
    data_dir = make_data_dir(
        settings.data_dir.expanduser().absolute() if settings.data_dir else default_data_dir(os.environ)
    )
    with StopSignals() as signals, ExitStack() as closing:
        lock = up_lock(data_dir)
        lock.take()
        closing.callback(lock.give_back)
        machine = closing.enter_context(Machine(data_dir, environ=environ, say=_stamped(say)))
        machine.start_servers(interrupted=signals.interrupted)
        if not signals.interrupted():
            write_endpoints(data_dir, machine.embedded_urls)
            closing.callback(remove_endpoints, data_dir)
            machine.start_processes(options=options, settings=settings, interrupted=signals.interrupted)
            say(machine.table())
        _watch(machine, signals, options=options, say=say)
        say("stopping; Ctrl-C again kills what is left")
    return 0


def local_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment of processes on one machine, which stop soon."""
    own = {} if is_set(environ, "DCSYNC_STOP_GRACE") else {"DCSYNC_STOP_GRACE": f"{STOP_GRACE_SECONDS:g}"}
    return {**environ, **own}


def _watch(machine: Machine, signals: StopSignals, *, options: Options, say: Say) -> None:
    tails = Tails(machine.log_files) if options.verbose else None
    while not signals.interrupted():
        seconds = machine.look()
        if tails:
            for line in tails.new_lines():
                say(line)
            seconds = min(seconds, SHOW_LINES_SECONDS)
        signals.wait(seconds)


class Machine:
    """Servers and processes of one `dcsync up` or demo. As a context manager it stops what it started.

    `environ` is the environment of the processes; the embedded servers' URLs are added to it.
    """

    def __init__(self, data_dir: Path, *, environ: Mapping[str, str], say: Say, fast: bool = False) -> None:
        self.data_dir = data_dir
        self.environ = dict(environ)
        self.servers: dict[str, Server] = {
            variable: kind(data_dir, fast=fast) for variable, kind in SERVERS.items() if not is_set(environ, variable)
        }
        self.processes: list[Supervised] = []
        self._say = say
        self._supervisors: list[Supervisor] = []
        self.flower_url: str | None = None

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, traceback: object) -> None:
        """Stops workers, beat, Flower, PostgreSQL and Valkey; a KeyboardInterrupt before or meanwhile kills them."""
        try:
            if kind is not None and issubclass(kind, KeyboardInterrupt):
                raise KeyboardInterrupt
            for supervisor in reversed(self._supervisors):
                supervisor.stop()
        except KeyboardInterrupt:
            for supervisor in reversed(self._supervisors):
                supervisor.kill()

    @property
    def embedded_urls(self) -> dict[str, str]:
        """Name of the setting -> URL of workers and commands, with the password."""
        return {variable: server.app_url for variable, server in self.servers.items()}

    @property
    def log_files(self) -> dict[str, Path]:
        return {child.name: child.log_file for child in (*self.servers.values(), *self.processes)}

    @property
    def restarts(self) -> int:
        """How often a process was restarted."""
        return sum(supervisor.restarts for supervisor in self._supervisors)

    def start_servers(self, *, interrupted: Callable[[], bool]) -> None:
        """Starts the embedded servers and upgrades the database schema."""
        # Valkey first: they stop in reverse order.
        self._supervise([[server] for _, server in reversed(self.servers.items())], interrupted)
        if interrupted():
            return
        self.environ |= self.embedded_urls
        url = load(self.environ).required("database_url", "redis_url").database_url
        assert url is not None
        server = self.servers.get("DCSYNC_DATABASE_URL")
        before, now = upgrade(server.owner_url if isinstance(server, EmbeddedPostgres) else url.get_secret_value())
        if before != now:
            self._say(f"database schema upgraded to revision {now}")

    def start_processes(self, *, options: Options, settings: Settings, interrupted: Callable[[], bool]) -> None:
        """Starts Flower, beat and the workers."""
        stages = self._stages(options, stop_seconds=settings.stop_grace + STOP_MARGIN_SECONDS)
        self.processes = [child for stage in stages for child in stage]
        self._supervise(stages, interrupted)

    def look(self) -> float:
        """Restarts ended processes; returns the seconds until it must be called again."""
        return min((supervisor.look() for supervisor in self._supervisors), default=1.0)

    def table(self) -> str:
        """Returns the table of running processes, without passwords."""
        rows = [("", "process", "log or address")]
        for child in (*self.servers.values(), *self.processes):
            where = f"{HOST}:{child.port}" if isinstance(child, Server) else str(child.log_file)
            if child.name == "flower" and self.flower_url:
                where = self.flower_url
            rows.append((child.name, str(child.pid or "-"), where))
        widths = [max(len(row[column]) for row in rows) for column in range(2)]
        lines = [f"{name:<{widths[0]}}  {pid:>{widths[1]}}  {where}" for name, pid, where in rows]
        if self.flower_url:
            lines.append(f"Flower asks for user {FLOWER_USER} and the password in {self._flower_login}")
        return "\n".join([*lines, f"data and logs: {self.data_dir}"])

    def _supervise(self, stages: Sequence[Sequence[Supervised]], interrupted: Callable[[], bool]) -> None:
        supervisor = Supervisor(stages, say=self._say)
        self._supervisors.append(supervisor)
        supervisor.start(interrupted=interrupted)

    def _stages(self, options: Options, *, stop_seconds: float) -> list[list[Supervised]]:
        """Returns the processes in the order of their start; they stop in reverse order."""
        flower: list[Supervised] = []
        if options.flower:
            port = _flower_port(options.flower_port)
            self.flower_url = f"http://{HOST}:{port}"
            make_flower_login(self._flower_login)
            arguments = _flower_arguments(port, login=self._flower_login)
            flower = [self._celery("flower", *arguments, role="flower", stop_seconds=STOP_MARGIN_SECONDS)]
        schedule = str(self._run_folder / "beat-schedule")
        beat = self._celery("beat", "beat", "--schedule", schedule, role="beat", stop_seconds=STOP_MARGIN_SECONDS)
        workers: list[Supervised] = [
            self._worker("sync-worker", number, "control,sync,audit", SYNC_THREADS, "-E", stop_seconds=stop_seconds)
            for number in range(1, SYNC_WORKERS + 1)
        ]
        workers.append(self._worker("state-worker", None, "state", STATE_THREADS, stop_seconds=stop_seconds))
        return [flower, [beat], workers]

    def _worker(
        self, role: str, number: int | None, queues: str, threads: int, *more: str, stop_seconds: float
    ) -> ChildProcess:
        name = role if number is None else f"{role}-{number}"
        arguments = ("-n", f"{name}@%h", "-Q", queues, "-P", "threads", "-c", str(threads))
        alone = ("--without-gossip", "--without-mingle")
        return self._celery(name, "worker", *arguments, *alone, *more, role=role, stop_seconds=stop_seconds)

    def _celery(self, name: str, *arguments: str, role: str, stop_seconds: float) -> ChildProcess:
        return ChildProcess(
            name,
            (sys.executable, "-m", "celery", "-A", "dcsync.worker", *arguments),
            environ=with_own_modules(with_needed_secrets(self.environ, role=role)),
            cwd=self._run_folder,
            log_file=make_folder(self.data_dir / "logs", mode=0o700) / f"{name}.log",
            stop_seconds=stop_seconds,
        )

    @property
    def _flower_login(self) -> Path:
        return self.data_dir / "flower_login.py"

    @property
    def _run_folder(self) -> Path:
        """The working folder of the processes, which contains no `dcsync` that could be imported instead."""
        return make_folder(self.data_dir / "run", mode=0o700)


def with_own_modules(environ: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment in which this `worker` and `dcsync` are imported, from a checkout or installed."""
    ours = str(Path(dcsync.__file__).resolve().parents[1])
    rest = [part for part in environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    return {**environ, "PYTHONPATH": os.pathsep.join([ours, *rest])}


def with_needed_secrets(environ: Mapping[str, str], *, role: str) -> dict[str, str]:
    """Returns the environment without the secrets that a process of this role does not need, nor their files."""
    withheld = {PREFIX + name.upper() for name in set(SECRETS) - NEEDED_SECRETS[role]}
    withheld |= {f"{name}_FILE" for name in withheld}
    return {name: value for name, value in environ.items() if name not in withheld}


def make_flower_login(path: Path) -> None:
    """Writes Flower's configuration with a random password; keeps the password of one that exists."""
    found = re.search(rf'"{FLOWER_USER}:([\w-]+)"', path.read_text(encoding="utf-8")) if path.exists() else None
    password = found.group(1) if found else secrets.token_urlsafe(24)
    write_private(path, f'basic_auth = ["{FLOWER_USER}:{password}"]\n')


def _flower_arguments(port: int, *, login: Path) -> tuple[str, ...]:
    """Returns Flower's arguments. It must not enable events in state workers, where they cost a third of the capacity;
    sync workers send them anyway."""
    shown = ("--read_only=True", "--enable_events=False", "--max_tasks=20000")
    return ("flower", f"--conf={login}", f"--address={HOST}", f"--port={port}", *shown)


def _flower_port(wanted: int | None) -> int:
    if wanted is not None:
        if not is_free(wanted):
            raise MisconfiguredError(f"port {wanted} is in use; choose another port for Flower, or --no-flower")
        return wanted
    return FLOWER_PORT if is_free(FLOWER_PORT) else free_port()


def _stamped(say: Say) -> Say:
    return lambda line: say(f"{time.strftime('%H:%M:%S')}  {line}")
