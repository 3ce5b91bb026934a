"""Real processes show that they get on, also while Redis is away."""

from __future__ import annotations

import time
from pathlib import Path

from dcsync.local.servers import EmbeddedRedis
from tests.processes import Processes, wait_until

NOBODY = "postgresql://nobody@127.0.0.1:1/none"


def shows_signs(file: Path, *, since: float) -> bool:
    return file.exists() and file.stat().st_mtime > since


def test_a_worker_shows_signs_of_life_also_while_redis_is_away(
    processes: Processes, own_redis: EmbeddedRedis, tmp_path: Path
) -> None:
    file = tmp_path / "alive"
    environ = {"DCSYNC_DATABASE_URL": NOBODY, "DCSYNC_REDIS_URL": own_redis.url, "DCSYNC_ALIVE_FILE": str(file)}
    processes.celery("worker", "-Q", "state", "-P", "threads", "-c", "1", "--without-mingle", environ=environ)

    wait_until(file.exists, seconds=60, what="a first sign of life")

    own_redis.stop()
    gone = time.time()
    wait_until(lambda: shows_signs(file, since=gone + 2), seconds=60, what="a sign while Redis is away")

    own_redis.start()
    back = time.time()
    wait_until(lambda: shows_signs(file, since=back + 2), seconds=60, what="a sign after Redis came back")


def test_beat_shows_signs_of_life(processes: Processes, own_redis: EmbeddedRedis, tmp_path: Path) -> None:
    file = tmp_path / "alive"
    environ = {"DCSYNC_REDIS_URL": own_redis.url, "DCSYNC_SWEEP_INTERVAL": "1", "DCSYNC_ALIVE_FILE": str(file)}
    processes.celery("beat", "--schedule", str(tmp_path / "schedule"), environ=environ)

    wait_until(file.exists, seconds=60, what="a first sign of life")
    first = time.time()
    wait_until(lambda: shows_signs(file, since=first), seconds=60, what="another sign")
