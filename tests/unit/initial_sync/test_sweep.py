"""Who is due now, and how many messages that makes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import pytest

from dcsync.initial_sync.ports import Claim, Run
from dcsync.initial_sync.sweep import Sweep, SweepReport
from dcsync.model.ending import Ending, Failure
from dcsync.model.errors import BrokerUnreachable, RowLocked
from dcsync.model.reasons import Reason
from dcsync.model.states.initial_sync import InitialSyncState
from dcsync.runs.abandoned import ABANDONED_LIMIT
from dcsync.runs.dispatch import SweepLimits
from tests.builders import NOON
from tests.fake_messenger import FakeMessenger
from tests.fakes_sync import MemoryLocks, MemoryRunStore, a_requested_store

LIMITS = SweepLimits(
    max_in_flight=10, lock_ttl=timedelta(seconds=30), patience=timedelta(seconds=5), quarantine=timedelta(minutes=15)
)
LATER = NOON + timedelta(seconds=31)


@dataclass
class World:
    store: MemoryRunStore
    locks: MemoryLocks = field(default_factory=MemoryLocks)
    messenger: FakeMessenger = field(default_factory=FakeMessenger)
    limits: SweepLimits = LIMITS

    def sweep(self, now=NOON) -> SweepReport:  # type: ignore[no-untyped-def]
        return Sweep(self.store, self.locks, self.messenger, self.limits).run(now=now)

    def claim(self, region_name: str, run_id: str = "run", now=NOON) -> None:  # type: ignore[no-untyped-def]
        assert self.store.claim([Claim(run_id, region_name, 1)], worker="w", now=now)


def names(count: int) -> list[str]:
    return [f"s{number:03}" for number in range(count)]


def test_every_requested_subcloud_is_sent_once() -> None:
    world = World(a_requested_store(*names(5)))
    assert world.sweep().sent == 5
    assert [hint.task_id for hint in world.messenger.syncs] == [f"{name}.g1.a1" for name in names(5)]


def test_what_waits_in_the_queue_is_never_sent_again() -> None:
    world = World(a_requested_store(*names(5)))
    for seconds in range(0, 600, 10):
        world.sweep(NOON + timedelta(seconds=seconds))
    assert len(world.messenger.syncs) == 5


def test_a_hint_that_was_lost_is_sent_again_once_its_patience_is_over() -> None:
    world = World(a_requested_store(*names(3)))
    world.sweep()
    del world.messenger.syncs[1]
    assert world.sweep(NOON + timedelta(seconds=4)).sent == 0
    assert world.sweep(NOON + timedelta(seconds=6)).sent == 1
    assert sorted(hint.region_name for hint in world.messenger.syncs) == names(3)


def test_messages_in_flight_are_bounded_and_the_oldest_go_first() -> None:
    world = World(a_requested_store(*names(25)))
    world.store.rows["s024"].subcloud = replace(
        world.store.rows["s024"].subcloud, requested_at=NOON - timedelta(minutes=1)
    )
    assert world.sweep().sent == 10
    assert world.messenger.syncs[0].region_name == "s024"
    assert world.sweep(NOON + timedelta(seconds=10)).sent == 0


def test_room_is_filled_as_runs_end_and_running_ones_count() -> None:
    world = World(a_requested_store(*names(25)))
    world.sweep()
    for hint in world.messenger.syncs[:4]:
        world.claim(hint.region_name, f"run-{hint.region_name}")
    del world.messenger.syncs[:4]
    assert world.sweep(NOON + timedelta(seconds=1)).sent == 0, "four run, six wait"
    run = world.store.rows["s000"].subcloud
    world.store.rows["s000"].subcloud = replace(
        run, initial_sync_state=InitialSyncState.COMPLETED, run_id=None, claimed_at=None
    )
    assert world.sweep(NOON + timedelta(seconds=2)).sent == 1


def test_a_broker_that_is_away_leaves_the_rows_to_be_sent_by_the_next_sweep() -> None:
    world = World(a_requested_store(*names(3)))
    world.messenger.is_away = True
    with pytest.raises(BrokerUnreachable):
        world.sweep()
    world.messenger.is_away = False
    assert world.sweep().sent == 3


def test_a_run_whose_lock_is_gone_is_taken_back_and_sent_at_once() -> None:
    world = World(a_requested_store("s1"))
    world.claim("s1")
    report = world.sweep(LATER)
    assert (report.taken_back, report.sent) == (1, 1)
    assert world.messenger.syncs[0].task_id == "s1.g1.a2"


def test_a_run_that_holds_its_lock_is_left_alone_however_old() -> None:
    world = World(a_requested_store("s1"))
    world.claim("s1")
    world.locks.acquire({"run": "s1"})
    assert world.sweep(NOON + timedelta(hours=1)).is_idle
    assert world.store.state("s1") is InitialSyncState.IN_PROGRESS


def test_a_young_run_without_a_lock_is_left_alone() -> None:
    world = World(a_requested_store("s1"))
    world.claim("s1")
    assert world.sweep(NOON + timedelta(seconds=29)).is_idle


def test_a_lock_that_went_to_somebody_else_does_not_protect_a_run() -> None:
    world = World(a_requested_store("s1"))
    world.claim("s1")
    world.locks.acquire({"an audit": "s1"})
    assert world.sweep(LATER).taken_back == 1


def begin_sent(world: World, now: datetime, *, round_: int) -> dict[str, Run]:
    """Workers take every hint that waits; nobody holds the locks, as when their workers are killed."""
    claims = [Claim(f"run-{round_}-{hint.region_name}", hint.region_name, 1) for hint in world.messenger.syncs]
    world.messenger.syncs.clear()
    return {run.subcloud.region_name: run for run in world.store.claim(claims, worker="w", now=now)}


def reasons(world: World) -> dict[str, Reason]:
    rows = [row.subcloud for row in world.store.rows.values()]
    return {row.region_name: row.reason for row in rows if row.reason is not None}


def test_three_crashes_of_all_workers_quarantine_nobody_but_the_one_that_was_alone_twice() -> None:
    """As a host without memory or power does: every run in progress dies, whatever it was."""
    world = World(a_requested_store(*names(60)), limits=replace(LIMITS, max_in_flight=100))
    now = NOON
    for round_ in range(3):
        world.sweep(now)
        begin_sent(world, now, round_=round_)
        now += timedelta(seconds=36)
    world.sweep(now)
    assert len(reasons(world)) <= 1


def test_of_many_suspects_only_the_guilty_one_is_quarantined() -> None:
    """It kills its worker each time, with all that runs there; the others complete when it does not."""
    guilty = "s007"
    world = World(a_requested_store(*names(60)), limits=replace(LIMITS, max_in_flight=100))
    now, crashes, sweeps = NOON, 0, 0
    while guilty not in reasons(world):
        world.sweep(now)
        running = begin_sent(world, now, round_=sweeps)
        if guilty in running:
            crashes += 1
            now += timedelta(seconds=31)
        else:
            for run in running.values():
                assert world.store.complete(run, now=now, audits_due_at=now)
            now += timedelta(seconds=10)
        sweeps += 1
        assert sweeps < 40
    assert reasons(world) == {guilty: Reason.QUARANTINED}
    assert crashes == ABANDONED_LIMIT


def test_suspects_do_not_keep_others_from_running() -> None:
    world = World(a_requested_store(*names(20)), limits=replace(LIMITS, max_in_flight=100))
    world.sweep(NOON)
    suspects = begin_sent(world, NOON, round_=0)
    world.sweep(LATER)
    assert len(world.messenger.syncs) == 8, "few of them at a time"
    world.store.rows |= a_requested_store("newcomer").rows
    world.sweep(LATER + timedelta(seconds=1))
    assert world.messenger.syncs[-1].region_name == "newcomer"
    assert {hint.region_name for hint in world.messenger.syncs} <= {*suspects, "newcomer"}


def test_a_suspect_whose_hint_was_lost_is_sent_again() -> None:
    world = World(a_requested_store("s1"))
    now = NOON
    for number in range(2):
        world.claim("s1", f"run-{number}", now)
        now += timedelta(seconds=31)
        world.sweep(now)
    world.messenger.syncs.clear()
    assert world.sweep(now + timedelta(seconds=6)).sent == 1


@pytest.mark.parametrize("server", ["PostgreSQL", "Redis"])
def test_a_crash_of_a_server_counts_for_nothing(server: str) -> None:
    world = World(a_requested_store("s1"))
    now = NOON
    for number in range(ABANDONED_LIMIT + 1):
        world.claim("s1", f"run-{number}", now)
        now += timedelta(seconds=31)
        if server == "Redis":
            world.locks.uptime = timedelta(seconds=20)
        else:
            world.store.started_at = now - timedelta(seconds=20)
        assert world.sweep(now).taken_back == 1
    assert reasons(world) == {}
    assert world.store.suspects(lost=[]) == {}


def test_a_server_that_may_not_be_asked_excuses_nobody() -> None:
    world = World(a_requested_store("s1"))
    world.locks.uptime = None
    world.claim("s1")
    world.sweep(LATER)
    assert world.store.suspects(lost=[]) == {(1, True): 1}


def test_a_subcloud_that_kills_its_worker_three_times_is_held_off() -> None:
    world = World(a_requested_store("s1"))
    now = NOON
    for number in range(ABANDONED_LIMIT):
        world.claim("s1", f"run-{number}", now)
        now += timedelta(seconds=31)
        world.sweep(now)
    subcloud = world.store.rows["s1"].subcloud
    assert (subcloud.initial_sync_state, subcloud.reason) == (InitialSyncState.FAILED, Reason.QUARANTINED)
    assert subcloud.retry_at == now + timedelta(minutes=15)
    assert world.sweep(now + timedelta(minutes=16)).sent == 1, "every state has an exit"


def test_a_failure_waits_for_its_moment_and_not_longer() -> None:
    world = World(a_requested_store("s1"))
    (run,) = world.store.claim([Claim("run", "s1", 1)], worker="w", now=NOON)
    assert run is not None
    world.store.fail(run, Failure(Reason.TIMEOUT, "slow"), now=NOON, retry_at=NOON + timedelta(seconds=60))
    assert world.sweep(NOON + timedelta(seconds=59)).is_idle
    report = world.sweep(NOON + timedelta(seconds=60))
    assert (report.retried, report.sent) == (1, 1)


def test_two_sweeps_at_once_send_nothing_twice() -> None:
    world = World(a_requested_store(*names(5)))
    world.sweep()
    other = World(world.store, world.locks, world.messenger)
    assert other.sweep().sent == 0


def test_an_attempt_that_was_overtaken_while_its_worker_died_gets_its_end() -> None:
    world = World(a_requested_store("s1"))
    world.claim("s1")
    world.store.leave("s1")
    world.sweep(NOON + timedelta(seconds=29))
    assert world.store.attempts["run"].ending is None
    world.sweep(LATER)
    assert world.store.attempts["run"].ending is Ending.ABANDONED


def test_an_attempt_that_was_overtaken_and_still_holds_its_lock_ends_itself() -> None:
    world = World(a_requested_store("s1"))
    world.locks.acquire({"run": "s1"})
    world.claim("s1")
    world.store.leave("s1")
    world.sweep(LATER)
    assert world.store.attempts["run"].ending is None


PHASES = ["requeue_due", "in_progress_since_before", "take_back", "unowned_attempts", "end_unowned"]


@pytest.mark.parametrize("failing", PHASES)
def test_a_phase_that_fails_keeps_no_other_from_running(failing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(a_requested_store("s1", "s2", "s3"))
    world.claim("s1", "dead")
    world.claim("s2", "left")
    world.store.ask("s2", now=NOON)

    def fail(*_: object, **__: object) -> None:
        raise RowLocked("another session holds a row")

    monkeypatch.setattr(world.store, failing, fail)
    with pytest.raises(RowLocked):
        world.sweep(LATER)
    assert "s3" in {hint.region_name for hint in world.messenger.syncs}
    if failing not in ("in_progress_since_before", "take_back"):
        assert "s1" in {hint.region_name for hint in world.messenger.syncs}
    if failing not in ("unowned_attempts", "end_unowned"):
        assert world.store.attempts["left"].ending is Ending.ABANDONED


def test_the_first_of_several_errors_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(a_requested_store("s1"))
    world.messenger.is_away = True
    monkeypatch.setattr(world.store, "requeue_due", _row_locked)
    with pytest.raises(RowLocked):
        world.sweep()


def _row_locked(**_: object) -> int:
    raise RowLocked("another session holds a row")
