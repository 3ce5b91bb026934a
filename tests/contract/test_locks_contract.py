"""What Locks promise, held against those in memory and those in Redis; and what only Redis's can do: run out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest
import redis

from dcsync.adapters.broker.locks import RedisLocks
from dcsync.adapters.broker.redis_client import make_client
from dcsync.model.errors import BrokerUnreachable
from dcsync.runs.ports import Locks
from tests.contract.held import Held
from tests.fakes_sync import MemoryLocks
from tests.processes import wait_until

HELD = (Held(MemoryLocks, Locks),)

NOWHERE = "redis://:CANARY@127.0.0.1:1/0"


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
    assert locks.acquire({"a": "s1"})
    assert not locks.acquire({"b": "s1"})
    assert locks.acquire({"b": "s2"})
    assert locks.owners(["s1", "s2", "s3"]) == {"s1": "a", "s2": "b", "s3": None}


def test_only_its_owner_releases_a_lock(locks: Locks) -> None:
    locks.acquire({"a": "s1"})
    assert not locks.release({"b": "s1"})
    assert locks.owners(["s1"]) == {"s1": "a"}
    assert locks.release({"a": "s1"})
    assert not locks.release({"a": "s1"})
    assert locks.acquire({"b": "s1"})


def test_nothing_asked_is_nothing_answered(locks: Locks) -> None:
    assert locks.owners([]) == {}
    assert locks.renew({}) == locks.release({}) == set()


def test_only_those_that_hold_their_lock_renew_it(locks: Locks) -> None:
    locks.acquire({"a": "s1", "b": "s2"})
    locks.release({"b": "s2"})
    locks.acquire({"c": "s2"})
    assert locks.renew({"a": "s1", "b": "s2", "d": "s3"}) == {"a"}
    assert locks.owners(["s1", "s2", "s3"]) == {"s1": "a", "s2": "c", "s3": None}


def test_the_server_says_for_how_long_it_has_been_running(locks: Locks) -> None:
    uptime = locks.server_uptime()
    assert uptime is not None
    assert timedelta(0) <= uptime


def test_a_server_that_refuses_the_question_gives_no_answer(redis_url: str, redis_client: redis.Redis) -> None:
    redis_client.acl_setuser("limited", enabled=True, passwords=["+p"], keys=["*"], commands=["+@all", "-info"])
    host = redis_url.rpartition("@")[2]
    try:
        assert RedisLocks(make_client(f"redis://limited:p@{host}"), ttl_seconds=30).server_uptime() is None
    finally:
        redis_client.acl_deluser("limited")


class Turns(threading.Event):
    """In place of the pauses between renewals: each ends when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.pauses: list[float | None] = []
        self._due = threading.Semaphore(0)

    def wait(self, timeout: float | None = None) -> bool:
        self.pauses.append(timeout)
        self._due.acquire()
        return self.is_set()

    def set(self) -> None:
        super().set()
        self._due.release()

    def one(self) -> None:
        """A pause is over, and the next one has begun: what was to be renewed is renewed."""
        begun = len(self.pauses)
        self._due.release()
        wait_until(lambda: len(self.pauses) > max(begun, 1), seconds=60, what="the next pause")


def in_turns(locks: RedisLocks) -> Turns:
    locks._closing = turns = Turns()
    return turns


def test_a_held_lock_gets_its_whole_life_back_each_tenth_of_it(
    make_locks: Callable[[float], RedisLocks], redis_client: redis.Redis
) -> None:
    locks = make_locks(3000)
    turns = in_turns(locks)
    locks.acquire({"a": "s1"})
    for _ in range(4):
        redis_client.expire("dcsync:lock:s1", 2000)
        turns.one()
        assert 2000 < redis_client.ttl("dcsync:lock:s1") <= 3000
    assert redis_client.get("dcsync:lock:s1") == "a"
    assert set(turns.pauses) == {300}


def test_two_thousand_locks_are_renewed_by_two_commands(
    make_locks: Callable[[float], RedisLocks], redis_client: redis.Redis
) -> None:
    """A busy interpreter delays each answer: a command for each lock would be late for the last ones."""
    locks = make_locks(3000)
    turns = in_turns(locks)
    names = [f"many{number}" for number in range(2000)]
    locks.acquire({f"run-{name}": name for name in names})
    turns.one()
    for name in names:
        redis_client.expire(f"dcsync:lock:{name}", 2000)
    before = redis_client.info("commandstats")["cmdstat_evalsha"]["calls"]
    turns.one()
    assert redis_client.info("commandstats")["cmdstat_evalsha"]["calls"] - before == 2
    assert min(redis_client.ttl(f"dcsync:lock:{name}") for name in names) > 2000


def test_a_run_that_asks_for_its_lock_gets_its_whole_life_back(
    make_locks: Callable[[float], RedisLocks], redis_client: redis.Redis
) -> None:
    locks = make_locks(3000)
    in_turns(locks)
    locks.acquire({"a": "s1"})
    redis_client.expire("dcsync:lock:s1", 20)
    assert locks.renew({"a": "s1"}) == {"a"}
    assert redis_client.ttl("dcsync:lock:s1") > 2000


def test_the_lock_of_a_process_that_is_gone_runs_out(
    make_locks: Callable[[float], RedisLocks], redis_client: redis.Redis
) -> None:
    gone = make_locks(0.5)
    gone.acquire({"a": "s1"})
    gone.close()
    after = make_locks(30)
    wait_until(lambda: after.acquire({"b": "s1"}), seconds=60, what="free again")
    assert not gone.release({"a": "s1"})
    assert redis_client.get("dcsync:lock:s1") == "b"


def test_a_lock_taken_over_is_neither_renewed_nor_released_by_its_old_owner(
    make_locks: Callable[[float], RedisLocks], redis_client: redis.Redis
) -> None:
    locks = make_locks(3000)
    turns = in_turns(locks)
    locks.acquire({"a": "s1"})
    redis_client.set("dcsync:lock:s1", "b", ex=2000)
    for _ in range(2):
        turns.one()
        assert redis_client.ttl("dcsync:lock:s1") <= 2000
    assert not locks.release({"a": "s1"})
    assert redis_client.get("dcsync:lock:s1") == "b"


@pytest.fixture(params=["memory", "redis"])
def away(request: pytest.FixtureRequest) -> Locks:
    """Locks whose broker does not answer."""
    if request.param == "redis":
        return RedisLocks(make_client(NOWHERE, timeout_seconds=0.5, retries=0), ttl_seconds=1)
    locks = MemoryLocks()
    locks.is_away = True
    return locks


def test_a_broker_that_is_away_is_an_error_and_not_a_no(away: Locks) -> None:
    with pytest.raises(BrokerUnreachable) as error:
        away.acquire({"a": "s1"})
    assert "CANARY" not in str(error.value)
    with pytest.raises(BrokerUnreachable):
        away.owners(["s1"])
    with pytest.raises(BrokerUnreachable):
        away.renew({"a": "s1"})
    assert away.release({"a": "s1"}) == set()
