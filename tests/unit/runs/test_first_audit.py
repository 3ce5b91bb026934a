"""An initial sync and the audit it goes on with: one lock, one login, one reading, and two ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta

import pytest

from dcsync.model.errors import CloudError
from dcsync.model.identity import CentralData
from dcsync.model.reasons import Reason
from dcsync.model.states.audit import AuditStatus
from dcsync.model.states.initial_sync import InitialSyncState
from dcsync.model.subcloud import EndpointType, SyncStatus
from dcsync.planner.match import Cloud
from tests.builders import NOON, a_group, a_user, central_data, records, some_keys
from tests.memory_clouds import MemoryClouds, MemorySite
from tests.one_run import OneWorker

IDENTITY, PLATFORM = EndpointType.IDENTITY, EndpointType.PLATFORM
HOUR_LATER = NOON + timedelta(hours=1)
IN_SYNC = SyncStatus.IN_SYNC
LISTS = ["GET users", "GET groups", "GET projects", "GET roles"]
AUDIT_READS = ["GET role assignments", "GET revocation events"]


def central(*, others: tuple[str, ...] = ()) -> CentralData:
    users = (a_user("vim", "c-vim"), *(a_user(name, f"c-{name}") for name in others))
    return central_data(records(users=users, groups=(a_group("ops", "c-ops", members=("c-vim",)),)))


def clouds() -> MemoryClouds:
    site = records(users=(a_user("vim", "s-vim"),), groups=(a_group("ops", "s-ops", members=("s-vim",)),))
    return MemoryClouds(central=central(), site=MemorySite(Cloud(site), keys=some_keys("site")))


@pytest.fixture
def reach() -> MemoryClouds:
    return clouds()


@pytest.fixture
def worker(reach: MemoryClouds) -> OneWorker:
    return OneWorker(reach)


def at_the_audits_first_call(reach: MemoryClouds, action: Callable[[], object]) -> None:
    """Once, when the initial sync is completed and its audit has begun to read."""
    done: list[str] = []

    def hook(call: str) -> None:
        if call == "GET role assignments" and not done:
            done.append(call)
            action()

    reach.site.before_call = hook


def status(worker: OneWorker) -> set[AuditStatus]:
    return {worker.audits.row(worker.region_name, type_).status for type_ in (IDENTITY, PLATFORM)}


async def test_the_audit_follows_with_one_login_and_starts_from_what_was_read_last(
    worker: OneWorker, reach: MemoryClouds
) -> None:
    await worker.run()
    assert worker.endings == [("initial sync", "completed"), ("audit", "done")]
    assert {outcome.run_id for _, outcome in worker.told} == {"run-0"}
    assert reach.site.calls.count("login") == 2, "one, and the one that keys are read back under"
    keys = reach.site.calls.index("POST fernet_repo")
    assert reach.site.calls[keys - 4 : keys] == LISTS
    assert reach.site.calls[keys + 1 :] == ["login", "GET fernet_repo", "GET central data", *AUDIT_READS]
    assert worker.reports == [(IDENTITY, IN_SYNC), (PLATFORM, IN_SYNC)]
    assert worker.locks.held == {}


async def test_one_that_returns_unchanged_is_read_once_and_not_written(worker: OneWorker, reach: MemoryClouds) -> None:
    await worker.run()
    worker.returns()
    reach.site.calls.clear()
    await worker.run()
    assert worker.endings == [("initial sync", "completed"), ("audit", "done")]
    assert [call for call in reach.site.calls if call != "GET central data"] == [
        "login",
        *LISTS,
        "GET fernet_repo",
        *AUDIT_READS,
    ]


async def test_what_the_audit_writes_is_looked_at_anew(worker: OneWorker, reach: MemoryClouds) -> None:
    reach.central = central(others=("newcomer",))
    await worker.run()
    written = reach.site.calls.index("POST users newcomer")
    assert sorted(reach.site.calls[written + 1 :]) == sorted([*LISTS, *AUDIT_READS])
    assert worker.reports == [(IDENTITY, IN_SYNC), (PLATFORM, IN_SYNC)]


async def test_a_later_audit_reads_everything(worker: OneWorker, reach: MemoryClouds) -> None:
    """What an earlier run saw is no proof."""
    await worker.run()
    reach.site.put(a_user("vim", "c-vim", password="drifted"))
    reach.site.keys = some_keys("drifted")
    worker.audits.request(None, [IDENTITY, PLATFORM], now=NOON, by="eve")
    await worker.audit()
    assert "PUT users vim" in reach.site.writes
    assert reach.site.keys == reach.central.keys


async def test_a_central_change_meanwhile_is_given_by_the_audit(worker: OneWorker, reach: MemoryClouds) -> None:
    """The audit compares what was read with the central cloud as it is by then."""
    reads: list[str] = []

    def change(call: str) -> None:
        reads.append(call)
        if call == "GET central data" and reads.count(call) == 2:
            reach.central = central(others=("newcomer",))

    reach.site.before_call = change
    await worker.run()
    assert "POST users newcomer" in reach.site.writes


@pytest.mark.parametrize("reason", [Reason.SERVER_ERROR, Reason.UNREACHABLE])
async def test_the_audits_failure_is_an_audits_failure(worker: OneWorker, reach: MemoryClouds, reason: Reason) -> None:
    def fail() -> None:
        raise CloudError(reason, "500")

    at_the_audits_first_call(reach, fail)
    await worker.run()
    assert worker.rows.state(worker.region_name) is InitialSyncState.COMPLETED
    assert worker.audits.row(worker.region_name, IDENTITY).reason is reason
    assert worker.rows.rows[worker.region_name].subcloud.reason is None
    assert worker.locks.held == {}


async def test_unmanaged_between_the_two_writes_nothing_more_and_frees_the_rows(
    worker: OneWorker, reach: MemoryClouds
) -> None:
    reach.central = central(others=("newcomer",))
    at_the_audits_first_call(reach, lambda: worker.rows.leave(worker.region_name))
    await worker.run()
    assert worker.endings == [("initial sync", "completed"), ("audit", "cancelled")]
    assert "POST users newcomer" not in reach.site.writes
    assert status(worker) == {AuditStatus.NONE}
    assert worker.reports == []


async def test_a_lock_lost_between_the_two_gives_the_audit_back_without_a_write(
    worker: OneWorker, reach: MemoryClouds
) -> None:
    reach.central = central(others=("newcomer",))
    at_the_audits_first_call(reach, lambda: worker.locks.held.update({worker.region_name: "another run"}))
    await worker.run()
    assert worker.endings == [("initial sync", "completed"), ("audit", "lock-lost")]
    assert "POST users newcomer" not in reach.site.writes
    assert status(worker) == {AuditStatus.NONE}
    assert worker.locks.held == {worker.region_name: "another run"}


async def test_a_worker_that_stops_between_the_two_gives_the_audit_back(worker: OneWorker, reach: MemoryClouds) -> None:
    running = asyncio.create_task(worker.run())
    at_the_audits_first_call(reach, running.cancel)
    await running
    assert worker.endings == [("initial sync", "completed"), ("audit", "given-back")]
    assert worker.rows.state(worker.region_name) is InitialSyncState.COMPLETED
    assert status(worker) == {AuditStatus.NONE}
    assert worker.locks.held == {}


async def test_a_worker_killed_between_the_two_leaves_the_audits_to_the_sweep(
    worker: OneWorker, reach: MemoryClouds
) -> None:
    class Killed(BaseException):
        pass

    def kill() -> None:
        raise Killed

    at_the_audits_first_call(reach, kill)
    with pytest.raises(Killed):
        await worker.run()
    worker.locks.held.clear()
    assert worker.rows.state(worker.region_name) is InitialSyncState.COMPLETED
    assert worker.rows.in_progress_since_before(HOUR_LATER, now=HOUR_LATER) == []
    abandoned = worker.audits.in_progress_since_before(HOUR_LATER, now=HOUR_LATER)
    assert worker.audits.take_back(abandoned, now=NOON) == [worker.region_name]
    await worker.audit()
    assert worker.reports == [(IDENTITY, IN_SYNC), (PLATFORM, IN_SYNC)]


async def test_without_periodic_audits_none_follows_but_one_that_was_requested(reach: MemoryClouds) -> None:
    worker = OneWorker(reach, first_audit=timedelta(days=36500))
    await worker.run()
    assert worker.endings == [("initial sync", "completed")]
    worker.audits.request(None, [IDENTITY], now=NOON, by="eve")
    worker.returns()
    await worker.run()
    assert worker.endings == [("initial sync", "completed"), ("audit", "done")]
    assert worker.reports == [(IDENTITY, IN_SYNC)]
