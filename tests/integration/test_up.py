"""`dcsync up` as an operator meets it: real servers, real workers, beat and Flower, from one command to Ctrl-C."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import socket
import stat
import sys
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import psycopg2
import pytest
import redis

from dcsync.local.endpoints import find_endpoints
from dcsync.local.servers import free_port
from tests.processes import Processes, Running, wait_until

SETTINGS = {"DCSYNC_CENTRAL_AUTH_URL": "http://127.0.0.1:9/v3", "DCSYNC_PASSWORD": "not-told-to-anybody"}
LAST_LINE = "data and logs:"
EVERYTHING = ["postgresql", "valkey", "flower", "beat", "sync-worker-1", "sync-worker-2", "state-worker"]


@pytest.fixture
def environ(own_data_dir: Path) -> dict[str, str]:
    return SETTINGS | {"DCSYNC_DATA_DIR": str(own_data_dir / "data")}


def _up(processes: Processes, environ: dict[str, str], *arguments: str) -> Running:
    return processes.start(*_command("up", *arguments), name="up", environ=environ, ready=LAST_LINE)


def _command(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "dcsync.cli", *arguments)


def _pids(output: str) -> dict[str, int]:
    """Name -> process number, from the table."""
    return {name: int(pid) for name, pid in re.findall(r"^([\w-]+) +(\d+) +\S+$", output, re.MULTILINE)}


def _secrets_of(pid: int, names: set[str]) -> set[str]:
    return names & psutil.Process(pid).environ().keys()


def _flower_answers(port: int, login: str | None) -> int | None:
    """The HTTP status; None while it does not listen."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}/workers")
    if login is not None:
        request.add_header("Authorization", f"Basic {base64.b64encode(login.encode()).decode()}")
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as refused:
        return refused.code
    except OSError:
        return None


def test_up_runs_everything_until_it_is_stopped(processes: Processes, environ: dict[str, str]) -> None:
    port = free_port()  # 5555 may be another test's, or a person's
    up = _up(processes, environ, "--flower-port", str(port))
    assert list(_pids(up.output())) == EVERYTHING
    family = [psutil.Process(pid) for pid in _pids(up.output()).values()]
    assert all(process.is_running() for process in family)

    # Each process is given the secrets it needs, and no other.
    central, database, broker = "DCSYNC_PASSWORD", "DCSYNC_DATABASE_URL", "DCSYNC_REDIS_URL"
    held = {name: _secrets_of(pid, {central, database, broker}) for name, pid in _pids(up.output()).items()}
    workers = {"sync-worker-1": {central, database, broker}, "sync-worker-2": {central, database, broker}}
    others = {"state-worker": {database, broker}, "beat": {broker}, "flower": {broker}}
    assert held == workers | others | {"postgresql": set(), "valkey": set()}

    # Flower asks for a login, which only the owner of the folder can read.
    login = Path(environ["DCSYNC_DATA_DIR"]) / "flower_login.py"
    assert stat.S_IMODE(login.stat().st_mode) == 0o600
    wait_until(lambda: _flower_answers(port, "operator:wrong"), seconds=60, what="Flower answers")
    user_and_password = login.read_text().split('"')[1]
    assert _flower_answers(port, None) == 401
    assert _flower_answers(port, "operator:wrong") == 401
    assert _flower_answers(port, user_and_password) == 200
    assert user_and_password.partition(":")[2] not in up.output()

    # Other commands on this machine find the servers, and nobody else may.
    urls = find_endpoints(environ)
    assert set(urls) == {"DCSYNC_DATABASE_URL", "DCSYNC_REDIS_URL"}
    endpoints = Path(environ["DCSYNC_DATA_DIR"]) / "endpoints.json"
    assert stat.S_IMODE(endpoints.stat().st_mode) == 0o600
    assert json.loads(endpoints.read_text()) == urls
    assert urls["DCSYNC_DATABASE_URL"].startswith("postgresql://dcsync_app:")
    assert urls["DCSYNC_REDIS_URL"].startswith("redis://dcsync:")
    psycopg2.connect(urls["DCSYNC_DATABASE_URL"]).close()

    # All three workers wait for work.
    with redis.Redis.from_url(urls["DCSYNC_REDIS_URL"]) as client:
        wait_until(lambda: client.info("clients")["blocked_clients"] >= 3, seconds=60, what="three workers wait")

    # One folder, one `dcsync up`.
    second = processes.start(*_command("up"), name="second", environ=environ)
    assert second.wait() == 5
    assert f"already running on {environ['DCSYNC_DATA_DIR']} (process {up.pid})" in second.output()

    # A worker that dies is replaced.
    os.kill(_pids(up.output())["state-worker"], signal.SIGKILL)
    up.wait_for("state-worker started again")

    assert up.stop() == 0
    assert psutil.wait_procs(family, timeout=60)[1] == []
    assert not endpoints.exists()
    assert find_endpoints(environ) == {}
    stopped = re.findall(r"(\S+) stopped", up.output())
    assert stopped == ["sync-worker-1", "sync-worker-2", "state-worker", "beat", "flower", "postgresql", "valkey"]
    for secret in (environ["DCSYNC_PASSWORD"], *(url.split(":")[2].partition("@")[0] for url in urls.values())):
        assert secret not in up.output()


def test_killed_up_leaves_nothing_and_its_data_is_there_the_next_time(
    processes: Processes, environ: dict[str, str]
) -> None:
    first = _up(processes, environ, "--no-flower")
    assert list(_pids(first.output())) == [name for name in EVERYTHING if name != "flower"]
    family = [psutil.Process(pid) for pid in _pids(first.output()).values()]
    urls = find_endpoints(environ)
    with redis.Redis.from_url(urls["DCSYNC_REDIS_URL"]) as client:
        client.set("dcsync:kept", "yes")
    os.kill(first.pid, signal.SIGKILL)
    assert psutil.wait_procs(family, timeout=60)[1] == []
    assert find_endpoints(environ) == {}

    _up(processes, environ, "--no-flower")
    assert find_endpoints(environ) == urls
    with redis.Redis.from_url(urls["DCSYNC_REDIS_URL"], decode_responses=True) as client:
        assert client.get("dcsync:kept") == "yes"


def test_servers_that_are_given_are_used_and_none_are_embedded(
    processes: Processes, environ: dict[str, str], server_urls: dict[str, str]
) -> None:
    up = _up(processes, environ | server_urls, "--no-flower")
    assert list(_pids(up.output())) == ["beat", "sync-worker-1", "sync-worker-2", "state-worker"]
    assert find_endpoints(environ) == {}
    assert up.stop() == 0
    assert not (Path(environ["DCSYNC_DATA_DIR"]) / "postgresql").exists()


def test_up_without_a_central_cloud_says_what_is_missing_and_starts_nothing(
    processes: Processes, environ: dict[str, str]
) -> None:
    done = processes.cli("up", environ={"DCSYNC_DATA_DIR": environ["DCSYNC_DATA_DIR"]}, expect=2)
    assert "DCSYNC_CENTRAL_AUTH_URL, DCSYNC_PASSWORD" in done.stderr
    assert not Path(environ["DCSYNC_DATA_DIR"]).exists()


def test_flower_on_a_port_that_is_taken_is_refused(processes: Processes, environ: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = processes.cli("up", "--flower-port", port, environ=environ, expect=2)
    assert f"port {port} is in use" in done.stderr
