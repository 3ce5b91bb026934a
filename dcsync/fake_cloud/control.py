"""`FakeCloud`: starts the fake cloud in a process of its own and steers it.

Plain blocking calls, standard library only.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from dcsync.fake_cloud.faults import Fault

USERNAME = "dcmanager"
PASSWORD = "Peer-dcmanager-pw-1!"  # noqa: S105  # made up, of clouds that do not exist
_START_SECONDS = 60.0
_STOP_SECONDS = 10.0
_CALL_SECONDS = 120.0


class FakeCloud:
    """A running fake cloud; a context manager that stops it."""

    def __init__(self, process: subprocess.Popen[bytes], *, port: int, central_ip: str) -> None:
        self._process = process
        self.port = port
        self.central_ip = central_ip

    @classmethod
    def start(cls, *, subclouds: int, latency: float = 0.0, seed: int = 0, unaligned: Iterable[str] = ()) -> FakeCloud:
        """Starts it and waits until every cloud listens.

        `latency` in seconds counts for every request to a subcloud; `unaligned` names subclouds whose service ids were
        not aligned at deployment. Raises RuntimeError when it does not come up.
        """
        command = [
            sys.executable, "-m", "dcsync.fake_cloud", "--subclouds", str(subclouds), "--latency", str(latency),
            "--seed", str(seed), "--unaligned", ",".join(unaligned), "--end-with-stdin", "--parent", str(os.getpid()),
        ]  # fmt: skip
        paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
            start_new_session=True,
        )
        try:
            ready = json.loads(_first_line(process))
        except (ValueError, TimeoutError) as exc:
            _end(process)
            raise RuntimeError(f"the fake cloud did not come up (exit code {process.returncode})") from exc
        return cls(process, port=ready["port"], central_ip=ready["central_ip"])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends the process; a second call does nothing."""
        _end(self._process)

    @property
    def pid(self) -> int:
        return self._process.pid

    def environment(self) -> dict[str, str]:
        """The DCSYNC_ settings that make this cloud the central cloud. The central services come from its catalog."""
        return {
            "DCSYNC_CENTRAL_AUTH_URL": f"http://{self.central_ip}:{self.port}/v3",
            "DCSYNC_SUBCLOUD_AUTH_URL": f"http://{{ip}}:{self.port}/v3",
            "DCSYNC_SUBCLOUD_DBSYNC_URL": f"http://{{ip}}:{self.port}/v1.0",
            "DCSYNC_SUBCLOUD_SYSINV_URL": f"http://{{ip}}:{self.port}/v1",
            "DCSYNC_USERNAME": USERNAME,
            "DCSYNC_PASSWORD": PASSWORD,
            "DCSYNC_PROJECT_NAME": "services",
            "DCSYNC_ALLOWED_NETWORKS": "127.0.0.0/8",
        }

    def subclouds(self) -> list[dict[str, str]]:
        """name, region_name, management_ip and software_version of each."""
        found: list[dict[str, str]] = self._call("GET", "subclouds")
        return found

    def state(self, region_name: str) -> dict[str, Any]:
        """The state of a subcloud: aligned, keys_match, untouched, assignments_kept, good (all four), problems,
        audited (equal to the central cloud in all an audit promises, its own records as they were), differences
        (what keeps it from that, each in words), requests and carried_out (counters by "VERB service subject"), recent
        (the newest requests), violations (kind -> count), described. For "central" without the comparison.

        Assignments are `kept` when all of the first day are there and no others, but for what the subcloud itself or
        the central cloud gave and took since. Raises ValueError for an unknown name."""
        found: dict[str, Any] = self._call("GET", f"state/{region_name}")
        return found

    def report(self) -> dict[str, Any]:
        """The sum: subclouds, aligned, keys_match, untouched, assignments_kept, good, audited (numbers of subclouds),
        problems and differences (of the first few each), violations (kind -> count), violation_count, described,
        requests, request_count, created, deleted, cpu_seconds, peak_memory_bytes."""
        found: dict[str, Any] = self._call("GET", "report")
        return found

    def set_fault(self, region_name: str, *faults: Fault | None) -> None:
        """From now on this subcloud ("*": every one, "central": the central cloud) has these faults and no others; None
        clears. Raises ValueError for an unknown name."""
        chosen = [fault.as_json() for fault in faults if fault is not None]
        self._call("POST", "faults", {"region_name": region_name, "faults": chosen})

    def set_latency(self, seconds: float) -> None:
        """Of every request to any subcloud."""
        self._call("POST", "latency", {"seconds": seconds})

    def change_central(self, action: str, **arguments: Any) -> None:
        """Changes the central cloud's data; the actions are in `changes.py`. Raises ValueError when it cannot be
        done."""
        self.drift("central", action, **arguments)

    def drift(self, region_name: str, action: str, **arguments: Any) -> None:
        """Changes a subcloud's ("*": every one's) data behind everybody's back; same actions, same errors."""
        body = {"region_name": region_name, "action": action, "arguments": arguments}
        self._call("POST", "change", body)

    def _call(self, verb: str, path: str, body: dict[str, Any] | None = None) -> Any:
        connection = http.client.HTTPConnection(self.central_ip, self.port, timeout=_CALL_SECONDS)
        try:
            connection.request(verb, f"/control/{path}", None if body is None else json.dumps(body))
            response = connection.getresponse()
            content = json.loads(response.read())
        finally:
            connection.close()
        if response.status != 200:
            raise ValueError(content["error"])
        return content


def _first_line(process: subprocess.Popen[bytes]) -> bytes:
    """What it says first; raises TimeoutError when it says nothing in time, ValueError when it ends instead."""
    assert process.stdout is not None  # started with a pipe
    deadline, line = time.monotonic() + _START_SECONDS, b""
    while not line.endswith(b"\n"):
        if not select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise TimeoutError("no answer")
        piece = os.read(process.stdout.fileno(), 4096)
        if not piece:
            raise ValueError("it ended")
        line += piece
    return line


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(_STOP_SECONDS)
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
