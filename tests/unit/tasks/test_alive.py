"""What a supervisor is shown, and when it is shown nothing more."""

from __future__ import annotations

import socket
from collections.abc import Iterator, MutableMapping
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import time_machine
from celery.beat import ScheduleEntry, SchedulingError
from kombu.exceptions import OperationalError
from structlog.testing import capture_logs

from dcsync.adapters.host.clock import utc_now
from dcsync.model.messages import TaskName
from dcsync.settings import load
from dcsync.tasks.alive import STUCK_SECONDS, BeatScheduler, ConsumerWatch, SignsOfLife
from dcsync.tasks.app import make_app
from dcsync.tasks.base import process_of


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, socket.socket]]:
    """The path of a notify socket, and its other end. Seen from its folder, for such a path may not be long."""
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("notify")
        manager.settimeout(60)
        yield "notify", manager


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Loop:
    """A consumer whose timer runs when the test says so."""

    def __init__(self) -> None:
        self.connection: object | None = object()
        self.timer = self
        self.asked: list[SimpleNamespace] = []

    def call_repeatedly(self, seconds: float, call: object) -> SimpleNamespace:
        entry = SimpleNamespace(call=call, cancelled=False)
        entry.cancel = lambda: setattr(entry, "cancelled", True)
        self.asked.append(entry)
        return entry

    def turn(self) -> None:
        for entry in self.asked:
            if not entry.cancelled:
                entry.call()


def test_each_sign_touches_the_file(tmp_path: Path) -> None:
    file = tmp_path / "alive"
    signs = SignsOfLife(file=file, notify_socket=None)

    signs.show()
    first = file.stat().st_mtime_ns
    signs.show()

    assert file.stat().st_mtime_ns >= first


def test_systemd_hears_that_it_is_ready_once_and_that_it_lives_each_time(systemd: tuple[str, socket.socket]) -> None:
    path, manager = systemd
    signs = SignsOfLife(file=None, notify_socket=path)

    signs.show()
    signs.show()

    assert manager.recv(100) == b"READY=1\nWATCHDOG=1"
    assert manager.recv(100) == b"WATCHDOG=1"


def test_a_sign_that_cannot_be_given_stops_nothing(tmp_path: Path) -> None:
    SignsOfLife(file=tmp_path / "no" / "such" / "folder", notify_socket=str(tmp_path / "nobody")).show()


def test_a_loop_that_no_longer_turns_gives_no_more_signs() -> None:
    clock, loop = Clock(), Loop()
    watch = ConsumerWatch(loop, monotonic=clock)
    watch.watch()

    clock.now += STUCK_SECONDS - 1
    loop.turn()
    clock.now += STUCK_SECONDS - 1
    assert watch.is_responsive()

    clock.now += 2
    assert not watch.is_responsive()


def test_waiting_for_the_broker_is_not_being_stuck() -> None:
    clock, loop = Clock(), Loop()
    watch = ConsumerWatch(loop, monotonic=clock)
    clock.now += 10 * STUCK_SECONDS
    loop.connection = None

    assert watch.is_responsive()


def test_letting_runs_end_at_a_stop_is_not_being_stuck() -> None:
    clock = Clock()
    watch = ConsumerWatch(Loop(), monotonic=clock)
    clock.now += 10 * STUCK_SECONDS
    watch.is_stopping = True

    assert watch.is_responsive()


def test_a_new_connection_leaves_one_entry_on_the_timer() -> None:
    loop = Loop()
    watch = ConsumerWatch(loop)

    watch.watch()
    watch.watch()

    assert [entry.cancelled for entry in loop.asked] == [True, False]


# --- beat ---


def scheduled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, raises: Exception) -> list[MutableMapping[str, Any]]:
    """What beat logs of one due entry that cannot be sent because of this."""
    app = make_app(load({"DCSYNC_REDIS_URL": "redis://127.0.0.1:1/0"}))
    monkeypatch.setattr(app, "send_task", Mock(side_effect=raises))
    beat = BeatScheduler(app, schedule_filename=str(tmp_path / "schedule"), lazy=True)
    with capture_logs() as logged:
        beat.apply_entry(ScheduleEntry(name="sweep", task=TaskName.SWEEP.value, schedule=timedelta(seconds=1), app=app))
    app.close()
    return logged


def test_beat_says_in_one_line_that_the_broker_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (line,) = scheduled(tmp_path, monkeypatch, raises=OperationalError("connection refused"))
    assert (line["task"], line["error"]) == (TaskName.SWEEP.value, "connection refused")
    assert not line.get("exc_info")


def test_beat_goes_on_when_its_clock_was_set_back_by_an_hour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in a beat started anew, whose schedule file remembers that hour."""
    app = make_app(load({"DCSYNC_REDIS_URL": "redis://127.0.0.1:1/0", "DCSYNC_RUN_DIR": str(tmp_path)}))
    sent: list[str] = []
    monkeypatch.setattr(BeatScheduler, "producer", None)
    monkeypatch.setattr(app, "send_task", lambda task, *_args, **_options: sent.append(task))
    filename = str(tmp_path / "schedule")
    with time_machine.travel(utc_now() + timedelta(hours=1), tick=False):
        before = BeatScheduler(app, schedule_filename=filename)
        before.tick()
        before.close()
    with time_machine.travel(utc_now(), tick=False) as clock:
        beat = BeatScheduler(app, schedule_filename=filename)
        beat.tick()
        clock.shift(timedelta(seconds=61))
        for _ in range(20):
            beat.tick()
        beat.close()
    app.close()
    every_minute = {task for task, seconds in process_of(app).intervals.items() if seconds <= 60}
    assert set(sent) >= {task.value for task in every_minute}


def test_beat_tells_a_fault_of_its_own_with_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (line,) = scheduled(tmp_path, monkeypatch, raises=ZeroDivisionError())
    assert isinstance(line["exc_info"], SchedulingError)
