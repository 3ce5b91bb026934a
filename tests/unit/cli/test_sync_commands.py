"""`dcsync sync`, `wait`, `history` and `state`: what is asked for, how long is waited, and what is said meanwhile."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from dcsync.audit.endpoints import audited_types
from dcsync.cli.waiting import Progress
from dcsync.model.ending import Ending
from dcsync.model.errors import DatabaseUnreachable
from dcsync.model.history import AttemptHistory, AuditHistory, Life, Named, RequestHistory, StepHistory
from dcsync.model.reports import AvailabilityReport, EndpointReport, Report
from dcsync.model.states.initial_sync import InitialSyncState
from dcsync.model.subcloud import AvailabilityStatus, EndpointType, ManagementState, Step, Subcloud, SyncStatus
from tests.builders import NOON, a_subcloud, statuses
from tests.fakes_audit import MemoryAuditStore
from tests.unit.cli.conftest import Shell

COMPLETED, FAILED = InitialSyncState.COMPLETED, InitialSyncState.FAILED


def with_subclouds(dcsync: Shell, *subclouds: Subcloud) -> None:
    for known in subclouds:
        dcsync.inventory.subclouds[known.name] = known
        dcsync.inventory.requests[known.name] = []


def complete_all(dcsync: Shell) -> None:
    for name in dcsync.inventory.subclouds:
        dcsync.inventory.put(name, initial_sync_state=COMPLETED)


# --- sync ---


def test_sync_asks_anew_and_wakes_the_workers(dcsync: Shell) -> None:
    with_subclouds(dcsync, a_subcloud("a", initial_sync_state=COMPLETED, subsequent_sync=True))
    assert dcsync("sync", "a").code == 0
    (asked,) = dcsync.inventory.all()
    assert (asked.initial_sync_state, asked.subsequent_sync) == (InitialSyncState.REQUESTED, False)
    assert dcsync.operator.queue.sweeps == 1


def test_sync_of_an_offline_subcloud_is_refused(dcsync: Shell) -> None:
    with_subclouds(dcsync, a_subcloud("a", availability_status=AvailabilityStatus.OFFLINE))
    told = dcsync("sync", "a")
    assert told.code == 5
    assert dcsync.operator.queue.sweeps == 0


def test_sync_waits_until_all_are_completed(dcsync: Shell) -> None:
    with_subclouds(dcsync, a_subcloud("a"), a_subcloud("b"))
    dcsync.operator.meanwhile = lambda: complete_all(dcsync)
    told = dcsync("sync", "a", "b", "--wait", "--timeout", "60")
    assert told.code == 0
    assert "2 requested" in told.err
    assert "2 subclouds completed" in told.out


def test_sync_of_all_with_nobody_there_says_so(dcsync: Shell) -> None:
    told = dcsync("sync", "--all", "--yes", "--wait")
    assert told.code == 0
    assert "nothing to sync" in told.err


@pytest.mark.parametrize("more", [(), ("--wait",)])
def test_programs_get_json_alone_on_stdout(dcsync: Shell, more: tuple[str, ...]) -> None:
    with_subclouds(dcsync, a_subcloud("a"))
    dcsync.operator.meanwhile = lambda: complete_all(dcsync)
    told = dcsync("sync", "a", "-o", "json", *more)
    assert told.code == 0
    assert [asked["name"] for asked in told.json] == ["a"]


@pytest.mark.parametrize("more", [(), ("--wait",)])
def test_programs_get_json_also_where_nobody_is_to_be_synced(dcsync: Shell, more: tuple[str, ...]) -> None:
    assert dcsync("sync", "--all", "--yes", "-o", "json", *more).json == []


# --- wait ---


def test_wait_ends_at_once_when_all_are_there(dcsync: Shell) -> None:
    with_subclouds(dcsync, a_subcloud("a", initial_sync_state=COMPLETED))
    assert dcsync("wait", "--for", "completed", "a").code == 0
    assert dcsync.operator.slept == 0


def test_when_the_time_is_up_it_names_who_is_not_there_and_why_worst_first(dcsync: Shell) -> None:
    retry = {"reason": "unreachable", "detail": "no route", "retry_at": NOON + timedelta(minutes=3)}
    with_subclouds(
        dcsync,
        a_subcloud("a", initial_sync_state=COMPLETED),
        a_subcloud("b"),
        a_subcloud("c", initial_sync_state=FAILED, attempt=4, **retry),
        a_subcloud("d", initial_sync_state=InitialSyncState.NONE, availability_status=AvailabilityStatus.OFFLINE),
    )
    told = dcsync("wait", "--for", "completed", "--all", "--timeout", "30")
    assert told.code == 1
    assert dcsync.operator.slept == pytest.approx(30)
    lines = told.err.splitlines()
    assert "1 failed, 1 none, 1 requested, 1 completed" in lines[0]
    assert lines[-4] == "3 of 4 subclouds not completed after 30 s:"
    assert "c: failed, unreachable: no route; attempt 4, next try in" in lines[-3]
    assert "d: none, offline" in lines[-2]
    assert "b: requested" in lines[-1]


def test_in_sync_means_all_endpoint_types(dcsync: Shell) -> None:
    both = dict.fromkeys(audited_types(), SyncStatus.IN_SYNC)
    with_subclouds(dcsync, a_subcloud("a", initial_sync_state=COMPLETED, sync_status=both))
    assert dcsync("wait", "--for", "in-sync", "a", "--timeout", "1").code == 0
    for type_ in (EndpointType.IDENTITY, EndpointType.FIRMWARE):
        dcsync.inventory.put("a", sync_status=both | {type_: SyncStatus.OUT_OF_SYNC})
        told = dcsync("wait", "--for", "in-sync", "a", "--timeout", "1")
        assert told.code == 1
        assert f"a: out-of-sync, out-of-sync ({type_})" in told.err


def test_in_sync_longer_ago_than_its_window_is_no_success(dcsync: Shell) -> None:
    both = dict.fromkeys(audited_types(), SyncStatus.IN_SYNC)
    with_subclouds(dcsync, a_subcloud("a", initial_sync_state=COMPLETED, sync_status=both))
    dcsync.set(DCSYNC_STATUS_WINDOW="60")
    dcsync.operator.slept = 61.0
    told = dcsync("wait", "--for", "in-sync", "a", "--timeout", "1")
    assert told.code == 1
    assert "a: unknown, unknown (stale: last in-sync 62 s ago)" in told.err


def test_online_is_waited_for_as_it_is_shown(dcsync: Shell) -> None:
    with_subclouds(dcsync, a_subcloud("a"))
    dcsync.set(DCSYNC_AVAILABILITY_WINDOW="60")
    assert dcsync("wait", "--for", "online", "a", "--timeout", "1").code == 0
    dcsync.operator.slept = 61.0
    told = dcsync("wait", "--for", "online", "a", "--timeout", "1")
    assert told.code == 1
    assert "last seen 62 s ago" in told.err


def test_in_sync_before_the_latest_request_is_no_success(dcsync: Shell) -> None:
    both = dict.fromkeys(audited_types(), SyncStatus.IN_SYNC)
    asked = statuses(both, requested_at=NOON + timedelta(seconds=1))
    with_subclouds(dcsync, a_subcloud("a", initial_sync_state=COMPLETED, endpoints=asked))
    told = dcsync("wait", "--for", "in-sync", "a", "--timeout", "1")
    assert told.code == 1
    assert "a: pending, in-sync" in told.err


@pytest.mark.parametrize("goal", ["completed", "in-sync"])
def test_a_wait_over_an_unmanaged_subcloud_ends_at_once_and_says_why(dcsync: Shell, goal: str) -> None:
    with_subclouds(
        dcsync,
        a_subcloud("a", initial_sync_state=InitialSyncState.IN_PROGRESS),
        a_subcloud("b", management_state=ManagementState.UNMANAGED, initial_sync_state=InitialSyncState.NONE),
    )
    told = dcsync("wait", "--for", goal, "a", "b")
    assert (told.code, dcsync.operator.slept) == (1, 0.0)
    assert "  b: " in told.err
    assert "unmanaged: dcsync subcloud manage b starts it" in told.err


def test_fresh_requests_audits_and_believes_only_what_they_find(dcsync: Shell) -> None:
    both = dict.fromkeys(audited_types(), SyncStatus.IN_SYNC)
    known = a_subcloud("a", initial_sync_state=COMPLETED, sync_status=both)
    with_subclouds(dcsync, known)
    store = dcsync.operator.audit_store = MemoryAuditStore().add(known)
    dcsync.operator.slept = 5.0

    def audited() -> None:
        if dcsync.operator.slept > 10:
            dcsync.inventory.put("a", endpoints=statuses(both, verified_at=dcsync.operator.now()))

    dcsync.operator.meanwhile = audited
    assert dcsync("wait", "--for", "in-sync", "a", "--fresh", "--timeout", "60").code == 0
    assert 10 < dcsync.operator.slept < 20
    assert store.row("a").requested_by == "eve"
    assert dcsync.operator.queue.audit_sweeps == 1


def test_without_periodic_audits_a_wait_for_what_nobody_requested_ends_at_once(dcsync: Shell) -> None:
    unknown = statuses(dict.fromkeys(audited_types(), SyncStatus.UNKNOWN))
    pending = statuses(dict.fromkeys(audited_types(), SyncStatus.UNKNOWN), is_pending=True)
    with_subclouds(dcsync, a_subcloud("a", initial_sync_state=COMPLETED, endpoints=unknown))
    told = dcsync("wait", "--for", "in-sync", "a", "--timeout", "3")
    assert (told.code, dcsync.operator.slept) == (1, 3.0), "an audit will come by itself"
    dcsync.set(DCSYNC_AUDIT_INTERVAL="0")
    told = dcsync("wait", "--for", "in-sync", "a", "--timeout", "3")
    assert (told.code, dcsync.operator.slept) == (1, 3.0)
    assert "no audit is due, --fresh requests one" in told.err
    dcsync.inventory.put("a", endpoints=pending)
    assert dcsync("wait", "--for", "in-sync", "a", "--timeout", "3").code == 1
    assert dcsync.operator.slept == 6.0, "one was requested"


def test_fresh_is_for_in_sync_only(dcsync: Shell) -> None:
    with_subclouds(dcsync, a_subcloud("a"))
    assert dcsync("wait", "--for", "completed", "a", "--fresh").code == 2


def test_all_are_the_managed_ones(dcsync: Shell) -> None:
    with_subclouds(
        dcsync,
        a_subcloud("a", initial_sync_state=COMPLETED),
        a_subcloud("b", management_state=ManagementState.UNMANAGED, initial_sync_state=InitialSyncState.NONE),
    )
    assert dcsync("wait", "--for", "completed", "--all").code == 0
    assert dcsync("wait", "--for", "completed").code == 0


def test_waiting_for_an_empty_fleet_is_no_success(dcsync: Shell) -> None:
    assert dcsync("wait", "--for", "completed", "--all").code == 1


@pytest.mark.parametrize("goal", ["completed", "in-sync"])
def test_all_includes_what_is_unmanaged_during_the_wait(dcsync: Shell, goal: str) -> None:
    with_subclouds(dcsync, a_subcloud("a"), a_subcloud("b"))

    def unmanaged() -> None:
        dcsync.inventory.put("b", management_state=ManagementState.UNMANAGED, initial_sync_state=InitialSyncState.NONE)

    dcsync.operator.meanwhile = unmanaged
    told = dcsync("wait", "--for", goal, "--all", "--timeout", "60")
    assert told.code == 1
    assert dcsync.operator.slept < 1
    assert "b: " in told.err
    assert "unmanaged: dcsync subcloud manage b starts it" in told.err


@pytest.mark.parametrize("goal", ["completed", "in-sync", "online"])
def test_a_wait_for_all_of_a_fleet_that_was_deleted_is_no_success(dcsync: Shell, goal: str) -> None:
    with_subclouds(dcsync, a_subcloud("a", availability_status=AvailabilityStatus.OFFLINE))
    dcsync.operator.meanwhile = dcsync.inventory.subclouds.clear
    told = dcsync("wait", "--for", goal, "--all", "--timeout", "60")
    assert told.code == 1
    assert "all of them were deleted meanwhile" in told.err


def test_in_a_pipe_progress_is_a_plain_line_for_each_change(dcsync: Shell) -> None:
    with_subclouds(dcsync, a_subcloud("a"))

    def later() -> None:
        if dcsync.operator.slept > 5:
            complete_all(dcsync)

    dcsync.operator.meanwhile = later
    told = dcsync("wait", "--for", "completed", "a")
    assert [line.partition(": ")[2] for line in told.err.splitlines()] == ["1 requested", "1 completed"]
    assert "\r" not in told.err


def test_a_database_that_comes_back_is_waited_for(dcsync: Shell) -> None:
    with_subclouds(dcsync, a_subcloud("a"))
    find, complaints = dcsync.inventory.find, []

    def away(names: object) -> list[Subcloud]:
        complaints.append(names)
        raise DatabaseUnreachable("connection refused")

    def later() -> None:
        complete_all(dcsync)
        dcsync.inventory.find = away if dcsync.operator.slept < 20 else find  # type: ignore[method-assign]

    dcsync.operator.meanwhile = later
    assert dcsync("wait", "--for", "completed", "a", "--timeout", "60").code == 0
    assert complaints


def test_a_database_that_is_away_from_the_start_is_exit_code_4(dcsync: Shell) -> None:
    def away(names: object) -> list[Subcloud]:
        raise DatabaseUnreachable("connection refused")

    dcsync.inventory.find = away  # type: ignore[method-assign]
    told = dcsync("wait", "--for", "completed", "a")
    assert told.code == 4
    assert "connection refused" in told.err


def test_a_database_that_is_away_when_the_time_is_up_is_exit_code_4(dcsync: Shell) -> None:
    with_subclouds(dcsync, a_subcloud("a"))

    def away(names: object) -> list[Subcloud]:
        raise DatabaseUnreachable("connection refused")

    def later() -> None:
        dcsync.inventory.find = away  # type: ignore[method-assign]

    dcsync.operator.meanwhile = later
    assert dcsync("wait", "--for", "completed", "a", "--timeout", "20").code == 4
    assert dcsync.operator.slept == pytest.approx(20)


def test_interrupted_is_130(dcsync: Shell) -> None:
    with_subclouds(dcsync, a_subcloud("a"))

    def interrupt() -> None:
        raise KeyboardInterrupt

    dcsync.operator.meanwhile = interrupt
    told = dcsync("wait", "--for", "completed", "a")
    assert told.code == 130
    assert "Traceback" not in told.err


def test_a_fault_of_ours_is_a_sentence_without_its_secrets(dcsync: Shell) -> None:
    def broken() -> list[Subcloud]:
        raise ValueError("s3cret")

    dcsync.inventory.all = broken  # type: ignore[method-assign]
    told = dcsync("subcloud", "list")
    assert told.code == 1
    assert "--debug" in told.err
    assert "s3cret" not in told.err
    with pytest.raises(ValueError, match="s3cret"):
        dcsync("--debug", "subcloud", "list")


# --- history ---


def test_history_tells_requests_attempts_and_steps(dcsync: Shell) -> None:
    with_subclouds(dcsync, a_subcloud("a"))
    step = StepHistory(Step.IDENTITY, NOON, NOON + timedelta(seconds=2), "failed", "GET \x1b[31m/users")
    ended = NOON + timedelta(seconds=3)
    attempt = AttemptHistory("run-1", 1, NOON, ended, Ending.FAILED, "timeout", "slow", "worker-1", (step,))
    running = AttemptHistory("run-2", 2, ended, None, None, None, "", "worker-2", ())
    dcsync.inventory.requests["a"] = [RequestHistory(3, NOON, "eve", "managed", (attempt, running))]
    told = dcsync("history", "a").out
    assert told.splitlines() == [
        "2026-01-31 12:00:00Z  request 3: managed, by eve",
        "    attempt 1: failed after 3.0 s (timeout: slow)",
        "      identity: failed in 2.0 s (GET \\x1b[31m/users)",
        "      run run-1 on worker-1",
        "    attempt 2: not ended",
        "      run run-2 on worker-2",
    ]
    (request,) = dcsync("history", "a", "-o", "json").json
    assert (request["entry"], request["generation"], request["deleted_at"]) == ("request", 3, None)
    assert request["attempts"][0]["steps"][0]["ended_at"] == "2026-01-31T12:00:02.000Z"
    assert request["attempts"][1]["ending"] is None


def test_history_tells_since_when_audits_failed_and_when_that_ended(dcsync: Shell) -> None:
    ended = AuditHistory(
        run_id="run-3",
        endpoint_type=EndpointType.IDENTITY,
        worker="worker-1",
        started_at=NOON,
        ended_at=NOON + timedelta(seconds=2),
        result=SyncStatus.IN_SYNC,
        reason=None,
        detail="after 40 failed in a row, the first 2026-01-31 08:00:00Z",
        differences=Named.of(()),
        written=Named.of(()),
        not_written=Named.of(()),
    )
    failed = replace(ended, result=None, reason="timeout", detail="slow")
    repaired = replace(ended, detail="", differences=Named.of(("users bob",)), written=Named.of(("PUT users bob",)))
    life = Life(
        subcloud_id=1, name="a", region_name="a", added_at=NOON, deleted_at=None, entries=(ended, failed, repaired)
    )
    dcsync.inventory.lives["a"] = [life]
    assert dcsync("history", "a").out.splitlines() == [
        "2026-01-31 12:00:02Z  audit of identity: in-sync after 2.0 s",
        "    after 40 failed in a row, the first 2026-01-31 08:00:00Z",
        "    run run-3 on worker-1",
        "2026-01-31 12:00:02Z  audit of identity: failed after 2.0 s",
        "    timeout: slow",
        "    run run-3 on worker-1",
        "2026-01-31 12:00:02Z  audit of identity: repaired after 2.0 s",
        "    differed: users bob",
        "    written: PUT users bob",
        "    run run-3 on worker-1",
    ]


def test_an_empty_history_is_told_and_is_an_empty_array(dcsync: Shell) -> None:
    with_subclouds(dcsync, a_subcloud("a"))
    assert dcsync("history", "a").code == 0
    assert dcsync("history", "a", "-o", "json").json == []


# --- state ---


def apply(dcsync: Shell) -> None:
    """As if a state worker took every report at once."""

    def write(report: Report) -> None:
        (name,) = [k.name for k in dcsync.inventory.all() if k.region_name == report.region_name]
        if isinstance(report, AvailabilityReport):
            dcsync.inventory.put(name, availability_status=report.availability_status)
        elif isinstance(report, EndpointReport) and report.endpoint_type:
            dcsync.inventory.put(name, sync_status={report.endpoint_type: report.sync_status})

    dcsync.operator.reported = write


def test_a_reported_availability_is_waited_for(dcsync: Shell) -> None:
    with_subclouds(dcsync, a_subcloud("r1", name="a"), a_subcloud("b"))
    apply(dcsync)
    told = dcsync("state", "availability", "offline", "--all", "--yes")
    assert (told.code, told.err) == (0, "")
    assert {known.availability_status for known in dcsync.inventory.all()} == {AvailabilityStatus.OFFLINE}
    assert {report.region_name for report in dcsync.operator.reports} == {"r1", "b"}


def test_a_report_that_no_worker_takes_is_exit_code_1_after_a_while(dcsync: Shell) -> None:
    with_subclouds(dcsync, a_subcloud("a"))
    told = dcsync("state", "availability", "offline", "a")
    assert told.code == 1
    assert "state worker" in told.err
    assert dcsync.operator.slept == pytest.approx(10)


def test_no_wait_only_reports(dcsync: Shell) -> None:
    with_subclouds(dcsync, a_subcloud("a"))
    assert dcsync("state", "availability", "offline", "a", "--no-wait").code == 0
    assert dcsync.operator.slept == 0


FIRMWARE_UNKNOWN = {EndpointType.FIRMWARE: SyncStatus.UNKNOWN}


def test_an_endpoint_is_reported(dcsync: Shell) -> None:
    with_subclouds(dcsync, a_subcloud("a", sync_status=FIRMWARE_UNKNOWN))
    apply(dcsync)
    assert dcsync("state", "endpoint", "a", "firmware", "out-of-sync").code == 0
    assert dcsync.inventory.all()[0].sync_status == {EndpointType.FIRMWARE: SyncStatus.OUT_OF_SYNC}


def test_an_in_sync_that_is_not_believed_is_explained(dcsync: Shell) -> None:
    away = a_subcloud("a", availability_status=AvailabilityStatus.OFFLINE, sync_status=FIRMWARE_UNKNOWN)
    with_subclouds(dcsync, away)
    told = dcsync("state", "endpoint", "a", "firmware", "in-sync")
    assert told.code == 1
    assert "offline" in told.err
    assert "is a state worker running" not in told.err


def test_an_endpoint_the_subcloud_has_no_status_for_yet_is_reported_too(dcsync: Shell) -> None:
    with_subclouds(dcsync, a_subcloud("a", sync_status={}))
    apply(dcsync)
    assert dcsync("state", "endpoint", "a", "firmware", "out-of-sync").code == 0
    assert dcsync.inventory.all()[0].sync_status == {EndpointType.FIRMWARE: SyncStatus.OUT_OF_SYNC}


@pytest.mark.parametrize(
    "arguments",
    [
        ("availability", "away", "a"),
        ("availability", "online"),
        ("endpoint", "a", "nonsense", "in-sync"),
        ("endpoint", "a", "firmware", "green"),
    ],
)
def test_words_outside_the_closed_sets_are_usage_errors(dcsync: Shell, arguments: tuple[str, ...]) -> None:
    with_subclouds(dcsync, a_subcloud("a"))
    assert dcsync("state", *arguments).code == 2
    assert dcsync.operator.reports == []


def test_a_whole_fleet_is_given_longer_to_be_written_down(dcsync: Shell) -> None:
    with_subclouds(dcsync, *(a_subcloud(f"a{number}") for number in range(2_000)))
    assert dcsync("state", "availability", "offline", "--all", "--yes").code == 1
    assert dcsync.operator.slept == pytest.approx(14)


def test_a_broker_that_is_away_cannot_be_reported_to(dcsync: Shell) -> None:
    with_subclouds(dcsync, a_subcloud("a"))
    dcsync.operator.queue.is_away = True
    assert dcsync("state", "availability", "offline", "a").code == 4


def test_on_a_terminal_progress_is_one_line_that_is_left_standing(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(is_terminal=True) as progress:
        progress.show("0.1 s", "1 failed, 1 requested")
        progress.show("0.6 s", "2 completed")
    assert capsys.readouterr().err == "\r0.1 s: 1 failed, 1 requested\r0.6 s: 2 completed          \n"
