"""A worker that holds an unacknowledged message survives the end of its broker. Without `broker_guard` kombu 5.7.0
ends it with an AttributeError. And one survives messages that cannot be read, each of which would end it, and a broker
that refuses what it is told."""

from __future__ import annotations

import base64
import json
import os
import signal
import time
from collections.abc import Callable

import pytest
import redis
import sqlalchemy as sa

from dcsync.adapters.host.clock import utc_now
from dcsync.adapters.postgres.database import make_engine
from dcsync.adapters.postgres.inventory import SqlInventory
from dcsync.adapters.postgres.tables import subcloud
from dcsync.local.servers import EmbeddedRedis
from dcsync.model.messages import TaskName
from dcsync.model.subcloud import new_subcloud
from tests.processes import Processes, Running, wait_until


def test_a_worker_with_an_unacknowledged_report_survives_a_restart_of_redis(
    database_url: str, own_redis: EmbeddedRedis, processes: Processes
) -> None:
    engine = make_engine(database_url)
    SqlInventory(engine).add(
        [new_subcloud(name="edge-1", management_ip="10.10.0.5", region_name=None, software_version=None)], now=utc_now()
    )
    environ = {"DCSYNC_DATABASE_URL": database_url, "DCSYNC_REDIS_URL": own_redis.url}
    arguments = ("-Q", "state", "-P", "threads", "-c", "2", "--without-gossip", "--without-mingle")
    worker = processes.celery("worker", *arguments, environ=environ, ready="ready.")
    with engine.begin() as holder:  # the task waits for this row while Redis goes away
        holder.execute(sa.text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        holder.execute(sa.select(subcloud.c.id).with_for_update())
        processes.cli("state", "availability", "online", "--no-wait", "edge-1", environ=environ, expect=0)
        wait_until(
            lambda: _waits_for_a_lock(engine),
            seconds=180,
            what=lambda: f"the task is in the middle of its work:\n{worker.output()}",
        )
        _hang_with_a_heartbeat_on_its_way(own_redis)
        own_redis.kill()
        worker.wait_for("Connection to broker lost")
        own_redis.start()
    with redis.Redis.from_url(own_redis.url) as broker:
        _until_it_is(engine, "online", worker, meanwhile=lambda: _hand_out_again(broker))
    processes.cli("state", "availability", "offline", "--no-wait", "edge-1", environ=environ, expect=0)
    _until_it_is(engine, "offline", worker)
    engine.dispose()


def _hang_with_a_heartbeat_on_its_way(server: EmbeddedRedis) -> None:
    """One is sent every 2 s. Celery would send it again and again, and notice nothing else until Redis is back."""
    assert server.pid is not None
    os.kill(server.pid, signal.SIGSTOP)
    time.sleep(4)  # the moment is the point


def _hand_out_again(broker: redis.Redis) -> None:
    """What the broker does once its visibility timeout is over: the test moves the time. Needed where PostgreSQL's time
    limit ended the task while Redis was away, for then it could not be given back."""
    for delivery in broker.zrange("unacked_index", 0, -1):
        broker.zadd("unacked_index", {delivery: 1}, xx=True)


def _waits_for_a_lock(engine: sa.Engine) -> bool:
    query = sa.text(
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )
    with engine.connect() as connection:
        return bool(connection.scalar(query))


def a_message(*, body: object = None, headers: object = None, **properties: object) -> dict[str, object]:
    """As kombu lays it into a queue: a report on nobody, or what is given in its place."""
    told = json.dumps([[], {"updates": [], "version": 1}, {}]).encode()
    info = {"exchange": "state", "routing_key": "state"}
    return {
        "body": base64.b64encode(told).decode() if body is None else body,
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"lang": "py", "task": TaskName.STATE_UPDATES, "id": "1"} if headers is None else headers,
        "properties": {"delivery_info": info, "delivery_tag": "tag", "body_encoding": "base64"} | properties,
    }


UNREADABLE = {
    "a body that is no base64": a_message(body="!!!"),
    "a body in an encoding nobody knows": a_message(body_encoding="rot13"),
    "a body that is a number": a_message(body=5),
    "a body that is no triple": a_message(body=base64.b64encode(b'{"a": 1}').decode()),
    "headers that are a list": a_message(headers=[1]),
    "a task that is a list": a_message(headers={"task": ["x"], "id": "1", "lang": "py"}),
    "a time limit that is no pair": a_message(
        headers={"lang": "py", "task": TaskName.STATE_UPDATES, "id": "1", "timelimit": 5}
    ),
    "a tag that is an object": a_message(delivery_tag={"a": 1}),
    "a destination that is a text": a_message(delivery_info="state"),
    "brackets without end": "[" * 100_000,
}


def test_a_worker_drops_what_it_cannot_read_and_goes_on(
    database_url: str, redis_client: redis.Redis, redis_url: str, processes: Processes
) -> None:
    environ = {"DCSYNC_DATABASE_URL": database_url, "DCSYNC_REDIS_URL": redis_url}
    arguments = ("-Q", "state", "-P", "threads", "-c", "2", "--without-gossip", "--without-mingle")
    worker = processes.celery("worker", *arguments, environ=environ, ready="ready.")
    for what, message in UNREADABLE.items():
        redis_client.lpush("state", message if isinstance(message, str) else json.dumps(message))
        wait_until(
            lambda: not worker.alive or not redis_client.llen("state"),
            seconds=180,
            what=lambda what=what: f"{what} is taken:\n{worker.output()}",
        )
    processes.cli("subcloud", "add", "edge-1", "--management-ip", "10.10.0.5", environ=environ, expect=0)
    processes.cli("state", "availability", "online", "--no-wait", "edge-1", environ=environ, expect=0)
    engine = make_engine(database_url)
    _until_it_is(engine, "online", worker)
    wait_until(lambda: not redis_client.hlen("unacked"), seconds=180, what="nothing is left to be handed out again")
    assert worker.alive, worker.output()
    engine.dispose()


@pytest.mark.parametrize(
    ("spoil", "mend", "refusal"),
    [
        ("CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0", "used memory > 'maxmemory'"),
        ("REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE", "read only replica"),
    ],
    ids=["is full", "is a replica"],
)
def test_a_worker_waits_for_a_redis_that_takes_no_writes(
    database_url: str, own_redis: EmbeddedRedis, processes: Processes, spoil: str, mend: str, refusal: str
) -> None:
    environ = {"DCSYNC_DATABASE_URL": database_url, "DCSYNC_REDIS_URL": own_redis.url}
    arguments = ("-Q", "state", "-P", "threads", "-c", "2", "--without-gossip", "--without-mingle")
    worker = processes.celery("worker", *arguments, environ=environ, ready="ready.")
    with redis.Redis.from_url(own_redis.url) as broker:
        broker.execute_command(*spoil.split())
        broker.client_kill_filter(_type="normal", skipme=True)
        worker.wait_for(refusal)
        broker.execute_command(*mend.split())
    processes.cli("subcloud", "add", "edge-1", "--management-ip", "10.10.0.5", environ=environ, expect=0)
    processes.cli("state", "availability", "online", "--no-wait", "edge-1", environ=environ, expect=0)
    engine = make_engine(database_url)
    _until_it_is(engine, "online", worker)
    engine.dispose()


def _until_it_is(
    engine: sa.Engine, status: str, worker: Running, *, meanwhile: Callable[[], None] = lambda: None
) -> None:
    inventory = SqlInventory(engine)

    def is_there() -> bool:
        meanwhile()
        return not worker.alive or inventory.find(["edge-1"])[0].availability_status == status

    wait_until(
        is_there,
        seconds=180,
        what=lambda: f"the report is written down:\n{worker.output()}",
    )
    assert worker.alive, worker.output()
