"""What a sink of alarms promises, held against the one in memory, the log and a webhook."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import pytest
from structlog.testing import capture_logs

from dcsync.adapters.host.alarm_sinks import LogSink, WebhookSink
from dcsync.model.errors import TemporaryError
from dcsync.state.ports import AlarmNotice, AlarmSink, NoticesRefused
from tests.contract.held import Held
from tests.fake_states import FakeAlarmSink
from tests.reports import at
from tests.webhook import receiving

HELD = (Held(FakeAlarmSink, AlarmSink),)

ACTIVE = AlarmNotice(
    alarm_id="280.001",
    entity="subcloud=edge-1",
    severity="critical",
    reason_text="edge-1 is offline",
    raised_at=at(0),
    cleared_at=None,
)
CLEARED = replace(ACTIVE, entity="subcloud=edge-2", cleared_at=at(1))


@dataclass
class Told:
    """A sink, (entity, active) of what it was told in order, and a way to make it refuse."""

    sink: AlarmSink
    alarms: Callable[[], list[tuple[str, bool]]]
    refuse: Callable[[], None]
    refuse_for_good: Callable[[], None]


def _in_memory() -> Told:
    sink = FakeAlarmSink()

    def refuse() -> None:
        sink.refuses = True

    def poison() -> None:
        sink.poison.add(ACTIVE.entity)

    return Told(sink, lambda: [(notice.entity, notice.cleared_at is None) for notice in sink.told], refuse, poison)


def _shown(alarm: Any) -> tuple[str, bool]:
    return alarm["entity"], alarm["cleared_at"] is None


def _log(open_: ExitStack) -> Told:
    lines = open_.enter_context(capture_logs())
    return Told(LogSink(), lambda: [_shown(line) for line in lines], _nothing_is_refused, _nothing_is_refused)


def _nothing_is_refused() -> None:
    pytest.skip("a log refuses nothing")


def _webhook(open_: ExitStack) -> Told:
    server = open_.enter_context(receiving())
    received: Any = server.RequestHandlerClass
    sink = WebhookSink(f"http://127.0.0.1:{server.server_port}/", context=ssl.create_default_context)
    return Told(
        sink,
        lambda: [_shown(alarm) for body in received.bodies for alarm in body["alarms"]],
        lambda: received.statuses.append(503),
        lambda: received.statuses.append(413),
    )


@pytest.fixture(params=["memory", "log", "webhook"])
def told(request: pytest.FixtureRequest) -> Iterator[Told]:
    with ExitStack() as open_:
        makers: dict[str, Callable[[], Told]] = {
            "memory": _in_memory,
            "log": lambda: _log(open_),
            "webhook": lambda: _webhook(open_),
        }
        yield makers[request.param]()


def test_a_sink_has_a_name_and_is_told_of_alarms_in_their_order_as_often_as_they_come(told: Told) -> None:
    assert told.sink.name
    told.sink.send([ACTIVE, CLEARED])
    told.sink.send([ACTIVE])
    active, cleared = (ACTIVE.entity, True), (CLEARED.entity, False)
    assert told.alarms() == [active, cleared, active]


def test_alarms_that_were_not_taken_are_a_temporary_error(told: Told) -> None:
    told.refuse()
    with pytest.raises(TemporaryError):
        told.sink.send([ACTIVE])


def test_alarms_that_are_refused_for_what_they_are_are_a_permanent_error_with_its_cause(told: Told) -> None:
    told.refuse_for_good()
    with pytest.raises(NoticesRefused, match=r"^status 413$"):
        told.sink.send([CLEARED, ACTIVE])
    told.sink.send([CLEARED])
