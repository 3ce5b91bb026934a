"""Every command that waits rides over a database that is away for a while, and keeps its exit codes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from math import inf
from typing import Any

import pytest

from dcsync.audit.ports import CentralState
from dcsync.model.errors import DatabaseUnreachable
from dcsync.model.reasons import Reason
from dcsync.model.states.audit import AuditStatus
from dcsync.model.states.initial_sync import InitialSyncState
from dcsync.model.subcloud import AvailabilityStatus, EndpointType, ManagementState, SyncStatus
from dcsync.rotation.ports import KeyHolding
from tests.builders import NOON, a_subcloud
from tests.fake_rotation import FakeRotationRequests
from tests.fakes_audit import MemoryAuditStore
from tests.unit.cli.conftest import Answer, Shell

WAITS = {
    "wait": ("wait", "--for", "completed", "a"),
    "sync": ("sync", "a", "--wait"),
    "audit": ("audit", "a", "--wait"),
    "sync-request": ("sync-request", "identity", "a", "--wait"),
    "keys rotate": ("keys", "rotate", "--yes", "--wait"),
    "state availability": ("state", "availability", "offline", "a"),
    "state endpoint": ("state", "endpoint", "a", "firmware", "out-of-sync"),
}
CENTRAL_KEYS = ""
"""As a command has them that asks before the watch first looked."""
STILL_TRYING = "the database does not answer (connection refused); still trying"


class Database:
    """What stands between a command and its stores, and raises DatabaseUnreachable while it is away."""

    def __init__(self) -> None:
        self.is_away = False
        self.refused = 0

    def __call__(self, store: object) -> Any:
        return _Connected(self, store)


class _Connected:
    def __init__(self, database: Database, store: object) -> None:
        self._database, self._store = database, store

    def __getattr__(self, name: str) -> object:
        if self._database.is_away:
            self._database.refused += 1
            raise DatabaseUnreachable("connection refused")
        return getattr(self._store, name)


class Fleet:
    """One subcloud on which anything can be waited for, and a database that may go away."""

    def __init__(self, dcsync: Shell) -> None:
        self.dcsync, self.operator = dcsync, dcsync.operator
        known = a_subcloud("a", sync_status={EndpointType.FIRMWARE: SyncStatus.UNKNOWN})
        dcsync.inventory.subclouds["a"], dcsync.inventory.requests["a"] = known, []
        self.database, self.rotation = Database(), FakeRotationRequests(holds=[None])
        self.audits = MemoryAuditStore().add(replace(known, initial_sync_state=InitialSyncState.COMPLETED))
        self.operator.inventory = self.database(dcsync.inventory)
        self.operator.audit_store = self.database(self.audits)
        self.operator.key_rotation_store = self.database(self.rotation)

    def work_is_done(self) -> None:
        self.dcsync.inventory.put(
            "a",
            initial_sync_state=InitialSyncState.COMPLETED,
            availability_status=AvailabilityStatus.OFFLINE,
            sync_status={EndpointType.FIRMWARE: SyncStatus.OUT_OF_SYNC},
        )
        for row in self.audits.rows.values():
            row.observed_generation, row.result, row.last_audit_time = row.generation, SyncStatus.IN_SYNC, NOON
        self.rotation.holds = [CENTRAL_KEYS]
        self.rotation.put(requested_at=None, last_rotated_at=NOON, detail="all have them")

    def away(self, *, looks: float) -> None:
        """From the first pause on for so many looks; meanwhile the work is done."""

        def meanwhile() -> None:
            self.work_is_done()
            self.database.is_away = self.database.refused < looks

        self.operator.meanwhile = meanwhile


@pytest.fixture
def fleet(dcsync: Shell) -> Fleet:
    return Fleet(dcsync)


@pytest.fixture(params=WAITS)
def waits(request: pytest.FixtureRequest, dcsync: Shell) -> Callable[..., Answer]:
    """Each command that waits."""
    return lambda *more: dcsync(*WAITS[request.param], *more)


def test_a_database_that_is_away_for_one_look_is_told_of_once(fleet: Fleet, waits: Callable[..., Answer]) -> None:
    fleet.away(looks=1)
    told = waits()
    assert told.code == 0
    assert told.err.count(STILL_TRYING) == 1


def test_a_database_that_is_away_for_many_looks_is_told_of_once(fleet: Fleet, waits: Callable[..., Answer]) -> None:
    fleet.away(looks=7)
    told = waits()
    assert (told.code, fleet.database.refused) == (0, 7)
    assert told.err.count(STILL_TRYING) == 1


@pytest.mark.parametrize("command", [name for name in WAITS if not name.startswith("state")])
def test_a_database_that_stays_away_is_exit_code_4_after_a_minute(fleet: Fleet, dcsync: Shell, command: str) -> None:
    fleet.away(looks=inf)
    told = dcsync(*WAITS[command])
    assert told.code == 4
    assert 60 < fleet.operator.slept < 62
    assert told.err.splitlines()[-1].startswith("dcsync: connection refused; DCSYNC_DATABASE_URL is ")


@pytest.mark.parametrize("command", [name for name in WAITS if not name.startswith("state")])
def test_a_database_that_is_away_when_the_time_is_up_is_exit_code_4(fleet: Fleet, dcsync: Shell, command: str) -> None:
    fleet.away(looks=inf)
    assert dcsync(*WAITS[command], "--timeout", "20").code == 4
    assert fleet.operator.slept == pytest.approx(20)


def test_interrupted_is_130(fleet: Fleet, waits: Callable[..., Answer]) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    fleet.operator.meanwhile = interrupt
    told = waits()
    assert told.code == 130
    assert "Traceback" not in told.err


@pytest.mark.parametrize(
    ("command", "last_line"),
    [
        ("audit", "a         platform  unknown  requested 20 s ago"),
        ("sync-request", "a         identity  unknown  requested 20 s ago"),
        ("keys rotate", "still idle after 20 s: 0 of 1 managed subclouds have the keys (1 lack)"),
        ("sync", "  a: requested, waits for a worker, requested 20 s ago"),
    ],
)
def test_what_is_not_done_when_the_time_is_up_is_exit_code_1(
    fleet: Fleet, dcsync: Shell, command: str, last_line: str
) -> None:
    told = dcsync(*WAITS[command], "--timeout", "20")
    assert told.code == 1
    assert fleet.operator.slept == pytest.approx(20)
    assert (told.out + told.err).splitlines().count(last_line) == 1


def test_programs_get_json_alone_on_stdout_also_after_the_database_was_away(fleet: Fleet, dcsync: Shell) -> None:
    for command in ("audit", "keys rotate"):
        fleet.database.refused = 0
        fleet.away(looks=3)
        assert dcsync(*WAITS[command], "-o", "json").json


def test_a_rotation_that_was_given_up_is_exit_code_1(fleet: Fleet, dcsync: Shell) -> None:
    def give_up() -> None:
        fleet.rotation.put(requested_at=None, detail="central-unreachable")

    fleet.operator.meanwhile = give_up
    told = dcsync("keys", "rotate", "--yes", "--wait")
    assert told.code == 1
    assert "not rotated after" in told.err
    assert "central-unreachable" in told.err


def test_the_complaint_does_not_stay_when_the_database_is_back(fleet: Fleet, dcsync: Shell) -> None:
    fleet.away(looks=2)
    for command in ("audit", "keys rotate"):
        fleet.database.refused = 0
        lines = [line.partition(": ")[2] for line in dcsync(*WAITS[command]).err.splitlines()]
        assert lines[lines.index(STILL_TRYING) + 1] == "the database answers again"


def test_a_subcloud_deleted_meanwhile_is_not_waited_for_among_others(fleet: Fleet, dcsync: Shell) -> None:
    fleet.audits.add(a_subcloud("b", initial_sync_state=InitialSyncState.COMPLETED))

    def meanwhile() -> None:
        if "b" in fleet.audits.subclouds:
            fleet.audits.delete("b")
        fleet.work_is_done()

    fleet.operator.meanwhile = meanwhile
    told = dcsync("audit", "a", "b", "--wait")
    assert (told.code, told.out) == (0, "1 subcloud in-sync, nothing was changed\n")


@pytest.mark.parametrize("output", [(), ("-o", "json")])
def test_a_wait_for_audits_of_subclouds_that_were_all_deleted_is_no_success(
    fleet: Fleet, dcsync: Shell, output: tuple[str, ...]
) -> None:
    fleet.audits.add(a_subcloud("b", initial_sync_state=InitialSyncState.COMPLETED))

    def meanwhile() -> None:
        for name in list(fleet.audits.subclouds):
            fleet.audits.delete(name)

    fleet.operator.meanwhile = meanwhile
    told = dcsync("audit", "a", "b", "--wait", *output)
    assert told.code == 1
    assert "all of them were deleted meanwhile" in told.err
    assert "in-sync" not in told.out


def test_every_wait_sees_within_half_a_second_that_the_work_is_done(fleet: Fleet, waits: Callable[..., Answer]) -> None:
    fleet.operator.meanwhile = fleet.work_is_done
    assert waits().code == 0
    assert 0 < fleet.operator.slept <= 0.5


# --- over those that cannot get there ---

HINDERED: dict[str, dict[str, Any]] = {
    "unmanaged": {"management_state": ManagementState.UNMANAGED, "initial_sync_state": InitialSyncState.NONE},
    "offline": {"availability_status": AvailabilityStatus.OFFLINE, "initial_sync_state": InitialSyncState.NONE},
    "failed": {"initial_sync_state": InitialSyncState.FAILED, "reason": Reason.SERVER_ERROR},
}


def two(fleet: Fleet, **changes: Any) -> None:
    """A second subcloud, which is in another state."""
    other = a_subcloud("b", **changes)
    fleet.dcsync.inventory.subclouds["b"], fleet.dcsync.inventory.requests["b"] = other, []
    fleet.audits.add(other)


@pytest.mark.parametrize("command", [("audit", "a", "b"), ("audit", "b"), ("sync-request", "identity", "a", "b")])
@pytest.mark.parametrize("hindrance", HINDERED)
def test_a_wait_for_audits_that_cannot_be_made_ends_at_once_and_says_why(
    fleet: Fleet, dcsync: Shell, command: tuple[str, ...], hindrance: str
) -> None:
    two(fleet, **HINDERED[hindrance])
    told = dcsync(*command, "--wait", "-o", "json")
    assert (told.code, dcsync.operator.slept) == (1, 0.0)
    assert "1 subcloud cannot be audited now:" in told.err
    (line,) = [line for line in told.err.splitlines() if line.startswith("  b: ")]
    assert (HINDERED[hindrance].get("reason") or hindrance) in line
    assert {row["name"] for row in told.json} == set(command) & {"a", "b"}


@pytest.mark.parametrize(
    ("status", "reason"), [(AuditStatus.FAILED, Reason.SERVER_ERROR), (AuditStatus.COMPLETED, None)]
)
def test_an_audit_that_has_not_been_made_does_not_show_the_result_of_an_earlier_one(
    fleet: Fleet, dcsync: Shell, status: AuditStatus, reason: Reason | None
) -> None:
    for row in fleet.audits.rows.values():
        row.result, row.last_audit_time, row.status, row.reason = SyncStatus.IN_SYNC, NOON, status, reason
    told = dcsync("audit", "a", "--wait", "--timeout", "3")
    assert (told.code, "in-sync" in told.out) == (1, False)
    assert told.out.count("unknown") == len(fleet.audits.rows)
    for wait in ((), ("--wait", "--timeout", "3")):
        seen = dcsync("audit", "a", *wait, "-o", "json").json
        assert {(row["result"], row["last_result"]) for row in seen} == {(None, "in-sync")}


def test_a_guard_that_refuses_to_compare_does_not_show_the_result_of_an_earlier_audit(
    fleet: Fleet, dcsync: Shell
) -> None:
    def refused() -> None:
        for row in fleet.audits.rows.values():
            row.result, row.last_audit_time, row.observed_generation = SyncStatus.IN_SYNC, NOON, row.generation
            row.status, row.reason = AuditStatus.FAILED, Reason.GUARD_REFUSED

    fleet.operator.meanwhile = refused
    told = dcsync("audit", "a", "--wait")
    assert (told.code, "in-sync" in told.out) == (5, False)


def test_a_wait_for_audits_includes_what_is_being_synced(fleet: Fleet, dcsync: Shell) -> None:
    two(fleet, initial_sync_state=InitialSyncState.REQUESTED)

    def work() -> None:
        if dcsync.operator.slept > 5:
            fleet.work_is_done()

    dcsync.operator.meanwhile = work
    assert dcsync("audit", "a", "b", "--wait").code == 0
    assert dcsync.operator.slept > 5


def test_a_wait_for_keys_that_some_do_not_get_is_no_success_and_names_them(fleet: Fleet, dcsync: Shell) -> None:
    fleet.rotation.others = [KeyHolding.FAILED, KeyHolding.AWAY, KeyHolding.UNMANAGED]
    dcsync.operator.meanwhile = fleet.work_is_done
    told = dcsync("keys", "rotate", "--yes", "--wait", "-o", "json")
    assert told.code == 1
    assert "  s1: its initial sync failed" in told.err
    assert "  s2: offline" in told.err
    assert "s3" not in told.err
    assert told.json["subclouds"] == {
        "managed": 3, "have": 1, "lack": 0, "failed": 1, "syncing": 0, "away": 1, "unmanaged": 1,
    }  # fmt: skip


def test_keys_show_counts_the_whole_fleet(fleet: Fleet, dcsync: Shell) -> None:
    seen = CentralState(endpoint_type=EndpointType.PLATFORM, fingerprint="0123456789", events_fingerprint="", counts={})
    fleet.audits.accept_central(seen, old=None, now=NOON)
    fleet.rotation.holds = ["0123456789"]
    fleet.rotation.others = [KeyHolding.FAILED, KeyHolding.AWAY, KeyHolding.UNMANAGED]
    told = dcsync("keys", "show")
    assert "1 of 3 managed subclouds have the keys (1 failed, 1 away); 1 unmanaged" in told.out


def test_keys_show_says_how_old_that_is(fleet: Fleet, dcsync: Shell) -> None:
    seen = CentralState(endpoint_type=EndpointType.PLATFORM, fingerprint="0123456789", events_fingerprint="", counts={})
    fleet.audits.accept_central(seen, old=None, now=NOON)
    fleet.rotation.holds, fleet.rotation.read_at = ["0123456789"], [NOON - timedelta(hours=3)]
    assert "3 h ago or later" in dcsync("keys", "show").out
    assert dcsync("keys", "show", "-o", "json").json["oldest_reading_at"] == "2026-01-31T09:00:00.000Z"
