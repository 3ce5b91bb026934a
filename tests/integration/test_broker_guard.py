"""A worker that holds an unacknowledged message survives the end of its broker. Without `broker_guard` kombu 5.7.0
ends it with an AttributeError."""

from __future__ import annotations

import sqlalchemy as sa

from dcsync.adapters.clock import utc_now
from dcsync.adapters.database import make_engine
from dcsync.adapters.store.inventory import SqlInventory
from dcsync.adapters.tables import subcloud
from dcsync.local.servers import EmbeddedRedis
from dcsync.subcloud import new_subcloud
from tests.processes import Processes, wait_until


def test_a_worker_with_an_unacknowledged_report_survives_a_restart_of_redis(
    database_url: str, own_redis: EmbeddedRedis, processes: Processes
) -> None:
    engine = make_engine(database_url)
    inventory = SqlInventory(engine)
    inventory.add(
        [new_subcloud(name="edge-1", management_ip="10.10.0.5", region_name=None, software_version=None)], now=utc_now()
    )
    environ = {"DCSYNC_DATABASE_URL": database_url, "DCSYNC_REDIS_URL": own_redis.url}
    arguments = ("-Q", "state", "-P", "threads", "-c", "2", "--without-gossip", "--without-mingle")
    worker = processes.celery("worker", *arguments, environ=environ, ready="ready.")
    with engine.begin() as holder:  # the task waits for this row while Redis goes away
        holder.execute(sa.select(subcloud.c.id).with_for_update())
        processes.cli("state", "availability", "online", "--no-wait", "edge-1", environ=environ, expect=0)
        wait_until(lambda: _waits_for_a_lock(engine), seconds=60, what="the task is in the middle of its work")
        own_redis.kill()
        worker.wait_for("Connection to broker lost")
        own_redis.start()
    wait_until(
        lambda: not worker.alive or inventory.find(["edge-1"])[0].availability_status == "online",
        seconds=60,
        what=lambda: f"the report is written down:\n{worker.output()}",
    )
    assert worker.alive, worker.output()
    processes.cli("state", "availability", "offline", "--no-wait", "edge-1", environ=environ, expect=0)
    wait_until(
        lambda: inventory.find(["edge-1"])[0].availability_status == "offline",
        seconds=60,
        what=lambda: f"the worker goes on:\n{worker.output()}",
    )
    assert worker.alive, worker.output()
    engine.dispose()


def _waits_for_a_lock(engine: sa.Engine) -> bool:
    query = sa.text(
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )
    with engine.connect() as connection:
        return bool(connection.scalar(query))
