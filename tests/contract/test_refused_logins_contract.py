"""What RefusedLogins promise, held against those of one process and those in Redis; and what only Redis's can do."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta

import pytest
import redis

from dcsync.adapters.broker.redis_client import make_client
from dcsync.adapters.broker.refused_logins import RedisRefusedLogins
from dcsync.adapters.host.refused_logins import ProcessRefusedLogins
from dcsync.runs.logins import Account, Admitted, Busy, HeldBack, LoginCounts, LoginLimits, RefusedLogins, Verdict
from tests.contract.held import Held

HELD = (Held(ProcessRefusedLogins, RefusedLogins),)

NOWHERE = "redis://:CANARY@127.0.0.1:1/0"
LIMITS = LoginLimits()
FIRST, WINDOW, LONGEST = (time.total_seconds() for time in (LIMITS.hold_off, LIMITS.window, LIMITS.hold_off_max))
ACCOUNT = Account(cloud="http://192.0.2.1:5000/v3", user="dcmanager", password="canary-password")
OTHER = replace(ACCOUNT, password="canary-other")


@dataclass
class Clock:
    now: float = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Remembering:
    """Refused logins whose time the test moves."""

    logins: RefusedLogins
    wait: Callable[[float], None]

    def try_once(self, account: Account, verdict: Verdict) -> HeldBack | None:
        admitted = self.logins.admit(account)
        assert isinstance(admitted, Admitted), admitted
        return self.logins.settle(account, admitted.permit, verdict)

    def refuse(self, account: Account) -> HeldBack:
        held = self.try_once(account, Verdict.REFUSED)
        assert held is not None
        return held


def of_process() -> Remembering:
    clock = Clock()

    def wait(seconds: float) -> None:
        clock.now += seconds

    return Remembering(ProcessRefusedLogins(now=clock, jitter=lambda: 0.0), wait)


def in_redis(client: redis.Redis) -> Remembering:
    """Time passes in Redis by setting back what is recorded there."""

    def wait(seconds: float) -> None:
        for name in client.scan_iter("dcsync:login:account:*"):
            raw = client.get(name)
            assert isinstance(raw, str)
            memory, back = json.loads(raw), seconds * 1000
            memory["refused"] = [at - back for at in memory["refused"]]
            for held in dict(memory["held"]).values():
                held["refused_at"] -= back
                held["retry_at"] -= back
            if "permit" in memory:
                memory["permit_until"] -= back
            client.set(name, json.dumps(memory), keepttl=True)

    return Remembering(RedisRefusedLogins(client, jitter=lambda: 0.0), wait)


@pytest.fixture(params=["process", "redis"])
def memory(request: pytest.FixtureRequest) -> Remembering:
    if request.param == "process":
        return of_process()
    return in_redis(make_client(request.getfixturevalue("redis_url")))


def test_a_password_that_is_accepted_is_tried_as_often_as_anybody_likes(memory: Remembering) -> None:
    for _ in range(20):
        assert memory.try_once(ACCOUNT, Verdict.ACCEPTED) is None


def test_only_one_login_of_a_user_is_in_progress_at_a_cloud(memory: Remembering) -> None:
    first = memory.logins.admit(ACCOUNT)
    assert isinstance(first, Admitted)
    assert memory.logins.admit(ACCOUNT) == Busy()
    assert memory.logins.admit(OTHER) == Busy(), "whatever the password"
    for elsewhere in (replace(ACCOUNT, cloud="http://192.0.2.2:5000/v3"), replace(ACCOUNT, user="admin")):
        assert isinstance(memory.logins.admit(elsewhere), Admitted)
    memory.logins.settle(ACCOUNT, first.permit, Verdict.UNKNOWN)
    assert isinstance(memory.logins.admit(ACCOUNT), Admitted)


def test_a_process_that_died_during_a_login_delays_the_others_for_a_while_only(memory: Remembering) -> None:
    dead = memory.logins.admit(ACCOUNT)
    assert isinstance(dead, Admitted)
    memory.wait(LIMITS.permit.total_seconds() + 1)
    after = memory.logins.admit(ACCOUNT)
    assert isinstance(after, Admitted)
    memory.logins.settle(ACCOUNT, dead.permit, Verdict.UNKNOWN)
    assert memory.logins.admit(ACCOUNT) == Busy(), "a permit that has expired ends nobody else's"


def test_a_refused_password_is_held_back_until_its_time(memory: Remembering) -> None:
    held = memory.refuse(ACCOUNT)
    assert held.in_a_row == 1
    assert held.retry_at - held.refused_at == LIMITS.hold_off
    memory.wait(FIRST - 5)
    found = memory.logins.admit(ACCOUNT)
    assert isinstance(found, HeldBack)
    assert (found.in_a_row, found.retry_at - found.refused_at) == (1, LIMITS.hold_off)
    memory.wait(6)
    assert isinstance(memory.logins.admit(ACCOUNT), Admitted)


def test_each_further_refusal_doubles_the_hold_off_up_to_its_maximum(memory: Remembering) -> None:
    seen = []
    for _ in range(7):
        held = memory.refuse(ACCOUNT)
        seen.append((held.retry_at - held.refused_at) / LIMITS.hold_off)
        memory.wait((held.retry_at - held.refused_at).total_seconds() + 1)
    assert seen == [1, 2, 4, 8, 12, 12, 12]


def test_after_an_accepted_login_hold_offs_begin_anew(memory: Remembering) -> None:
    memory.refuse(ACCOUNT)
    memory.wait(FIRST + 1)
    memory.try_once(ACCOUNT, Verdict.ACCEPTED)
    assert memory.refuse(ACCOUNT).in_a_row == 1


def test_a_new_password_is_tried_at_once_and_the_old_one_stays_held_back(memory: Remembering) -> None:
    memory.refuse(ACCOUNT)
    assert memory.try_once(OTHER, Verdict.ACCEPTED) is None
    assert isinstance(memory.logins.admit(ACCOUNT), HeldBack)


def test_whatever_is_tried_at_most_three_are_refused_within_the_window(memory: Remembering) -> None:
    for number in range(3):
        memory.refuse(replace(ACCOUNT, password=f"canary-{number}"))
    held = memory.logins.admit(replace(ACCOUNT, password="canary-right"))
    assert isinstance(held, HeldBack)
    assert held.in_a_row == 0
    assert timedelta() < held.retry_at - held.refused_at <= LIMITS.window
    memory.wait(WINDOW + 1)
    assert isinstance(memory.logins.admit(replace(ACCOUNT, password="canary-right")), Admitted)


def test_accepted_logins_in_between_do_not_widen_the_bound(memory: Remembering) -> None:
    for number in range(3):
        memory.refuse(replace(ACCOUNT, password=f"canary-{number}"))
        if number < 2:
            memory.try_once(OTHER, Verdict.ACCEPTED)
    assert isinstance(memory.logins.admit(OTHER), HeldBack)


def test_a_login_without_an_answer_is_no_refusal(memory: Remembering) -> None:
    for _ in range(10):
        assert memory.try_once(ACCOUNT, Verdict.UNKNOWN) is None
    assert isinstance(memory.logins.admit(ACCOUNT), Admitted)


def test_a_last_resort_is_tried_once_within_the_longest_hold_off(memory: Remembering) -> None:
    last = replace(OTHER, is_last_resort=True)
    held = memory.refuse(last)
    assert held.retry_at - held.refused_at == LIMITS.hold_off_max
    memory.wait(LONGEST - 5)
    assert isinstance(memory.logins.admit(last), HeldBack)


def test_a_password_that_was_delivered_is_tried_at_once_but_its_refusal_counts(memory: Remembering) -> None:
    memory.refuse(ACCOUNT)
    memory.logins.forget(ACCOUNT)
    assert memory.refuse(ACCOUNT).in_a_row == 1
    memory.logins.forget(ACCOUNT)
    memory.refuse(ACCOUNT)
    memory.logins.forget(ACCOUNT)
    assert isinstance(memory.logins.admit(ACCOUNT), HeldBack)


def test_refusals_are_counted_and_listed_the_newest_first(memory: Remembering) -> None:
    elsewhere = replace(ACCOUNT, cloud="http://192.0.2.2:5000/v3")
    assert memory.logins.counts() == LoginCounts()
    assert memory.logins.remembered() == []
    memory.refuse(ACCOUNT)
    memory.wait(FIRST + 1)
    again = memory.refuse(ACCOUNT)
    memory.wait(1)
    memory.refuse(elsewhere)
    memory.logins.admit(ACCOUNT)
    newest, other = memory.logins.remembered()
    assert (newest.cloud, newest.user, newest.in_a_row) == (elsewhere.cloud, "dcmanager", 1)
    assert (other.cloud, other.user, other.in_a_row) == (ACCOUNT.cloud, "dcmanager", 2)
    assert other.retry_at - other.refused_at == again.retry_at - again.refused_at
    assert memory.logins.counts() == LoginCounts(refused=3, held_back=1)


def test_what_is_remembered_is_forgotten_for_one_cloud_or_for_all(memory: Remembering) -> None:
    accounts = [replace(ACCOUNT, cloud=f"http://192.0.2.{number}/v3") for number in (1, 2, 3)]
    for account in accounts:
        memory.refuse(account)
    assert memory.logins.forget_all("http://192.0.2.2/v3") == 1
    assert {each.cloud for each in memory.logins.remembered()} == {accounts[0].cloud, accounts[2].cloud}
    assert memory.logins.forget_all() == 2
    assert memory.logins.remembered() == []
    assert isinstance(memory.logins.admit(accounts[0]), Admitted)


# --- what only Redis does ---


def test_all_processes_share_one_memory(redis_url: str) -> None:
    one, other = (RedisRefusedLogins(make_client(redis_url)) for _ in range(2))
    first = one.admit(ACCOUNT)
    assert isinstance(first, Admitted)
    assert other.admit(ACCOUNT) == Busy()
    one.settle(ACCOUNT, first.permit, Verdict.REFUSED)
    assert isinstance(other.admit(ACCOUNT), HeldBack)
    assert other.counts() == LoginCounts(refused=1, held_back=1)
    (shown,) = other.remembered()
    assert (shown.cloud, shown.user, shown.in_a_row) == (ACCOUNT.cloud, "dcmanager", 1)


def test_nothing_stays_of_accepted_logins_and_everything_expires(redis_url: str, redis_client: redis.Redis) -> None:
    memory = in_redis(make_client(redis_url))
    memory.try_once(ACCOUNT, Verdict.ACCEPTED)
    assert list(redis_client.scan_iter("dcsync:login:account:*")) == []
    memory.refuse(ACCOUNT)
    assert isinstance(memory.logins.admit(OTHER), Admitted)
    (name,) = redis_client.scan_iter("dcsync:login:account:*")
    assert FIRST < redis_client.ttl(name) <= LIMITS.remembered.total_seconds()


def test_redis_holds_no_password_and_nothing_a_quick_hash_would_give(redis_url: str, redis_client: redis.Redis) -> None:
    in_redis(make_client(redis_url)).refuse(ACCOUNT)
    names = list(redis_client.scan_iter("dcsync:login:*"))
    everything = " ".join(str(redis_client.get(name)) for name in names if redis_client.type(name) == "string")
    assert "dcmanager" in everything
    assert "canary" not in everything + " ".join(names)
    (account,) = [name for name in names if "account" in name]
    (word,) = json.loads(str(redis_client.get(account)))["held"]
    assert len(word) == 32


def test_without_redis_each_process_is_bounded_by_its_own_memory() -> None:
    away = RedisRefusedLogins(make_client(NOWHERE, timeout_seconds=0.5, retries=0))
    Remembering(away, lambda _: None).refuse(ACCOUNT)
    assert isinstance(away.admit(ACCOUNT), HeldBack)
    away.forget(ACCOUNT)
    assert isinstance(away.admit(ACCOUNT), Admitted)


def test_a_process_that_saw_a_refusal_remembers_it_when_redis_goes_away(redis_url: str) -> None:
    client = make_client(redis_url, timeout_seconds=0.5, retries=0)
    logins = RedisRefusedLogins(client)
    Remembering(logins, lambda _: None).refuse(ACCOUNT)
    client.connection_pool.connection_kwargs["port"] = 1
    client.connection_pool.disconnect()
    assert isinstance(logins.admit(ACCOUNT), HeldBack)


def test_no_password_is_in_a_repr() -> None:
    assert "canary" not in repr(ACCOUNT)
