"""Which audits are sent, and when the central cloud makes them due: over rows in memory, with a clock the test
moves."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import pytest

from dcsync.audit.endpoints import audited_types
from dcsync.audit.sweep import REPORT_PATIENCE, SEARCH_ALL_EVERY, AuditSweep, AuditSweepReport
from dcsync.audit.watch import EVENTS_MIN_INTERVAL, MAX_AGE_SECONDS, CentralWatch, WatchResult
from dcsync.model.errors import BrokerUnreachable, CloudError, RowLocked
from dcsync.model.identity import ActorType, Assignment, revocation_event
from dcsync.model.messages import AuditHint
from dcsync.model.reasons import Reason
from dcsync.model.states.initial_sync import InitialSyncState
from dcsync.model.subcloud import EndpointType, SyncStatus
from dcsync.runs.dispatch import SweepLimits
from dcsync.state.ports import CentralFacts
from tests.builders import NOON, a_group, a_subcloud, a_user, central_data, records, some_keys
from tests.fake_messenger import FakeMessenger
from tests.fakes_audit import MemoryAuditStore
from tests.fakes_sync import MemoryLocks, OwnLoop
from tests.memory_clouds import MemoryClouds

PLATFORM, IDENTITY = EndpointType.PLATFORM, EndpointType.IDENTITY
TTL = timedelta(seconds=30)
PATIENCE = timedelta(seconds=5)
QUARANTINE = timedelta(minutes=15)
SWEEP = timedelta(seconds=10)


LONGEST = timedelta(minutes=22)


def three_due() -> MemoryAuditStore:
    return MemoryAuditStore().add(
        *(a_subcloud(f"s{n}", id=n, initial_sync_state=InitialSyncState.COMPLETED) for n in (1, 2, 3))
    )


@dataclass
class World:
    store: MemoryAuditStore = field(default_factory=three_due)
    locks: MemoryLocks = field(default_factory=MemoryLocks)
    messenger: FakeMessenger = field(default_factory=FakeMessenger)
    clouds: MemoryClouds = field(default_factory=MemoryClouds)
    max_in_flight: int = 100
    reports: list[tuple[str, SyncStatus, str | None, datetime, bool]] = field(default_factory=list)

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
        assert observed_at is not None
        self.reports.append((region_name, status, reason, observed_at, alarmable))

    @property
    def sweeping(self) -> AuditSweep:
        limits = SweepLimits(self.max_in_flight, lock_ttl=TTL, patience=PATIENCE, quarantine=QUARANTINE)
        return AuditSweep(self.store, self.locks, self.messenger, limits, self.note_report, longest=LONGEST)

    def sweep(self, now: datetime = NOON) -> AuditSweepReport:
        return self.sweeping.run(now=now)

    def look(self, now: datetime = NOON) -> list[WatchResult]:
        return CentralWatch(self.store, self.clouds, OwnLoop()).run(now=now)

    @property
    def sent(self) -> list[str]:
        return [hint.task_id for hint in self.messenger.audits]

    def generations(self, type_: EndpointType = IDENTITY) -> list[int]:
        return [self.store.row(name, type_).generation for name in ("s1", "s2", "s3")]

    def centre_keeps(self, **changes: object) -> None:
        self.clouds.central = replace(self.clouds.central, **changes)  # type: ignore[arg-type]


@pytest.fixture
def world() -> World:
    return World()


# --- the sweep ---------------------------------------------------------------------------------------------------


def test_what_is_due_is_sent_once(world: World) -> None:
    assert world.sweep().sent == 3
    assert world.sent == ["s1.audit.1", "s2.audit.1", "s3.audit.1"]
    assert world.sweep(NOON + timedelta(seconds=1)).is_idle


def test_nothing_is_sent_before_it_is_due(world: World) -> None:
    assert world.sweep(NOON - timedelta(seconds=1)).is_idle


def test_one_that_left_is_not_sent(world: World) -> None:
    world.store.leave("s2")
    world.sweep()
    assert world.sent == ["s1.audit.1", "s3.audit.1"]


def test_audits_in_flight_are_bounded_and_room_is_filled_as_they_end(world: World) -> None:
    world.max_in_flight = 2
    world.sweep()
    assert len(world.sent) <= 2
    for name in ("s1", "s2"):
        world.store.claim({f"run-{name}": name}, now=NOON)
    world.sweep()
    assert len(world.sent) <= 2


def test_a_hint_that_waits_in_the_queue_is_not_sent_again_and_a_lost_one_is(world: World) -> None:
    world.sweep()
    later = NOON + PATIENCE + timedelta(seconds=1)
    assert world.sweep(later).is_idle
    world.messenger.audits.remove(AuditHint("s2", 1))
    assert world.sweep(later).lost == 1
    assert world.sent[-1] == "s2.audit.2"


def test_a_broker_that_is_away_leaves_everything_due(world: World) -> None:
    world.messenger.is_away = True
    with pytest.raises(BrokerUnreachable):
        world.sweep()
    world.messenger.is_away = False
    assert world.sweep().sent == 3


def test_an_audit_whose_lock_is_gone_is_taken_back_and_one_at_work_is_not(world: World) -> None:
    for name in ("s1", "s2"):
        world.store.claim({f"run-{name}": name}, now=NOON)
    world.locks.acquire({"run-s2": "s2"})
    assert world.sweep(NOON + TTL).taken_back == 0
    report = world.sweep(NOON + TTL + timedelta(seconds=1))
    assert report.taken_back == 1
    assert "s1.audit.1" in world.sent
    assert world.store.row("s2").run_id == "run-s2"


def test_requests_of_the_state_service_are_sent_in_the_same_sweep(world: World) -> None:
    for row in world.store.rows.values():
        row.due_at = NOON + LONGEST
    world.store.follow_ups.append(("s3", IDENTITY, "somebody asked"))
    assert world.sweep() == AuditSweepReport(follow_ups=1, taken_back=0, lost=0, sent=1, reported_again=0)
    assert world.sent == ["s3.audit.1"]


# --- the watch ---------------------------------------------------------------------------------------------------


def test_the_first_look_asks_for_every_audit_and_an_unchanged_central_cloud_for_none(world: World) -> None:
    """Subclouds may have been given what the central cloud held before the first look."""
    assert {(result.endpoint_type, result.raised) for result in world.look()} == {(IDENTITY, 3), (PLATFORM, 3)}
    assert world.look() == []
    assert (world.generations(), world.generations(PLATFORM)) == ([1, 1, 1], [1, 1, 1])


def test_a_changed_password_raises_identity_of_every_subcloud_and_nothing_else(world: World) -> None:
    world.look()
    newer = tuple(a_user(u.name, password="newer") for u in records().users)
    world.clouds.central = central_data(replace(records(), users=newer))
    assert world.look() == [WatchResult(IDENTITY, raised=3)]
    assert (world.generations(), world.generations(PLATFORM)) == ([2, 2, 2], [1, 1, 1])
    assert world.look() == []


def test_a_look_is_not_at_what_runs_may_use_for_minutes(world: World) -> None:
    world.look()
    assert world.clouds.asked_ages == [MAX_AGE_SECONDS]


def test_changed_keys_raise_platform(world: World) -> None:
    world.look()
    world.centre_keeps(keys=some_keys("rotated"))
    assert world.look() == [WatchResult(PLATFORM, raised=3)]


def test_a_new_grant_raises_identity(world: World) -> None:
    world.look()
    grant = Assignment("project-admin", ActorType.USER, "user-admin", "role-admin")
    world.centre_keeps(assignments=frozenset({grant}))
    assert world.look() == [WatchResult(IDENTITY, raised=3)]


def test_a_login_at_the_central_cloud_is_no_change(world: World) -> None:
    world.look()
    seen = tuple(a_user(u.name, last_active_at="2026-02-01") for u in records().users)
    world.clouds.central = central_data(replace(records(), users=seen))
    assert world.look() == []


def test_revocation_events_alone_raise_the_generation_now_and_then(world: World) -> None:
    world.look()
    for number, (after, raised) in enumerate([(1, 0), (EVENTS_MIN_INTERVAL.total_seconds(), 3), (61, 0), (200, 3)]):
        world.centre_keeps(revocation_events=frozenset({revocation_event({"audit_id": f"a{number}"})}))
        results = world.look(NOON + timedelta(seconds=after))
        assert sum(result.raised for result in results) == raised


@pytest.mark.parametrize("reason", [Reason.CENTRAL_UNREACHABLE, Reason.CENTRAL_EMPTY])
def test_a_central_cloud_that_cannot_be_read_changes_nothing_and_is_noted(world: World, reason: Reason) -> None:
    world.look()
    world.clouds.central_error = CloudError(reason, "gone")
    assert [result.refused for result in world.look()] == [f"{reason}: gone"] * 2
    assert world.generations() == [1, 1, 1]
    kept = world.store.central_state(IDENTITY)
    assert kept is not None
    assert kept.refused == f"{reason}: gone"
    world.clouds.central_error = None
    assert world.look() == []
    assert world.store.centre[IDENTITY].refused is None


def test_since_when_the_central_cloud_is_unreadable_is_recorded_also_where_it_was_never_read(world: World) -> None:
    world.clouds.central_error = CloudError(Reason.CENTRAL_AUTH_FAILED, "401")
    world.look()
    world.look(NOON + timedelta(minutes=1))
    found = world.store.central_facts()
    assert (found.unreadable_since, found.unreadable_reason) == (NOON, "central-auth-failed: 401")
    world.clouds.central_error = None
    world.look(NOON + timedelta(minutes=2))
    back = NOON + timedelta(minutes=2)
    assert world.store.central_facts() == CentralFacts(checked_at=back, readable_since=back)


def test_a_central_cloud_that_shrank_is_refused_until_an_operator_allows_it_for_all(world: World) -> None:
    many = tuple(a_user(f"u{n}") for n in range(5))
    world.clouds.central = central_data(records(users=many))
    world.look()
    world.clouds.central = central_data(records())
    (result,) = world.look()
    assert result.refused is not None
    assert "users went from 8 to 3" in result.refused
    assert world.generations() == [1, 1, 1]
    world.store.request(None, audited_types(), now=NOON, by="eve", allow_deletes=True)
    assert world.look() == [WatchResult(IDENTITY, raised=3)]
    assert world.look() == []


def test_what_an_operator_allowed_for_a_central_cloud_that_had_not_shrunk_is_not_kept_for_the_day_it_does(
    world: World,
) -> None:
    world.clouds.central = central_data(records(users=tuple(a_user(f"u{n}") for n in range(5))))
    world.look()
    world.store.request(None, audited_types(), now=NOON, by="eve", allow_deletes=True)
    assert world.look() == []
    world.clouds.central = central_data(records())
    (result,) = world.look(NOON + timedelta(days=30))
    assert result.refused is not None
    assert world.generations() == [2, 2, 2]


def test_a_list_that_became_empty_is_refused_however_short_it_was(world: World) -> None:
    """Groups may be missing; that is no reason to delete those a subcloud was given."""
    world.clouds.central = central_data(records(groups=(a_group("ops"),)))
    world.look()
    world.clouds.central = central_data(records())
    (result,) = world.look()
    assert (result.raised, result.refused) == (0, "the central groups went from 1 to 0; nothing was changed")


def test_a_small_list_may_shrink(world: World) -> None:
    world.clouds.central = central_data(records(), keys=some_keys(ids=(0, 1, 2)))
    world.look()
    world.clouds.central = central_data(records(), keys=some_keys(ids=(0,)))
    assert world.look() == [WatchResult(PLATFORM, raised=3)]


# --- reports that were lost ---------------------------------------------------------------------------------------


def reported(store: MemoryAuditStore, at: datetime, status: SyncStatus = SyncStatus.IN_SYNC) -> None:
    """By the last audit of s1, which the state service never heard of."""
    row = store.row("s1", EndpointType.PLATFORM)
    row.reported, row.reported_at = status, at


def test_a_report_that_reached_no_row_is_made_again(world: World) -> None:
    reported(world.store, NOON)
    assert world.sweep(NOON + timedelta(seconds=10)).reported_again == 1
    assert world.reports == [("s1", SyncStatus.IN_SYNC, None, NOON, True)]


def test_a_report_that_may_be_on_its_way_is_not_made_again(world: World) -> None:
    reported(world.store, NOON)
    assert world.sweep(NOON + REPORT_PATIENCE).reported_again == 0


def test_a_report_that_is_in_its_row_is_not_made_again(world: World) -> None:
    reported(world.store, NOON)
    world.store.observed["s1", EndpointType.PLATFORM] = NOON
    assert world.sweep(NOON + timedelta(seconds=10)).reported_again == 0


def test_a_process_looks_for_all_lost_reports_at_first_and_now_and_then(world: World) -> None:
    sweeping, later = world.sweeping, NOON + timedelta(hours=1)
    reported(world.store, NOON)
    found = [sweeping.run(now=moment).reported_again for moment in (later, later + SWEEP, later + SEARCH_ALL_EVERY)]
    assert found == [1, 0, 1]


def test_differing_keys_that_are_planned_are_reported_as_such_again(world: World) -> None:
    reported(world.store, NOON, SyncStatus.OUT_OF_SYNC)
    world.store.keys_planned_until = NOON + timedelta(hours=1)
    world.sweep(NOON + timedelta(seconds=10))
    assert [alarmable for *_, alarmable in world.reports] == [False]


@pytest.mark.parametrize("failing", ["lost_reports", "take_follow_ups", "in_progress_since_before"])
def test_a_phase_that_fails_keeps_no_other_from_running(failing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()

    def fail(*_: object, **__: object) -> None:
        raise RowLocked("another session holds a row")

    monkeypatch.setattr(world.store, failing, fail)
    with pytest.raises(RowLocked):
        world.sweep()
    assert len(world.messenger.audits) == 3
