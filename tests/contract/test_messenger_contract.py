"""What a messenger promises, held against the one in memory and the one over Celery and Redis.

The ports are SyncMessenger, AuditMessenger, ProbeMessenger, SweepTrigger and Triggers.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import redis

from dcsync import bootstrap
from dcsync.adapters.broker.messenger import CeleryMessenger
from dcsync.audit.ports import AuditMessenger
from dcsync.cli.ports import Triggers
from dcsync.initial_sync.ports import SyncMessenger
from dcsync.model.errors import BrokerUnreachable
from dcsync.model.messages import QUEUE_OF, AuditHint, SyncHint, TaskName
from dcsync.probe.ports import ProbeMessenger
from dcsync.settings import load
from dcsync.state.ports import SweepTrigger
from dcsync.tasks.app import make_app
from tests.contract.held import Held
from tests.fake_messenger import FakeMessenger

HELD = (Held(FakeMessenger, SyncMessenger, AuditMessenger, ProbeMessenger, SweepTrigger, Triggers),)

NOWHERE = "redis://127.0.0.1:1/0"
SYNCS = [SyncHint("edge-1", 1, 1), SyncHint("edge-2", 3, 2)]
AUDITS = [AuditHint("edge-1", 7), AuditHint("edge-3", 1)]


@dataclass
class Sent:
    """A messenger, and what has arrived: how many messages for each task."""

    messenger: CeleryMessenger | FakeMessenger
    count: Callable[[TaskName], int]


def _in_memory() -> Sent:
    fake = FakeMessenger()
    counted: dict[TaskName, Callable[[], int]] = {
        TaskName.SWEEP: lambda: fake.sweeps,
        TaskName.AUDIT_SWEEP: lambda: fake.audit_sweeps,
        TaskName.ROTATE_KEYS: lambda: fake.key_rotations,
        TaskName.INITIAL_SYNC: lambda: len(fake.syncs),
        TaskName.AUDIT: lambda: len(fake.audits),
        TaskName.AVAILABILITY_SWEEP: lambda: fake.availability_sweeps,
    }
    return Sent(fake, lambda task: counted[task]())


def _through_redis(messenger: CeleryMessenger, client: redis.Redis) -> Sent:
    def messages(task: TaskName) -> list[dict[str, object]]:
        """The arguments of each, in the order they are taken in: from the end of the list."""
        found = [json.loads(each) for each in client.lrange(QUEUE_OF[task].value, 0, -1)][::-1]
        bodies = [json.loads(base64.b64decode(each["body"])) for each in found if each["headers"]["task"] == task.value]
        return [arguments for _, arguments, _ in bodies]

    return Sent(messenger, lambda task: len(messages(task)))


@pytest.fixture(params=["memory", "celery"])
def sent(request: pytest.FixtureRequest) -> Iterator[Sent]:
    if request.param == "memory":
        yield _in_memory()
        return
    settings = load({"DCSYNC_REDIS_URL": request.getfixturevalue("redis_url")})
    with make_app(settings) as app:
        yield _through_redis(bootstrap.messenger(settings, app), request.getfixturevalue("redis_client"))


@pytest.fixture(params=["memory", "celery"])
def away(request: pytest.FixtureRequest) -> Iterator[CeleryMessenger | FakeMessenger]:
    """A messenger whose broker does not answer."""
    if request.param == "memory":
        yield FakeMessenger(is_away=True)
        return
    settings = load({"DCSYNC_REDIS_URL": NOWHERE})
    with make_app(settings) as app:
        yield bootstrap.messenger(settings, app)


def test_hints_wait_under_their_task_ids_each_kind_in_its_own_queue(sent: Sent) -> None:
    assert sent.messenger.waiting_sync_ids() == sent.messenger.waiting_audit_ids() == set()
    sent.messenger.send_sync(SYNCS)
    sent.messenger.send_audits(AUDITS)
    assert sent.messenger.waiting_sync_ids() == {hint.task_id for hint in SYNCS}
    assert sent.messenger.waiting_audit_ids() == {hint.task_id for hint in AUDITS}
    assert (sent.count(TaskName.INITIAL_SYNC), sent.count(TaskName.AUDIT)) == (2, 2)


def test_each_sending_has_an_id_of_its_own(redis_url: str, redis_client: redis.Redis) -> None:
    """Workers discard a revoked id for hours."""
    settings = load({"DCSYNC_REDIS_URL": redis_url})
    with make_app(settings) as app:
        messenger = bootstrap.messenger(settings, app)
        for _ in range(2):
            messenger.send_sync(SYNCS)
            messenger.send_audits(AUDITS)
        assert messenger.waiting_sync_ids() == {hint.task_id for hint in SYNCS}
        assert messenger.waiting_audit_ids() == {hint.task_id for hint in AUDITS}
    sent = [
        json.loads(each)["headers"]["id"] for queue in ("sync", "audit") for each in redis_client.lrange(queue, 0, -1)
    ]
    assert len(set(sent)) == len(sent) == 8


def test_a_hint_of_an_older_release_is_recognised_while_it_waits(redis_url: str, redis_client: redis.Redis) -> None:
    redis_client.lpush("sync", json.dumps({"headers": {"id": "edge-1.g1.a1"}}))
    settings = load({"DCSYNC_REDIS_URL": redis_url})
    with make_app(settings) as app:
        assert bootstrap.messenger(settings, app).waiting_sync_ids() == {SYNCS[0].task_id}


def test_a_batch_follows_those_sent_before_and_an_empty_one_sends_nothing(sent: Sent) -> None:
    sent.messenger.send_sync(SYNCS[:1])
    sent.messenger.send_sync([])
    sent.messenger.send_audits([])
    sent.messenger.send_sync(SYNCS[1:])
    assert sent.messenger.waiting_sync_ids() == {hint.task_id for hint in SYNCS}
    assert sent.count(TaskName.AUDIT) == 0


@pytest.mark.parametrize(
    ("method", "task"),
    [
        ("send_sweep", TaskName.SWEEP),
        ("send_audit_sweep", TaskName.AUDIT_SWEEP),
        ("send_availability_sweep", TaskName.AVAILABILITY_SWEEP),
        ("send_key_rotation", TaskName.ROTATE_KEYS),
    ],
)
def test_a_trigger_is_one_message_for_its_task_and_no_hint(sent: Sent, method: str, task: TaskName) -> None:
    getattr(sent.messenger, method)()
    triggers = (TaskName.SWEEP, TaskName.AUDIT_SWEEP, TaskName.AVAILABILITY_SWEEP, TaskName.ROTATE_KEYS)
    assert {each: sent.count(each) for each in triggers} == {each: int(each is task) for each in triggers}
    assert sent.messenger.waiting_sync_ids() == sent.messenger.waiting_audit_ids() == set()


@pytest.mark.parametrize(
    ("method", "arguments", "options"),
    [
        ("send_sync", (SYNCS,), {}),
        ("send_audits", (AUDITS,), {}),
        ("send_availability_sweep", (), {}),
        ("send_sweep", (), {}),
        ("send_audit_sweep", (), {}),
        ("send_key_rotation", (), {}),
        ("waiting_sync_ids", (), {}),
        ("waiting_audit_ids", (), {}),
    ],
)
def test_a_broker_that_is_away_is_an_error_of_every_call(
    away: CeleryMessenger | FakeMessenger, method: str, arguments: tuple[object, ...], options: dict[str, object]
) -> None:
    with pytest.raises(BrokerUnreachable):
        getattr(away, method)(*arguments, **options)
