"""`dcsync central`, and what other commands show of a central cloud that cannot be read."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from dcsync.audit.ports import CentralState
from dcsync.model.subcloud import EndpointType
from dcsync.state.ports import CentralFacts, RefusedFacts
from tests.builders import NOON
from tests.unit.cli.conftest import Shell
from tests.unit.cli.test_audit_commands import NoAudits

READABLE = CentralFacts(checked_at=NOON - timedelta(seconds=5), readable_since=NOON - timedelta(days=1))
UNREADABLE = CentralFacts(
    checked_at=NOON - timedelta(seconds=5),
    unreadable_since=NOON - timedelta(minutes=12),
    unreadable_reason="central-unreachable: refused",
)
REFUSED = CentralFacts(
    checked_at=NOON - timedelta(seconds=5),
    refused=(RefusedFacts(EndpointType.IDENTITY, NOON - timedelta(minutes=3), "users went from 8 to 3"),),
)
SILENT = CentralFacts(checked_at=NOON - timedelta(seconds=61))


class Checks:
    """`CentralChecks` that found this."""

    def __init__(self, facts: CentralFacts) -> None:
        self.facts = facts

    def central(self) -> CentralFacts:
        return self.facts


class States:
    """What was accepted: the keys, two hours ago."""

    def central_state(self, endpoint_type: EndpointType) -> CentralState | None:
        if endpoint_type is not EndpointType.PLATFORM:
            return None
        return CentralState(
            endpoint_type=endpoint_type, fingerprint="f", events_fingerprint="", counts={},
            changed_at=NOON - timedelta(hours=2),
        )  # fmt: skip


def told(dcsync: Shell, facts: CentralFacts, *arguments: str) -> Any:
    dcsync.operator.central_checks = Checks(facts)  # type: ignore[assignment]
    dcsync.operator.audit_store = States()  # type: ignore[assignment]
    return dcsync("central", *arguments)


def test_a_readable_central_cloud_is_a_yes(dcsync: Shell) -> None:
    answer = told(dcsync, READABLE)
    assert answer.code == 0
    assert [line.split(None, 1) for line in answer.out.splitlines()] == [
        ["checked", "5.0 s ago"],
        ["state", "readable"],
        ["identity", "not read yet"],
        ["platform", "changed 2 h ago"],
    ]


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (UNREADABLE, "unreadable for 12 min, central-unreachable: refused"),
        (REFUSED, "refused for 3 min in identity, users went from 8 to 3"),
        (SILENT, "not checked for 61 s"),
        (CentralFacts(), "not checked yet"),
    ],
)
def test_one_that_cannot_be_read_is_a_no_with_the_reason(dcsync: Shell, facts: CentralFacts, words: str) -> None:
    answer = told(dcsync, facts)
    assert (answer.code, words in answer.out) == (1, True)


def test_where_audits_are_only_requested_nobody_is_meant_to_check(dcsync: Shell) -> None:
    dcsync.set(DCSYNC_AUDIT_INTERVAL="0")
    assert told(dcsync, SILENT).code == told(dcsync, UNREADABLE).code == 0


def test_programs_get_since_when_and_why(dcsync: Shell) -> None:
    answer = told(dcsync, UNREADABLE, "-o", "json")
    assert answer.code == 1
    assert (answer.json["unreadable_since"], answer.json["unreadable_reason"]) == (
        "2026-01-31T11:48:00.000Z", "central-unreachable: refused",
    )  # fmt: skip
    assert told(dcsync, REFUSED, "-o", "json").json["refused"] == [
        {"endpoint_type": "identity", "since": "2026-01-31T11:57:00.000Z", "reason": "users went from 8 to 3"}
    ]


def test_who_requests_an_audit_is_warned_that_it_cannot_succeed(dcsync: Shell) -> None:
    dcsync.operator.central_checks = Checks(UNREADABLE)  # type: ignore[assignment]
    dcsync.operator.audit_store = NoAudits()  # type: ignore[assignment]
    answer = dcsync("audit", "--all", "--yes")
    assert "warning: the central cloud is unreadable for 12 min, central-unreachable: refused" in answer.err
