"""The process all real clouds live under: imports Keystone once, then forks a child per job and per cloud.

    <.keystone-venv>/bin/python -m tests.real_cloud.host '{"directory": ..., "binaries": ...}'

Reads one JSON request a line from stdin and answers with one line each; stdin closed, or SIGTERM, ends it. It stops its
children and PostgreSQL and removes the directory. Children die with it, even when it is killed.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import socket
import sys
import time
import traceback
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from tests.real_cloud.postgres import Postgres, die_with_parent

TEMPLATE = "template_keystone"
READY_TIMEOUT_SECONDS = 180


@dataclass
class Child:
    """A forked process; `report` is the read end of a pipe that gets its traceback, if it dies of an error."""

    pid: int
    report: int

    def wait(self) -> None:
        """Until it is done; raises RuntimeError with its traceback if it failed."""
        with os.fdopen(self.report, "rb") as report:
            text = report.read().decode(errors="replace")
        _, status = os.waitpid(self.pid, 0)
        if status != 0:
            raise RuntimeError(text or f"child ended with status {status}")

    def stop(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.report)


def fork(work: Callable[[], None]) -> Child:
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid:
        os.close(write_end)
        return Child(pid, read_end)
    status = 1
    try:
        die_with_parent()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.close(read_end)
        work()
        status = 0
    except BaseException:  # noqa: BLE001 - the boundary of a child: its parent reports what happened
        os.write(write_end, traceback.format_exc().encode()[-4000:])
    os._exit(status)


class Host:
    """Knows how to bring up clouds; a request is what `clouds.py` sends."""

    def __init__(self, directory: Path, postgres: Postgres) -> None:
        self._directory = directory
        self._postgres = postgres
        self._servers: list[Child] = []

    def prepare(self) -> None:
        """Keystone's tables, in the database that all others are copied from."""
        from tests.real_cloud import keystone_jobs

        self._jobs = keystone_jobs
        gc.freeze()  # what is imported stays shared with the children
        self._postgres.wait_until_ready()
        self._postgres.create_database(TEMPLATE)
        directory = self._directory / TEMPLATE
        keystone_jobs.write_configuration(directory, self._postgres.url(TEMPLATE))
        fork(lambda: keystone_jobs.make_tables(directory)).wait()

    def start_clouds(self, clouds: list[dict[str, Any]]) -> None:
        sockets = [[_listening(cloud["address"], port) for port in cloud["ports"].values()] for cloud in clouds]
        fillings = [self._fill(cloud) for cloud in clouds]
        for filling in fillings:
            filling.wait()
        for cloud, listening in zip(clouds, sockets, strict=True):
            self._serve(cloud, listening)
        for cloud in clouds:
            _wait_until_ready(cloud["urls"]["keystone"])

    def stop(self) -> None:
        for server in self._servers:
            server.stop()
        self._postgres.stop()

    def _fill(self, cloud: dict[str, Any]) -> Child:
        directory = self._directory / cloud["name"]
        self._postgres.create_database(cloud["name"], template=TEMPLATE)
        self._jobs.write_configuration(directory, self._postgres.url(cloud["name"]))
        return fork(lambda: self._jobs.fill(directory, cloud))

    def _serve(self, cloud: dict[str, Any], listening: list[socket.socket]) -> None:
        directory = self._directory / cloud["name"]
        self._servers.append(fork(lambda: self._jobs.serve(directory, cloud, listening)))
        for own_copy in listening:
            own_copy.close()


def _listening(address: str, port: int) -> socket.socket:
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind((address, port))
    listening.listen(128)
    return listening


def _wait_until_ready(url: str) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_SECONDS
    while True:
        try:
            urllib.request.urlopen(url, timeout=30).close()
        except OSError as exc:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{url} does not answer: {exc}") from exc
            time.sleep(0.05)
        else:
            return


def _private_stdout(log: Path) -> Any:
    """Our answers keep the pipe; whatever else prints, here or in a child, goes to the log."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    return answers


def _end(_signal: int, _frame: object) -> NoReturn:
    raise SystemExit(0)


def main() -> None:
    arguments = json.loads(sys.argv[1])
    directory = Path(arguments["directory"])
    answers = _private_stdout(directory / "host.log")
    signal.signal(signal.SIGTERM, _end)
    postgres = Postgres(binaries=Path(arguments["binaries"]), directory=directory)
    host = Host(directory, postgres)
    try:
        postgres.start()
        for line in sys.stdin:
            answers.write(json.dumps({"error": _carry_out(host, json.loads(line))}) + "\n")
            answers.flush()
    finally:
        host.stop()
        shutil.rmtree(directory, ignore_errors=True)


def _carry_out(host: Host, request: dict[str, Any]) -> str | None:
    try:
        if request["do"] == "prepare":
            host.prepare()
        else:
            host.start_clouds(request["clouds"])
    except Exception:  # noqa: BLE001 - the boundary of a request: the asker is told what happened
        return traceback.format_exc()
    return None


if __name__ == "__main__":
    main()
