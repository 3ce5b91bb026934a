"""What a worker's log tells whoever looks there first."""

from __future__ import annotations

from tests.processes import Processes, wait_until


def test_a_worker_whose_database_is_away_says_so(redis_url: str, processes: Processes) -> None:
    environ = {
        "DCSYNC_DATABASE_URL": "postgresql://dcsync:token-4711@127.0.0.1:1/dcsync",
        "DCSYNC_REDIS_URL": redis_url,
        "DCSYNC_CENTRAL_AUTH_URL": "http://127.0.0.1:1/v3",
        "DCSYNC_PASSWORD": "token-4711",
    }
    arguments = ("-Q", "control", "-P", "threads", "-c", "2", "--without-gossip", "--without-mingle")
    worker = processes.celery("worker", *arguments, environ=environ, ready="ready.")
    processes.celery("call", "dcsync.control.sweep", environ=environ)

    def told() -> list[str]:
        return [line for line in worker.output().splitlines() if "dcsync.control.sweep" in line and "warning" in line]

    wait_until(told, seconds=60, what=lambda: f"it tells of its database:\n{worker.output()}")
    assert "Connection refused" in told()[0]
    assert "Traceback" not in worker.output()
    assert "token-4711" not in worker.output()
