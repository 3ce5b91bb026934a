"""`dcsync central`, and what other commands show of a central cloud that cannot be read."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from dcsync.audit.ports import CentralState
from dcsync.model.subcloud import EndpointType
from dcsync.state.ports import CentralFacts
from tests.builders import NOON
from tests.fakes_audit import MemoryAuditStore
from tests.unit.cli.conftest import Shell

READABLE = CentralFacts(checked_at=NOON - timedelta(seconds=5), readable_since=NOON - timedelta(days=1))
UNREADABLE = CentralFacts(
    checked_at=NOON - timedelta(seconds=5),
    unreadable_since=NOON - timedelta(minutes=12),
    unreadable_reason="central-unreachable: refused",
)
SILENT = CentralFacts(checked_at=NOON - timedelta(seconds=61))
KEYS = CentralState(endpoint_type=EndpointType.PLATFORM, fingerprint="f", events_fingerprint="", counts={})


def told(dcsync: Shell, facts: CentralFacts, *arguments: str, refused: bool = False) -> Any:
    """The keys were accepted two hours ago, and are refused since three minutes if so."""
    store = MemoryAuditStore(checked=facts)
    store.accept_central(KEYS, old=None, now=NOON - timedelta(hours=2))
    if refused:
        store.refuse_central(EndpointType.PLATFORM, why="keys went from 3 to 0", now=NOON - timedelta(minutes=3))
    dcsync.operator.central_checks = dcsync.operator.audit_store = store  # type: ignore[assignment]
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


@pytest.mark.parametrize("facts", [READABLE, SILENT, UNREADABLE, CentralFacts()])
def test_without_periodic_audits_nobody_knows_whether_it_is_readable(dcsync: Shell, facts: CentralFacts) -> None:
    dcsync.set(DCSYNC_AUDIT_INTERVAL="0")
    answer = told(dcsync, facts)
    assert answer.code == 1
    assert "not checked, audits are made on request only" in answer.out
    assert "state      readable" not in answer.out


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (UNREADABLE, "unreadable for 12 min, central-unreachable: refused"),
        (SILENT, "not checked for 61 s"),
        (CentralFacts(), "not checked yet"),
    ],
)
def test_one_that_cannot_be_read_is_a_no_with_the_reason(dcsync: Shell, facts: CentralFacts, words: str) -> None:
    answer = told(dcsync, facts)
    assert (answer.code, words in answer.out) == (1, True)


def test_a_list_that_is_refused_is_a_no_with_the_reason(dcsync: Shell) -> None:
    answer = told(dcsync, READABLE, refused=True)
    assert (answer.code, "refused for 3 min in platform, keys went from 3 to 0" in answer.out) == (1, True)


def test_where_audits_are_only_requested_nobody_is_meant_to_check(dcsync: Shell) -> None:
    dcsync.set(DCSYNC_AUDIT_INTERVAL="0")
    told(dcsync, SILENT)
    assert "central" not in dcsync("audit", "--all", "--yes").err


def test_programs_get_since_when_and_why(dcsync: Shell) -> None:
    answer = told(dcsync, UNREADABLE, "-o", "json")
    assert answer.code == 1
    assert (answer.json["unreadable_since"], answer.json["unreadable_reason"]) == (
        "2026-01-31T11:48:00.000Z", "central-unreachable: refused",
    )  # fmt: skip
    assert told(dcsync, READABLE, "-o", "json", refused=True).json["refused"] == [
        {"endpoint_type": "platform", "since": "2026-01-31T11:57:00.000Z", "reason": "keys went from 3 to 0"}
    ]


def test_who_requests_an_audit_is_warned_that_it_cannot_succeed(dcsync: Shell) -> None:
    told(dcsync, UNREADABLE)
    answer = dcsync("audit", "--all", "--yes")
    assert "warning: the central cloud is unreadable for 12 min, central-unreachable: refused" in answer.err
