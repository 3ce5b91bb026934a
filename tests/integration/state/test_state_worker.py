"""A real state worker: reports through a real broker into real rows, and what a kill -9 or an outage costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from celery import Celery
from sqlalchemy import text

from dcsync import bootstrap
from dcsync.adapters.broker import reporter
from dcsync.adapters.broker.reporter import CeleryReports, Observer
from dcsync.adapters.host.clock import utc_now
from dcsync.adapters.host.report_keys import ReportKeys
from dcsync.adapters.postgres.inventory import SqlInventory
from dcsync.model.errors import BrokerUnreachable
from dcsync.model.messages import Queue, TaskName
from dcsync.model.reports import Report
from dcsync.settings import load
from dcsync.tasks.app import make_app
from tests.integration.state.conftest import Rows
from tests.processes import Processes, Running, wait_until
from tests.reports import FIRMWARE, IN_SYNC, ONLINE, UNKNOWN

StartWorker = Callable[[], Running]
OURS, THEIRS = "k" * 64, "t" * 64


@pytest.fixture
def app(server_urls: dict[str, str]) -> Iterator[Celery]:
    with make_app(load(server_urls)) as app:
        yield app


@pytest.fixture
def start_worker(processes: Processes, server_urls: dict[str, str]) -> StartWorker:
    arguments = ("-Q", "state", "-P", "threads", "-c", "2", "--without-mingle", "--without-gossip")
    return lambda: processes.celery("worker", *arguments, environ=server_urls, ready="ready.")


def test_reports_become_rows(rows: Rows, app: Celery, start_worker: StartWorker) -> None:
    rows.add(3)
    start_worker()
    observer = Observer(utc_now)
    CeleryReports(app).send(
        [report for region in ("subcloud1", "subcloud2", "nowhere") for report in _seen(observer, region)]
    )
    wait_until(lambda: rows.status(FIRMWARE, "subcloud2") is IN_SYNC, seconds=180, what="the report is written down")
    assert rows.subcloud("subcloud1").availability_status is ONLINE
    assert [region for region, _ in rows.rejected()] == ["nowhere", "nowhere"]


def test_with_a_key_a_worker_applies_signed_reports_only(
    rows: Rows, app: Celery, processes: Processes, server_urls: dict[str, str], tmp_path: Path
) -> None:
    rows.add()
    key_file, other_file = tmp_path / "report.key", tmp_path / "other.key"
    key_file.write_text(f"{OURS}\n")
    other_file.write_text(f"{THEIRS}\n")
    environ = {**server_urls, "DCSYNC_REPORT_KEY_FILE": str(key_file)}
    processes.celery("worker", "-Q", "state", "-P", "threads", "-c", "1", environ=environ, ready="ready.")

    CeleryReports(app).send([Observer(utc_now).availability("subcloud1", ONLINE)])
    CeleryReports(app, keys=ReportKeys(other_file)).send([Observer(utc_now).availability("subcloud1", ONLINE)])
    wait_until(lambda: len(rows.rejected()) == 2, seconds=180, what="both are rejected")
    assert rows.rejected() == [
        (None, "the message is not signed"),
        (None, "the signature of the message is not valid"),
    ]
    assert rows.subcloud().availability_status is not ONLINE

    # As commands and sync workers send them.
    settings = load(environ)
    bootstrap.reports(settings, app).send([Observer(utc_now).availability("subcloud1", ONLINE)])
    wait_until(lambda: rows.subcloud().availability_status is ONLINE, seconds=180, what="the signed report is applied")

    # Rotation: the worker accepts the new key beside the old one, without a restart.
    key_file.write_text(f"{OURS}\n{THEIRS}\n")
    CeleryReports(app, keys=ReportKeys(other_file)).send([Observer(utc_now).endpoint("subcloud1", FIRMWARE, IN_SYNC)])
    wait_until(lambda: rows.status(FIRMWARE) is IN_SYNC, seconds=180, what="the new key is accepted")
    assert len(rows.rejected()) == 2


def test_workers_give_subclouds_of_before_the_endpoint_types_that_are_configured(
    rows: Rows, app: Celery, processes: Processes, server_urls: dict[str, str]
) -> None:
    rows.inventory = SqlInventory(rows.engine)
    rows.add(2)
    configured = {
        "DCSYNC_ENDPOINT_TYPES": "platform,identity,firmware",
        "DCSYNC_CENTRAL_AUTH_URL": "http://127.0.0.1:1/v3",
        "DCSYNC_PASSWORD": "secret",
    }
    processes.celery("worker", "-Q", "control", "-P", "threads", environ=server_urls | configured, ready="ready.")
    app.send_task(TaskName.RECONCILE_ALARMS.value, queue=Queue.CONTROL.value)
    wait_until(
        lambda: rows.subcloud("subcloud2").sync_status.get(FIRMWARE) is UNKNOWN,
        seconds=180,
        what="a subcloud of before has a status for firmware",
    )


def test_where_no_state_worker_runs_the_queue_ends_somewhere(
    app: Celery, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Redis filled with reports would take no sweep either."""
    monkeypatch.setattr(reporter, "MOST_WAITING", 3)
    sent = CeleryReports(app)
    for _ in range(3):
        sent.send([Observer(utc_now).availability("subcloud1", ONLINE)])
    with pytest.raises(BrokerUnreachable, match="3 messages in the queue state"):
        sent.send([Observer(utc_now).availability("subcloud1", ONLINE)])
    assert redis_client.llen("state") == 3


def _seen(observer: Observer, region: str) -> list[Report]:
    return [observer.availability(region, ONLINE), observer.endpoint(region, FIRMWARE, IN_SYNC)]


def test_a_worker_killed_in_mid_batch_loses_nothing(
    rows: Rows, app: Celery, start_worker: StartWorker, redis_client: redis.Redis
) -> None:
    rows.add()
    worker = start_worker()
    with rows.engine.begin() as holder:
        holder.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        holder.execute(text("SELECT 1 FROM subcloud FOR UPDATE"))
        CeleryReports(app).send([Observer(utc_now).availability("subcloud1", ONLINE)])
        wait_until(lambda: _waits_for_a_lock(rows), seconds=180, what="the worker is in mid-batch")
        worker.kill()
    assert rows.subcloud().availability_status is not ONLINE
    # What the broker does once its visibility timeout is over, and the turn of whoever looked for such messages last:
    # the test moves the time.
    redis_client.delete("unacked_mutex")
    for delivery in redis_client.zrange("unacked_index", 0, -1):
        redis_client.zadd("unacked_index", {delivery: 1})
    start_worker()
    wait_until(lambda: rows.subcloud().availability_status is ONLINE, seconds=180, what="the message came again")


def _waits_for_a_lock(rows: Rows) -> bool:
    with rows.engine.connect() as connection:
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        return bool(connection.scalar(text(waiting)))


def test_a_message_waits_while_the_schema_is_not_there_yet(rows: Rows, app: Celery, start_worker: StartWorker) -> None:
    rows.add()
    with rows.engine.begin() as connection:
        connection.execute(text("ALTER TABLE report_memory RENAME TO elsewhere"))
    worker = start_worker()
    CeleryReports(app).send([Observer(utc_now).availability("subcloud1", ONLINE)])
    wait_until(
        lambda: worker.output().count("not applied yet") > 1, seconds=180, what="it was given back, and taken again"
    )
    assert "Traceback" not in worker.output()
    with rows.engine.begin() as connection:
        connection.execute(text("ALTER TABLE elsewhere RENAME TO report_memory"))
    wait_until(lambda: rows.subcloud().availability_status is ONLINE, seconds=180, what="the message was kept")
