"""Ticks, good ends, late counts and hints in a real Redis."""

from __future__ import annotations

import pytest
import redis
import time_machine

from dcsync import bootstrap
from dcsync.adapters.broker.ticks import Ticks
from dcsync.adapters.host.clock import utc_now
from dcsync.settings import load
from dcsync.tasks.app import make_app
from tests.processes import wait_until


@pytest.fixture
def ticks(redis_client: redis.Redis) -> Ticks:
    return Ticks(redis_client)


def test_a_tick_is_taken_once_and_each_work_has_its_own(ticks: Ticks) -> None:
    assert [ticks.take("a", interval=60), ticks.take("a", interval=60), ticks.take("b", interval=60)] == [
        True,
        False,
        True,
    ]


def test_the_next_tick_is_there_before_the_interval_is_over(ticks: Ticks) -> None:
    assert ticks.take("a", interval=0.5)
    wait_until(lambda: ticks.take("a", interval=0.5), seconds=60, what="the next tick")


def test_how_long_ago_work_ended_is_told_by_no_hosts_clock(ticks: Ticks) -> None:
    assert ticks.seconds_since("a") is None
    with time_machine.travel(utc_now().replace(year=2001), tick=True):
        ticks.ended_well("a")
    since = ticks.seconds_since("a")
    assert since is not None
    assert 0 <= since < 60
    assert ticks.seconds_since("b") is None


def test_an_end_in_the_future_is_no_end(ticks: Ticks, redis_client: redis.Redis) -> None:
    """A Redis whose clock was ahead wrote it, and another one took over."""
    redis_client.set("dcsync:ended:a", repr(utc_now().timestamp() + 3600))
    assert ticks.seconds_since("a") is None


def test_late_work_is_counted_by_name(ticks: Ticks) -> None:
    assert ticks.late_totals() == {}
    assert [ticks.count_late("b"), ticks.count_late("b"), ticks.count_late("a")] == [1, 2, 1]
    assert ticks.late_totals() == {"a": 1, "b": 2}


def test_a_thousand_hints_wait_as_one_and_none_is_lost(ticks: Ticks, redis_url: str, redis_client: redis.Redis) -> None:
    settings = load({"DCSYNC_REDIS_URL": redis_url})
    with make_app(settings) as app:
        messenger = bootstrap.messenger(settings, app)
        for _ in range(1000):
            messenger.send_sweep()
        assert redis_client.llen("control") == 1
        messenger.send_audit_sweep()
        assert redis_client.llen("control") == 2
        ticks.hint_taken("dcsync.control.sweep")
        messenger.send_sweep()
        assert redis_client.llen("control") == 3


def test_no_message_of_ours_expires(redis_url: str, redis_client: redis.Redis) -> None:
    settings = load({"DCSYNC_REDIS_URL": redis_url})
    with make_app(settings) as app:
        messenger = bootstrap.messenger(settings, app)
        for send in (
            messenger.send_sweep,
            messenger.send_audit_sweep,
            messenger.send_availability_sweep,
            messenger.send_key_rotation,
        ):
            send()
        assert [entry for entry in app.conf.beat_schedule.values() if "expires" in entry["options"]] == []
        waiting = redis_client.lrange("control", 0, -1)
    assert len(waiting) == 4
    assert all('"expires": null' in message for message in waiting)
