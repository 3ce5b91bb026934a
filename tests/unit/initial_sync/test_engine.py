"""One run, told as stories: what reaches the subcloud, and what the row says afterwards."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import pytest

from dcsync.initial_sync.engine import InitialSync, SyncLimits
from dcsync.model.ending import Ending
from dcsync.model.errors import CloudError
from dcsync.model.identity import ActorType, Assignment, Placed, ResourceType
from dcsync.model.messages import SyncHint
from dcsync.model.reasons import Reason
from dcsync.model.states.initial_sync import InitialSyncState
from dcsync.model.subcloud import Step
from dcsync.planner.match import Cloud
from dcsync.runs.abandoned import RunInProgress
from dcsync.runs.outcome import Outcome, Result
from dcsync.runs.ownership import BatchedOwnership
from dcsync.runs.runner import Runner
from tests.builders import NOON, a_group, a_user, central_data, records, some_keys
from tests.fakes_sync import MemoryLocks, MemoryRunStore, OwnLoop, a_requested_store
from tests.loop_time import time_passes
from tests.memory_clouds import MemoryClouds, MemorySite

REGION = "subcloud1"
LIMITS = SyncLimits(
    users_at_once=4,
    hold_off=timedelta(seconds=60),
    hold_off_max=timedelta(minutes=15),
    first_audit=timedelta(0),
)


@dataclass
class World:
    """A subcloud that was requested, and everything a run needs."""

    store: MemoryRunStore = field(default_factory=a_requested_store)
    locks: MemoryLocks = field(default_factory=MemoryLocks)
    clouds: MemoryClouds = field(default_factory=MemoryClouds)
    faults: list[BaseException] = field(default_factory=list)
    shown: list[Step] = field(default_factory=list)
    changes: dict[str, Any] = field(default_factory=dict)
    deadline_seconds: float = 3600
    loop: OwnLoop = field(default_factory=OwnLoop)
    numbers: Any = field(default_factory=lambda: itertools.count(1))

    def engine(self) -> InitialSync:
        parts: dict[str, Any] = {
            "store": self.store,
            "ownership": BatchedOwnership(self.store, self.locks, lock_ttl_seconds=30, elapsed=time.monotonic),
            "clouds": self.clouds,
            "progress": lambda run, step: self.shown.append(step),
            "limits": LIMITS,
            "now": lambda: NOON,
            "jitter": lambda: 0.0,
            "worker": "w1",
        }
        return InitialSync(**(parts | self.changes))

    def runner(self) -> Runner:
        return Runner(
            locks=self.locks,
            clouds=self.clouds,
            deadline_seconds=self.deadline_seconds,
            now=lambda: NOON,
            new_run_id=lambda: f"run-{next(self.numbers)}",
            log_fault=lambda run, error: self.faults.append(error),
        )

    def run(self, generation: int = 1) -> Outcome:
        (outcome,) = self.loop.run(self.runner().run(self.engine(), [SyncHint(REGION, generation)]))
        return outcome

    def just_before(self, call: str, action: Callable[[], object]) -> None:
        """Do something once, just before the run makes its first call of that beginning."""
        done: list[str] = []

        def hook(about_to: str) -> None:
            if about_to.startswith(call) and not done:
                done.append(about_to)
                action()

        self.clouds.site.before_call = hook

    @property
    def attempt(self) -> Any:
        (attempt,) = self.store.attempts.values()
        return attempt


@pytest.fixture
def world() -> World:
    central = records(users=(a_user("vim", "c-vim"),), groups=(a_group("ops", "c-ops", members=("c-vim",)),))
    site = records(users=(a_user("vim", "s-vim"),), groups=(a_group("ops", "s-ops", members=("s-vim",)),))
    return World(
        clouds=MemoryClouds(central=central_data(central), site=MemorySite(Cloud(site), keys=some_keys("site")))
    )


def raising(error: BaseException) -> Callable[[], None]:
    def action() -> None:
        raise error

    return action


def test_a_requested_subcloud_is_brought_to_completed_in_the_specified_order(world: World) -> None:
    outcome = world.run()
    assert outcome.result is Result.COMPLETED
    assert world.store.state(REGION) is InitialSyncState.COMPLETED
    kinds = [
        call.split()[0] + " " + call.split()[-1] for call in world.clouds.site.calls if not call.startswith("PUT users")
    ]
    assert kinds == [
        "GET data", "login login", "GET users", "GET groups", "GET projects", "GET roles", "PUT ops", "PUT ops",
        "GET users", "GET groups", "GET projects", "GET roles", "POST fernet_repo", "login login", "GET fernet_repo",
    ]  # fmt: skip
    assert world.clouds.site.keys == world.clouds.central.keys
    assert world.attempt.ending is Ending.COMPLETED
    assert world.attempt.steps == [(Step.IDENTITY, "done"), (Step.FERNET_KEYS, "done"), (Step.AUDIT_INIT, "done")]
    assert world.store.rows[REGION].audit_is_due
    assert world.locks.held == {}
    assert world.shown == list(Step)


def test_a_hint_that_comes_twice_runs_once(world: World) -> None:
    world.run()
    writes = len(world.clouds.site.writes)
    assert world.run().result is Result.STALE
    assert len(world.clouds.site.writes) == writes


def test_a_hint_of_an_older_generation_does_nothing(world: World) -> None:
    world.store.ask(REGION, now=NOON)
    assert world.run(generation=1).result is Result.STALE
    assert world.clouds.site.calls == []


def test_a_hint_for_a_deleted_subcloud_does_nothing(world: World) -> None:
    world.store.delete(REGION)
    assert world.run().result is Result.STALE
    assert world.clouds.site.calls == []


def test_a_subcloud_somebody_else_works_on_is_busy_and_stays_requested(world: World) -> None:
    world.locks.acquire({"an audit": REGION})
    assert world.run().result is Result.BUSY
    assert world.store.state(REGION) is InitialSyncState.REQUESTED
    assert world.locks.held == {REGION: "an audit"}


@pytest.mark.parametrize("moment", ["GET roles", "PUT users", "PUT groups", "POST", "GET fernet_repo"])
def test_unmanaged_while_syncing_ends_as_cancelled_without_a_further_write(world: World, moment: str) -> None:
    def unmanage() -> None:
        world.store.leave(REGION)
        world.clouds.site.calls.append("unmanaged")

    world.just_before(moment, unmanage)
    outcome = world.run()
    assert outcome.result is Result.CANCELLED
    assert world.store.state(REGION) is InitialSyncState.NONE
    assert world.attempt.ending is Ending.CANCELLED
    after = world.clouds.site.calls[world.clouds.site.calls.index("unmanaged") + 1 :]
    # The call at whose beginning it happened was already allowed; users go side by side, up to four of them.
    assert len([call for call in after if call.startswith(("PUT", "POST"))]) <= (4 if moment == "PUT users" else 1)
    assert not world.store.rows[REGION].audit_is_due


def test_unmanaged_and_managed_again_while_syncing_leaves_the_new_request_alone(world: World) -> None:
    def unmanage_and_manage() -> None:
        world.store.leave(REGION)
        world.store.ask(REGION, now=NOON)

    world.just_before("POST", unmanage_and_manage)
    outcome = world.run()
    assert outcome.result is Result.SUPERSEDED
    assert world.store.state(REGION) is InitialSyncState.REQUESTED
    assert world.store.rows[REGION].subcloud.attempt == 0


def test_deleted_while_syncing_ends_as_cancelled(world: World) -> None:
    world.just_before("GET roles", lambda: world.store.delete(REGION))
    assert world.run().result is Result.CANCELLED
    assert world.clouds.site.writes == []


def test_a_run_that_loses_its_lock_gives_the_subcloud_back_without_a_write(world: World) -> None:
    world.just_before("GET users", lambda: world.locks.held.update({REGION: "another run"}))
    outcome = world.run()
    assert outcome.result is Result.LOCK_LOST
    assert world.clouds.site.writes == []
    assert world.store.state(REGION) is InitialSyncState.REQUESTED
    assert world.locks.held == {REGION: "another run"}


def test_when_ownership_cannot_be_checked_nothing_is_written(world: World) -> None:
    world.just_before("GET users", lambda: setattr(world.locks, "is_away", True))
    assert world.run().result is Result.LOCK_LOST
    assert world.clouds.site.writes == []
    assert world.store.state(REGION) is InitialSyncState.REQUESTED


def test_a_failed_identity_step_sends_no_keys_and_is_retried_after_the_hold_off(world: World) -> None:
    world.just_before("PUT users vim", raising(CloudError(Reason.SERVER_ERROR, "PUT ...: 500")))
    outcome = world.run()
    row = world.store.rows[REGION].subcloud
    assert (outcome.result, outcome.reason) == (Result.FAILED, Reason.SERVER_ERROR)
    assert "POST fernet_repo" not in world.clouds.site.calls
    assert (row.initial_sync_state, row.reason) == (InitialSyncState.FAILED, Reason.SERVER_ERROR)
    assert row.retry_at == NOON + timedelta(seconds=60)
    assert world.attempt.steps == [(Step.IDENTITY, "failed")]
    assert not row.subsequent_sync


def test_the_hold_off_doubles_with_each_failure_and_success_resets_it(world: World) -> None:
    waits = []
    for _ in range(3):
        world.just_before("login", raising(CloudError(Reason.UNREACHABLE, "refused")))
        world.run()
        waits.append(world.store.rows[REGION].subcloud.retry_at)
        world.store.requeue_due(now=NOON + timedelta(hours=1), longest=timedelta(hours=1))
    assert waits == [NOON + timedelta(seconds=s) for s in (60, 120, 240)]
    assert world.run().result is Result.COMPLETED
    assert world.store.rows[REGION].subcloud.attempt == 0


@pytest.mark.parametrize(("asked", "waits"), [(5, 60), (300, 300), (86400, 900)])
def test_a_cloud_that_asks_to_be_left_alone_is_left_alone_so_long(world: World, asked: float, waits: float) -> None:
    world.just_before("login", raising(CloudError(Reason.TOO_MANY_REQUESTS, "429", asked)))
    world.run()
    assert world.store.rows[REGION].subcloud.retry_at == NOON + timedelta(seconds=waits)


def test_a_subcloud_that_answers_other_keys_is_not_completed(world: World) -> None:
    world.just_before("GET fernet_repo", lambda: setattr(world.clouds.site, "keys", some_keys("forged")))
    outcome = world.run()
    assert (outcome.result, outcome.reason) == (Result.FAILED, Reason.KEYS_NOT_VERIFIED)


def test_a_subcloud_that_stores_something_else_is_not_completed(world: World) -> None:
    async def forgetful(old_id: str, record: Any) -> Any:
        world.clouds.site.note(f"PUT {record.type} {record.name}")
        return replace(record, id=old_id)

    world.clouds.site.update = forgetful  # type: ignore[method-assign]
    assert world.run().reason is Reason.IDENTITY_NOT_VERIFIED
    assert "POST fernet_repo" not in world.clouds.site.calls


def test_central_keys_that_are_no_keys_are_never_sent(world: World) -> None:
    bad = some_keys()
    world.clouds.central = replace(world.clouds.central, keys=replace(bad, keys={**bad.keys, 2: "CANARY-not-a-key"}))
    outcome = world.run()
    assert outcome.reason is Reason.CENTRAL_KEYS_INVALID
    assert "POST fernet_repo" not in world.clouds.site.calls
    assert "CANARY" not in repr(outcome)


def test_an_unreachable_central_cloud_writes_nothing_to_the_subcloud(world: World) -> None:
    world.just_before("GET central data", raising(CloudError(Reason.CENTRAL_UNREACHABLE, "refused")))
    outcome = world.run()
    assert (outcome.result, outcome.reason) == (Result.FAILED, Reason.CENTRAL_UNREACHABLE)
    assert world.clouds.site.calls == []


READS = ["GET central data", "login", "GET users", "GET groups", "GET projects", "GET roles", "GET fernet_repo"]


def come_back(world: World) -> Outcome:
    """Was synced, went offline, and is online again."""
    world.store.leave(REGION)
    world.store.ask(REGION, now=NOON)
    world.clouds.site.calls.clear()
    return world.run(generation=world.store.rows[REGION].subcloud.generation)


def reinstall(world: World) -> None:
    """Service users and projects have the central ids, as a deployment leaves them; all else is the subcloud's own."""
    own = records(users=(a_user("vim", "own-vim"),), groups=(a_group("ops", "own-ops", members=("own-vim",)),))
    fresh = MemorySite(Cloud(own), keys=some_keys("own"))
    world.clouds.site.tables, world.clouds.site.keys = fresh.tables, fresh.keys


def test_a_subcloud_that_comes_back_unchanged_is_read_whole_and_not_written(world: World) -> None:
    world.run()
    assert come_back(world).result is Result.COMPLETED
    assert world.clouds.site.calls == READS
    steps = list(world.store.attempts.values())[-1].steps
    assert steps == [(Step.IDENTITY, "done"), (Step.FERNET_KEYS, "done"), (Step.AUDIT_INIT, "done")]


def test_a_subcloud_that_was_reinstalled_while_away_gets_ids_first_and_keys_once_they_were_read_back(
    world: World,
) -> None:
    world.run()
    reinstall(world)
    assert come_back(world).result is Result.COMPLETED
    calls = world.clouds.site.calls
    keys = calls.index("POST fernet_repo")
    assert calls[keys - 4 : keys] == ["GET users", "GET groups", "GET projects", "GET roles"]
    assert world.clouds.site.named(ResourceType.USERS, "vim").id == "c-vim"
    assert world.clouds.site.keys == world.clouds.central.keys


def test_a_subcloud_that_comes_back_with_other_service_ids_fails_and_is_not_written(world: World) -> None:
    world.run()
    sysinv = world.clouds.site.named(ResourceType.USERS, "sysinv")
    del world.clouds.site.tables[ResourceType.USERS][sysinv.id]
    world.clouds.site.put(a_user("sysinv", "own-sysinv"))
    outcome = come_back(world)
    assert (outcome.result, outcome.reason) == (Result.FAILED, Reason.IDS_NOT_ALIGNED)
    assert world.clouds.site.writes == []


def test_a_subcloud_that_comes_back_with_other_keys_gets_the_keys_alone(world: World) -> None:
    world.run()
    world.clouds.site.keys = some_keys("own")
    assert come_back(world).result is Result.COMPLETED
    assert world.clouds.site.writes == ["POST fernet_repo"]
    assert world.clouds.site.calls[-2:] == ["login", "GET fernet_repo"]


def test_ids_that_are_not_there_when_read_back_keep_the_keys_from_being_sent(world: World) -> None:
    """Each write is answered as sent, and one is not kept."""
    store = world.clouds.site.update

    async def forgetful(old_id: str, record: Any) -> Any:
        if record.name == "vim":
            world.clouds.site.note("PUT users vim")
            return record
        return await store(old_id, record)

    world.clouds.site.update = forgetful  # type: ignore[method-assign]
    world.clouds.site.tables[ResourceType.GROUPS].clear()
    outcome = world.run()
    assert (outcome.result, outcome.reason) == (Result.FAILED, Reason.IDENTITY_NOT_VERIFIED)
    assert "users vim" in outcome.detail
    assert "POST fernet_repo" not in world.clouds.site.calls
    assert not world.store.rows[REGION].subcloud.subsequent_sync


def test_a_subcloud_whose_lists_are_empty_when_read_back_is_not_completed(world: World) -> None:
    """Nothing that differs is no proof where there is nothing at all."""
    world.just_before("PUT groups", world.clouds.site.tables[ResourceType.ROLES].clear)
    assert world.run().reason is Reason.SUBCLOUD_EMPTY
    assert "POST fernet_repo" not in world.clouds.site.calls


@pytest.mark.parametrize("moment", ["PUT groups ops", "POST fernet_repo", "GET fernet_repo"])
def test_a_run_that_dies_after_ids_changed_is_followed_by_one_that_sends_the_keys(world: World, moment: str) -> None:
    """Though its keys may be the central ones: it must drop the tokens that refer to old ids."""
    world.run()
    keys = world.clouds.site.keys
    reinstall(world)
    world.clouds.site.keys = keys

    class Killed(BaseException):
        pass

    world.just_before(moment, raising(Killed()))  # type: ignore[arg-type]
    with pytest.raises(Killed):
        come_back(world)
    world.locks.held.clear()
    world.store.take_back(
        world.store.in_progress_since_before(NOON + timedelta(seconds=1), now=NOON + timedelta(seconds=1)), now=NOON
    )
    assert come_back(world).result is Result.COMPLETED
    assert "POST fernet_repo" in world.clouds.site.writes
    assert come_back(world).result is Result.COMPLETED
    assert world.clouds.site.writes == []


def test_a_subcloud_that_comes_back_gets_what_changed_centrally_meanwhile(world: World) -> None:
    world.run()
    world.store.ask(REGION, now=NOON)
    changed = records(users=(a_user("vim", "c-vim2"),), groups=world.clouds.central.records.groups)
    world.clouds.central = central_data(changed)
    world.run(generation=2)
    assert "PUT users vim" in world.clouds.site.writes


def test_an_unforeseen_fault_fails_the_run_with_its_traceback_logged_once(world: World) -> None:
    world.just_before("GET roles", raising(ZeroDivisionError("bug")))
    outcome = world.run()
    assert (outcome.result, outcome.reason) == (Result.FAILED, Reason.INTERNAL_ERROR)
    assert [type(fault) for fault in world.faults] == [ZeroDivisionError]
    assert "bug" not in repr(outcome), "an unforeseen error's text may hold anything"


def test_a_run_that_takes_too_long_fails_with_timeout(world: World) -> None:
    async def hang(type_: Any) -> Any:
        time_passes(3600)
        await asyncio.Event().wait()

    world.clouds.site.list = hang  # type: ignore[method-assign]
    outcome = world.run()
    assert (outcome.result, outcome.reason) == (Result.FAILED, Reason.TIMEOUT)
    assert world.attempt.steps == [(Step.IDENTITY, "interrupted")]


def test_a_stopping_worker_gives_the_run_back_and_it_does_not_count(world: World) -> None:
    world.just_before("GET users", world.loop.stop)
    assert world.run().result is Result.GIVEN_BACK
    row = world.store.rows[REGION].subcloud
    assert (row.initial_sync_state, row.attempt) == (InitialSyncState.REQUESTED, 0)
    assert world.locks.held == {}


def test_a_run_taken_back_meanwhile_cannot_write_its_result(world: World) -> None:
    def take_back() -> None:
        world.store.take_back([RunInProgress(REGION, "run-1", NOON, 0)], now=NOON)

    world.just_before("GET fernet_repo", take_back)
    outcome = world.run()
    assert outcome.result is Result.SUPERSEDED
    assert world.store.state(REGION) is InitialSyncState.REQUESTED
    assert world.attempt.ending is Ending.ABANDONED, "an attempt has one end: the first"


def test_a_site_group_is_remembered_before_it_is_emptied_and_forgotten_when_filled() -> None:
    site = records(users=(a_user("vim", "s-vim"),), groups=(a_group("site", "s-site", members=("s-vim",)),))
    central = records(users=(a_user("vim", "c-vim"),))
    world = World(clouds=MemoryClouds(central=central_data(central), site=MemorySite(Cloud(site))))
    remembered = []
    world.just_before("PUT groups site", lambda: remembered.append(dict(world.store.rows[REGION].groups_to_refill)))
    assert world.run().result is Result.COMPLETED
    assert remembered == [{"s-site": ("c-vim",)}]
    assert world.store.rows[REGION].groups_to_refill == {}


def test_what_becomes_the_central_is_remembered_before_the_first_write(world: World) -> None:
    """A user who is deleted at the central cloud before the first audit must be deleted on the subcloud all the
    same."""
    remembered = []
    world.just_before("PUT", lambda: remembered.append(world.store.rows[REGION].placed))
    world.run()
    (placed,) = remembered
    assert placed == world.store.rows[REGION].placed
    assert [len(placed.of(type_)) for type_ in ResourceType] == [4, 1, 2, 1]
    assert "c-vim" in placed.of(ResourceType.USERS)


def test_grants_placed_earlier_are_remembered_under_the_id_their_user_takes(world: World) -> None:
    hers = Assignment("project-admin", ActorType.USER, "s-vim", "role-admin")
    world.store.rows[REGION].placed = Placed(assignments=frozenset({hers}))
    world.run()
    assert replace(hers, actor_id="c-vim") in world.store.rows[REGION].placed.assignments


@pytest.mark.parametrize("death_before", range(0, 17))
def test_a_run_that_dies_before_any_call_is_finished_by_the_next(world: World, death_before: int) -> None:
    class Killed(BaseException):
        pass

    count = itertools.count()

    def kill(call: str) -> None:
        if next(count) == death_before:
            raise Killed

    world.clouds.site.before_call = kill
    with pytest.raises(Killed):
        world.run()
    world.clouds.site.before_call = lambda call: None
    world.locks.held.clear()
    stuck = world.store.in_progress_since_before(NOON + timedelta(seconds=1), now=NOON + timedelta(seconds=1))
    world.store.take_back(stuck, now=NOON)
    assert world.run().result is Result.COMPLETED
    assert world.clouds.site.named(ResourceType.USERS, "vim").id == "c-vim"
    assert world.clouds.site.named(ResourceType.GROUPS, "ops").member_ids == ("c-vim",)
    assert world.clouds.site.keys == world.clouds.central.keys
