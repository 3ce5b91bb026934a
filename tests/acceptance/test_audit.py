"""Keeping them in line, with real processes over a fake cloud: drift, central changes, guards, failures, wake-ups."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest
from sqlalchemy import select, update

from dcsync.adapters.broker.locks import RedisLocks
from dcsync.adapters.host.clock import utc_now
from dcsync.adapters.postgres.tables import subcloud_sync
from dcsync.audit.ports import AuditRow
from dcsync.fake_cloud.faults import Fault
from dcsync.model.reasons import Reason
from dcsync.model.states.audit import AuditStatus
from dcsync.model.subcloud import AvailabilityStatus, EndpointType, SyncStatus
from tests.acceptance.conftest import Subclouds
from tests.system import FAST, PATIENCE, System, open_system, redis_client

pytestmark = [pytest.mark.xdist_group("audit"), pytest.mark.timeout(600)]

IDENTITY, PLATFORM = EndpointType.IDENTITY, EndpointType.PLATFORM
IN_SYNC, OUT_OF_SYNC, UNKNOWN = SyncStatus.IN_SYNC, SyncStatus.OUT_OF_SYNC, SyncStatus.UNKNOWN
ONLINE, OFFLINE = AvailabilityStatus.ONLINE, AvailabilityStatus.OFFLINE
SETTINGS = FAST | {
    "DCSYNC_CENTRAL_WATCH_INTERVAL": "1",
    "DCSYNC_AUDIT_INTERVAL": "3600",
    "DCSYNC_HOLD_OFF": "1",
    "DCSYNC_HOLD_OFF_MAX": "2",
}
"""Audits are due once after completed; whatever comes later, a test brings about."""


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with open_system(tmp_path_factory.mktemp("system"), subclouds=30, settings=SETTINGS) as system:
        system.start_dcsync()
        system.add_online(count=30)
        yield system


def audits(system: System, name: str) -> dict[EndpointType, AuditRow]:
    return {row.endpoint_type: row for row in system.audits.audits([name])}


def identity(system: System, name: str) -> AuditRow:
    return audits(system, name)[IDENTITY]


def until_shown(system: System, name: str, type_: EndpointType, status: SyncStatus) -> None:
    system.until(lambda: system.row(name).sync_status.get(type_) is status, f"{name} {type_} {status}")


def until(system: System, name: str, question: Callable[[AuditRow], bool]) -> AuditRow:
    """Until the identity row of this subcloud is like that; as it was then."""
    seen: list[AuditRow] = []

    def is_true() -> bool:
        seen.append(identity(system, name))
        return question(seen[-1])

    system.until(is_true, f"the identity audit of {name}")
    return seen[-1]


def in_line(system: System, subclouds: Subclouds, count: int = 1) -> list[str]:
    """So many that are managed, completed and found in sync, at a time when nobody has anything to do there."""
    system.until_central_cloud_is_seen()
    names = subclouds(count)
    system.manage(*names)
    system.until_at_rest(*names)
    return names


def until_no_audit_runs(system: System, name: str) -> None:
    system.until(lambda: identity(system, name).audit_status is not AuditStatus.IN_PROGRESS, f"no audit runs on {name}")


def an_interval_passes(system: System, *names: str) -> None:
    """As the rows see it: what was due in an hour is due now. A run at work would set its own time over it at its end,
    so that is waited for."""
    own = subcloud_sync.c.subcloud_id.in_([system.row(name).id for name in names])

    def is_due() -> bool:
        with system.engine.begin() as connection:
            locked = select(subcloud_sync.c.run_id).where(own).with_for_update()
            if any(connection.execute(locked).scalars()):
                return False
            connection.execute(update(subcloud_sync).where(own).values(due_at=utc_now()))
            return True

    system.until(is_due, f"no run is at work on {names}")


def audited(system: System, name: str) -> bool:
    return bool(system.cloud.state(name)["audited"])


def test_a_completed_subcloud_is_found_in_sync_by_its_first_audit_which_nobody_asked_for(
    system: System, subclouds: Subclouds
) -> None:
    (name,) = in_line(system, subclouds)
    rows = audits(system, name)
    assert {row.result for row in rows.values()} == {IN_SYNC}
    assert rows[IDENTITY].due_at - utc_now() > timedelta(minutes=45)
    assert audited(system, name), system.cloud.state(name)["differences"]
    system.assert_good(name)


def test_drift_is_found_when_the_audit_is_due_and_repaired_at_once(system: System, subclouds: Subclouds) -> None:
    drifted, other = in_line(system, subclouds, 2)
    untouched = system.writes(other)
    system.cloud.drift(drifted, "set-password", user="sysinv", password="Drifted-pw-1!")
    system.cloud.drift(drifted, "replace-keys")
    system.cloud.drift(drifted, "add-user", user="site-own", password="Site-own-pw-1!")
    an_interval_passes(system, drifted, other)
    system.until(lambda: audited(system, drifted), f"{drifted} repaired")
    row = until(system, drifted, lambda row: "users sysinv" in " ".join(row.differences) and row.result is IN_SYNC)
    assert "Drifted" not in " ".join(row.differences)
    until_shown(system, drifted, IDENTITY, IN_SYNC)
    system.assert_good(drifted)
    until(system, other, lambda row: row.due_at - utc_now() > timedelta(minutes=45))
    assert system.writes(other) == untouched


def test_a_change_at_the_central_cloud_reaches_everybody_and_those_away_when_they_return(
    system: System, subclouds: Subclouds
) -> None:
    here, also_here, away = in_line(system, subclouds, 3)
    system.report(OFFLINE, away)
    system.cloud.change_central("add-user", user="newcomer", password="Newcomer-pw-1!")
    system.until(lambda: audited(system, here) and audited(system, also_here), "the newcomer is everywhere")
    assert not audited(system, away)
    until(system, away, lambda row: row.generation > row.observed_generation)
    system.report(ONLINE, away)
    system.until(lambda: audited(system, away), f"{away} caught up")


def test_a_central_deletion_deletes_exactly_the_central_record(system: System, subclouds: Subclouds) -> None:
    system.cloud.change_central("add-user", user="leaver", password="Leaver-pw-1!")
    (name,) = in_line(system, subclouds)
    system.cloud.drift(name, "add-user", user="stayer", password="Stayer-pw-1!")
    before = system.carried_out(name)
    system.cloud.change_central("remove", type="users", name="leaver")
    system.until(lambda: audited(system, name) and system.carried_out(name) != before, "the leaver is gone")
    grown = {
        what: count - before.get(what, 0)
        for what, count in system.carried_out(name).items()
        if count != before.get(what, 0) and "revocation" not in what
    }
    assert grown == {"DELETE keystone users": 1}
    system.assert_good(name)


def test_a_request_during_a_run_leads_to_another_run(system: System, subclouds: Subclouds) -> None:
    (name,) = in_line(system, subclouds)
    system.cloud.set_fault(name, Fault("latency", seconds=0.5))

    def ask() -> None:
        system.audits.request([name], [IDENTITY, PLATFORM], now=utc_now(), by="test")

    def is_asked_for_during_a_run() -> bool:
        """The same run was at work before and after we asked. One that ended too soon is followed by another try."""
        before = identity(system, name)
        is_running = before.audit_status is AuditStatus.IN_PROGRESS
        if is_running or before.observed_generation == before.generation:
            ask()
        after = identity(system, name)
        return is_running and (after.audit_status, after.claimed_at) == (before.audit_status, before.claimed_at)

    system.until(is_asked_for_during_a_run, f"{name} is asked for during a run")
    row = until(system, name, lambda row: row.observed_generation == row.generation)
    assert row.audit_status is AuditStatus.COMPLETED


def test_an_unreachable_subcloud_is_unknown_with_a_reason_and_recovers(system: System, subclouds: Subclouds) -> None:
    (name,) = in_line(system, subclouds)
    system.cloud.set_fault(name, Fault("refuse"))
    until_no_audit_runs(system, name)
    good = identity(system, name).last_good_at
    an_interval_passes(system, name)
    row = until(system, name, lambda row: row.reason is Reason.UNREACHABLE)
    assert (row.result, row.last_good_at) == (IN_SYNC, good)
    until_shown(system, name, IDENTITY, UNKNOWN)
    until_shown(system, name, PLATFORM, UNKNOWN)
    system.cloud.set_fault(name, None)
    system.cli("wait", "--for", "in-sync", name, *PATIENCE)
    assert identity(system, name).reason is None


def test_a_difference_that_comes_back_is_not_converging_and_left_alone_until_somebody_asks(
    system: System, subclouds: Subclouds
) -> None:
    (name,) = in_line(system, subclouds)
    system.cloud.set_fault(name, Fault("swallow", service="dbsync", verb="PUT"))
    system.cloud.drift(name, "set-password", user="sysinv", password="Drifted-pw-2!")
    system.cli("audit", name)
    row = until(system, name, lambda row: row.reason is Reason.NOT_CONVERGING)
    assert "users sysinv" in row.detail
    assert row.due_at - utc_now() > timedelta(minutes=45)
    until_shown(system, name, IDENTITY, OUT_OF_SYNC)
    system.cloud.set_fault(name, None)
    system.cli("audit", name)
    system.cli("wait", "--for", "in-sync", name, *PATIENCE)


def test_many_deletions_wait_for_an_explicit_yes(system: System, subclouds: Subclouds) -> None:
    newcomers = [f"temp-{n}" for n in range(6)]
    for user in newcomers:
        system.cloud.change_central("add-user", user=user, password="Temporary-pw-1!")
    (name,) = in_line(system, subclouds)
    system.cloud.set_fault(name, Fault("refuse"))  # until all are gone: else it would follow one by one
    for user in newcomers:
        system.cloud.change_central("remove", type="users", name=user)
    system.cloud.set_fault(name, None)
    row = until(system, name, lambda row: row.reason is Reason.GUARD_REFUSED)
    assert "6 records and grants" in row.detail
    until_shown(system, name, IDENTITY, OUT_OF_SYNC)
    assert "DELETE keystone users" not in system.carried_out(name)
    system.cli("audit", name, "--allow-deletes", "--yes")
    system.until(lambda: audited(system, name), f"{name} follows the central cloud")


def test_a_central_cloud_that_answers_nothing_changes_nothing(system: System, subclouds: Subclouds) -> None:
    (name,) = in_line(system, subclouds)
    before = system.writes(name)
    system.cloud.change_central("hide", list="users")
    try:
        system.cli("audit", name)
        until(system, name, lambda row: row.reason is Reason.CENTRAL_EMPTY)
    finally:
        system.cloud.change_central("show")
    assert system.writes(name) == before
    assert system.row(name).sync_status[IDENTITY] is IN_SYNC


def test_initial_sync_and_audit_never_work_on_one_subcloud_at_once(system: System, subclouds: Subclouds) -> None:
    names = in_line(system, subclouds, 4)
    for name in names:
        system.cloud.set_fault(name, Fault("latency", seconds=0.1))
    for _ in range(2):
        system.cli("sync", *names)
        system.cli("audit", *names)
    system.until_completed(*names)
    for name in names:
        system.cloud.set_fault(name, None)
    system.until_at_rest(*names)
    for name in names:
        state = system.cloud.state(name)
        assert state["violations"] == {}, state["described"]


def test_an_audit_whose_worker_is_killed_is_finished_by_another(system: System, subclouds: Subclouds) -> None:
    """It hangs in the middle for as long as it lives. Locks of both do not live long, so that nobody waits for them."""
    brief = {"DCSYNC_LOCK_TTL": "10"}
    (name,) = in_line(system, subclouds)
    end_sync_workers(system)
    try:
        system.start_sync_worker("killed", **brief, DCSYNC_READ_TIMEOUT="100", DCSYNC_REQUEST_TIMEOUT="100")
        system.cloud.set_fault(name, Fault("hang", service="dbsync"))
        system.cloud.drift(name, "set-password", user="sysinv", password="Drifted-pw-3!")
        system.cli("audit", name)
        until(system, name, lambda row: row.audit_status is AuditStatus.IN_PROGRESS)
        end_sync_workers(system)
        assert identity(system, name).audit_status is AuditStatus.IN_PROGRESS
        system.cloud.set_fault(name, None)
        system.start_sync_worker("again", **brief)
        until(system, name, lambda row: row.observed_generation == row.generation)
        system.until(lambda: audited(system, name), f"{name} repaired")
        assert system.cloud.state(name)["violations"] == {}
    finally:
        end_sync_workers(system)
        system.start_sync_worker()


def test_a_first_audit_whose_worker_is_killed_is_finished_by_another_and_completed_stays_completed(
    system: System, subclouds: Subclouds
) -> None:
    """The run that completed the initial sync was still at work."""
    brief = {"DCSYNC_LOCK_TTL": "10"}
    (name,) = subclouds(1)
    end_sync_workers(system)
    try:
        system.start_sync_worker("killed", **brief, DCSYNC_READ_TIMEOUT="100", DCSYNC_REQUEST_TIMEOUT="100")
        system.cloud.set_fault(name, Fault("hang", path="/v3/role_assignments"))
        system.manage(name)
        until(system, name, lambda row: row.audit_status is AuditStatus.IN_PROGRESS)
        (attempt,) = system.attempts(name)
        assert attempt.ending == "completed"
        with redis_client(system) as client:
            owners = RedisLocks(client, ttl_seconds=1).owners([system.row(name).region_name])
        assert list(owners.values()) == [attempt.run_id]
        end_sync_workers(system)
        system.cloud.set_fault(name, None)
        system.start_sync_worker("again", **brief)
        system.until_at_rest(name)
        assert system.all_attempts(name) == [attempt]
        system.assert_good(name)
    finally:
        end_sync_workers(system)
        system.start_sync_worker()


def end_sync_workers(system: System) -> None:
    """As a crash would."""
    for running in system.running:
        if running.name not in ("state", "beat") and running.alive:
            running.kill()
