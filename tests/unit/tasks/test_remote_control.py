"""Whether workers take commands from Redis is a setting."""

from __future__ import annotations

import pytest

from dcsync.settings import load
from dcsync.tasks.app import configuration


@pytest.mark.parametrize(("value", "enabled"), [("", True), ("1", True), ("0", False), ("false", False)])
def test_remote_control_can_be_switched_off(value: str, enabled: bool) -> None:
    conf = configuration(load({"DCSYNC_REDIS_URL": "redis://127.0.0.1:1/0", "DCSYNC_REMOTE_CONTROL": value}))

    assert conf["worker_enable_remote_control"] is enabled
