"""Messages that dcsync never sends cost one line each, and nothing is done with them."""

from __future__ import annotations

import logging
import sys
from typing import Any

import pytest
from celery import Celery
from celery.worker.consumer import consumer

from dcsync.model.messages import TaskName
from dcsync.settings import load
from dcsync.tasks.app import make_app
from dcsync.tasks.lifecycle import LONGEST_COMPLAINT, in_one_line

SYNC, AUDIT, SWEEP = TaskName.INITIAL_SYNC, TaskName.AUDIT, TaskName.SWEEP


@pytest.fixture
def app() -> Celery:
    """Nothing can be done with it: neither server exists."""
    app = make_app(
        load({"DCSYNC_REDIS_URL": "redis://127.0.0.1:1/0", "DCSYNC_DATABASE_URL": "postgresql://127.0.0.1:1/d"})
    )
    app.loader.import_default_modules()
    return app


@pytest.mark.parametrize(
    ("task", "args", "kwargs"),
    [
        (SYNC, [], {}),
        (SYNC, ["s1", 1, 2, 3], {}),
        (SYNC, [], {"region_name": ["CANARY"], "generation": 1}),
        (SYNC, [], {"region_name": "CANARY\0", "generation": 1}),
        (SYNC, [], {"region_name": "s1", "generation": {"CANARY": None}}),
        (SYNC, [], {"region_name": "s1", "generation": 10**30}),
        (SYNC, [], {"region_name": "s1", "generation": -1}),
        (SYNC, [], {"region_name": "s1", "generation": True}),
        (AUDIT, [], {"region_name": None}),
        (SWEEP, [], {"hinted": "CANARY"}),
        (SWEEP, [1, 2, 3], {}),
    ],
)
def test_a_damaged_message_is_dropped_with_a_line(
    app: Celery, task: TaskName, args: list[Any], kwargs: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        result = app.tasks[task.value].apply(args=args, kwargs=kwargs)
    assert type(result.result).__name__ == "DamagedMessage"
    assert all(record.exc_info is None for record in caplog.records)
    assert "CANARY" not in str(result.result)
    assert all(len(record.getMessage().splitlines()) == 1 for record in caplog.records)


def record(message: object, *args: object) -> logging.LogRecord:
    try:
        raise KeyError("x" * 9999)
    except KeyError:
        return logging.LogRecord("celery", logging.ERROR, "", 1, message, args, sys.exc_info())


def test_what_celery_cannot_use_costs_a_line() -> None:
    found = record(consumer.UNKNOWN_TASK_ERROR, "no\nsuch", "body " * 999, {}, {})
    assert in_one_line(found)
    assert found.exc_info is None
    assert len(found.getMessage()) <= LONGEST_COMPLAINT
    assert "\n" not in found.getMessage()
    assert "unregistered task" in found.getMessage()


def test_other_errors_of_the_worker_keep_their_traceback() -> None:
    found = record("Unrecoverable error: %r", "x")
    assert in_one_line(found)
    assert found.exc_info is not None
