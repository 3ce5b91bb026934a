"""`dcsync alarm list`: what an operator, and a program, reads of alarms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import datetime, timedelta

import pytest

from dcsync.state.ports import AlarmNotice, AlarmRow, RefusedNotice, StateChanges
from tests.builders import NOON
from tests.fake_states import FakeAlarms, FakeStateStore
from tests.unit.cli.conftest import Shell

ACTIVE = AlarmNotice(
    alarm_id="280.001",
    entity="subcloud=edge-1",
    severity="critical",
    reason_text="edge-1 is offline",
    raised_at=NOON - timedelta(minutes=5),
    cleared_at=None,
)
CLEARED = replace(ACTIVE, entity="subcloud=edge-2", reason_text="edge-2 is offline", cleared_at=NOON)


@pytest.fixture
def shown(dcsync: Shell) -> Callable[..., None]:
    """Which alarms there are."""

    def show(*alarms: AlarmNotice, checked_at: datetime | None = NOON) -> None:
        rows = [AlarmRow(**asdict(alarm), subcloud_id=1, endpoint_type=None) for alarm in alarms]
        store = FakeStateStore()
        store.write(StateChanges(raised_alarms=rows), now=NOON)
        dcsync.operator.alarm_store = FakeAlarms(store, checked_at=checked_at)

    return show


def test_active_alarms_are_a_table_with_reason_and_age(dcsync: Shell, shown: Callable[..., None]) -> None:
    shown(ACTIVE, CLEARED)
    told = dcsync("alarm", "list")
    assert told.code == 0
    assert [word in told.out for word in ("280.001", "critical", "edge-1 is offline", "5 min ago")] == [True] * 4
    assert "edge-2" not in told.out


@pytest.mark.parametrize("output", [(), ("-o", "json")])
@pytest.mark.parametrize(
    ("checked_at", "words"),
    [
        (None, "never checked"),
        (NOON - timedelta(minutes=12), "last checked 12 min ago"),
        (NOON + timedelta(hours=1), "no worker runs"),
        (NOON - timedelta(minutes=2), ""),
    ],
)
def test_no_alarm_is_a_statement_of_somebody_who_looked(
    dcsync: Shell, shown: Callable[..., None], checked_at: datetime | None, words: str, output: tuple[str, ...]
) -> None:
    shown(checked_at=checked_at)
    told = dcsync("alarm", "list", *output)
    assert words in told.err
    assert ("warning" in told.err) is bool(words)


def test_history_shows_when_an_alarm_was_cleared(dcsync: Shell, shown: Callable[..., None]) -> None:
    shown(ACTIVE, CLEARED)
    told = dcsync("alarm", "list", "--history")
    lines = {line.split("subcloud=")[1].split()[0]: line for line in told.out.splitlines() if "subcloud=" in line}
    assert "active" in lines["edge-1"]
    assert "5 min ago  0.0 s ago  edge-2 is offline" in lines["edge-2"]


def test_programs_get_json(dcsync: Shell, shown: Callable[..., None]) -> None:
    shown(ACTIVE)
    (alarm,) = dcsync("alarm", "list", "-o", "json").json
    assert (alarm["entity"], alarm["cleared_at"]) == ("subcloud=edge-1", None)


def test_no_alarm_is_said_on_the_side_so_that_pipes_stay_empty(dcsync: Shell, shown: Callable[..., None]) -> None:
    shown()
    told = dcsync("alarm", "list")
    assert (told.code, told.out, told.err.strip()) == (0, "", "no alarm is active")


def test_notices_that_were_refused_are_counted_and_listed(dcsync: Shell, shown: Callable[..., None]) -> None:
    shown(ACTIVE)
    assert dcsync("alarm", "list").err == ""
    assert dcsync("alarm", "list", "--refused").err == "no notice was refused\n"
    refused = RefusedNotice(
        refused_at=NOON - timedelta(minutes=5),
        sink="webhook",
        alarm_id="280.001",
        entity="subcloud=edge-1",
        why="status 413",
    )
    dcsync.operator.alarm_store.refused += [refused, refused]  # type: ignore[attr-defined]
    assert dcsync("alarm", "list").err == (
        "2 alarm notices refused by a sink, last by webhook (status 413) 5 min ago: dcsync alarm list --refused\n"
    )
    told = dcsync("alarm", "list", "--refused", "--limit", "1").out.splitlines()
    assert [line.split()[0] for line in told] == ["ALARM", "280.001"]
    assert "status 413" in told[1]
    assert dcsync("alarm", "list", "--refused", "-o", "json").json[0]["sink"] == "webhook"
    assert dcsync("alarm", "list", "--refused", "--history").code == 2
