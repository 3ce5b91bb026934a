"""Connections to Redis that hang or lead to a server that is not the primary; and Sentinels, for us and for Celery."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import redis

from dcsync.adapters.broker.locks import RedisLocks
from dcsync.adapters.broker.queues import QueueLengths
from dcsync.adapters.broker.redis_client import make_client
from dcsync.adapters.broker.reporter import Observer
from dcsync.adapters.host.clock import utc_now
from dcsync.adapters.postgres.database import make_engine
from dcsync.adapters.postgres.inventory import SqlInventory
from dcsync.bootstrap import reports
from dcsync.local.servers import EmbeddedRedis
from dcsync.model.errors import BrokerUnreachable
from dcsync.model.messages import Queue
from dcsync.model.subcloud import AvailabilityStatus
from dcsync.settings import load
from dcsync.tasks.app import make_app
from tests.conftest import data_folder
from tests.processes import Processes, wait_until
from tests.proxies import HOST, Proxy
from tests.sentinel import Watched, watched_by_sentinel

SECONDS = 60.0


def through(url: str, port: int) -> str:
    return f"{url.rpartition('@')[0]}@{HOST}:{port}/0"


@pytest.fixture
def two_servers(own_redis: EmbeddedRedis) -> Iterator[tuple[EmbeddedRedis, EmbeddedRedis]]:
    with data_folder() as folder:
        other = EmbeddedRedis(folder, fast=True)
        other._saved_state = type(own_redis._kept)(own_redis._kept.password, other._read_saved_state().port)
        other._write_saved_state(other._saved_state)
        with other:
            yield own_redis, other


def fill_pool(client: redis.Redis, count: int = 3) -> None:
    taken = [client.connection_pool.get_connection() for _ in range(count)]
    for connection in taken:
        client.connection_pool.release(connection)


def test_connections_that_hang_cost_one_time_limit(redis_url: str) -> None:
    with Proxy(int(redis_url.rpartition(":")[2].partition("/")[0])) as proxy:
        client = make_client(through(redis_url, proxy.port), timeout_seconds=1)
        locks = RedisLocks(client, ttl_seconds=30)
        fill_pool(client, 5)
        proxy.swallow()
        began = time.monotonic()
        for number in range(5):
            assert locks.acquire({f"owner{number}": f"s{number}"})
        assert time.monotonic() - began < 4
        locks.close()


def test_a_redis_that_swallows_new_connections_as_well_is_given_up_within_a_bound(redis_url: str) -> None:
    with Proxy(int(redis_url.rpartition(":")[2].partition("/")[0])) as proxy:
        locks = RedisLocks(make_client(through(redis_url, proxy.port)), ttl_seconds=30)
        proxy.swallow_all()
        began = time.monotonic()
        with pytest.raises(BrokerUnreachable, match="Redis: TimeoutError"):
            locks.acquire({"owner": "s1"})
        assert time.monotonic() - began < SECONDS
        proxy.pass_new()
        assert locks.acquire({"owner": "s1"})
        locks.close()


def test_an_address_that_moves_to_a_new_primary_is_followed_at_once(
    two_servers: tuple[EmbeddedRedis, EmbeddedRedis],
) -> None:
    """The old primary stays up as a replica of the new one, and connections to it stay open."""
    old, new = two_servers
    with Proxy(old.port) as address:
        client = make_client(through(old.url, address.port))
        locks = RedisLocks(client, ttl_seconds=30)
        fill_pool(client, 4)
        assert locks.acquire({"a": "s1"})
        with redis.Redis.from_url(old.url) as admin:
            admin.execute_command("REPLICAOF", HOST, new.port)
        address.target = new.port
        assert locks.acquire({"b": "s2"})
        client.set("written", "to the new one")
        fill_pool(client, 5)
        assert [client.get("written") for _ in range(5)] == ["to the new one"] * 5
        with redis.Redis.from_url(new.url, decode_responses=True) as there:
            assert there.get("written") == "to the new one"
        locks.close()


def test_a_replica_is_no_place_to_read_queues_from(two_servers: tuple[EmbeddedRedis, EmbeddedRedis]) -> None:
    old, new = two_servers
    with redis.Redis.from_url(old.url) as admin:
        admin.execute_command("REPLICAOF", HOST, new.port)
    with pytest.raises(BrokerUnreachable, match="Redis: ConnectionError"):
        QueueLengths(old.url, timeout_seconds=3).waiting(list(Queue))


# --- Sentinel ---


@pytest.fixture
def watched() -> Iterator[Watched]:
    with watched_by_sentinel() as watched:
        yield watched


def test_our_client_follows_the_sentinels(watched: Watched) -> None:
    locks = RedisLocks(make_client(watched.url), ttl_seconds=30)
    assert locks.acquire({"a": "s1"})
    watched.fail_over()

    def acquired() -> bool:
        try:
            return bool(locks.acquire({"b": "s2"}))
        except BrokerUnreachable:
            return False

    wait_until(acquired, seconds=SECONDS, what="a lock is taken at the new primary")
    assert QueueLengths(watched.url, timeout_seconds=3).waiting([Queue.SYNC]) == {Queue.SYNC: 0}
    assert watched.primary() == watched.servers[1].port
    with redis.Redis.from_url(watched.servers[1].url) as primary:
        assert primary.exists("dcsync:lock:s2")
    locks.close()


@pytest.mark.parametrize("how", ["fail-over", "death"])
def test_workers_follow_the_sentinels(watched: Watched, database_url: str, processes: Processes, how: str) -> None:
    environ = {"DCSYNC_DATABASE_URL": database_url, "DCSYNC_REDIS_URL": watched.url}
    arguments = ("-Q", "state", "-P", "threads", "-c", "2", "--without-gossip", "--without-mingle")
    worker = processes.celery("worker", *arguments, environ=environ, ready="ready.")
    processes.cli("subcloud", "add", "edge-1", "--management-ip", "10.10.0.5", environ=environ, expect=0)
    if how == "death":
        watched.servers[0].kill()
        wait_until(lambda: watched.primary() == watched.servers[1].port, seconds=SECONDS, what="the replica took over")
    else:
        watched.fail_over()
    settings = load(environ)
    app = make_app(settings)
    engine = make_engine(database_url)

    def is_online() -> bool:
        try:
            reports(settings, app).send([Observer(utc_now).availability("edge-1", AvailabilityStatus.ONLINE)])
        except BrokerUnreachable:
            return False
        return SqlInventory(engine).find(["edge-1"])[0].availability_status is AvailabilityStatus.ONLINE

    wait_until(is_online, seconds=3 * SECONDS, what=lambda: f"the report is written down:\n{worker.output()}")
    assert worker.alive
    assert watched.password not in worker.output()
    engine.dispose()
    app.close()
