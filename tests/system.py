"""dcsync as a whole over a fake cloud: real servers, workers, beat and command line, ended with the test.

    with open_system(folder, subclouds=20, settings={"DCSYNC_LOCK_TTL": "3"}) as system:
        system.start_dcsync()
        (name, *others) = system.add_online(count=20)
        system.cli("subcloud", "manage", name)
        system.until_completed(name)

Actions go through the command line, as an operator's do. What came of them is read from rows where many looks are
needed (a command costs half a second), and from the fake cloud, who counts what it was asked.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis as redis_library
from celery import Celery
from sqlalchemy import Engine, func, select

from dcsync.adapters.broker.locks import RedisLocks
from dcsync.adapters.host.clock import utc_now
from dcsync.adapters.postgres.audits import SqlAuditStore
from dcsync.adapters.postgres.database import make_engine, upgrade
from dcsync.adapters.postgres.inventory import SqlInventory
from dcsync.adapters.postgres.tables import central_state
from dcsync.audit.endpoints import audited_types
from dcsync.audit.ports import AuditRow
from dcsync.fake_cloud.control import FakeCloud
from dcsync.local.servers import EmbeddedPostgres, EmbeddedRedis
from dcsync.model.history import AttemptHistory
from dcsync.model.states.audit import AuditStatus
from dcsync.model.states.initial_sync import InitialSyncState
from dcsync.model.subcloud import AvailabilityStatus, Subcloud, SyncStatus
from dcsync.settings import load
from dcsync.tasks.app import make_app
from tests.conftest import data_folder
from tests.processes import Processes, Running, wait_until

SECONDS = 120.0
"""How long a test waits for what takes a second or two: the machine may be busy."""
PATIENCE = ("--timeout", f"{SECONDS:.0f}")
"""The same for commands that wait."""

FAST = {
    "DCSYNC_SWEEP_INTERVAL": "1",
    "DCSYNC_HOLD_OFF": "2",
    "DCSYNC_HOLD_OFF_MAX": "8",
    "DCSYNC_LOCK_TTL": "30",
    "DCSYNC_LOGIN_HOLD_OFF": "0.5",
    "DCSYNC_CENTRAL_MAX_AGE": "0",
    "DCSYNC_MAX_REPLY_BYTES": "2097152",
    "DCSYNC_STOP_GRACE": "3",
    "DCSYNC_PROBE_INTERVAL": "0",
}
"""What is due happens soon, and the tests play the auditor. What a test is about, it sets itself.

Locks live as long as they may, and answers are waited for as long as by default: a process that gets no CPU for ten
seconds must neither lose its locks nor think that an answer did not come, for then dcsync does what it should, and the
test is about something else.
"""

SYNC_QUEUES = "control,sync,audit"
LAST_LINES = 25


class System:
    """One dcsync with its servers, its processes and its fake cloud. Made by `open_system`."""

    def __init__(
        self,
        *,
        processes: Processes,
        cloud: FakeCloud,
        postgres: EmbeddedPostgres,
        redis: EmbeddedRedis,
        engine: Engine,
        settings: Mapping[str, str],
    ) -> None:
        self.processes = processes
        self.cloud = cloud
        self.postgres = postgres
        self.redis = redis
        self.engine = engine
        self.environ = {
            **settings,
            **cloud.environment(),
            "DCSYNC_DATABASE_URL": postgres.app_url,
            "DCSYNC_REDIS_URL": redis.app_url,
        }
        self.inventory = SqlInventory(engine)
        self.audits = SqlAuditStore(engine)
        self.running: list[Running] = []
        self._places = {place["name"]: place for place in cloud.subclouds()}
        self._not_added = iter(sorted(self._places, key=lambda name: int(name.removeprefix("subcloud"))))
        self._online: Iterator[str] = iter(())

    # --- processes ---

    def start_dcsync(self) -> None:
        """A sync worker, a state worker and a beat, all of them up."""
        started = [self.start_sync_worker(ready=False), self.start_state_worker(ready=False), self.start_beat()]
        for running in started[:2]:
            running.wait_for("ready.")

    def start_sync_worker(
        self, name: str = "sync", *, ready: bool = True, threads: int = 20, clock_ahead: float = 0.0, **environ: str
    ) -> Running:
        return self._start_worker(
            name, SYNC_QUEUES, str(threads), "-E", ready=ready, environ=environ, clock_ahead=clock_ahead
        )

    def start_state_worker(self, name: str = "state", *, ready: bool = True, clock_ahead: float = 0.0) -> Running:
        return self._start_worker(name, "state", "4", ready=ready, environ={}, clock_ahead=clock_ahead)

    def _start_worker(
        self,
        name: str,
        queues: str,
        threads: str,
        *options: str,
        ready: bool,
        environ: Mapping[str, str],
        clock_ahead: float,
    ) -> Running:
        arguments = ("-Q", queues, "-P", "threads", "-c", threads, "-n", f"{name}@%h", "--without-gossip")
        return self._started(
            self.processes.celery(
                "worker",
                *arguments,
                "--without-mingle",
                *options,
                environ={**self.environ, **environ},
                name=name,
                ready="ready." if ready else None,
                clock_ahead=clock_ahead,
            )
        )

    def start_beat(self, name: str = "beat", *, clock_ahead: float = 0.0) -> Running:
        schedule = self.processes.folder / f"{name}-schedule"
        return self._started(
            self.processes.celery("beat", "-s", str(schedule), environ=self.environ, name=name, clock_ahead=clock_ahead)
        )

    def _started(self, running: Running) -> Running:
        self.running.append(running)
        return running

    def output(self) -> str:
        """What all processes have printed so far."""
        return "\n".join(running.output() for running in self.running)

    def last_lines(self) -> str:
        """What each process printed last, for a person who reads why a test failed."""
        last = {f"{running.name} (pid {running.pid})": running.output().splitlines() for running in self.running}
        return "\n".join(f"--- {name}\n" + "\n".join(lines[-LAST_LINES:]) for name, lines in last.items())

    def celery_app(self) -> Celery:
        """An app of this system, for messages no command sends. To be closed."""
        return make_app(load(self.environ))

    def celery(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`celery -A worker <arguments>`, to its end."""
        running = self.processes.celery(arguments[0], *arguments[1:], environ=self.environ)
        return subprocess.CompletedProcess(arguments, running.wait(), stdout=running.output())

    # --- the operator ---

    def cli(self, *arguments: str, expect: int | None = 0, stdin: str | None = None, clock_ahead: float = 0.0) -> str:
        """`dcsync <arguments>`: what it printed on stdout."""
        return self.processes.cli(
            *arguments, environ=self.environ, expect=expect, stdin=stdin, clock_ahead=clock_ahead
        ).stdout

    def json(self, *arguments: str) -> Any:
        return json.loads(self.cli(*arguments, "-o", "json"))

    def address(self, name: str) -> str:
        return self._places[name]["management_ip"]

    def take_new(self) -> str:
        """The name of a subcloud of the fake cloud that dcsync does not know yet."""
        return next(self._not_added)

    def add_online(self, *, count: int) -> list[str]:
        """So many more are added and reported online, and not managed yet; `take` hands them out."""
        names = [self.take_new() for _ in range(count)]
        self.cli("subcloud", "import", "-", stdin=json.dumps([self._places[name] for name in names]))
        self.report(AvailabilityStatus.ONLINE, *names)
        self._online = itertools.chain(self._online, names)
        return names

    def report(self, status: AvailabilityStatus, *names: str) -> None:
        """Reported as seen online or offline, and written down."""
        self.cli("state", "availability", status, "--no-wait", *names)
        self.until(
            lambda: all(row.availability_status is status for row in self.inventory.find(names)),
            f"all of {names} {status}",
        )

    def take(self, count: int) -> list[str]:
        """Names of online subclouds that no other test has."""
        return [next(self._online) for _ in range(count)]

    def manage(self, *names: str) -> None:
        self.cli("subcloud", "manage", *names)

    def unmanage(self, *names: str) -> None:
        self.cli("subcloud", "unmanage", *names)

    # --- what came of it ---

    def row(self, name: str) -> Subcloud:
        (found,) = self.inventory.find([name])
        return found

    def attempts(self, name: str) -> list[AttemptHistory]:
        """Of the newest request, oldest first."""
        return list(self.inventory.history(name)[0].requests[0].attempts)

    def all_attempts(self, name: str) -> list[AttemptHistory]:
        """Of all requests, oldest first."""
        return [
            attempt for request in reversed(self.inventory.history(name)[0].requests) for attempt in request.attempts
        ]

    def endings(self, name: str) -> list[str | None]:
        return [attempt.ending for attempt in self.attempts(name)]

    def until(self, question: Callable[[], object], what: str | Callable[[], str], *, seconds: float = SECONDS) -> None:
        """Until it is true; AssertionError with what the processes printed last otherwise."""

        def told() -> str:
            return f"{what if isinstance(what, str) else what()}\n{self.last_lines()}"

        wait_until(question, seconds=seconds, what=told)

    def until_state(self, state: InitialSyncState, *names: str, seconds: float = SECONDS) -> None:
        def reached() -> bool:
            return all(row.initial_sync_state is state for row in self.inventory.find(names))

        self.until(reached, f"all of {names} {state}", seconds=seconds)

    def until_completed(self, *names: str, seconds: float = SECONDS) -> None:
        self.until_state(InitialSyncState.COMPLETED, *names, seconds=seconds)

    def until_failed(self, name: str, *, seconds: float = SECONDS) -> Subcloud:
        """The row as it was seen when failed."""
        seen: list[Subcloud] = []

        def failed() -> bool:
            seen.append(self.row(name))
            return seen[-1].initial_sync_state is InitialSyncState.FAILED

        self.until(failed, lambda: f"{name} failed, but it is {seen[-1]}", seconds=seconds)
        return seen[-1]

    def until_at_rest(self, *names: str) -> None:
        """Until these are completed, and what follows by itself is done: audited, shown in sync, no run at work.

        Then nothing more is written there until somebody asks, the central cloud changes, or an interval passes.
        """

        def are_at_rest() -> bool:
            return (
                all(_is_in_sync(row) for row in self.inventory.find(names))
                and all(_is_done(row) for row in self.audits.audits(names))
                and self.are_free(*names)
            )

        self.until(are_at_rest, lambda: f"all of {names} at rest, but: {self.audits.audits(names)}")

    def until_free(self, *names: str) -> None:
        """Until no run holds a lock on these; that of a run that has told its end is given back a moment later."""
        self.until(lambda: self.are_free(*names), f"no run at work on {names}")

    def are_free(self, *names: str) -> bool:
        regions = [row.region_name for row in self.inventory.find(names)]
        with redis_client(self) as client:
            return not any(RedisLocks(client, ttl_seconds=1).owners(regions).values())

    def until_central_cloud_is_seen(self) -> None:
        """Until the watch has looked at the central cloud as it is now, and told the rows what it found."""
        now = utc_now()
        query = select(func.count()).where(central_state.c.checked_at > now)

        def is_seen() -> bool:
            with self.engine.connect() as connection:
                return connection.execute(query).scalar_one() == len(audited_types())

        self.until(is_seen, "the watch has looked at the central cloud")

    def carried_out(self, name: str) -> dict[str, int]:
        """Writes this subcloud has carried out: "VERB service subject" -> how many."""
        found: dict[str, int] = self.cloud.state(name)["carried_out"]
        return found

    def writes(self, name: str) -> int:
        return sum(self.carried_out(name).values())

    def requests(self, name: str) -> dict[str, int]:
        found: dict[str, int] = self.cloud.state(name)["requests"]
        return found

    def problems(self, name: str) -> list[str]:
        """What is wrong with ids, hashes, keys, members and grants of this subcloud; empty when it is as it must be.

        The audit that follows an initial sync adds what only the central cloud has, so a subcloud it is at work on is
        given the time to get there.
        """
        deadline = time.monotonic() + SECONDS
        while True:
            is_last = time.monotonic() > deadline
            found: list[str] = self.cloud.state(name)["problems"]
            if not found or is_last:
                return found
            time.sleep(0.05)

    def assert_good(self, *names: str) -> None:
        """No problems, and nothing happened that must never happen."""
        for name in names:
            assert self.problems(name) == [], name
            state = self.cloud.state(name)
            assert state["violations"] == {}, (name, state["described"])


def _is_in_sync(row: Subcloud) -> bool:
    shown = {row.sync_status.get(type_) for type_ in audited_types()}
    return row.initial_sync_state is InitialSyncState.COMPLETED and shown == {SyncStatus.IN_SYNC}


def _is_done(row: AuditRow) -> bool:
    is_over = row.audit_status is AuditStatus.COMPLETED and row.due_at > utc_now()
    return is_over and row.observed_generation == row.generation


@contextmanager
def open_system(
    folder: Path, *, subclouds: int, settings: Mapping[str, str] | None = None, unaligned: Sequence[str] = ()
) -> Iterator[System]:
    """Servers up, schema there, the fake cloud listening; no process of dcsync yet."""
    with (
        data_folder() as data,
        EmbeddedPostgres(data, fast=True) as postgres,
        EmbeddedRedis(data, fast=True) as redis,
        FakeCloud.start(subclouds=subclouds, unaligned=unaligned) as cloud,
        Processes(folder) as processes,
    ):
        engine = make_engine(postgres.url, application_name="tests")
        system = System(
            processes=processes,
            cloud=cloud,
            postgres=postgres,
            redis=redis,
            engine=engine,
            settings=FAST if settings is None else settings,
        )
        upgrade(postgres.owner_url)
        try:
            yield system
        finally:
            engine.dispose()


@contextmanager
def redis_client(system: System) -> Iterator[redis_library.Redis]:
    with redis_library.Redis.from_url(system.redis.url, decode_responses=True) as client:
        yield client
