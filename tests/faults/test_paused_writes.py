"""Processes that are stopped in the middle of their writes, for longer than their locks live, and continued."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import redis

from dcsync.adapters.broker.locks import RedisLocks
from dcsync.adapters.broker.redis_client import make_client
from tests.processes import Processes, python_module, wait_until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]

ROUNDS = 10
RUNS = 10
"""In each round, all stopped at once."""
LOCK_TTL = 1.0


class Subclouds:
    """A server that counts the writes of each run, and those of runs that own nothing any more."""

    def __init__(self) -> None:
        self.guard = threading.Lock()
        self.written: Counter[str] = Counter()
        self.stale: Counter[str] = Counter()
        self.superseded: set[str] = set()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_PUT(handler) -> None:
                handler.rfile.read(int(handler.headers["Content-Length"]))
                self.note(handler.path.strip("/"))
                handler.send_response(204)
                handler.end_headers()

            def log_message(handler, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def note(self, run_id: str) -> None:
        with self.guard:
            (self.stale if run_id in self.superseded else self.written)[run_id] += 1


@pytest.fixture
def subclouds() -> Iterator[Subclouds]:
    made = Subclouds()
    yield made
    made.server.shutdown()
    made.server.server_close()


def test_a_hundred_runs_stopped_and_continued_write_nothing_once_others_own_their_subclouds(
    subclouds: Subclouds, redis_url: str, redis_client: redis.Redis, processes: Processes
) -> None:
    dice = random.Random(9)
    new = RedisLocks(make_client(redis_url), ttl_seconds=60)

    def stop_and_take_over(regions: list[str]) -> None:
        pairs = [f"old-{region}={region}" for region in regions]
        command = [*python_module("tests.paused_runs"), redis_url, subclouds.url, str(LOCK_TTL), *pairs]
        running = processes.start(*command, name="paused")
        wait_until(lambda: all(subclouds.written[f"old-{region}"] for region in regions), seconds=60, what="writes")
        time.sleep(dice.uniform(0, 0.3))  # the moment is the point
        running.signal(signal.SIGSTOP)
        locks = [f"dcsync:lock:{region}" for region in regions]
        wait_until(lambda: not redis_client.exists(*locks), seconds=60, what="locks expired")
        with subclouds.guard:
            assert len(new.acquire({f"new-{region}": region for region in regions})) == RUNS
            subclouds.superseded.update(f"old-{region}" for region in regions)
        running.signal(signal.SIGCONT)
        assert running.wait() == 0, running.output()

    for number in range(ROUNDS):
        stop_and_take_over([f"s{number}-{each}" for each in range(RUNS)])
    new.close()
    assert len(subclouds.written) == ROUNDS * RUNS
    assert subclouds.stale == {}
