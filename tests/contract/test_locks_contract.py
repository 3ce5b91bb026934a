"""What Locks promise, held against those in memory and those in Redis; and what only Redis's can do: run out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
import redis

from dcsync.adapters.locks import RedisLocks
from dcsync.adapters.redis_client import make_client
from dcsync.errors import BrokerUnreachable
from dcsync.ports import Locks
from tests.fakes_sync import MemoryLocks
from tests.processes import wait_until


@pytest.fixture(params=["memory", "redis"])
def locks(request: pytest.FixtureRequest) -> Locks:
    return MemoryLocks() if request.param == "memory" else request.getfixturevalue("make_locks")(30.0)


@pytest.fixture
def make_locks(redis_url: str) -> Iterator[Callable[[float], RedisLocks]]:
    made: list[RedisLocks] = []

    def make(ttl_seconds: float) -> RedisLocks:
        made.append(RedisLocks(make_client(redis_url), ttl_seconds=ttl_seconds))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_only_the_first_gets_a_lock(locks: Locks) -> None:
    assert locks.acquire("s1", owner="a")
    assert not locks.acquire("s1", owner="b")
    assert locks.acquire("s2", owner="b")
    assert locks.owners(["s1", "s2", "s3"]) == {"s1": "a", "s2": "b", "s3": None}


def test_only_its_owner_releases_a_lock(locks: Locks) -> None:
    locks.acquire("s1", owner="a")
    assert not locks.release("s1", owner="b")
    assert locks.owners(["s1"]) == {"s1": "a"}
    assert locks.release("s1", owner="a")
    assert not locks.release("s1", owner="a")
    assert locks.acquire("s1", owner="b")


def test_nothing_asked_is_nothing_answered(locks: Locks) -> None:
    assert locks.owners([]) == {}


def test_a_held_lock_outlives_its_time_to_live_many_times(
    make_locks: Callable[[float], RedisLocks], redis_client: redis.Redis
) -> None:
    locks = make_locks(0.6)
    locks.acquire("s1", owner="a")
    begun = time.monotonic()
    seen = set()

    def four_lives_are_over() -> bool:
        seen.add(redis_client.get("dcsync:lock:s1"))
        return time.monotonic() > begun + 4 * 0.6

    wait_until(four_lives_are_over, seconds=10, what="four lives over")
    assert seen == {"a"}


def test_the_lock_of_a_process_that_is_gone_runs_out(
    make_locks: Callable[[float], RedisLocks], redis_client: redis.Redis
) -> None:
    gone = make_locks(0.5)
    gone.acquire("s1", owner="a")
    gone.close()
    wait_until(lambda: make_locks(30).acquire("s1", owner="b"), seconds=5, what="free again")
    assert not gone.release("s1", owner="a")
    assert redis_client.get("dcsync:lock:s1") == "b"


def test_a_lock_taken_over_is_neither_renewed_nor_released_by_its_old_owner(
    make_locks: Callable[[float], RedisLocks], redis_client: redis.Redis
) -> None:
    locks = make_locks(0.3)
    locks.acquire("s1", owner="a")
    redis_client.set("dcsync:lock:s1", "b", px=60_000)
    before = redis_client.pttl("dcsync:lock:s1")
    wait_until(lambda: redis_client.pttl("dcsync:lock:s1") < before - 500, seconds=5, what="time passed unrenewed")
    assert not locks.release("s1", owner="a")
    assert redis_client.get("dcsync:lock:s1") == "b"


def test_redis_being_away_is_said_and_is_not_a_no() -> None:
    locks = RedisLocks(make_client("redis://:CANARY@127.0.0.1:1/0", timeout_seconds=0.5, retries=0), ttl_seconds=1)
    with pytest.raises(BrokerUnreachable) as error:
        locks.acquire("s1", owner="a")
    assert "CANARY" not in str(error.value)
    with suppress(BrokerUnreachable):
        assert locks.owners(["s1"]) is None
    assert locks.release("s1", owner="a") is False
