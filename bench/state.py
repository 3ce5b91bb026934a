"""How much the state service carries: `make bench-state`. Numbers, not a timed test.

A real Valkey, a real PostgreSQL with durable commits, two state worker processes. 20 threads report, one by one,
50,000 updates over 5,000 subclouds, each of which changes a row; half of them raise or clear an alarm. Commits are
timed by PostgreSQL itself. Beside it, on the same server, plain psycopg2: one UPDATE per row, one UPDATE per 500 rows.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

import psutil
import psycopg2
import redis
from psycopg2.extras import execute_values

from dcsync.adapters.broker.reporter import CeleryReports, Observer, StateReporter
from dcsync.adapters.host.clock import utc_now
from dcsync.adapters.postgres.database import upgrade
from dcsync.local.servers import EmbeddedPostgres, EmbeddedRedis
from dcsync.model.reports import Report
from dcsync.model.subcloud import AvailabilityStatus, EndpointType, SyncStatus
from dcsync.settings import load
from dcsync.tasks.app import make_app

THREADS = 20
WORKERS = 2
WORKER_THREADS = 2
QUIET_PER_SECOND = 10
START_SECONDS = 60.0
END_SECONDS = 300.0
TYPES = tuple(type_ for type_ in EndpointType if type_ is not EndpointType.IDENTITY_OPENSTACK)
"""What an installation with every auditor has; reports go round them."""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--subclouds", type=int, default=5_000)
    options.add_argument("--updates", type=int, default=50_000)
    options.add_argument("--quiet-seconds", type=int, default=15)
    given = options.parse_args()
    with ExitStack() as closing:
        database_url, redis_url = closing.enter_context(_servers())
        bench = Bench(database_url, redis_url, subclouds=given.subclouds, updates=given.updates)
        closing.callback(bench.close)
        bench.prepare()
        with _workers(database_url, redis_url) as workers:
            bench.bring_online()
            bench.flood(workers)
            bench.quiet(seconds=given.quiet_seconds)
        bench.plain_loops()


@contextmanager
def _servers() -> Iterator[tuple[str, str]]:
    """The URLs of a PostgreSQL that times its commits and counts its statements, and of a Valkey, both temporary."""
    folder = Path(tempfile.mkdtemp(prefix="dcsync-bench-"))
    folder.chmod(0o711)
    try:
        with EmbeddedPostgres(folder) as postgres:
            _sql(postgres.url, "ALTER SYSTEM SET track_commit_timestamp = on")
            _sql(postgres.url, "ALTER SYSTEM SET shared_preload_libraries = 'pg_stat_statements'")
        with EmbeddedPostgres(folder) as postgres, EmbeddedRedis(folder) as valkey:
            _sql(postgres.url, "CREATE EXTENSION pg_stat_statements")
            upgrade(postgres.url)
            yield postgres.url, valkey.url
    finally:
        shutil.rmtree(folder)


def _sql(url: str, statement: str) -> None:
    connection = psycopg2.connect(url)
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(statement)
    connection.close()


@contextmanager
def _workers(database_url: str, redis_url: str) -> Iterator[list[psutil.Process]]:
    """State workers as users start them, once they consume."""
    environ = {
        **{name: value for name, value in os.environ.items() if not name.startswith("DCSYNC_")},
        "DCSYNC_DATABASE_URL": database_url,
        "DCSYNC_REDIS_URL": redis_url,
        "DCSYNC_LOG_LEVEL": "WARNING",
    }
    started = []
    for number in range(WORKERS):
        command = [sys.executable, "-m", "celery", "-A", "worker", "worker", "-Q", "state", "-P", "threads"]
        command += ["-c", str(WORKER_THREADS), "-n", f"state{number}@bench", "--without-gossip", "--without-mingle"]
        started.append(subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
    try:
        yield [psutil.Process(process.pid) for process in started]
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait(timeout=60)


class CountingReports:
    """CeleryReports that counts its messages."""

    def __init__(self, inner: CeleryReports) -> None:
        self._inner = inner
        self.messages = 0

    def send(self, reports: Sequence[Report]) -> None:
        self.messages += 1
        self._inner.send(reports)


@dataclass(frozen=True)
class Spent:
    """CPU seconds so far of every process that takes part."""

    workers: float
    here: float
    statements: int


class Bench:
    def __init__(self, database_url: str, redis_url: str, *, subclouds: int, updates: int) -> None:
        self._redis = redis.Redis.from_url(redis_url)
        self._app = make_app(load({"DCSYNC_DATABASE_URL": database_url, "DCSYNC_REDIS_URL": redis_url}))
        self._sent = CountingReports(CeleryReports(self._app))
        self._reporter = StateReporter(self._sent)
        self._observer = Observer(utc_now)
        self._rows = psycopg2.connect(database_url)
        self._rows.autocommit = True
        self._subclouds = subclouds
        self._rounds = updates // subclouds

    def close(self) -> None:
        self._reporter.close()
        self._rows.close()
        self._app.close()
        self._redis.close()

    def prepare(self) -> None:
        """Managed subclouds that were never seen."""
        self._ask(
            "INSERT INTO subcloud (name, region_name, management_ip, management_state)"
            " SELECT 'subcloud' || i, 'region' || i, '10.0.0.1', 'managed' FROM generate_series(1, %s) AS i",
            self._subclouds,
        )
        self._ask(
            "INSERT INTO endpoint_status (subcloud_id, endpoint_type) SELECT id, t FROM subcloud, unnest(%s) AS t",
            [str(type_) for type_ in TYPES],
        )
        self._ask("VACUUM ANALYZE")

    def bring_online(self) -> None:
        for region in self._regions():
            self._reporter.report(self._observer.availability(region, AvailabilityStatus.ONLINE))
        self._until_done()
        self._ask("VACUUM ANALYZE")

    def _regions(self) -> list[str]:
        return [f"region{number}" for number in range(1, self._subclouds + 1)]

    def flood(self, workers: list[psutil.Process]) -> None:
        """Each thread goes round its own subclouds, one endpoint type after the other, from one status to the next."""
        regions = self._regions()
        self._ask("SELECT pg_stat_statements_reset()", reply=False)
        before, messages = self._spent(workers), self._sent.messages
        began = time.time()
        threads = [threading.Thread(target=self._report_all, args=(regions[n::THREADS],)) for n in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        reported = time.time() - began
        self._until_done()
        after = self._spent(workers)
        updates = self._rounds * self._subclouds
        seconds = self._last_commit() - began
        _say(f"updates                     {updates:>10,}   over {self._subclouds:,} subclouds, {THREADS} threads")
        _say(f"updates per second          {updates / seconds:>10,.0f}   first report to last commit {seconds:.2f} s")
        _say(f"handed to the client in     {reported:>10.2f} s")
        _say(f"worker CPU per update       {(after.workers - before.workers) / updates * 1e6:>10.1f} us")
        _say(f"reporter CPU per update     {(after.here - before.here) / updates * 1e6:>10.1f} us")
        _say(f"messages per update         {(self._sent.messages - messages) / updates:>10.4f}")
        _say(f"statements per update       {(after.statements - before.statements) / updates:>10.4f}")
        self._check(updates)
        self._print_costliest(updates)

    def _print_costliest(self, updates: int) -> None:
        """What limits it: where PostgreSQL's time went."""
        with self._rows.cursor() as cursor:
            cursor.execute(
                "SELECT total_exec_time, regexp_replace(query, '\\s+', ' ', 'g') FROM pg_stat_statements"
                " WHERE query !~ 'pg_stat|pg_xact_commit|generate_series' ORDER BY 1 DESC"
            )
            costs = cursor.fetchall()
        total = sum(cost for cost, _ in costs)
        _say(f"PostgreSQL time per update  {total / updates * 1000:>10.1f} us, of which")
        for cost, query in costs[:6]:
            _say(f"{'':<27} {cost / updates * 1000:>10.1f} us  {query.strip()[:70]}")

    def _report_all(self, regions: list[str]) -> None:
        for round_ in range(self._rounds):
            type_, status = _reported_in(round_)
            for region in regions:
                self._reporter.report(self._observer.endpoint(region, type_, status))

    def _check(self, updates: int) -> None:
        """Every row shows the last status reported, and the alarms are those of the rows."""
        last: dict[EndpointType, SyncStatus] = dict(_reported_in(round_) for round_ in range(self._rounds))
        for type_, status in last.items():
            found = self._ask(
                "SELECT count(*) FROM endpoint_status WHERE endpoint_type = %s AND sync_status = %s", type_, status
            )
            assert found == self._subclouds, f"{type_}: {found} rows show {status}"
        alarms = self._ask("SELECT count(*) FROM alarm WHERE cleared_at IS NULL AND alarm_id = '280.002'")
        expected = self._subclouds * sum(status is SyncStatus.OUT_OF_SYNC for status in last.values())
        assert alarms == expected, f"{alarms} alarms, not {expected}"
        raised = self._ask("SELECT count(*) FROM alarm WHERE alarm_id = '280.002'")
        _say(f"rows and alarms             {'right':>10}   {alarms:,} alarms active, {raised:,} raised")

    def quiet(self, *, seconds: int) -> None:
        """One report at a time; the delay is from the report to PostgreSQL's own time of the commit."""
        count = seconds * QUIET_PER_SECOND
        type_ = EndpointType.DC_CERT
        for region in self._regions()[:count]:
            self._reporter.report(self._observer.endpoint(region, type_, SyncStatus.UNKNOWN))
            time.sleep(1 / QUIET_PER_SECOND)
        self._until_done()
        with self._rows.cursor() as cursor:
            cursor.execute(
                "SELECT extract(epoch FROM pg_xact_commit_timestamp(xmin) - observed_at) FROM endpoint_status"
                " WHERE endpoint_type = %s AND sync_status = 'unknown'",
                (type_,),
            )
            delays = [float(delay) * 1000 for (delay,) in cursor.fetchall()]
        assert len(delays) == count, f"{len(delays)} of {count} written"
        slowest = quantiles(delays, n=100)[98]
        _say(f"delay at {QUIET_PER_SECOND} a second        {median(delays):>10.1f} ms   99 %: {slowest:.1f} ms")

    def plain_loops(self) -> None:
        """What PostgreSQL alone does with as many rows, without rules, order or alarms."""
        with self._rows.cursor() as cursor:
            cursor.execute("SELECT subcloud_id, endpoint_type FROM endpoint_status ORDER BY subcloud_id LIMIT 5000")
            keys = cursor.fetchall()
            _timed("plain, a row at a time", len(keys), lambda: _single(cursor, keys))
            _timed("plain, 500 rows at a time", len(keys), lambda: _batches(cursor, keys))

    def _ask(self, statement: str, *parameters: object, reply: bool = True) -> int:
        with self._rows.cursor() as cursor:
            cursor.execute(statement, parameters or None)
            return int((cursor.fetchone() or (0,))[0] or 0) if reply and cursor.description else 0

    def _until_done(self) -> None:
        """Everything reported is committed: messages are acknowledged after that."""
        assert self._reporter.flush(timeout_seconds=END_SECONDS)
        deadline = time.monotonic() + END_SECONDS
        while self._redis.llen("state") or self._redis.hlen("unacked"):
            assert time.monotonic() < deadline, "the workers do not finish"
            time.sleep(0.02)

    def _last_commit(self) -> float:
        with self._rows.cursor() as cursor:
            cursor.execute("SELECT extract(epoch FROM max(pg_xact_commit_timestamp(xmin))) FROM endpoint_status")
            ((moment,),) = cursor.fetchall()
            return float(moment)

    def _spent(self, workers: list[psutil.Process]) -> Spent:
        statements = self._ask(
            "SELECT sum(calls) FROM pg_stat_statements WHERE query ~ '^(SELECT|UPDATE|INSERT|DELETE)'"
        )
        used = [worker.cpu_times() for worker in workers]
        return Spent(
            workers=sum(each.user + each.system for each in used), here=time.process_time(), statements=statements
        )


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")


def _reported_in(round_: int) -> tuple[EndpointType, SyncStatus]:
    """Each round another endpoint type; when they come again, the other status."""
    alarming = (round_ + round_ // len(TYPES)) % 2 == 0
    return TYPES[round_ % len(TYPES)], SyncStatus.OUT_OF_SYNC if alarming else SyncStatus.IN_SYNC


def _timed(what: str, rows: int, work: Callable[[], None]) -> None:
    began, cpu = time.perf_counter(), time.process_time()
    work()
    seconds = time.perf_counter() - began
    _say(
        f"{what:<27} {rows / seconds:>10,.0f} /s  client CPU {(time.process_time() - cpu) / rows * 1e6:.1f} us per row"
    )


def _single(cursor: psycopg2.extensions.cursor, keys: list[tuple[int, str]]) -> None:
    for id_, type_ in keys:
        cursor.execute(
            "UPDATE endpoint_status SET sync_status = 'in-sync', changed_at = now()"
            " WHERE subcloud_id = %s AND endpoint_type = %s",
            (id_, type_),
        )


def _batches(cursor: psycopg2.extensions.cursor, keys: list[tuple[int, str]]) -> None:
    for start in range(0, len(keys), 500):
        execute_values(
            cursor,
            "UPDATE endpoint_status AS e SET sync_status = 'unknown', changed_at = now()"
            " FROM (VALUES %s) AS v (id, type) WHERE e.subcloud_id = v.id AND e.endpoint_type = v.type",
            keys[start : start + 500],
            page_size=500,
        )


if __name__ == "__main__":
    main()
