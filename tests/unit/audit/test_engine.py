"""One audit, told as stories: what reaches the subcloud, what the rows say afterwards, and what is reported."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from dcsync.audit.endpoints import audited_types
from dcsync.audit.engine import MIN_CENTRAL_AGE_SECONDS, Audit, AuditLimits
from dcsync.audit.guards import REPAIRS_OF_ONE_DIFFERENCE
from dcsync.audit.ports import CentralState
from dcsync.model.errors import CloudError, UnknownSubcloud
from dcsync.model.identity import (
    ActorType,
    Assignment,
    FernetKeys,
    Placed,
    Record,
    ResourceType,
    record_from_body,
    revocation_event,
)
from dcsync.model.messages import AuditHint
from dcsync.model.reasons import Reason
from dcsync.model.states.audit import AuditStatus
from dcsync.model.states.initial_sync import InitialSyncState
from dcsync.model.subcloud import EndpointType, SyncStatus
from dcsync.planner.match import Cloud
from dcsync.runs.abandoned import RunInProgress
from dcsync.runs.outcome import Outcome, Result
from dcsync.runs.ownership import BatchedOwnership
from dcsync.runs.runner import Runner
from tests.builders import NOON, a_group, a_project, a_role, a_subcloud, a_user, central_data, records, some_keys
from tests.fakes_audit import Kept, MemoryAuditStore
from tests.fakes_sync import MemoryLocks, OwnLoop
from tests.memory_clouds import MemoryClouds, MemorySite

REGION = "subcloud1"
PLATFORM, IDENTITY = EndpointType.PLATFORM, EndpointType.IDENTITY
IN_SYNC, OUT_OF_SYNC, UNKNOWN = SyncStatus.IN_SYNC, SyncStatus.OUT_OF_SYNC, SyncStatus.UNKNOWN
INTERVAL = timedelta(seconds=1200)
HOLD_OFF = timedelta(seconds=60)
LIMITS = AuditLimits(
    preview_seconds=3600,
    users_at_once=4,
    max_deletes=5,
    interval=INTERVAL,
    hold_off=HOLD_OFF,
    hold_off_max=timedelta(minutes=15),
    token_lifetime=timedelta(hours=1),
)


@dataclass
class World:
    """A subcloud whose audits are due, in line with its central cloud unless a test says otherwise."""

    store: MemoryAuditStore = field(
        default_factory=lambda: MemoryAuditStore().add(a_subcloud(initial_sync_state=InitialSyncState.COMPLETED))
    )
    locks: MemoryLocks = field(default_factory=MemoryLocks)
    clouds: MemoryClouds = field(default_factory=MemoryClouds)
    faults: list[BaseException] = field(default_factory=list)
    reports: list[tuple[EndpointType, SyncStatus, bool]] = field(default_factory=list)
    reasons: list[str | None] = field(default_factory=list)
    observed: dict[EndpointType, Any] = field(default_factory=dict)
    changes: dict[str, Any] = field(default_factory=dict)
    now: Any = NOON
    deadline_seconds: float = 3600
    loop: OwnLoop = field(default_factory=OwnLoop)
    numbers: Any = field(default_factory=lambda: itertools.count(1))

    @property
    def site(self) -> MemorySite:
        return self.clouds.site

    def engine(self) -> Audit:
        parts: dict[str, Any] = {
            "store": self.store,
            "ownership": BatchedOwnership(self.store, self.locks, lock_ttl_seconds=30, elapsed=time.monotonic),
            "clouds": self.clouds,
            "loop": self.loop,
            "reports": self.note_report,
            "limits": LIMITS,
            "now": lambda: self.now,
            "new_run_id": lambda: f"run-{next(self.numbers)}",
            "jitter": lambda: 0.5,
        }
        return Audit(**(parts | self.changes))

    def note_report(
        self,
        region_name: str,
        endpoint_type: EndpointType,
        status: SyncStatus,
        *,
        alarmable: bool,
        reason: str | None = None,
        observed_at: datetime | None = None,
    ) -> None:
        assert region_name == REGION
        self.observed[endpoint_type] = observed_at
        self.reports.append((endpoint_type, status, alarmable))
        self.reasons.append(reason)

    def runner(self) -> Runner:
        return Runner(
            locks=self.locks,
            clouds=self.clouds,
            deadline_seconds=self.deadline_seconds,
            now=lambda: self.now,
            new_run_id=lambda: f"run-{next(self.numbers)}",
            log_fault=lambda run, error: self.faults.append(error),
        )

    def run(self) -> Outcome:
        (outcome,) = self.loop.run(self.runner().run(self.engine(), [AuditHint(REGION)]))
        return outcome

    def run_again(self) -> Outcome:
        """At the time at which all of it is due again."""
        self.now = max(self.row(type_).due_at for type_ in audited_types())
        self.reports.clear()
        return self.run()

    def row(self, type_: EndpointType = IDENTITY) -> Kept:
        return self.store.row(REGION, type_)

    def told(self, type_: EndpointType = IDENTITY) -> list[SyncStatus]:
        return [status for reported, status, _ in self.reports if reported is type_]

    def centre_has(self, **lists: tuple[Record, ...]) -> None:
        self.clouds.central = replace(central_data(records(**lists)), keys=self.clouds.central.keys)

    def refuses(self, call: str, error: CloudError) -> None:
        """The subcloud answers each call of that beginning with this error."""

        def hook(about_to: str) -> None:
            if about_to.startswith(call):
                raise error

        self.site.before_call = hook

    def just_before(self, call: str, action: Callable[[], object]) -> None:
        """Do something once, just before the run makes its first call of that beginning."""
        done: list[str] = []

        def hook(about_to: str) -> None:
            if about_to.startswith(call) and not done:
                done.append(about_to)
                action()

        self.site.before_call = hook


@pytest.fixture
def world() -> World:
    return World()


def raising(error: BaseException) -> Callable[[], None]:
    def action() -> None:
        raise error

    return action


# --- the good cases ----------------------------------------------------------------------------------------------


def test_a_subcloud_in_line_is_read_once_and_reported_in_sync(world: World) -> None:
    assert world.run().result is Result.DONE
    assert world.site.writes == []
    assert len(world.site.calls) == 9
    assert world.reports == [(IDENTITY, IN_SYNC, True), (PLATFORM, IN_SYNC, True)]
    row = world.row()
    assert (row.status, row.result, row.last_good_at, row.due_at) == (
        AuditStatus.COMPLETED, IN_SYNC, NOON, NOON + INTERVAL,
    )  # fmt: skip
    assert world.row(PLATFORM).due_at == row.due_at
    assert world.locks.held == {}


def test_what_is_reported_was_observed_when_it_was_read(world: World) -> None:
    """A subcloud that answers late, or a process that was stopped, does not make the proof younger."""

    def a_minute_later() -> None:
        world.now += timedelta(minutes=1)

    world.just_before("GET fernet_repo", a_minute_later)
    world.run()
    assert world.observed == {IDENTITY: NOON, PLATFORM: NOON}
    row = world.row()
    assert (row.reported_at, row.last_audit_time) == (NOON, NOON + timedelta(minutes=1))


def test_what_was_repaired_was_observed_after_the_repair_began(world: World) -> None:
    def a_minute_later() -> None:
        world.now += timedelta(minutes=1)

    world.site.put(a_user("sysinv", password="drifted"))
    world.just_before("GET users", a_minute_later)
    world.run()
    assert world.observed == dict.fromkeys((IDENTITY, PLATFORM), NOON + timedelta(minutes=1))


def test_what_could_not_be_read_is_unknown_since_the_end_of_the_run(world: World) -> None:
    def a_minute_later() -> None:
        world.now += timedelta(minutes=1)
        raise CloudError(Reason.TIMEOUT, "the site does not answer")

    world.just_before("GET", a_minute_later)
    world.run()
    assert world.told() == [UNKNOWN]
    assert world.observed[IDENTITY] == NOON + timedelta(minutes=1)


def test_drift_is_repaired_looked_at_again_and_reported_once(world: World) -> None:
    world.site.put(a_user("sysinv", password="drifted"))
    outcome = world.run()
    assert world.site.writes == ["PUT users sysinv"]
    assert outcome.shown["identity"] == "repaired"
    assert outcome.shown["platform"] == "in-sync"
    assert world.told() == [IN_SYNC]
    row = world.row()
    assert (row.differences, row.repaired_at, row.difference_repairs) == (("users sysinv: password",), NOON, 1)
    world.run_again()
    assert world.site.writes == ["PUT users sysinv"]
    assert (world.row().difference, world.row().difference_repairs) == (None, 0)
    assert world.row().differences == ("users sysinv: password",)


def test_differing_keys_are_replaced_as_a_set_and_read_back(world: World) -> None:
    world.site.keys = some_keys("drifted")
    world.run()
    assert world.site.keys == world.clouds.central.keys
    assert world.site.writes == ["POST fernet_repo"]
    assert world.told(PLATFORM) == [IN_SYNC]
    assert world.row(PLATFORM).differences[0].startswith("fernet_repo")


def test_where_ids_changed_the_keys_are_sent_as_well(world: World) -> None:
    world.centre_has(users=(a_user("bob", "c-bob"),))
    world.site.put(a_user("bob", "s-bob"))
    world.run()
    assert world.site.writes == ["PUT users bob", "POST fernet_repo"]
    assert list(world.store.history[0].written.names) == world.site.writes


def test_only_what_is_due_is_looked_at(world: World) -> None:
    world.row(IDENTITY).due_at = NOON + INTERVAL
    world.run()
    assert [type_ for type_, _, _ in world.reports] == [PLATFORM]
    assert "GET users" not in world.site.calls


def test_the_next_audit_is_due_give_or_take_a_tenth(world: World) -> None:
    for jitter, factor in ((0.0, 0.9), (1.0, 1.1)):
        world.changes["jitter"] = lambda jitter=jitter: jitter
        world.row(PLATFORM).due_at = NOON
        world.run()
        assert world.row(PLATFORM).due_at == NOON + INTERVAL * factor


def test_what_is_placed_is_remembered_and_a_central_deletion_deletes_exactly_that(world: World) -> None:
    world.site.put(a_user("own", "s-own"))
    world.centre_has(users=(a_user("bob", "c-bob"),))
    world.run()
    assert "c-bob" in world.store.placed[REGION].of(ResourceType.USERS)
    assert "s-own" not in world.store.placed[REGION].of(ResourceType.USERS)
    world.centre_has()
    world.run_again()
    assert world.site.writes[-1] == "DELETE users bob"
    assert "s-own" in world.site.tables[ResourceType.USERS]
    assert "c-bob" not in world.store.placed[REGION].of(ResourceType.USERS)


def test_a_conflict_only_a_person_can_resolve_does_not_keep_central_deletions_from_a_subcloud(world: World) -> None:
    """What an initial sync aligned is the central cloud's, also where the first audit finds nothing that it could
    repair."""
    world.site.put(a_user("carol"), a_user("old-bob", "c-bob"), a_user("bob", "s-own"))
    world.centre_has(users=(a_user("carol"), a_user("bob", "c-bob")))
    world.run()
    assert (world.row().reason, world.site.writes) == (Reason.IDENTITY_NOT_VERIFIED, [])
    world.centre_has(users=(a_user("bob", "c-bob"),))
    world.run_again()
    assert world.site.writes == ["DELETE users carol"]


def test_a_role_that_keystone_does_not_delete_keeps_no_user(world: World) -> None:
    """A role that bootstrap made is immutable on the subcloud, whatever the central cloud did to its own."""
    world.site.put(a_role("reader"), a_user("bob"))
    world.store.placed[REGION] = Placed(
        {ResourceType.ROLES: frozenset({"role-reader"}), ResourceType.USERS: frozenset({"user-bob"})}
    )
    world.refuses("DELETE roles", CloudError(Reason.REFUSED, "403"))
    world.run()
    assert "user-bob" not in world.site.tables[ResourceType.USERS]
    assert world.row().reason is Reason.REFUSED


def test_a_planned_rotation_is_reported_as_worth_no_alarm(world: World) -> None:
    world.store.keys_planned_until = NOON + INTERVAL
    world.site.keys = some_keys("drifted")
    world.just_before("POST fernet_repo", raising(CloudError(Reason.SERVER_ERROR, "500")))
    world.run()
    assert world.reports == [(IDENTITY, IN_SYNC, True), (PLATFORM, OUT_OF_SYNC, False)]


# --- hints and ownership -----------------------------------------------------------------------------------------


def test_a_subcloud_somebody_else_works_on_is_busy_and_stays_due(world: World) -> None:
    world.locks.acquire({"an initial sync": REGION})
    assert world.run().result is Result.BUSY
    assert world.row().status is AuditStatus.NONE
    assert world.locks.held == {REGION: "an initial sync"}


def test_a_hint_that_comes_twice_runs_once(world: World) -> None:
    world.run()
    calls = len(world.site.calls)
    assert world.run().result is Result.STALE
    assert len(world.site.calls) == calls


def test_one_whose_initial_sync_is_not_completed_is_not_audited(world: World) -> None:
    world.store.leave(REGION)
    assert world.run().result is Result.STALE
    assert world.site.calls == []


@pytest.mark.parametrize("moment", ["GET users", "PUT users bob", "PUT groups", "POST fernet_repo"])
def test_one_that_leaves_meanwhile_sees_no_further_write_and_no_report(world: World, moment: str) -> None:
    world.centre_has(users=(a_user("bob", "c-bob"),), groups=(a_group("ops", members=("c-bob",)),))
    world.site.put(a_user("bob", "s-bob"), a_group("ops"))
    world.just_before(moment, lambda: world.store.leave(REGION))
    outcome = world.run()
    assert outcome.result is Result.CANCELLED
    allowed = [call for call in world.site.writes if call.startswith(moment)]
    assert world.site.writes[-1:] == allowed[-1:]
    assert world.reports == []
    assert (world.row().status, world.row().run_id) == (AuditStatus.NONE, None)


def test_a_lost_lock_stops_the_next_write(world: World) -> None:
    world.site.put(a_user("sysinv", password="drifted"))
    world.just_before("GET users", lambda: world.locks.held.update({REGION: "another"}))
    assert world.run().result is Result.LOCK_LOST
    assert world.site.writes == []
    assert world.row().due_at == NOON


def test_a_run_that_was_taken_back_writes_nothing_more(world: World) -> None:
    world.site.put(a_user("sysinv", password="drifted"))

    def take_back() -> None:
        world.store.take_back([RunInProgress(REGION, "run-1", NOON, 0)], now=NOON)

    world.just_before("GET users", take_back)
    assert world.run().result is Result.SUPERSEDED
    assert world.site.writes == []


def test_a_request_during_a_run_leads_to_another_run(world: World) -> None:
    def ask() -> None:
        world.store.request(None, [IDENTITY], now=NOON, by="eve")

    world.just_before("GET users", ask)
    world.run()
    assert (world.row().generation, world.row().observed_generation, world.row().due_at) == (1, 0, NOON)
    world.run()
    assert (world.row().observed_generation, world.row().due_at) == (1, NOON + INTERVAL)


def test_a_stopping_worker_gives_the_audit_back(world: World) -> None:
    world.just_before("GET users", world.loop.stop)
    assert world.run().result is Result.GIVEN_BACK
    assert (world.row().status, world.row().due_at, world.row().attempt) == (AuditStatus.NONE, NOON, 0)


def test_an_unreachable_broker_stops_before_the_write(world: World) -> None:
    world.just_before("GET users", lambda: setattr(world.locks, "is_away", True))
    world.site.put(a_user("sysinv", password="drifted"))
    assert world.run().result is Result.LOCK_LOST
    assert world.site.writes == []


# --- history -----------------------------------------------------------------------------------------------------


def test_a_repair_is_in_the_history_with_its_writes_and_a_clean_audit_is_not(world: World) -> None:
    world.changes["worker"] = "sync@host"
    world.site.put(a_user("sysinv", password="drifted"))
    world.run()
    world.run_again()
    (kept,) = world.store.history
    assert (kept.worker, kept.run_id[:4], kept.endpoint_type, kept.result) == ("sync@host", "run-", IDENTITY, IN_SYNC)
    assert kept.differences.count == 1
    assert (kept.written.names, kept.not_written.names) == (("PUT users sysinv",), ())


def test_what_a_broken_off_repair_wrote_is_told_apart_from_what_it_did_not(world: World) -> None:
    world.centre_has(users=(a_user("bob"), a_user("carol")))
    world.just_before("POST users carol", raising(CloudError(Reason.REPLY_TOO_LARGE, "16 MiB")))
    world.run()
    (kept,) = world.store.history
    assert kept.reason == "reply-too-large"
    assert (kept.written.names, kept.not_written.names) == (("POST users bob",), ("POST users carol",))


def test_one_refused_record_stops_only_what_depends_on_it_and_the_history_says_which(world: World) -> None:
    """Found with a user whose PUT failed for ever: no later deletion reached the subcloud."""
    ops = a_group("ops", members=("user-carol", "user-dave"))
    world.centre_has(users=(a_user("carol"), a_user("dave")), groups=(ops,), roles=(a_role("new"),))
    world.site.put(a_user("leaver"))
    world.store.placed[REGION] = Placed({ResourceType.USERS: frozenset({"user-leaver"})})
    carol_reads = Assignment("project-admin", ActorType.USER, "user-carol", "role-admin")
    world.clouds.central = replace(world.clouds.central, assignments=frozenset({carol_reads}))
    world.refuses("POST users carol", CloudError(Reason.SERVER_ERROR, "POST /identity/users/: 500"))
    outcome = world.run()
    assert world.site.named(ResourceType.GROUPS, "ops").member_ids == ("user-dave",)
    assert "role-new" in world.site.tables[ResourceType.ROLES]
    assert "user-leaver" not in world.site.tables[ResourceType.USERS]
    refused = "POST users carol: POST /identity/users/: 500"
    row, (kept,) = world.row(), world.store.history
    assert (row.reason, row.result, outcome.is_failure) == (Reason.SERVER_ERROR, OUT_OF_SYNC, True)
    assert row.detail == f"refused: {refused}; not sent because of that: 2"
    grant = "PUT project_role_assignments project-admin_user-carol_role-admin"
    assert kept.not_written.names == (
        refused,
        "PUT groups ops: not sent, it depends on POST users carol",
        f"{grant}: not sent, it depends on POST users carol",
    )
    assert set(kept.written.names) == {"POST users dave", "POST groups ops", "POST roles new", "DELETE users leaver"}
    world.site.before_call = lambda call: None
    world.run_again()
    assert (world.told(), world.row().reason) == ([IN_SYNC], None)
    assert carol_reads in world.site.grants


def test_a_write_that_is_answered_with_an_error_and_stored_counts_as_written(world: World) -> None:
    """docs/upstream/real-keystone.md R10: so dcdbsync answers for a group with a member that has no local user."""
    world.site.put(changed_group := a_group("ops"))
    world.centre_has(groups=(replace(changed_group, body={**changed_group.body, "local_user_ids": ["user-admin"]}),))
    stored = world.site.update

    async def stores_and_fails(old_id: str, record: Record) -> Record:
        await stored(old_id, record)
        raise CloudError(Reason.REFUSED, "PUT /identity/groups/group-ops: 404")

    world.site.update = stores_and_fails  # type: ignore[method-assign]
    world.run()
    assert (world.told(), world.row().reason) == ([IN_SYNC], None)
    assert world.store.history[0].not_written.names == ()


def test_a_domain_with_users_keeps_its_id_and_the_rest_is_repaired(world: World) -> None:
    """A real dcdbsync deletes the passwords of its users, those that only the subcloud has included."""
    world.site.put(a_domain("s-d"), a_user("own", domain_id="s-d"), a_user("sysinv", password="drifted"))
    world.centre_has(projects=(a_domain("c-d"),), users=(a_user("bob", "c-bob", domain_id="c-d"),))
    world.run()
    assert world.site.writes == ["PUT users sysinv"]
    assert world.site.named(ResourceType.USERS, "own").body["password"]
    row, (kept,) = world.row(), world.store.history
    assert (row.reason, row.result, row.due_at) == (Reason.GUARD_REFUSED, OUT_OF_SYNC, NOON + INTERVAL)
    assert "the users in it (own)" in row.detail
    assert "remove these users" in row.detail
    assert [name.split(": ")[0] for name in kept.not_written.names] == ["PUT projects d", "POST users bob"]
    (identity, _) = world.engine().preview(REGION, frozenset(audited_types()))
    assert identity.writes == ()
    assert identity.refused is not None
    assert identity.refused.detail == row.detail
    world.site.delete_row(ResourceType.USERS, "user-own")
    world.run_again()
    assert world.told() == [IN_SYNC]
    assert world.site.named(ResourceType.USERS, "bob").domain_id == "c-d"


def test_a_domain_whose_id_the_subcloud_refuses_does_not_keep_the_rest_from_it(world: World) -> None:
    world.site.put(a_domain("s-d"), a_user("sysinv", password="drifted"))
    world.site.tagged = {"s-d"}
    world.centre_has(projects=(a_domain("c-d"),))
    world.run()
    assert world.site.writes == ["PUT projects d", "PUT users sysinv"]
    for _ in range(2):
        assert world.row().reason is Reason.SERVER_ERROR
        assert world.row().detail.count("tags or options") == 1
        world.run_again()


def test_a_domain_takes_its_id_in_the_run_that_deletes_its_last_user(world: World) -> None:
    world.site.put(a_domain("s-d"), a_user("leaver", domain_id="s-d"))
    world.store.placed[REGION] = Placed({ResourceType.USERS: frozenset({"user-leaver"})})
    world.centre_has(projects=(a_domain("c-d"),))
    world.run()
    assert world.site.writes == ["DELETE users leaver", "PUT projects d", "POST fernet_repo"]
    assert world.told() == [IN_SYNC]


def test_replaced_keys_are_in_the_history(world: World) -> None:
    world.site.keys = some_keys("other")
    world.run()
    (kept,) = world.store.history
    assert (kept.endpoint_type, kept.written.names) == (PLATFORM, ("POST fernet_repo",))


def test_what_a_guard_refused_is_in_the_history_as_not_written(world: World) -> None:
    world.centre_has(users=tuple(a_user(f"user{number}") for number in range(LIMITS.max_deletes + 1)))
    world.run()
    world.centre_has()
    world.run_again()
    kept = world.store.history[-1]
    assert (kept.reason, kept.written.count, kept.not_written.count) == ("guard-refused", 0, LIMITS.max_deletes + 1)


# --- failures ----------------------------------------------------------------------------------------------------


def test_an_unreachable_subcloud_is_unknown_with_a_reason_and_its_last_good_answer(world: World) -> None:
    world.run()
    world.clouds.site_error = CloudError(Reason.UNREACHABLE, "no route")
    outcome = world.run_again()
    assert outcome.is_failure
    assert world.reports == [(IDENTITY, UNKNOWN, True), (PLATFORM, UNKNOWN, True)]
    row = world.row()
    assert (row.reason, row.detail, row.result, row.last_good_at) == (Reason.UNREACHABLE, "no route", IN_SYNC, NOON)
    assert HOLD_OFF <= row.due_at - world.now <= HOLD_OFF * 1.2


def test_the_hold_off_doubles_with_each_failure(world: World) -> None:
    world.clouds.site_error = CloudError(Reason.UNREACHABLE, "no route")
    world.run()
    waits = []
    for _ in range(3):
        world.run_again()
        waits.append((world.row().due_at - world.now) / HOLD_OFF)
    assert waits == pytest.approx([2.2, 4.4, 8.8])


@pytest.mark.parametrize("reason", [Reason.CENTRAL_UNREACHABLE, Reason.CENTRAL_EMPTY])
def test_a_central_cloud_that_does_not_answer_says_nothing_about_the_subcloud(world: World, reason: Reason) -> None:
    world.clouds.central_error = CloudError(reason, "gone")
    world.run()
    assert world.reports == []
    assert world.site.calls == []
    assert (world.row().reason, world.row().observed_generation) == (reason, 0)


def test_a_failure_of_one_endpoint_leaves_the_other_its_chance(world: World) -> None:
    world.just_before("GET revocation", raising(CloudError(Reason.SERVER_ERROR, "500")))
    world.run()
    assert world.reports == [(IDENTITY, UNKNOWN, True), (PLATFORM, IN_SYNC, True)]
    assert world.row().due_at < world.row(PLATFORM).due_at


def test_where_nobody_answers_the_other_endpoint_is_not_tried(world: World) -> None:
    world.just_before("GET revocation", raising(CloudError(Reason.UNREACHABLE, "gone")))
    world.run()
    assert world.reports == [(IDENTITY, UNKNOWN, True), (PLATFORM, UNKNOWN, True)]
    assert "GET fernet_repo" not in world.site.calls


def test_what_a_repair_that_failed_had_placed_by_then_is_remembered(world: World) -> None:
    world.centre_has(users=(a_user("bob"), a_user("carol")))
    world.just_before("POST users carol", raising(CloudError(Reason.UNREACHABLE, "gone")))
    world.run()
    assert "user-bob" in world.site.tables[ResourceType.USERS]
    world.centre_has()
    world.run_again()
    assert "user-bob" not in world.site.tables[ResourceType.USERS]


def test_a_repair_that_is_refused_is_reported_out_of_sync_and_tried_again(world: World) -> None:
    world.site.put(a_user("sysinv", password="drifted"))
    world.just_before("PUT users", raising(CloudError(Reason.SERVER_ERROR, "500")))
    world.run()
    assert world.told() == [OUT_OF_SYNC]
    assert world.row().reason is Reason.SERVER_ERROR
    assert world.row().due_at - NOON < INTERVAL


@pytest.mark.parametrize("reason", [Reason.SERVER_ERROR, Reason.REFUSED, Reason.BAD_REPLY, Reason.UNREACHABLE])
def test_repairs_that_a_fault_stopped_are_made_good_once_it_is_over_however_long_it_took(
    world: World, reason: Reason
) -> None:
    world.site.put(a_user("sysinv", password="drifted"))

    def refuse(call: str) -> None:
        if call.startswith("PUT"):
            raise CloudError(reason, "not now")

    world.site.before_call = refuse
    for _ in range(REPAIRS_OF_ONE_DIFFERENCE + 1):
        world.run_again()
        assert (world.row().reason, world.row().result) == (reason, OUT_OF_SYNC)
    world.site.before_call = lambda call: None
    world.run_again()
    assert world.told() == [IN_SYNC]


def test_a_site_that_goes_away_during_the_repair_is_unknown(world: World) -> None:
    world.site.put(a_user("sysinv", password="drifted"))
    world.just_before("PUT users", raising(CloudError(Reason.UNREACHABLE, "gone")))
    world.run()
    assert world.told() == [UNKNOWN]
    assert world.row().difference_repairs == 0


def test_keys_that_were_not_stored_are_out_of_sync(world: World) -> None:
    world.site.keys = some_keys("stubborn")

    async def refuse(keys: FernetKeys) -> None:
        world.site.note("POST fernet_repo")

    world.site.fernet_repo.replace = refuse  # type: ignore[method-assign]
    world.run()
    assert world.told(PLATFORM) == [OUT_OF_SYNC]
    assert world.row(PLATFORM).reason is Reason.KEYS_NOT_VERIFIED


def test_an_unforeseen_fault_ends_the_audit_and_is_logged(world: World) -> None:
    world.just_before("GET users", raising(ZeroDivisionError()))
    world.run()
    assert world.row().reason is Reason.INTERNAL_ERROR
    assert [type(fault) for fault in world.faults] == [ZeroDivisionError]
    assert world.reports == []


def test_lost_ids_of_services_are_out_of_sync_and_nothing_is_written(world: World) -> None:
    del world.site.tables[ResourceType.USERS]["user-sysinv"]
    world.site.put(a_user("sysinv", "own"))
    world.run()
    assert world.told() == [OUT_OF_SYNC]
    assert world.row().reason is Reason.IDS_NOT_ALIGNED
    assert world.site.writes == []


def test_keys_are_not_sent_where_ids_were_seen_not_to_agree(world: World) -> None:
    world.site.keys = some_keys("other")
    del world.site.tables[ResourceType.USERS]["user-sysinv"]
    world.site.put(a_user("sysinv", "own"))
    world.run()
    assert world.site.writes == []
    assert world.row(PLATFORM).reason is Reason.IDS_NOT_ALIGNED
    assert "GET fernet_repo" not in world.site.calls


# --- guards ------------------------------------------------------------------------------------------------------


def stubborn(world: World) -> None:
    """The site takes every PUT of sysinv and keeps its own hash."""
    own = a_user("sysinv", password="stubborn")
    world.site.put(own)

    def forget(call: str) -> None:
        if call == "GET users":
            world.site.put(own)

    world.site.before_call = forget


def test_the_same_difference_after_three_repairs_is_not_converging_and_left_alone(world: World) -> None:
    stubborn(world)
    for _ in range(3):
        world.run_again()
        assert world.row().reason is Reason.IDENTITY_NOT_VERIFIED
    writes = len(world.site.writes)
    world.run_again()
    row = world.row()
    assert row.reason is Reason.NOT_CONVERGING
    assert "users sysinv: password" in row.detail
    assert len(world.site.writes) == writes
    assert world.told() == [OUT_OF_SYNC]
    assert row.due_at == world.now + INTERVAL


def test_logouts_at_the_central_cloud_do_not_hide_that_a_difference_is_the_same(world: World) -> None:
    stubborn(world)
    for number in range(4):
        assert world.row().reason is not Reason.NOT_CONVERGING
        now = world.now.strftime("%Y-%m-%d %H:%M:%S")
        event = revocation_event({"audit_id": f"a{number}", "issued_before": now, "revoked_at": now})
        world.clouds.central = replace(world.clouds.central, revocation_events=frozenset({event}))
        world.run_again()
    assert world.row().reason is Reason.NOT_CONVERGING


def test_new_logouts_at_the_central_cloud_are_another_difference_each_time(world: World) -> None:
    for number in range(5):
        event = revocation_event({"audit_id": f"a{number}"})
        world.clouds.central = replace(world.clouds.central, revocation_events=frozenset({event}))
        world.run_again()
        assert world.row().reason is None
        assert event in world.site.events


def test_what_was_not_converging_is_tried_again_when_an_operator_asks_or_the_central_cloud_changed(
    world: World,
) -> None:
    stubborn(world)
    for _ in range(4):
        world.run_again()
    writes = len(world.site.writes)
    world.store.request(None, [IDENTITY], now=world.now, by="eve")
    world.run()
    assert len(world.site.writes) == writes + 1
    for _ in range(3):
        world.run_again()
    writes = len(world.site.writes)
    changed = tuple(a_user("sysinv", password="newer") if u.name == "sysinv" else u for u in records().users)
    world.clouds.central = replace(world.clouds.central, records=replace(records(), users=changed))
    world.run_again()
    assert len(world.site.writes) == writes + 1


def many_placed(world: World, count: int) -> None:
    users = tuple(a_user(f"u{n}", f"c-u{n}") for n in range(count))
    world.clouds.site = MemorySite(Cloud(records(users=users)))
    world.store.placed[REGION] = Placed({ResourceType.USERS: frozenset(user.id for user in users)})


def test_more_deletions_than_allowed_stop_before_the_first_write(world: World) -> None:
    many_placed(world, 6)
    world.site.put(a_user("sysinv", password="drifted"))
    world.run()
    assert world.site.writes == []
    row = world.row()
    assert (row.reason, row.result, world.told()) == (Reason.GUARD_REFUSED, OUT_OF_SYNC, [OUT_OF_SYNC])
    assert "6" in row.detail
    assert row.due_at == NOON + INTERVAL


def a_domain(id_: str) -> Record:
    row = {**a_project("d", id_, domain_id="root").body["project"], "is_domain": True, "parent_id": None}
    return record_from_body(ResourceType.PROJECTS, {"project": row})


def test_deletions_that_show_only_after_a_domain_was_moved_are_stopped_as_well(world: World) -> None:
    many_placed(world, 6)
    world.site.put(a_domain("s-d"))
    world.centre_has(projects=(a_domain("c-d"),))
    world.run()
    assert world.site.writes == ["PUT projects d", "POST fernet_repo"]
    assert (world.row().reason, world.told()) == (Reason.GUARD_REFUSED, [OUT_OF_SYNC])
    assert "6" in world.row().detail


def test_as_many_deletions_as_allowed_are_carried_out(world: World) -> None:
    many_placed(world, 5)
    world.run()
    assert len(world.site.writes) == 5
    assert world.told() == [IN_SYNC]


def test_deletions_an_operator_allowed_are_carried_out_once(world: World) -> None:
    many_placed(world, 6)
    world.store.request(None, [IDENTITY], now=NOON, by="eve", allow_deletes=True)
    world.run()
    assert len(world.site.writes) == 6
    assert not world.row().deletes_allowed


def test_a_central_cloud_that_shrank_beyond_belief_changes_nothing(world: World) -> None:
    seen = CentralState(endpoint_type=IDENTITY, fingerprint="", events_fingerprint="", counts={"users": 7})
    world.store.accept_central(seen, old=None, now=NOON)
    world.site.put(a_user("sysinv", password="drifted"))
    world.run()
    assert world.site.writes == []
    assert world.row().reason is Reason.GUARD_REFUSED
    assert "users went from 7 to 3" in world.row().detail
    assert world.told() == []
    world.store.request(None, [IDENTITY], now=world.now, by="eve", allow_deletes=True)
    world.run()
    assert world.told() == [IN_SYNC]


def test_a_central_cloud_that_is_not_believed_is_asked_again_soon_for_it_may_be_well_again(world: World) -> None:
    seen = CentralState(endpoint_type=IDENTITY, fingerprint="", events_fingerprint="", counts={"users": 7})
    world.store.accept_central(seen, old=None, now=NOON)
    world.run()
    row = world.row()
    assert row.reason is Reason.GUARD_REFUSED
    assert HOLD_OFF <= row.due_at - NOON <= HOLD_OFF * 1.2


def test_groups_stay_where_the_central_cloud_suddenly_lists_none(world: World) -> None:
    world.centre_has(groups=(a_group("ops"),))
    world.run()
    seen = CentralState(endpoint_type=IDENTITY, fingerprint="", events_fingerprint="", counts={"groups": 1})
    world.store.accept_central(seen, old=None, now=NOON)
    world.centre_has()
    world.run_again()
    assert [group.name for group in world.site.cloud.records.groups] == ["ops"]
    assert "groups went from 1 to 0" in world.row().detail


# --- parts and previews ------------------------------------------------------------------------------------------


def test_a_restricted_repair_leaves_the_rest_and_is_not_in_sync(world: World) -> None:
    world.site.put(a_user("sysinv", password="drifted"))
    world.centre_has(groups=(a_group("ops"),))
    world.store.request(None, [IDENTITY], now=NOON, by="eve", resource_types=["groups"])
    world.run()
    assert world.site.writes == ["POST groups ops"]
    row = world.row()
    assert (row.result, row.reason, row.observed_generation) == (OUT_OF_SYNC, None, 1)
    assert world.told() == [OUT_OF_SYNC]
    world.run_again()
    assert world.told() == [IN_SYNC]


def test_a_preview_tells_what_would_be_done_and_does_nothing(world: World) -> None:
    world.site.put(a_user("sysinv", password="CANARY"))
    world.site.keys = some_keys("drifted")
    identity, platform = world.engine().preview(REGION, frozenset(audited_types()))
    assert identity.writes == ("PUT users sysinv",)
    assert platform.writes == ("POST fernet_repo",)
    assert "CANARY" not in repr((identity, platform))
    assert world.site.writes == []
    assert world.row().status is AuditStatus.NONE
    with pytest.raises(UnknownSubcloud):
        world.engine().preview("nowhere", frozenset(audited_types()))


@pytest.mark.parametrize("password", [None, "CANARY"], ids=["not known", "known"])
def test_a_preview_shows_exactly_the_writes_that_an_audit_then_makes(world: World, password: str | None) -> None:
    world.changes["admin_password"] = password
    world.site.put(a_user("admin", password="drifted"), a_user("bob", "s-bob"), a_group("ops", members=("s-bob",)))
    world.centre_has(users=(a_user("bob", "c-bob"),), groups=(a_group("ops", members=("c-bob",)),))
    (identity,) = world.engine().preview(REGION, frozenset({IDENTITY}))
    world.row(PLATFORM).due_at = NOON + INTERVAL
    world.run()
    shown = [write.replace("PATCH users admin", "PATCH users user-admin") for write in identity.writes]
    assert [*shown, "POST fernet_repo"] == world.site.writes
    assert ("PATCH users admin" in identity.writes) is (password is not None)


def test_a_preview_tells_of_a_hash_that_is_no_text(world: World) -> None:
    world.site.put(a_user("sysinv", password="\ud800"))
    (identity,) = world.engine().preview(REGION, frozenset({IDENTITY}))
    assert identity.differences[0].startswith("users sysinv: password (")


def test_a_preview_says_what_a_guard_would_refuse(world: World) -> None:
    many_placed(world, 6)
    (identity,) = world.engine().preview(REGION, frozenset({IDENTITY}))
    assert identity.deletions == 6
    assert identity.refused is not None
    assert identity.refused.reason is Reason.GUARD_REFUSED


def test_an_outcome_is_told_in_plain_values_without_secrets(world: World) -> None:
    world.site.put(a_user("sysinv", password="CANARY"))
    told = world.run().as_dict()
    assert told["identity"] == "repaired"
    assert told["platform"] == "in-sync"
    assert told["differences"] == ["users sysinv: password"]
    assert "CANARY" not in repr(told)


@pytest.mark.parametrize(
    ("minutes", "is_copied"), [(0, True), (89, True), (91, False)], ids=["just now", "lately", "long ago"]
)
def test_revocations_are_copied_until_keystone_would_remove_them(minutes: int, is_copied: bool) -> None:
    revoked_at = (NOON - timedelta(minutes=minutes)).strftime("%Y-%m-%d %H:%M:%S")
    event = revocation_event({"audit_id": "a1", "issued_before": revoked_at, "revoked_at": revoked_at})
    world = World()
    world.clouds.central = replace(world.clouds.central, revocation_events=frozenset({event}))
    world.run()
    assert (event in world.clouds.site.events) is is_copied
    assert {world.row(type_).result for type_ in audited_types()} == {IN_SYNC}


def test_a_revocation_without_a_date_counts() -> None:
    assert revocation_event({"audit_id": "a1"}).matters_at(NOON, token_lifetime=timedelta(0))


def test_what_was_read_of_the_central_cloud_before_the_request_will_not_do() -> None:
    world = World()
    world.store.request([REGION], audited_types(), now=NOON - timedelta(seconds=3), by="the watch")
    world.run()
    assert world.clouds.asked_ages == [3.0]


def test_audits_asked_for_just_now_do_not_each_read_the_whole_centre() -> None:
    world = World()
    world.store.request([REGION], audited_types(), now=NOON, by="the watch")
    world.run()
    assert world.clouds.asked_ages == [MIN_CENTRAL_AGE_SECONDS]
