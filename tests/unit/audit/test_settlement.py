"""What a finding means for its row, decided without one."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from dcsync.audit.ports import AuditChanges, AuditPart, AuditRun, Finding, Settlement
from dcsync.audit.settlement import settlement
from dcsync.model.ending import Failure
from dcsync.model.identity import Placed
from dcsync.model.reasons import Reason
from dcsync.model.states.audit import AuditEvent
from dcsync.model.subcloud import EndpointType, SyncStatus
from tests.builders import NOON, a_subcloud

LATER, NEXT = NOON + timedelta(minutes=5), NOON + timedelta(minutes=20)
RUN = AuditRun(
    run_id="run-1",
    subcloud=a_subcloud(),
    parts=(AuditPart(endpoint_type=EndpointType.IDENTITY, generation=3),),
    placed=Placed(),
    groups_to_refill={},
    central_counts={},
)


def test_of_failures_in_a_row_that_compared_nothing_only_the_first_is_kept_in_the_history() -> None:
    failure = Failure(Reason.CENTRAL_UNREACHABLE, "no route")
    first = settled(result=None, reported=None, failure=failure)
    assert first.history is not None
    parts = (AuditPart(endpoint_type=EndpointType.IDENTITY, generation=3, failures=1),)
    run = replace(RUN, parts=parts)
    assert settled(run=run, result=None, reported=None, failure=failure).history is None
    assert settled(run=run, failure=failure, differences=("users bob",)).history is not None


def settled(*, run: AuditRun = RUN, **changes: Any) -> Settlement:
    values: dict[str, Any] = {
        "endpoint_type": EndpointType.IDENTITY,
        "generation": 3,
        "result": SyncStatus.IN_SYNC,
        "reported": SyncStatus.IN_SYNC,
        "is_observed": True,
        "due_at": NEXT,
    }
    return settlement(run, Finding(**(values | changes)), now=LATER)


def test_a_finished_comparison_is_completed_and_due_when_it_says() -> None:
    found = settled(difference="d", differences=("users bob: name",), difference_repairs=2, repaired=True)
    assert (found.run, found.event, found.generation) == (RUN, AuditEvent.SUCCEEDED, 3)
    assert found.always == AuditChanges(
        abandoned=0, attempt=0, failing_since=None, failures=0, reason=None, detail="",
        reported=SyncStatus.IN_SYNC, reported_at=LATER,
        last_audit_time=LATER, result=SyncStatus.IN_SYNC, last_good_at=LATER, difference="d",
        differences=("users bob: name",), difference_at=LATER, repaired_at=LATER, observed_generation=3,
    )  # fmt: skip
    assert found.unless_requested == AuditChanges(
        due_at=NEXT, difference_repairs=2, deletes_allowed=False, resource_types=None
    )


def test_what_was_asked_meanwhile_is_due_at_once_and_keeps_what_it_allows() -> None:
    assert settled(difference_repairs=2).if_requested == AuditChanges(due_at=LATER, difference_repairs=0)


def test_a_failure_without_a_comparison_keeps_the_last_answer_and_the_count_of_attempts() -> None:
    failed = settled(result=None, reported=None, is_observed=False, failure=Failure(Reason.TIMEOUT, "slow"))
    assert failed.event is AuditEvent.FAILED
    assert failed.always == AuditChanges(
        abandoned=0, failing_since=LATER, failures=1, reason=Reason.TIMEOUT, detail="slow"
    )
    assert (failed.unless_requested, failed.if_requested) == (AuditChanges(due_at=NEXT), AuditChanges(due_at=LATER))


def test_a_difference_that_stays_is_no_good_answer() -> None:
    failure = Failure(Reason.GUARD_REFUSED, "much less")
    found = settled(result=SyncStatus.OUT_OF_SYNC, failure=failure, difference="d")
    assert found.always["last_audit_time"] == LATER
    assert "last_good_at" not in found.always
    assert found.always["observed_generation"] == 3


@pytest.mark.parametrize(("seen", "kept"), [(None, {}), ("f1", {"keys_fingerprint": "f1"})])
def test_the_keys_that_were_seen_are_kept_and_those_nobody_looked_at_stay(
    seen: str | None, kept: dict[str, str]
) -> None:
    always = settled(keys_fingerprint=seen).always
    assert {name: value for name, value in always.items() if name == "keys_fingerprint"} == kept


def test_the_audit_that_ends_failures_is_in_the_history_with_their_number() -> None:
    """Otherwise the history ends with the first failure, whether it lasted a minute or a day."""
    failed = replace(RUN.parts[0], failures=40, failing_since=NOON - timedelta(hours=4))
    kept = settled(run=replace(RUN, parts=(failed,))).history
    assert kept is not None
    assert (kept.result, kept.reason) == (SyncStatus.IN_SYNC, None)
    assert kept.detail == f"after 40 failed in a row, the first {NOON - timedelta(hours=4):%Y-%m-%d %H:%M:%S}Z"


def test_the_history_keeps_what_was_found_and_nothing_of_a_clean_audit() -> None:
    assert settled().history is None
    kept = settled(differences=("users bob: name",), written=("PUT users bob",), repaired=True).history
    assert kept is not None
    assert (kept.differences.names, kept.written.names, kept.reason) == (("users bob: name",), ("PUT users bob",), None)
    failed = settled(result=None, failure=Failure(Reason.TIMEOUT, "s" * 900), not_written=("DELETE users eve",)).history
    assert failed is not None
    assert (failed.reason, len(failed.detail), failed.not_written.names) == ("timeout", 500, ("DELETE users eve",))
