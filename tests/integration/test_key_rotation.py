"""Rotations on real rows: exactly one of many, decided by fingerprint after a crash, handed out in waves."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, insert, select, update

from dcsync.adapters.cloud.central_rotation import new_key
from dcsync.adapters.postgres.audits import SqlAuditStore
from dcsync.adapters.postgres.key_rotation import SqlKeyRotationStore
from dcsync.adapters.postgres.operations import SqlOperations
from dcsync.adapters.postgres.tables import central_state, key_rotation, subcloud, subcloud_sync
from dcsync.model.errors import KeyRotationFailed
from dcsync.model.identity import FernetKeys, key_set
from dcsync.model.operation import Intent, OperationOutcome
from dcsync.model.reasons import Reason
from dcsync.model.states.initial_sync import InitialSyncState
from dcsync.model.states.rotation import RotationState
from dcsync.model.subcloud import EndpointType, NewSubcloud
from dcsync.rotation.key_rotation import is_rotation_of, rotated
from dcsync.rotation.rotate_keys import KeyRotation, Limits, Result
from tests.builders import NOON, an_address, some_keys
from tests.fake_rotation import FakeCentralKeys
from tests.fakes_sync import OwnLoop
from tests.requested_rows import requested_rows

SECOND, HOUR, WEEK = timedelta(seconds=1), timedelta(hours=1), timedelta(hours=168)


class Centre(FakeCentralKeys):
    """A central cloud that has a rotation command of its own."""

    def __init__(self) -> None:
        super().__init__(some_keys(ids=(0, 1, 2)))

    def rotate_by_itself(self) -> None:
        """What a command does."""
        self.keys = rotated(self.keys, staged=new_key(), max_active_keys=3)
        self.rotations += 1


class World:
    """One centre, rows of sites, and any number of processes that look after the rotation."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        intent = Intent(who="dcsync", host="central-1", command="key rotation", keep=WEEK)
        self.store = SqlKeyRotationStore(engine, carried_out_by=intent)
        self.centre = Centre()
        self.time = NOON
        self.woken = 0
        self.runs = 0

    def now(self) -> datetime:
        return self.time

    def process(self, **changes: Any) -> KeyRotation:
        values: dict[str, Any] = {
            "store": self.store, "central": self.centre, "command": None, "new_key": new_key, "loop": OwnLoop(),
            "trigger_audit_sweep": self._count_sweep, "limits": LIMITS, "now": self.now, "new_run_id": self._run_id,
        }  # fmt: skip
        return KeyRotation(**(values | changes))

    def _count_sweep(self) -> None:
        self.woken += 1

    def _run_id(self) -> str:
        self.runs += 1
        return f"run-{self.runs}"

    def add_sites(self, count: int) -> list[str]:
        """Completed, and seen with the current keys."""
        names = [f"site{number:03}" for number in range(count)]
        requested_rows(
            self.engine, [NewSubcloud(name=name, management_ip=an_address(name), region_name=name) for name in names]
        )
        with self.engine.begin() as connection:
            connection.execute(update(subcloud).values(initial_sync_state=InitialSyncState.COMPLETED))
            connection.execute(
                insert(central_state).values(
                    kind="platform", fingerprint=self.centre.keys.fingerprint(), counts={}, changed_at=NOON,
                    checked_at=NOON,
                )
            )  # fmt: skip
        self.audit(*self.sites())
        return names

    def sites(self) -> list[int]:
        with self.engine.connect() as connection:
            return list(connection.scalars(select(subcloud.c.id).order_by(subcloud.c.id)))

    def asked(self) -> list[int]:
        """Sites whose platform audit is asked for and not done."""
        is_asked = subcloud_sync.c.generation > subcloud_sync.c.observed_generation
        query = select(subcloud_sync.c.subcloud_id).where(is_asked).order_by(subcloud_sync.c.subcloud_id)
        with self.engine.connect() as connection:
            return list(connection.scalars(query))

    def audit(self, *ids: int) -> None:
        """Their audits end: they hold what the central cloud holds."""
        self._put(ids, keys_fingerprint=self.centre.keys.fingerprint(), observed_generation=subcloud_sync.c.generation)

    def fail(self, *ids: int, reason: Reason = Reason.UNREACHABLE) -> None:
        self._put(ids, audit_status="failed", reason=reason.value)

    def _put(self, ids: tuple[int, ...], **values: Any) -> None:
        which = subcloud_sync.c.subcloud_id.in_(ids), subcloud_sync.c.endpoint_type == EndpointType.PLATFORM
        with self.engine.begin() as connection:
            connection.execute(update(subcloud_sync).where(*which).values(values))

    def ask(self, *, forced: bool = False, max_in_flight: int | None = None) -> None:
        self.store.ask(now=self.time, by="eve", forced=forced, max_in_flight=max_in_flight)

    def pass_(self, time: timedelta) -> None:
        self.time += time


LIMITS = Limits(
    interval=WEEK,
    window=HOUR,
    max_share_behind=0.05,
    token_lifetime=HOUR,
    max_active_keys=3,
    max_in_flight=4,
    hold_off=timedelta(minutes=15),
    claim_lifetime=timedelta(minutes=5),
    distribution_delay=5 * SECOND,
)


@pytest.fixture
def world(engine: Engine) -> World:
    return World(engine)


def test_the_due_time_is_a_rows_and_no_restart_moves_it(world: World) -> None:
    for _ in range(3):
        assert world.process().run().result is Result.IDLE
        world.pass_(HOUR)
    assert world.store.row().next_due_at == NOON + WEEK
    world.pass_(WEEK - 4 * HOUR)
    assert world.process().run().result is Result.IDLE
    world.pass_(HOUR)
    assert world.process().run().result is Result.ROTATED
    assert world.store.row().next_due_at == NOON + 2 * WEEK


def test_without_an_interval_keys_rotate_only_when_asked(world: World) -> None:
    process = world.process(limits=Limits(**(vars(LIMITS) | {"interval": timedelta()})))
    world.pass_(52 * WEEK)
    assert process.run().result is Result.IDLE
    world.ask()
    assert process.run().result is Result.ROTATED
    assert world.store.row().next_due_at is None


def test_many_processes_that_look_at_once_rotate_exactly_once(world: World) -> None:
    world.ask()
    before = key_set(world.centre.keys)
    with ThreadPoolExecutor(8) as threads:
        outcomes = list(threads.map(lambda _: world.process().run().result, range(24)))
    assert outcomes.count(Result.ROTATED) == 1
    assert world.centre.rotations == 1
    assert is_rotation_of(before=before, now=key_set(world.centre.keys))


def test_a_command_rotates_in_place_of_a_write(world: World) -> None:
    before = key_set(world.centre.keys)
    world.ask()
    assert world.process(command=world.centre.rotate_by_itself).run().result is Result.ROTATED
    assert is_rotation_of(before=before, now=key_set(world.centre.keys))


class Killed(BaseException):
    """The process dies here."""


def killed() -> None:
    raise Killed


def test_a_process_killed_after_the_rotation_costs_no_second_one(world: World) -> None:
    def rotate_and_die() -> None:
        world.centre.rotate_by_itself()
        raise Killed

    world.ask()
    with pytest.raises(Killed):
        world.process(command=rotate_and_die).run()
    assert world.process().run().result is Result.IDLE, "the claim is still good"
    world.pass_(LIMITS.claim_lifetime + SECOND)
    assert world.process().run().result is Result.ROTATED
    assert world.centre.rotations == 1


def test_a_claim_from_the_future_is_taken_over_in_the_usual_time(world: World) -> None:
    """Of a process that was killed, and whose clock was an hour ahead."""
    world.ask()
    world.pass_(timedelta(hours=1))
    with pytest.raises(Killed):
        world.process(command=killed).run()
    world.pass_(timedelta(hours=-1))
    assert world.process().run().result is Result.IDLE, "it may be at work"
    world.pass_(LIMITS.claim_lifetime + SECOND)
    assert world.process(command=world.centre.rotate_by_itself).run().result is Result.ROTATED


def test_a_process_killed_before_the_rotation_leaves_it_to_the_next(world: World) -> None:
    world.ask()
    with pytest.raises(Killed):
        world.process(command=killed).run()
    world.pass_(LIMITS.claim_lifetime + SECOND)
    assert world.process(command=world.centre.rotate_by_itself).run().result is Result.ROTATED
    assert world.centre.rotations == 1


def test_an_answer_that_was_lost_is_not_taken_for_a_failure(world: World) -> None:
    world.centre.failing = "after"
    world.ask()
    assert world.process().run().result is Result.ROTATED
    assert world.centre.rotations == 1


def test_a_rotation_that_failed_is_told_and_tried_again_later(world: World) -> None:
    world.process().run()
    world.pass_(WEEK)
    world.centre.failing = "before"
    assert world.process().run().result is Result.FAILED
    row = world.store.row()
    assert (row.state, "central-unreachable" in row.detail) == (RotationState.IDLE, True)
    world.centre.failing = None
    assert world.process().run().result is Result.IDLE
    world.pass_(LIMITS.hold_off)
    assert world.process().run().result is Result.ROTATED
    recorded = SqlOperations(world.engine).newest(limit=5)
    assert [(each.who, each.command, each.outcome) for each in recorded] == [
        ("dcsync", "key rotation", OperationOutcome.DONE),
        ("dcsync", "key rotation", OperationOutcome.FAILED),
    ]
    assert "central-unreachable" in recorded[1].detail


def test_a_command_that_does_nothing_is_not_believed(world: World) -> None:
    world.ask()
    outcome = world.process(command=lambda: None).run()
    assert (outcome.result, world.centre.rotations) == (Result.FAILED, 0)
    assert "primary" in outcome.detail
    assert world.store.row().requested_at is None


def test_whoever_lost_the_claim_rotates_nothing(world: World) -> None:
    slow, quick = world.process(), world.process()

    class SlowCentre(Centre):
        async def central_keys(self) -> FernetKeys:
            if not world.centre.rotations:
                world.pass_(LIMITS.claim_lifetime + SECOND)
                assert await asyncio.to_thread(lambda: quick.run().result) is Result.ROTATED
            return await world.centre.central_keys()

        async def replace_central_keys(self, keys: FernetKeys) -> None:
            await world.centre.replace_central_keys(keys)

    world.ask()
    slow = world.process(central=SlowCentre())
    assert slow.run().result is not Result.ROTATED
    assert world.centre.rotations == 1


def test_sites_without_the_staged_key_hold_a_rotation_up_unless_it_is_forced(world: World) -> None:
    world.add_sites(10)
    world.centre.rotate_by_itself()
    world.ask()
    outcome = world.process().run()
    assert outcome.result is Result.REFUSED
    assert "0 of 10 managed subclouds have the keys (10 lack)" in outcome.detail
    assert world.process().run().result is Result.IDLE, "a refused request is over"
    world.ask(forced=True)
    assert world.process().run().result is Result.ROTATED


def test_a_site_that_is_away_holds_nothing_up(world: World) -> None:
    world.add_sites(10)
    world.centre.rotate_by_itself()
    world.audit(*world.sites()[1:])
    with world.engine.begin() as connection:
        away = subcloud.c.id == world.sites()[0]
        connection.execute(update(subcloud).where(away).values(availability_status="offline"))
    world.ask()
    assert world.process().run().result is Result.ROTATED


def test_two_rotations_within_the_life_of_a_token_are_refused(world: World) -> None:
    world.ask()
    world.process().run()
    world.pass_(HOUR - SECOND)
    world.ask()
    assert world.process().run().result is Result.REFUSED
    assert world.centre.rotations == 1


def test_sites_get_the_keys_in_waves_and_the_window_closes_behind_the_last(world: World) -> None:
    world.add_sites(10)
    world.ask()
    process = world.process()
    assert process.run().result is Result.ROTATED
    world.pass_(LIMITS.distribution_delay - SECOND)
    assert process.run().requested == 0, "a process may still hold keys from before"
    world.pass_(SECOND)
    waves = 0
    while process.run().result is not Result.DISTRIBUTED:
        asked = world.asked()
        assert 1 <= len(asked) <= LIMITS.max_in_flight
        world.process().run()
        assert world.asked() == asked, "another beat asks nobody twice"
        world.audit(*asked[:3])
        world.pass_(5 * SECOND)
        waves += 1
    row = world.store.row()
    assert (waves, world.woken) == (4, 3)
    assert row.state is RotationState.IDLE
    assert row.window_until == world.time


def test_the_size_of_the_waves_can_be_asked_for(world: World) -> None:
    world.add_sites(10)
    world.ask(max_in_flight=7)
    world.process().run()
    world.pass_(LIMITS.distribution_delay)
    assert world.process().run().requested == 7


def test_a_site_that_fails_holds_up_no_other(world: World) -> None:
    world.add_sites(6)
    world.ask(max_in_flight=2)
    process = world.process()
    process.run()
    world.pass_(LIMITS.distribution_delay)
    process.run()
    first, second = world.asked()
    world.fail(first)
    world.audit(second)
    world.pass_(5 * SECOND)
    assert process.run().requested == 2
    assert len(world.asked()) == 3


def test_a_site_whose_last_difference_was_left_as_it_is_gets_rotated_keys_with_the_others(world: World) -> None:
    world.add_sites(2)
    world.fail(world.sites()[0], reason=Reason.NOT_CONVERGING)
    world.ask()
    world.process().run()
    world.pass_(LIMITS.distribution_delay)
    assert world.process().run().requested == 2


def test_a_site_that_got_the_keys_otherwise_is_not_asked(world: World) -> None:
    world.add_sites(3)
    world.ask()
    process = world.process()
    process.run()
    world.audit(world.sites()[0])
    world.pass_(LIMITS.distribution_delay)
    process.run()
    assert world.asked() == world.sites()[1:]


def test_a_window_that_is_over_ends_the_distribution_and_names_how_many_are_missing(world: World) -> None:
    world.add_sites(3)
    world.ask()
    process = world.process()
    process.run()
    world.audit(*world.sites()[:2])
    world.pass_(LIMITS.window)
    outcome = process.run()
    assert outcome.result is Result.DISTRIBUTED
    assert "2 of 3 managed subclouds have the keys (1 lack)" in outcome.detail


def test_the_watch_finds_nothing_new_in_keys_dcsync_rotated_itself(world: World) -> None:
    world.add_sites(1)
    world.ask()
    world.process().run()
    with world.engine.connect() as connection:
        known = connection.scalar(select(central_state.c.fingerprint))
    assert known == world.centre.keys.fingerprint()


def test_the_watch_leaves_keys_that_are_being_rotated_to_the_rotation(world: World) -> None:
    world.add_sites(1)
    audits = SqlAuditStore(world.engine)

    def the_watch_sees(fingerprint: str) -> int | None:
        old = audits.central_state(EndpointType.PLATFORM)
        assert old is not None
        return audits.accept_central(
            replace(old, fingerprint=fingerprint), old=old, now=world.time, unless_rotating=True
        )

    def rotate_while_the_watch_looks() -> None:
        world.centre.rotate_by_itself()
        assert the_watch_sees(world.centre.keys.fingerprint()) is None

    older = world.centre.keys.fingerprint()
    world.ask()
    assert world.process(command=rotate_while_the_watch_looks).run().result is Result.ROTATED
    assert the_watch_sees(older) is None, "read before the rotation, told after it"
    assert world.asked() == []
    world.pass_(timedelta(minutes=2))
    assert the_watch_sees("somebody else's keys") == 1


def test_no_key_is_in_the_row(world: World) -> None:
    keys = set(world.centre.keys.keys.values())
    world.ask()
    with pytest.raises(Killed):
        world.process(command=killed).run()
    with world.engine.connect() as connection:
        kept = repr(connection.execute(select(key_rotation)).one())
    assert "before" in repr(key_rotation.c.keys())
    assert key_set(world.centre.keys).staged in kept
    assert not any(key in kept for key in keys)


def test_a_failing_command_says_how_and_nothing_it_printed(world: World) -> None:
    def fails() -> None:
        raise KeyRotationFailed("/usr/bin/rotate ended with exit code 3")

    world.ask()
    outcome = world.process(command=fails).run()
    assert outcome.as_dict() == {"result": "failed", "detail": "/usr/bin/rotate ended with exit code 3"}
