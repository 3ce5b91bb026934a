"""Which hints wait in a queue, read from Redis, whatever else lies there."""

from __future__ import annotations

import redis

from dcsync import bootstrap
from dcsync.model.messages import AuditHint, SyncHint
from dcsync.settings import load
from dcsync.tasks.app import make_app

GARBAGE = (b"\xff\xfe", b"[1]", b"null", b'{"headers": "none"}', b"[" * 100_000)


def test_hints_are_found_among_what_is_no_message_at_all(redis_url: str, redis_client: redis.Redis) -> None:
    settings = load({"DCSYNC_REDIS_URL": redis_url})
    with make_app(settings) as app:
        messenger = bootstrap.messenger(settings, app)
        sync, audit = SyncHint("edge-1", 1, 1), AuditHint("edge-1", 7)
        for queue in ("sync", "audit"):
            redis_client.lpush(queue, *GARBAGE)
        messenger.send_sync([sync])
        messenger.send_audits([audit])
        assert messenger.waiting_sync_ids() == {sync.task_id}
        assert messenger.waiting_audit_ids() == {audit.task_id}
