"""dcsync as users of Celery know it: inspect answers, events tell which step a run is in, ids tell whose run it is, and
messages nobody of ours sent do no harm."""

from __future__ import annotations

import base64
import json
import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from kombu import Exchange

from dcsync.fake_cloud.faults import Fault
from dcsync.model.messages import Queue, TaskName, sent_task_id
from tests.acceptance.conftest import Subclouds
from tests.processes import wait_until
from tests.system import SECONDS, SYNC_QUEUES, System, redis_client

pytestmark = [pytest.mark.xdist_group("celery-surface"), pytest.mark.timeout(600)]

BOTH: dict[str, Any] = {"timeout": SECONDS, "limit": 2}
"""So long is waited for answers, until both workers have given theirs."""


@pytest.fixture
def app(system: System) -> Iterator[Celery]:
    app = system.celery_app()
    yield app
    app.close()


class Events:
    """What the workers tell dashboards, while a test listens."""

    def __init__(self, app: Celery) -> None:
        self.seen: list[dict[str, Any]] = []
        self.stopping = threading.Event()
        self._app = app

    def listen(self) -> None:
        with self._app.connection_for_read() as broker:
            receiver = self._app.events.Receiver(broker, handlers={"*": self.seen.append})
            with receiver.consumer_context(wakeup=False) as (connection, _channel, _consumers):
                while not self.stopping.is_set():
                    try:
                        connection.drain_events(timeout=0.2)
                    except TimeoutError:
                        continue

    def of(self, task_id: str) -> list[str]:
        """Kinds of the events of one hint, however often it was sent, in order."""
        return [event["type"] for event in self.all_of(task_id)]

    def all_of(self, task_id: str) -> list[dict[str, Any]]:
        return [event for event in self.seen if sent_task_id(event.get("uuid", "")) == task_id]


@contextmanager
def listening(app: Celery) -> Iterator[Events]:
    """From the first event on, if only a heartbeat: only then is it known that nothing is missed."""
    events = Events(app)
    thread = threading.Thread(target=events.listen)
    thread.start()
    try:
        wait_until(lambda: events.seen, seconds=SECONDS, what="an event is heard")
        yield events
    finally:
        events.stopping.set()
        thread.join(timeout=SECONDS)
    assert not thread.is_alive()


def assert_still_working(system: System, subclouds: Subclouds) -> None:
    (name,) = subclouds(1)
    system.manage(name)
    system.until_at_rest(name)
    assert all(running.alive for running in system.running), system.last_lines()


# --- inspect -----------------------------------------------------------------------------------------------------


def test_inspect_ping_finds_both_workers(system: System) -> None:
    answers: list[str] = []

    def have_answered() -> bool:
        """Each within a few seconds: the command waits for so long whoever answers."""
        answers.append(system.celery("inspect", "ping", "--timeout", "4").stdout)
        return "2 nodes online" in answers[-1]

    system.until(have_answered, lambda: f"both answer: {answers[-1]}")
    assert answers[-1].count("OK") == 2
    assert answers[-1].count("pong") == 2


def test_each_worker_consumes_the_queues_of_its_role(system: System, app: Celery) -> None:
    found = app.control.inspect(**BOTH).active_queues()
    queues = {worker.split("@")[0]: {queue["name"] for queue in queues} for worker, queues in found.items()}
    assert queues == {"sync": set(SYNC_QUEUES.split(",")), "state": {"state"}}


def test_tasks_have_their_fixed_names(app: Celery) -> None:
    found = app.control.inspect(**BOTH).registered()
    assert len(found) == 2
    for names in found.values():
        assert {
            "dcsync.control.sweep",
            "dcsync.control.housekeeping",
            "dcsync.sync.initial_sync",
            "dcsync.state.apply_updates",
        } <= {name.split(" ")[0] for name in names}


def test_nothing_but_json_is_accepted_and_no_results_are_kept(system: System, app: Celery) -> None:
    found = app.control.inspect(**BOTH).conf()
    assert len(found) == 2
    for conf in found.values():
        assert conf["accept_content"] == ["json"]
        assert conf["task_serializer"] == "json"
        assert conf["task_ignore_result"] is True
        assert conf.get("result_backend") in (None, "", "disabled")
    with redis_client(system) as client:
        assert list(client.scan_iter("celery-task-meta-*")) == []


# --- events ------------------------------------------------------------------------------------------------------


def test_events_tell_region_generation_attempt_and_step(system: System, subclouds: Subclouds, app: Celery) -> None:
    (name,) = subclouds(1)
    task_id = f"{name}.g1.a1"
    expected = {
        "task-received", "task-started", "task-identity", "task-fernet-keys", "task-audit-init", "task-succeeded",
    }  # fmt: skip
    with listening(app) as events:
        system.manage(name)
        wait_until(lambda: expected <= set(events.of(task_id)), seconds=SECONDS, what=lambda: str(events.seen))
    # Sent from different threads, so steps may overtake each other by a hair, and nobody relies on it.
    assert events.of(task_id)[0] == "task-received"
    assert set(events.of(task_id)) == expected
    told = events.all_of(task_id)
    assert len({event["uuid"] for event in told}) == 1, "a step is shown under the task it belongs to"
    assert {event["name"] for event in told if event["type"] == "task-received"} == {TaskName.INITIAL_SYNC}
    assert "completed" in "".join(event["result"] for event in told if event["type"] == "task-succeeded")


def test_the_second_attempt_has_a_task_id_of_its_own(system: System, subclouds: Subclouds, app: Celery) -> None:
    (name,) = subclouds(1)
    system.cloud.set_fault(name, Fault("status", status=500, times=1))

    def have_succeeded() -> bool:
        return all("task-succeeded" in events.of(f"{name}.g1.a{attempt}") for attempt in (1, 2))

    with listening(app) as events:
        system.manage(name)
        wait_until(have_succeeded, seconds=SECONDS, what=lambda: str(events.seen))
    system.until_completed(name)


def test_a_hint_whose_task_was_revoked_is_sent_again_under_another_id(
    system: System, subclouds: Subclouds, app: Celery
) -> None:
    """Revoked while it waited, as with Flower's button: the workers discard that id from now on."""
    (name,) = subclouds(1)
    worker = {"destination": [found for found in app.control.inspect(**BOTH).ping() if found.startswith("sync@")]}
    with listening(app) as events:
        app.control.cancel_consumer(Queue.SYNC, reply=True, timeout=SECONDS, limit=1, **worker)
        try:
            system.manage(name)
            with redis_client(system) as client:
                system.until(lambda: client.llen(Queue.SYNC), "its hint waits")
                (waiting,) = client.lrange(Queue.SYNC, 0, -1)
            app.control.revoke(json.loads(waiting)["headers"]["id"], reply=True, timeout=SECONDS, limit=2)
        finally:
            app.control.add_consumer(Queue.SYNC, reply=True, timeout=SECONDS, limit=1, **worker)
        system.until_completed(name)
    assert "task-succeeded" in events.of(f"{name}.g1.a1")


# --- messages nobody of ours sent --------------------------------------------------------------------------------


def publish(app: Celery, body: object, *, queue: str = Queue.SYNC, **options: Any) -> None:
    with app.producer_pool.acquire(block=True, timeout=SECONDS) as producer:
        producer.publish(body, exchange=Exchange(queue, type="direct"), routing_key=queue, **options)


def raw(body: bytes, *, content_type: str = "application/json", **properties: Any) -> str:
    """A message as kombu lays it into Redis."""
    return json.dumps(
        {
            "body": base64.b64encode(body).decode(),
            "content-encoding": "utf-8",
            "content-type": content_type,
            "headers": properties.pop("headers", {}),
            "properties": {
                "body_encoding": "base64",
                "delivery_tag": "a-tag",
                "delivery_info": {"exchange": "sync", "routing_key": "sync"},
                **properties,
            },
        }
    )


class Harm:
    """What a pickle does that is opened: it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (str(self.path), "w")


def test_a_pickled_message_is_refused_unopened(
    system: System, subclouds: Subclouds, app: Celery, tmp_path: Path
) -> None:
    mark = tmp_path / "opened"
    body = pickle.dumps(([], {"region_name": Harm(mark), "generation": 1}, {}))
    headers = {"task": TaskName.INITIAL_SYNC, "id": "pickled", "lang": "py"}
    publish(app, body, content_type="application/x-python-serialize", content_encoding="binary", headers=headers)
    system.until(
        lambda: "Refusing to deserialize untrusted content of type pickle" in system.running[0].output(),
        "it was refused",
    )
    assert_still_working(system, subclouds)
    assert not mark.exists()


def tracebacks(system: System) -> int:
    return sum(running.output().count("Traceback (most recent call last)") for running in system.running)


FOREIGN = {
    "not a task": ({"hello": "world"}, {}),
    "an unknown task": ([[], {}, {}], {"task": "dcsync.sync.no_such_task", "id": "unknown-task", "lang": "py"}),
    "no arguments": ([[], {}, {}], {"task": TaskName.INITIAL_SYNC, "id": "no-arguments", "lang": "py"}),
    "arguments of other types": (
        [[], {"region_name": ["a"], "generation": {"b": None}}, {}],
        {"task": TaskName.INITIAL_SYNC, "id": "other-types", "lang": "py"},
    ),
    "arguments of a later release": (
        [[], {"region_name": "nowhere", "generation": 1, "version": 2, "colour": "blue"}, {}],
        {"task": TaskName.INITIAL_SYNC, "id": "later-release", "lang": "py"},
    ),
    "a generation beyond all numbers": (
        [[], {"region_name": "nowhere", "generation": 10**30}, {}],
        {"task": TaskName.INITIAL_SYNC, "id": "huge-generation", "lang": "py"},
    ),
    "a name with a zero byte": (
        [[], {"region_name": "a\0b", "generation": 1}, {}],
        {"task": TaskName.INITIAL_SYNC, "id": "zero-byte", "lang": "py"},
    ),
    "a body of another shape": ("just a text", {"task": TaskName.INITIAL_SYNC, "id": "other-shape", "lang": "py"}),
}


@pytest.mark.parametrize("queue", [Queue.SYNC, Queue.CONTROL, Queue.STATE])
def test_foreign_messages_do_no_harm(system: System, subclouds: Subclouds, app: Celery, queue: str) -> None:
    before = tracebacks(system)
    for body, headers in FOREIGN.values():
        publish(app, body, queue=queue, headers=headers)
    with redis_client(system) as client:
        system.until(lambda: client.llen(queue) == 0, "all were taken")
    assert_still_working(system, subclouds)
    assert tracebacks(system) == before, "each costs a line"


GARBAGE = {
    "no JSON": "\x00\x01 garbage",
    "JSON of another shape": "[1, 2, 3]",
    "an empty object": "{}",
    "no properties": json.dumps({"body": "", "headers": {}}),
    "a body that is no base64": raw(b"").replace('"body": ""', '"body": "%%%"'),
    "a body that is no JSON": raw(b"\xff\xfe{{{", headers={"task": TaskName.INITIAL_SYNC, "id": "no-json"}),
    "an unknown compression": raw(b"[[], {}, {}]", headers={"task": "x", "id": "y", "compression": "magic"}),
}


def test_garbage_in_the_queue_does_no_harm(system: System, subclouds: Subclouds) -> None:
    with redis_client(system) as client:
        for garbage in GARBAGE.values():
            client.lpush(Queue.SYNC, garbage)
        system.until(lambda: client.llen(Queue.SYNC) == 0, "it was taken")
    assert_still_working(system, subclouds)
