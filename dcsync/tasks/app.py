"""The Celery app: broker, queues, acknowledgement, schedule. `dcsync.worker` is its entry point."""

from __future__ import annotations

from typing import Any

from celery import Celery
from kombu import Exchange
from kombu import Queue as KombuQueue

from dcsync.adapters.broker import broker_guard
from dcsync.adapters.broker.redis_client import broker_options, broker_url
from dcsync.adapters.host.tls_rules import broker_tls
from dcsync.beat_schedule import beat_schedule
from dcsync.model.errors import MisconfiguredError
from dcsync.model.messages import QUEUE_OF, Queue, TaskName
from dcsync.settings import Settings, load
from dcsync.tasks.base import WorkerProcess


def make_app(settings: Settings | None = None) -> Celery:
    """Returns a configured Celery app, not connected yet. Raises MisconfiguredError that lists every problem."""
    broker_guard.apply()
    settings = settings or load()
    if settings.redis_url is None:
        raise MisconfiguredError("not set: DCSYNC_REDIS_URL (and DCSYNC_DATABASE_URL, for workers)")
    app = Celery(
        "dcsync",
        broker=broker_url(settings.redis_url.get_secret_value()),
        task_cls="dcsync.tasks.base:DcsyncTask",
        include=[
            "dcsync.tasks.alive",
            "dcsync.tasks.audit",
            "dcsync.tasks.availability",
            "dcsync.tasks.control",
            "dcsync.tasks.initial_sync",
            "dcsync.tasks.key_rotation",
            "dcsync.tasks.lifecycle",
            "dcsync.tasks.silence",
            "dcsync.tasks.state",
            "dcsync.tasks.alarms",
        ],
        set_as_current=False,
    )
    app.conf.update(configuration(settings))
    app.dcsync = WorkerProcess(app, settings)
    return app


def _declared(queue: Queue) -> KombuQueue:
    """Returns the queue with its own exchange; Celery would otherwise bind all queues to the default routing key."""
    return KombuQueue(queue.value, Exchange(queue.value, type="direct"), routing_key=queue.value)


def configuration(settings: Settings) -> dict[str, Any]:
    """Returns Celery's settings. Source for the unusual ones: docs/upstream/platform-facts.md sections 2.6, 3, 10."""
    broker = settings.redis_url.get_secret_value() if settings.redis_url else ""
    return {
        # The URL says the same to Celery; Flower reads it from here.
        "broker_use_ssl": broker_tls(broker),
        "task_queues": [_declared(queue) for queue in Queue],
        "task_default_queue": Queue.CONTROL.value,
        "task_create_missing_queues": False,
        "task_routes": {name.value: {"queue": QUEUE_OF[name].value} for name in TaskName},
        "task_ignore_result": True,
        "task_store_errors_even_if_ignored": False,
        "task_serializer": "json",
        "accept_content": ["json"],
        "event_serializer": "json",
        "task_acks_late": False,
        "task_acks_on_failure": True,
        "task_acks_on_timeout": True,
        "task_send_sent_event": False,
        "task_inherit_parent_priority": False,
        # A worker takes a message only when a thread is free: no message waits in a worker that may be killed, and the
        # sweep can see in the queue which hints have not started.
        "worker_disable_prefetch": True,
        "worker_prefetch_multiplier": 1,
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "worker_enable_remote_control": settings.remote_control,
        "beat_schedule": beat_schedule(
            sweep_interval=settings.sweep_interval,
            probe_interval=settings.probe_interval,
            audit_interval=settings.audit_interval,
            central_watch_interval=settings.central_watch_interval,
        ),
        "beat_scheduler": "dcsync.tasks.alive:BeatScheduler",
        "beat_max_loop_interval": min(5.0, settings.sweep_interval),
        "timezone": "UTC",
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        # Retry also while Redis is full, or read-only after a failover; otherwise Celery would end the worker, and
        # every worker that starts meanwhile.
        "broker_channel_error_retry": True,
        "broker_pool_acquire_timeout": 10,
        "task_publish_retry_policy": {"max_retries": 2, "interval_start": 0, "interval_step": 0.3, "interval_max": 1},
        "broker_transport_options": {
            "visibility_timeout": settings.visibility_timeout,
            "unacked_restore_interval": 10,
            "unacked_restore_throttle": 1,
            "unacked_mutex_expire": 30,
            "max_connections": 200,
            "socket_connect_timeout": 5,
            "socket_timeout": 30,
            "socket_keepalive": True,
            "health_check_interval": 25,
            **broker_options(settings.redis_url.get_secret_value() if settings.redis_url else ""),
        },
    }
