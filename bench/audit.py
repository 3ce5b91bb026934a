"""What it costs to keep subclouds in line: `make bench-audit`. Numbers, not a timed test.

A fake cloud of 1,000 subclouds, a real PostgreSQL and Valkey, two sync workers, a state worker and beat. First every
unchanged subcloud is audited, round after round: requests and CPU per subcloud; beside it, on the same machine and at
the same concurrency, a bare aiohttp client does exactly the requests an audit was seen to do. Then a password
changes at the centre, a user is added, and the keys rotate: how long until every subcloud has it, verified there.
"""

from __future__ import annotations

import argparse
import asyncio
import json
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

from dcsync.adapters.database import make_engine, upgrade
from dcsync.adapters.reporter import CeleryReports, Observer, StateReporter
from dcsync.adapters.store.audits import SqlAuditStore
from dcsync.adapters.store.inventory import SqlInventory
from dcsync.adapters.store.key_rotation import SqlKeyRotationStore
from dcsync.adapters.tables import subcloud, subcloud_sync
from dcsync.fake_cloud.control import PASSWORD, USERNAME, FakeCloud
from dcsync.local.servers import EmbeddedPostgres, EmbeddedRedis
from dcsync.ports import RotationState
from dcsync.settings import load
from dcsync.subcloud import (
    SYNCED_ENDPOINT_TYPES,
    AvailabilityStatus,
    EndpointType,
    InitialSyncState,
    ManagementState,
    NewSubcloud,
    SyncStatus,
)
from dcsync.tasks.app import make_app

NEW = {"password": "Bench-new-pw-1!"}
WORKERS = 2
THREADS = 20
LOOK_SECONDS = 0.2
END_SECONDS = 900.0
SETTINGS = {
    "DCSYNC_PROBE_INTERVAL": "0",
    "DCSYNC_AUDIT_INTERVAL": "604800",
    "DCSYNC_KEY_ROTATION_INTERVAL": "0",
    "DCSYNC_LOG_LEVEL": "WARNING",
}
"""Else as by default: sweep and watch every 10 s. Nothing is audited but when it is asked for or the centre changed."""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--subclouds", type=int, default=1_000)
    options.add_argument("--rounds", type=int, default=2)
    given = options.parse_args()
    with ExitStack() as closing:
        database_url, redis_url = closing.enter_context(_servers())
        cloud = closing.enter_context(FakeCloud.start(subclouds=given.subclouds))
        environ = _environment(cloud, database_url, redis_url)
        engine = make_engine(database_url, application_name="bench")
        closing.callback(engine.dispose)
        workers = closing.enter_context(_processes(environ))
        bench = Bench(engine, cloud, workers, count=given.subclouds, environ=environ)
        bench.bring_into_line()
        bench.steady_state(rounds=given.rounds)
        bench.bare_client()
        bench.change("a changed password", "set-password", user="barbican", **NEW)
        bench.change("a new user", "add-user", user="oncall", **NEW)
        bench.rotation()


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


def _environment(cloud: FakeCloud, database_url: str, redis_url: str) -> dict[str, str]:
    rest = {name: value for name, value in os.environ.items() if not name.startswith("DCSYNC_")}
    urls = {"DCSYNC_DATABASE_URL": database_url, "DCSYNC_REDIS_URL": redis_url}
    return rest | SETTINGS | cloud.environment() | urls


@contextmanager
def _processes(environ: Mapping[str, str]) -> Iterator[list[psutil.Process]]:
    """As users start them; the sync workers are what is measured."""
    with tempfile.TemporaryDirectory() as folder:
        own = dict(environ) | {"DCSYNC_RUN_DIR": folder}
        common = ("-P", "threads", "--without-gossip", "--without-mingle")
        queues = "control,sync,audit"
        sync = [
            _start(own, "worker", "-Q", queues, "-c", str(THREADS), "-n", f"sync{number}@bench", *common)
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


@dataclass(frozen=True)
class Spent:
    """So far: CPU seconds of the sync workers and of the fake cloud, requests to subclouds, and when that was."""

    cpu: float
    cloud_cpu: float
    requests: int
    at: float


class Bench:
    def __init__(
        self,
        engine: Engine,
        cloud: FakeCloud,
        workers: Sequence[psutil.Process],
        *,
        count: int,
        environ: Mapping[str, str],
    ) -> None:
        self._engine = engine
        self._environ = environ
        self._cloud = cloud
        self._workers = workers
        self._count = count
        self._audits = SqlAuditStore(engine)
        self._places = cloud.subclouds()

    def bring_into_line(self) -> None:
        """From added to completed and through the first audit, all at once."""
        inventory = SqlInventory(self._engine)
        news = [
            NewSubcloud(name=place["name"], region_name=place["region_name"], management_ip=place["management_ip"])
            for place in self._places
        ]
        inventory.add(news, now=_now())
        self._report_online()
        began = time.time()
        inventory.set_management(None, ManagementState.MANAGED, now=_now(), by="bench")
        self._until(lambda: self._completed() == self._count, "all are completed")
        self._until(lambda: self._in_sync_since(began) == self._count * len(SYNCED_ENDPOINT_TYPES), "all were audited")
        self._verify()
        with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as rows:
            rows.execute(text("VACUUM ANALYZE"))
        _say(f"subclouds              {self._count:>8,}   completed and audited in {time.time() - began:.1f} s")

    def _report_online(self) -> None:
        observer = Observer()
        app = make_app(load(self._environ))
        reporter = StateReporter(CeleryReports(app))
        for place in self._places:
            reporter.report(observer.availability(place["region_name"], AvailabilityStatus.ONLINE))
        reporter.close()
        app.close()
        is_online = subcloud.c.availability_status == AvailabilityStatus.ONLINE
        self._until(lambda: self._counted(select(func.count()).where(is_online)) == self._count, "all are online")

    # --- unchanged ---

    def steady_state(self, *, rounds: int) -> None:
        """Every subcloud is audited, and nothing differs."""
        for number in range(1, rounds + 1):
            before = self._spent()
            self._audits.request(None, SYNCED_ENDPOINT_TYPES, now=_now(), by="bench")
            self._until(lambda: self._asked() == 0, "all are audited again")
            spent = self._spent()
            seconds, requests = spent.at - before.at, spent.requests - before.requests
            _say(f"round {number}: audits per second {self._count / seconds:>8.1f}   all in {seconds:.1f} s")
            _say(f"  requests per audit   {requests / self._count:>8.2f}   one login, and reads")
            _say(f"  worker CPU per audit {(spent.cpu - before.cpu) / self._count * 1000:>8.2f} ms")
            _say(f"  (fake cloud's CPU)   {(spent.cloud_cpu - before.cloud_cpu) / self._count * 1000:>8.2f} ms")

    def bare_client(self) -> None:
        """The same requests, in this process, by aiohttp alone: no rows, no locks, no comparison."""
        paths = self._seen_reads()
        before, began = time.process_time(), time.time()
        served = _run(_read_all(self._places, self._port, paths))
        cpu, seconds = time.process_time() - before, time.time() - began
        _say(f"bare client:           {self._count / seconds:>8.1f}   subclouds per second")
        _say(f"  requests per read    {served / self._count:>8.2f}")
        _say(f"  CPU per read         {cpu / self._count * 1000:>8.2f} ms")

    @property
    def _port(self) -> int:
        return self._cloud.port

    def _seen_reads(self) -> list[str]:
        """What the last audit of a subcloud asked for, as the fake cloud noted it."""
        recent = self._cloud.state(self._places[0]["region_name"])["recent"]
        run = [each for each in recent if each["request_id"] == recent[-1]["request_id"]]
        return [each["path"] for each in run if each["verb"] == "GET"]

    # --- changed ---

    def change(self, told: str, action: str, **arguments: Any) -> None:
        """Seconds from a change at the centre until every subcloud has it."""
        before = self._spent()
        began = time.time()
        self._cloud.change_central(action, **arguments)
        self._until(lambda: self._changed_since(EndpointType.IDENTITY, began) == self._count, f"{told} is everywhere")
        spent = self._spent()
        self._verify()
        last = self._last_good(EndpointType.IDENTITY) - began
        cpu = (spent.cpu - before.cpu) / self._count * 1000
        _say(f"{told:<22} {last:>8.1f} s everywhere, the wait for the watch included; {cpu:.2f} ms of CPU each")

    def rotation(self) -> None:
        """Seconds from the request until every subcloud has the keys."""
        store, began = SqlKeyRotationStore(self._engine), time.time()
        store.ask(now=_now(), by="bench", forced=False, max_in_flight=None)
        self._until(lambda: _is_distributed(store), "the keys are everywhere")
        self._verify()
        _say(f"rotated keys           {self._last_good(EndpointType.PLATFORM) - began:>8.1f} s everywhere, in waves")

    # --- looking ---

    def _completed(self) -> int:
        is_completed = subcloud.c.initial_sync_state == InitialSyncState.COMPLETED
        return self._counted(select(func.count()).where(is_completed))

    def _asked(self) -> int:
        return self._counted(
            select(func.count()).where(subcloud_sync.c.observed_generation < subcloud_sync.c.generation)
        )

    def _in_sync_since(self, moment: float) -> int:
        row = subcloud_sync.c
        return self._counted(
            select(func.count()).where(row.result == SyncStatus.IN_SYNC.value, row.last_good_at > _moment(moment))
        )

    def _changed_since(self, endpoint_type: EndpointType, moment: float) -> int:
        row = subcloud_sync.c
        return self._counted(
            select(func.count()).where(
                row.endpoint_type == endpoint_type,
                row.repaired_at > _moment(moment),
                row.observed_generation == row.generation,
            )
        )

    def _last_good(self, endpoint_type: EndpointType) -> float:
        row = subcloud_sync.c
        with self._engine.connect() as rows:
            last = rows.scalar(select(func.max(row.repaired_at)).where(row.endpoint_type == endpoint_type))
        assert last is not None
        moment: float = last.timestamp()
        return moment

    def _counted(self, query: Any) -> int:
        with self._engine.connect() as rows:
            return int(rows.scalar(query))

    def _spent(self) -> Spent:
        times = [process.cpu_times() for process in self._workers]
        report = self._cloud.report()
        central = sum(self._cloud.state("central")["requests"].values())
        return Spent(
            cpu=sum(each.user + each.system for each in times),
            cloud_cpu=report["cpu_seconds"],
            requests=sum(report["requests"].values()) - central,
            at=time.time(),
        )

    def _until(self, question: Callable[[], bool], what: str) -> None:
        deadline = time.time() + END_SECONDS
        while not question():
            if time.time() > deadline:
                raise SystemExit(f"not in {END_SECONDS:.0f} s: {what}")
            time.sleep(LOOK_SECONDS)

    def _verify(self) -> None:
        report = self._cloud.report()
        if report["audited"] != self._count or report["violation_count"]:
            raise SystemExit(f"not as it must be: {report['differences']} {report['violations']}")


def _is_distributed(store: SqlKeyRotationStore) -> bool:
    row = store.row()
    return row.requested_at is None and row.state is RotationState.IDLE


# --- the bare client ---


def _run(coroutine: Any) -> int:
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


async def _read_all(places: Sequence[Mapping[str, str]], port: int, paths: Sequence[str]) -> int:
    """So many subclouds at a time as the workers have threads; how many requests were answered."""
    waiting = iter(places)
    served = 0

    async def reader() -> None:
        nonlocal served
        for place in waiting:
            answered = await _read_one(f"http://{place['management_ip']}:{port}", paths)
            served += answered

    await asyncio.gather(*(reader() for _ in range(WORKERS * THREADS)))
    return served


async def _read_one(url: str, paths: Sequence[str]) -> int:
    who = {"name": USERNAME, "password": PASSWORD, "domain": {"name": "Default"}}
    scope = {"project": {"name": "services", "domain": {"name": "Default"}}}
    login = {"auth": {"identity": {"methods": ["password"], "password": {"user": who}}, "scope": scope}}
    async with aiohttp.ClientSession() as http:
        async with http.post(f"{url}/v3/auth/tokens", json=login) as answer:
            assert answer.status == 201, answer.status
            await answer.read()
            token = answer.headers["X-Subject-Token"]

        async def read(path: str) -> None:
            async with http.get(f"{url}{path}", headers={"X-Auth-Token": token}) as answer:
                assert answer.status == 200, (path, answer.status)
                json.loads(await answer.read())

        await asyncio.gather(*(read(path) for path in paths))
    return 1 + len(paths)


def _now() -> datetime:
    return datetime.now(UTC)


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
