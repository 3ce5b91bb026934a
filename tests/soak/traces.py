"""What a storm leaves behind: memory, open files, threads, connections, Redis keys, and what was printed."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import psutil
import sqlalchemy as sa

from dcsync.model.messages import Queue
from tests.acceptance.test_no_secrets import TOKEN_BEGINS, all_secrets
from tests.processes import Running
from tests.soak.crew import Crew
from tests.system import System, redis_client

MB = 1024 * 1024
MORE_MEMORY_MB = 100
"""By which the memory of one that lived through all of it may grow. An outage of PostgreSQL alone is good for 70: what
its errors hold is freed by a full collection, which is rare, and then used again however long the outage lasts."""
MORE_FILES = 60
MORE_THREADS = 30
SAMPLE_SECONDS = 10.0
CONNECTIONS = {"sync": 60, "state": 20}
"""What the pools of one worker may keep: `docs/operations.md` says 40 and 10, and alarms have a pool of their own."""

EXPECTED = ("Couldn't ack", "Couldn't reject")
"""Faults Celery itself tells with a traceback, once for each message at hand when Redis goes."""

KNOWN_KEYS = re.compile(
    r"_kombu\.binding(_permanent)?\..+|_kombu\.binding_deadlines|unacked|unacked_index|unacked_mutex|dcsync:(tick|ended|hint):.+|dcsync:late|dcsync:lock:.+"
    r"|control|sync|audit|state|.+\.reply\.celery\.pidbox|/0\.celery\.pidbox|.+\.celery\.pidbox"
)


@dataclass(frozen=True)
class Footprint:
    """Of one process at one moment."""

    memory_mb: float
    files: int
    threads: int
    cpu_seconds: float

    def __str__(self) -> str:
        return f"{self.memory_mb:.0f} MB, {self.files} files, {self.threads} threads"


def footprint(running: Running) -> Footprint:
    process = psutil.Process(running.pid)
    with process.oneshot():
        times = process.cpu_times()
        return Footprint(
            memory_mb=process.memory_info().rss / MB,
            files=process.num_fds(),
            threads=process.num_threads(),
            cpu_seconds=times.user + times.system,
        )


def footprints(crew: Crew) -> dict[str, Footprint]:
    return {f"{post} (pid {running.pid})": footprint(running) for post, running in crew.at_post.items()}


def grown(before: dict[str, Footprint], after: dict[str, Footprint]) -> list[str]:
    """Of those that were there both times."""
    wrong = []
    for who in before.keys() & after.keys():
        then, now = before[who], after[who]
        if (
            now.memory_mb > then.memory_mb + MORE_MEMORY_MB
            or now.files > then.files + MORE_FILES
            or now.threads > then.threads + MORE_THREADS
        ):
            wrong.append(f"{who} has grown: {then} -> {now}")
    return wrong


def connections(system: System) -> tuple[Counter[str], list[str]]:
    """How many sessions each kind of process has in PostgreSQL, and what is wrong with them."""
    query = sa.text(
        "SELECT application_name, state, xact_start < now() - interval '10 seconds' AS is_long FROM pg_stat_activity"
        " WHERE application_name LIKE 'dcsync %'"
    )
    with system.engine.connect() as connection:
        rows = connection.execute(query).all()
    counts = Counter(row.application_name for row in rows)
    wrong = [f"a transaction of {row.application_name} has been open for long" for row in rows if row.is_long]
    for name, count in counts.items():
        kind = "state" if name.startswith("dcsync state") else "sync"
        if count > CONNECTIONS[kind]:
            wrong.append(f"{name} has {count} connections")
    return counts, wrong


def redis_remains(system: System, *, seconds: float) -> tuple[int, list[str]]:
    """Sampled for a while, for the system is alive: the fewest keys seen, and what is wrong with what never went."""
    deadline = time.monotonic() + seconds
    fewest, waiting, unacked, unknown = 10**9, 10**9, 10**9, set[str]()
    while True:
        with redis_client(system) as client:
            keys = list(client.scan_iter(count=1000))
            lengths = [client.llen(queue.value) for queue in Queue]
            left = client.hlen("unacked")
        unknown = {key for key in keys if not KNOWN_KEYS.fullmatch(key)}
        fewest, waiting, unacked = min(fewest, len(keys)), min(waiting, sum(lengths)), min(unacked, left)
        is_clean = not unknown and not waiting and not unacked
        if time.monotonic() > deadline or is_clean:
            break
        time.sleep(0.5)
    wrong = [f"Redis keeps keys nobody knows: {sorted(unknown)[:10]}"] if unknown else []
    wrong += [f"{waiting} messages always wait"] if waiting else []
    wrong += [f"{unacked} messages are never acknowledged"] if unacked else []
    return fewest, wrong


def idle_cpu(crew: Crew) -> dict[str, float]:
    """Share of a core each takes while nothing happens."""
    before = footprints(crew)
    time.sleep(SAMPLE_SECONDS)
    after = footprints(crew)
    return {
        who: (after[who].cpu_seconds - before[who].cpu_seconds) / SAMPLE_SECONDS for who in before.keys() & after.keys()
    }


class Secrets:
    """All passwords, hashes, keys and tokens of the fake clouds that were seen so far."""

    def __init__(self, system: System) -> None:
        self._system = system
        own = (system.postgres.url, system.postgres.app_url, system.redis.url, system.redis.app_url)
        self._seen = {url.split(":")[2].split("@")[0] for url in own}

    def collect(self, names: Sequence[str]) -> None:
        """While nobody misbehaves."""
        self._seen |= all_secrets(self._system.cloud, [self._system.address(name) for name in names])

    def __len__(self) -> int:
        return len(self._seen)

    def leaked(self, texts: Iterable[tuple[str, str]]) -> list[str]:
        """Where one was found; never which."""
        pattern = re.compile("|".join(map(re.escape, sorted(self._seen))))
        return [f"a secret is in {where}" for where, text in texts if pattern.search(text) or TOKEN_BEGINS in text]


def printed(system: System) -> list[tuple[str, str]]:
    """Everything every process has printed, and the answers of commands."""
    files = sorted(system.processes.folder.glob("*.log"))
    return [(file.name, file.read_text(encoding="utf-8", errors="replace")) for file in files]


@dataclass
class Told:
    """What the logs say: faults with a traceback, and how often each warning was given."""

    tracebacks: list[str]
    warnings: Counter[str]

    @classmethod
    def of(cls, texts: Iterable[tuple[str, str]]) -> Told:
        told = cls([], Counter())
        for where, text in texts:
            for line in text.splitlines():
                told._take(where, line)
        return told

    def _take(self, where: str, line: str) -> None:
        if not line.startswith("{"):
            if "Traceback (most recent call last)" in line:
                self.tracebacks.append(f"{where}: {line}")
            return
        try:
            said = json.loads(line)
        except ValueError:
            return
        if "exception" in said and not str(said["event"]).startswith(EXPECTED):
            self.tracebacks.append(f"{where}: {said['event'][:200]}\n{said['exception'][-1500:]}")
        elif "exception" in said or said.get("level") in ("warning", "error", "critical"):
            self.warnings[f"{said['level']}: {_in_general(str(said.get('event')))}"] += 1


def _in_general(event: str) -> str:
    """Without what differs from one time to the next."""
    return re.sub(r"0x[0-9a-f]+|[0-9a-f-]{36}|\d+(\.\d+)?", "#", event)[:110]
