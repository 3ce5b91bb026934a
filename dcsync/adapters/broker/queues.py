"""The number of messages in each queue, read from kombu's lists in Redis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dcsync.adapters.broker.redis_client import make_client, translated_errors
from dcsync.model.messages import Queue


class QueueLengths:
    """Queue lengths; a new connection and an answer take `timeout_seconds` each at most."""

    def __init__(self, redis_url: str, *, timeout_seconds: float) -> None:
        self._client = make_client(redis_url, timeout_seconds=timeout_seconds, retries=0)

    @translated_errors
    def waiting(self, queues: Sequence[Queue]) -> Mapping[Queue, int]:
        """Returns the number of messages no worker has taken; raises BrokerUnreachable, also for an empty list."""
        with self._client.pipeline(transaction=False) as pipeline:
            pipeline.ping()
            for queue in queues:
                pipeline.llen(queue.value)
            _, *lengths = pipeline.execute()
        return dict(zip(queues, map(int, lengths), strict=True))
