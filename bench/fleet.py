"""What the benches of runs and audits share: a fake cloud, real servers, dcsync's processes, and what they spent."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import psutil
from sqlalchemy import Engine, func, select, text

from dcsync.adapters.broker.reporter import CeleryReports, Observer, StateReporter
from dcsync.adapters.postgres.database import make_engine, upgrade
from dcsync.adapters.postgres.inventory import SqlInventory
from dcsync.adapters.postgres.tables import subcloud
from dcsync.fake_cloud.control import PASSWORD, USERNAME, FakeCloud
from dcsync.local.servers import EmbeddedPostgres, EmbeddedRedis
from dcsync.model.states.initial_sync import InitialSyncState
from dcsync.model.subcloud import AvailabilityStatus, NewSubcloud
from dcsync.settings import load
from dcsync.tasks.app import make_app

WORKERS = 2
THREADS = 20
LOOK_SECONDS = 0.2
END_SECONDS = 900.0
SETTINGS = {
    "DCSYNC_PROBE_INTERVAL": "0",
    "DCSYNC_KEY_ROTATION_INTERVAL": "0",
    "DCSYNC_LOG_LEVEL": "WARNING",
}
"""Else as by default: sweep and watch every 10 s."""


@dataclass(frozen=True)
class Spent:
    """So far: CPU seconds of the sync workers and of the fake cloud, requests to subclouds, and when that was."""

    cpu: float
    cloud_cpu: float
    requests: int
    at: float

    def __sub__(self, before: Spent) -> Spent:
        """What was spent between the two; `at` is then seconds."""
        return Spent(
            cpu=self.cpu - before.cpu,
            cloud_cpu=self.cloud_cpu - before.cloud_cpu,
            requests=self.requests - before.requests,
            at=self.at - before.at,
        )


class Fleet:
    """Subclouds of a fake cloud, and the processes that look after them. Made by `open_fleet`."""

    def __init__(
        self, engine: Engine, cloud: FakeCloud, workers: Sequence[psutil.Process], *, environ: Mapping[str, str]
    ) -> None:
        self.engine = engine
        self.cloud = cloud
        self.places = cloud.subclouds()
        self.count = len(self.places)
        self.inventory = SqlInventory(engine)
        self.app = make_app(load(environ))
        self._workers = workers

    def add_online(self) -> None:
        """Every subcloud is added and reported online; none is managed yet."""
        news = [
            NewSubcloud(name=place["name"], region_name=place["region_name"], management_ip=place["management_ip"])
            for place in self.places
        ]
        self.inventory.add(news, now=now())
        observer = Observer(now)
        reporter = StateReporter(CeleryReports(self.app))
        for place in self.places:
            reporter.report(observer.availability(place["region_name"], AvailabilityStatus.ONLINE))
        reporter.close()
        is_online = subcloud.c.availability_status == AvailabilityStatus.ONLINE
        self.until(lambda: self.counted(select(func.count()).where(is_online)) == self.count, "all are online")

    def completed(self) -> int:
        is_completed = subcloud.c.initial_sync_state == InitialSyncState.COMPLETED
        return self.counted(select(func.count()).where(is_completed))

    def counted(self, query: Any) -> int:
        with self.engine.connect() as rows:
            return int(rows.scalar(query))

    def tidy(self) -> None:
        """As autovacuum would have left the tables after a while."""
        with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as rows:
            rows.execute(text("VACUUM ANALYZE"))

    def spent(self) -> Spent:
        times = [process.cpu_times() for process in self._workers]
        report = self.cloud.report()
        central = sum(self.cloud.state("central")["requests"].values())
        return Spent(
            cpu=sum(each.user + each.system for each in times),
            cloud_cpu=report["cpu_seconds"],
            requests=sum(report["requests"].values()) - central,
            at=time.time(),
        )

    def until(self, question: Callable[[], bool], what: str) -> None:
        deadline = time.time() + END_SECONDS
        while not question():
            if time.time() > deadline:
                raise SystemExit(f"not in {END_SECONDS:.0f} s: {what}")
            time.sleep(LOOK_SECONDS)

    def seen_last(self) -> list[Mapping[str, Any]]:
        """The requests of the run that was last at work on the first subcloud, as the fake cloud noted them."""
        recent = self.cloud.state(self.places[0]["region_name"])["recent"]
        return [each for each in recent if each["request_id"] == recent[-1]["request_id"]]


@contextmanager
def open_fleet(*, subclouds: int, settings: Mapping[str, str]) -> Iterator[Fleet]:
    """Servers, fake cloud, two sync workers, a state worker and beat: started, and stopped at the end."""
    with ExitStack() as closing:
        database_url, redis_url = closing.enter_context(_servers())
        cloud = closing.enter_context(FakeCloud.start(subclouds=subclouds))
        rest = {name: value for name, value in os.environ.items() if not name.startswith("DCSYNC_")}
        urls = {"DCSYNC_DATABASE_URL": database_url, "DCSYNC_REDIS_URL": redis_url}
        environ = rest | SETTINGS | dict(settings) | cloud.environment() | urls
        engine = make_engine(database_url, application_name="bench")
        closing.callback(engine.dispose)
        workers = closing.enter_context(_processes(environ))
        fleet = Fleet(engine, cloud, workers, environ=environ)
        closing.callback(fleet.app.close)
        yield fleet


@contextmanager
def _servers() -> Iterator[tuple[str, str]]:
    folder = Path(tempfile.mkdtemp(prefix="dcsync-bench-"))
    folder.chmod(0o711)
    try:
        with EmbeddedPostgres(folder) as postgres, EmbeddedRedis(folder) as valkey:
            upgrade(postgres.url)
            yield postgres.url, valkey.url
    finally:
        shutil.rmtree(folder)


@contextmanager
def _processes(environ: Mapping[str, str]) -> Iterator[list[psutil.Process]]:
    """As users start them; the sync workers are what is measured."""
    with tempfile.TemporaryDirectory() as folder:
        own = dict(environ) | {"DCSYNC_RUN_DIR": folder}
        common = ("-P", "threads", "--without-gossip", "--without-mingle")
        queues = "control,sync,audit"
        sync = [
            _start(own, "worker", "-Q", queues, "-c", str(THREADS), "-n", f"sync{number}@bench", "-E", *common)
            for number in range(WORKERS)
        ]
        others = [
            _start(own, "worker", "-Q", "state", "-c", "2", "-n", "state@bench", *common),
            _start(own, "beat", "-s", f"{folder}/schedule"),
        ]
        try:
            yield [psutil.Process(process.pid) for process in sync]
        finally:
            for process in (*sync, *others):
                process.terminate()
            for process in (*sync, *others):
                process.wait(timeout=60)


def _start(environ: Mapping[str, str], *arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "celery", "-A", "worker", *arguments]
    return subprocess.Popen(command, env=dict(environ), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


# --- the bare client ---


def run_bare(coroutine: Any) -> int:
    """On uvloop where the workers use it, too."""
    new_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    try:
        import uvloop
    except ImportError:
        pass
    else:
        new_loop = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=new_loop) as runner:
        served: int = runner.run(coroutine)
        return served


async def for_each(places: Sequence[Mapping[str, str]], visit: Callable[[str], Any], *, port: int) -> int:
    """Visit so many subclouds at a time as the workers have threads; how many requests were answered."""
    waiting = iter(places)
    served = 0

    async def visitor() -> None:
        nonlocal served
        for place in waiting:
            answered = await visit(f"http://{place['management_ip']}:{port}")
            served += answered

    await asyncio.gather(*(visitor() for _ in range(WORKERS * THREADS)))
    return served


async def log_in(http: aiohttp.ClientSession, url: str) -> str:
    """A token of one subcloud."""
    who = {"name": USERNAME, "password": PASSWORD, "domain": {"name": "Default"}}
    scope = {"project": {"name": "services", "domain": {"name": "Default"}}}
    login = {"auth": {"identity": {"methods": ["password"], "password": {"user": who}}, "scope": scope}}
    async with http.post(f"{url}/v3/auth/tokens", json=login) as answer:
        assert answer.status == 201, answer.status
        await answer.read()
        return answer.headers["X-Subject-Token"]


def now() -> datetime:
    return datetime.now(UTC)


def say(line: str) -> None:
    print(line, flush=True)  # noqa: T201
