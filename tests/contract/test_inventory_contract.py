"""What operators rely on, held to by the inventory in memory and the one in PostgreSQL alike."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Protocol

import pytest
from sqlalchemy import Engine, insert, select, update

from dcsync.adapters.postgres.inventory import SqlInventory
from dcsync.adapters.postgres.tables import endpoint_status, subcloud
from dcsync.cli.ports import Inventory
from dcsync.model.errors import DuplicateSubcloud, RefusedByGuard, UnknownSubcloud
from dcsync.model.states.initial_sync import InitialSyncEvent, InitialSyncState
from dcsync.model.subcloud import (
    DEFAULT_ENDPOINT_TYPES,
    AvailabilityStatus,
    EndpointType,
    ManagementState,
    NewSubcloud,
    Subcloud,
    SubcloudUpdate,
    SyncStatus,
    Updated,
    new_subcloud,
)
from tests.builders import NOON, an_address
from tests.contract.held import Held
from tests.fake_inventory import FakeInventory

HELD = (Held(FakeInventory, Inventory),)

LATER = NOON + timedelta(minutes=5)
MANAGED, UNMANAGED = ManagementState.MANAGED, ManagementState.UNMANAGED
ONLINE, OFFLINE = AvailabilityStatus.ONLINE, AvailabilityStatus.OFFLINE
IN_SYNC, UNKNOWN = SyncStatus.IN_SYNC, SyncStatus.UNKNOWN

FAILED = {
    "initial_sync_state": InitialSyncState.FAILED,
    "attempt": 3,
    "reason": "timeout",
    "detail": "slow",
    "retry_at": LATER,
}
RUNNING = {
    "initial_sync_state": InitialSyncState.IN_PROGRESS,
    "run_id": "run-1",
    "claimed_at": NOON,
    "step": "identity",
}


class World(Protocol):
    """An inventory, and somebody else who writes to its rows."""

    @property
    def inventory(self) -> Inventory: ...
    def put(self, name: str, **columns: Any) -> None: ...
    def report(self, name: str, endpoint_type: EndpointType, status: SyncStatus) -> None: ...


class InMemory:
    def __init__(self) -> None:
        self.inventory = self._fake = FakeInventory()

    def put(self, name: str, **columns: Any) -> None:
        self._fake.put(name, **columns)

    def report(self, name: str, endpoint_type: EndpointType, status: SyncStatus) -> None:
        self._fake.put(name, sync_status=self._fake.subclouds[name].sync_status | {endpoint_type: status})


class InPostgres:
    def __init__(self, engine: Engine) -> None:
        self.inventory = SqlInventory(engine)
        self._engine = engine

    def put(self, name: str, **columns: Any) -> None:
        with self._engine.begin() as connection:
            connection.execute(update(subcloud).where(subcloud.c.name == name).values(columns))

    def report(self, name: str, endpoint_type: EndpointType, status: SyncStatus) -> None:
        own = select(subcloud.c.id).where(subcloud.c.name == name).scalar_subquery()
        with self._engine.begin() as connection:
            reported = connection.execute(
                update(endpoint_status)
                .where(endpoint_status.c.subcloud_id == own, endpoint_status.c.endpoint_type == endpoint_type)
                .values(sync_status=status)
            )
            if not reported.rowcount:
                connection.execute(
                    insert(endpoint_status).values(subcloud_id=own, endpoint_type=endpoint_type, sync_status=status)
                )


@pytest.fixture(params=["memory", "postgresql"])
def world(request: pytest.FixtureRequest) -> World:
    return InMemory() if request.param == "memory" else InPostgres(request.getfixturevalue("engine"))


@pytest.fixture
def inventory(world: World) -> Inventory:
    return world.inventory


def new(name: str, **fields: str) -> NewSubcloud:
    given: dict[str, Any] = {"management_ip": an_address(name), "region_name": None, "software_version": None} | fields
    return new_subcloud(name=name, **given)


def add(inventory: Inventory, *names: str) -> None:
    inventory.add([new(name) for name in names], now=NOON)


def one(inventory: Inventory, name: str) -> Subcloud:
    (found,) = inventory.find([name])
    return found


def names(inventory: Inventory) -> list[str]:
    return [known.name for known in inventory.all()]


# --- adding ---


def test_an_added_subcloud_is_unmanaged_offline_and_unknown_in_every_endpoint(inventory: Inventory) -> None:
    inventory.add([new("edge-1", region_name="r1", software_version="24.09")], now=NOON)
    added = one(inventory, "edge-1")
    assert (added.region_name, added.management_ip, added.software_version) == ("r1", an_address("edge-1"), "24.09")
    assert (added.management_state, added.availability_status) == (UNMANAGED, AvailabilityStatus.OFFLINE)
    assert (added.initial_sync_state, added.subsequent_sync, added.generation, added.attempt) == (
        InitialSyncState.NONE, False, 0, 0,
    )  # fmt: skip
    assert added.sync_status == dict.fromkeys(DEFAULT_ENDPOINT_TYPES, UNKNOWN)
    assert added.updated_at == NOON


def test_nothing_is_stored_when_one_of_many_names_is_taken(inventory: Inventory) -> None:
    add(inventory, "edge-1")
    with pytest.raises(DuplicateSubcloud, match=r"^already there: name edge-1; nothing was stored$"):
        add(inventory, "edge-0", "edge-1", "edge-2")
    assert names(inventory) == ["edge-1"]


def test_nothing_is_stored_when_a_region_name_is_taken(inventory: Inventory) -> None:
    add(inventory, "edge-1")
    with pytest.raises(DuplicateSubcloud, match=r"^already there: region name edge-1; nothing was stored$"):
        inventory.add([new("edge-2", region_name="edge-1")], now=NOON)
    assert names(inventory) == ["edge-1"]


@pytest.mark.parametrize(
    ("twice", "what"),
    [
        ([new("edge-1", region_name="a"), new("edge-1", region_name="b")], "name edge-1"),
        ([new("edge-1", region_name="edge-3"), new("edge-2", region_name="edge-3")], "region name edge-3"),
        ([new("edge-1"), new("edge-1")], "name edge-1"),
    ],
)
def test_nothing_is_stored_when_the_input_repeats_itself(
    inventory: Inventory, twice: list[NewSubcloud], what: str
) -> None:
    with pytest.raises(DuplicateSubcloud, match=f"^given more than once: {what}; nothing was stored$"):
        inventory.add(twice, now=NOON)
    assert names(inventory) == []


def test_every_taken_name_is_named(inventory: Inventory) -> None:
    add(inventory, "edge-1", "edge-2", "edge-3")
    with pytest.raises(DuplicateSubcloud, match=r"name edge-1, name edge-3;"):
        add(inventory, "edge-3", "edge-1", "edge-4")


def test_a_taken_region_name_that_is_given_as_a_name_too_is_named(inventory: Inventory) -> None:
    inventory.add([new("old", region_name="y")], now=NOON)
    with pytest.raises(DuplicateSubcloud, match="region name y;"):
        inventory.add([new("x", region_name="y"), new("y", region_name="z")], now=NOON)


def test_adding_nothing_changes_nothing(inventory: Inventory) -> None:
    inventory.add([], now=NOON)
    assert inventory.all() == []


def test_a_deleted_name_can_be_added_again(inventory: Inventory) -> None:
    add(inventory, "edge-1")
    inventory.delete(["edge-1"], now=NOON)
    add(inventory, "edge-1")
    assert names(inventory) == ["edge-1"]
    life, earlier = inventory.history("edge-1")
    assert (life.deleted_at, earlier.deleted_at) == (None, NOON)


def test_no_two_subclouds_have_one_management_ip(inventory: Inventory) -> None:
    add(inventory, "edge-1")
    with pytest.raises(
        RefusedByGuard, match=rf"^edge-2: {an_address('edge-1')} is the management IP of edge-1; nothing"
    ):
        inventory.add([new("edge-2", management_ip=an_address("edge-1")), new("edge-3")], now=NOON)
    with pytest.raises(RefusedByGuard, match=r"^edge-4: 10\.9\.9\.9 is the management IP of edge-5"):
        inventory.add([new(name, management_ip="10.9.9.9") for name in ("edge-4", "edge-5")], now=NOON)
    assert names(inventory) == ["edge-1"]


# --- updating ---


def change(inventory: Inventory, name: str, **fields: str) -> Updated:
    (done,) = inventory.update([SubcloudUpdate(name=name, **fields)], now=LATER, by="eve")
    return done


def test_a_new_management_ip_ends_a_run_and_is_synced_from_the_first_step(world: World) -> None:
    add(world.inventory, "a")
    world.report("a", EndpointType.IDENTITY, IN_SYNC)
    world.put("a", management_state=MANAGED, availability_status=ONLINE, generation=3, subsequent_sync=True, **RUNNING)
    done = change(world.inventory, "a", management_ip="10.9.0.1")
    assert done == Updated(
        name="a", changes=(f"management IP {an_address('a')} -> 10.9.0.1",), event=InitialSyncEvent.ASKED
    )
    moved = one(world.inventory, "a")
    assert (moved.management_ip, moved.initial_sync_state) == ("10.9.0.1", InitialSyncState.REQUESTED)
    assert (moved.generation, moved.run_id, moved.subsequent_sync, moved.updated_at) == (4, None, False, LATER)
    assert moved.sync_status[EndpointType.IDENTITY] is UNKNOWN
    (asked,) = world.inventory.history("a")[0].requests
    assert (asked.generation, asked.requested_by, asked.cause) == (4, "eve", "management IP changed")


@pytest.mark.parametrize("pair", [(UNMANAGED, ONLINE), (MANAGED, OFFLINE)])
def test_a_new_management_ip_requests_nothing_of_a_subcloud_that_is_not_eligible(
    world: World, pair: tuple[ManagementState, AvailabilityStatus]
) -> None:
    add(world.inventory, "a")
    world.report("a", EndpointType.IDENTITY, IN_SYNC)
    world.put("a", management_state=pair[0], availability_status=pair[1], subsequent_sync=True)
    assert change(world.inventory, "a", management_ip="10.9.0.1").event is None
    moved = one(world.inventory, "a")
    assert (moved.management_ip, moved.initial_sync_state) == ("10.9.0.1", InitialSyncState.NONE)
    assert (moved.subsequent_sync, moved.sync_status[EndpointType.IDENTITY]) == (False, UNKNOWN)


def test_an_update_to_what_is_so_already_changes_nothing(world: World) -> None:
    add(world.inventory, "a")
    world.put("a", management_state=MANAGED, availability_status=ONLINE, **RUNNING)
    before = one(world.inventory, "a")
    assert change(world.inventory, "a", management_ip=an_address("a"), software_version="").changes == ()
    assert one(world.inventory, "a") == before


def test_a_new_software_version_leaves_a_run_alone(world: World) -> None:
    add(world.inventory, "a")
    world.put("a", management_state=MANAGED, availability_status=ONLINE, **RUNNING)
    assert change(world.inventory, "a", software_version="25.09").changes == ("software version - -> 25.09",)
    assert (one(world.inventory, "a").software_version, one(world.inventory, "a").run_id) == ("25.09", "run-1")


def test_an_update_to_the_management_ip_of_another_changes_nothing(inventory: Inventory) -> None:
    add(inventory, "a", "b")
    with pytest.raises(RefusedByGuard, match=f"^a: {an_address('b')} is the management IP of b; nothing was stored$"):
        change(inventory, "a", management_ip=an_address("b"))
    assert one(inventory, "a").management_ip == an_address("a")


def test_two_subclouds_can_swap_their_management_ips_and_a_new_one_take_what_becomes_free(inventory: Inventory) -> None:
    add(inventory, "a", "b", "c")
    updates = [
        SubcloudUpdate(name=name, management_ip=ip)
        for name, ip in (("a", an_address("b")), ("b", an_address("a")), ("c", "10.9.0.1"))
    ]
    inventory.update(updates, new=[new("d", management_ip=an_address("c"))], now=LATER, by="eve")
    assert {known.name: known.management_ip for known in inventory.all()} == {
        "a": an_address("b"), "b": an_address("a"), "c": "10.9.0.1", "d": an_address("c"),
    }  # fmt: skip


def test_an_update_with_a_new_subcloud_is_all_or_nothing(inventory: Inventory) -> None:
    add(inventory, "a", "b")
    with pytest.raises(DuplicateSubcloud):
        inventory.update([SubcloudUpdate(name="a", management_ip="10.9.0.1")], new=[new("b")], now=LATER, by="eve")
    assert one(inventory, "a").management_ip == an_address("a")
    with pytest.raises(UnknownSubcloud, match="nowhere"):
        inventory.update([SubcloudUpdate(name="nowhere")], new=[new("c")], now=LATER, by="eve")
    assert names(inventory) == ["a", "b"]


# --- finding ---


def test_subclouds_are_found_in_the_order_asked_for(inventory: Inventory) -> None:
    add(inventory, "a", "b", "c")
    assert [known.name for known in inventory.find(["c", "a"])] == ["c", "a"]


def test_all_missing_names_are_named(inventory: Inventory) -> None:
    add(inventory, "a")
    with pytest.raises(UnknownSubcloud, match=r"^there is no subcloud named y, x$"):
        inventory.find(["y", "x", "a", "y"])
    with pytest.raises(UnknownSubcloud, match=r"^there is no subcloud named y, x$"):
        inventory.request(["y", "x", "a"], now=NOON, by="eve")


def test_what_others_wrote_is_found(world: World) -> None:
    add(world.inventory, "a", "b")
    world.put("a", management_state=MANAGED, availability_status=ONLINE, **FAILED)
    world.report("a", EndpointType.IDENTITY, SyncStatus.OUT_OF_SYNC)
    world.report("a", EndpointType.IDENTITY_OPENSTACK, IN_SYNC)
    found, other = world.inventory.all()
    assert (found.initial_sync_state, found.attempt, found.reason, found.detail, found.retry_at) == (
        InitialSyncState.FAILED, 3, "timeout", "slow", LATER,
    )  # fmt: skip
    assert found.sync_status[EndpointType.IDENTITY] is SyncStatus.OUT_OF_SYNC
    assert found.sync_status[EndpointType.IDENTITY_OPENSTACK] is IN_SYNC
    assert other.sync_status == dict.fromkeys(DEFAULT_ENDPOINT_TYPES, UNKNOWN)


def test_names_are_completed_up_to_a_limit(inventory: Inventory) -> None:
    add(inventory, "edge-1", "edge-2", "edge-3", "core_1", "coreX1")
    assert inventory.names_starting_with("edge", limit=2) == ["edge-1", "edge-2"]
    assert inventory.names_starting_with("core_", limit=9) == ["core_1"]


# --- deleting ---


def test_a_subcloud_can_be_deleted_in_the_middle_of_a_run(world: World) -> None:
    add(world.inventory, "a", "b")
    world.put("a", management_state=MANAGED, availability_status=ONLINE, **RUNNING)
    (deleted,) = world.inventory.delete(["a"], now=NOON)
    assert deleted.run_id == "run-1"
    assert names(world.inventory) == ["b"]


def test_several_are_deleted_or_none(inventory: Inventory) -> None:
    add(inventory, "edge-1", "edge-2", "edge-3")
    with pytest.raises(UnknownSubcloud, match="nowhere"):
        inventory.delete(["edge-1", "nowhere"], now=NOON)
    assert names(inventory) == ["edge-1", "edge-2", "edge-3"]
    deleted = inventory.delete(["edge-3", "edge-1", "edge-3"], now=NOON)
    assert [known.name for known in deleted] == ["edge-3", "edge-1"]
    assert names(inventory) == ["edge-2"]


def test_an_unknown_subcloud_is_told(inventory: Inventory) -> None:
    for ask in (lambda: inventory.delete(["nowhere"], now=NOON), lambda: inventory.history("nowhere")):
        with pytest.raises(UnknownSubcloud, match=r"^there is no subcloud named nowhere$"):
            ask()


# --- managing ---


def test_managing_an_offline_subcloud_requests_nothing(inventory: Inventory) -> None:
    add(inventory, "a")
    (transition,) = inventory.set_management(["a"], MANAGED, now=LATER, by="eve")
    assert (transition.event, transition.state) == (InitialSyncEvent.LEFT, InitialSyncState.NONE)
    assert one(inventory, "a").management_state is MANAGED
    assert inventory.history("a")[0].requests == []


def test_managing_an_online_subcloud_requests_its_initial_sync(world: World) -> None:
    add(world.inventory, "a")
    world.put("a", availability_status=ONLINE)
    (transition,) = world.inventory.set_management(["a"], MANAGED, now=LATER, by="eve")
    assert (transition.event, transition.state) == (InitialSyncEvent.BECAME_ELIGIBLE, InitialSyncState.REQUESTED)
    managed = one(world.inventory, "a")
    assert (managed.initial_sync_state, managed.generation) == (InitialSyncState.REQUESTED, 1)
    assert (managed.requested_at, managed.updated_at) == (LATER, LATER)
    (asked,) = world.inventory.history("a")[0].requests
    assert (asked.generation, asked.requested_at, asked.requested_by, asked.attempts) == (1, LATER, "eve", ())


def test_managing_again_changes_nothing(world: World) -> None:
    add(world.inventory, "a")
    world.put("a", management_state=MANAGED, availability_status=ONLINE, **RUNNING)
    before = one(world.inventory, "a")
    (transition,) = world.inventory.set_management(["a"], MANAGED, now=LATER, by="eve")
    assert (transition.event, transition.state) == (None, InitialSyncState.IN_PROGRESS)
    assert one(world.inventory, "a") == before


def test_unmanaging_cancels_a_run_and_forgets_the_identity_sync(world: World) -> None:
    add(world.inventory, "a")
    world.put("a", management_state=MANAGED, availability_status=ONLINE, subsequent_sync=True, generation=4, **RUNNING)
    world.inventory.set_management(["a"], UNMANAGED, now=LATER, by="eve")
    left = one(world.inventory, "a")
    assert (left.management_state, left.initial_sync_state) == (UNMANAGED, InitialSyncState.NONE)
    assert (left.run_id, left.step, left.claimed_at, left.subsequent_sync) == (None, None, None, False)
    assert left.generation == 4


def test_unmanaging_makes_every_endpoint_unknown_but_the_certificate(world: World) -> None:
    add(world.inventory, "a", "b")
    for name in ("a", "b"):
        world.put(name, management_state=MANAGED, availability_status=ONLINE)
        for endpoint_type in (EndpointType.DC_CERT, EndpointType.IDENTITY):
            world.report(name, endpoint_type, IN_SYNC)
    world.inventory.set_management(["a"], UNMANAGED, now=LATER, by="eve")
    left, kept = world.inventory.find(["a", "b"])
    assert left.sync_status == dict.fromkeys(DEFAULT_ENDPOINT_TYPES, UNKNOWN) | {EndpointType.DC_CERT: IN_SYNC}
    assert kept.sync_status[EndpointType.IDENTITY] is IN_SYNC


def test_an_endpoint_of_a_subcloud_unmanaged_already_is_left_alone(world: World) -> None:
    add(world.inventory, "a")
    world.report("a", EndpointType.FIRMWARE, SyncStatus.OUT_OF_SYNC)
    world.inventory.set_management(["a"], UNMANAGED, now=LATER, by="eve")
    assert one(world.inventory, "a").sync_status[EndpointType.FIRMWARE] is SyncStatus.OUT_OF_SYNC


def test_all_are_managed_at_once_each_by_its_own_availability(world: World) -> None:
    add(world.inventory, "a", "b", "c")
    world.put("b", availability_status=ONLINE)
    world.put("c", management_state=MANAGED)
    transitions = world.inventory.set_management(None, MANAGED, now=LATER, by="eve")
    assert [(told.name, told.event) for told in transitions] == [
        ("a", InitialSyncEvent.LEFT),
        ("b", InitialSyncEvent.BECAME_ELIGIBLE),
        ("c", None),
    ]


def test_nothing_is_managed_when_one_name_is_unknown(inventory: Inventory) -> None:
    add(inventory, "a")
    with pytest.raises(UnknownSubcloud, match="nowhere"):
        inventory.set_management(["a", "nowhere"], MANAGED, now=LATER, by="eve")
    assert one(inventory, "a").management_state is UNMANAGED


@pytest.mark.parametrize("names", [["a", "b"], None])
def test_nothing_is_managed_when_only_online_ones_may_be_and_one_is_not(world: World, names: list[str] | None) -> None:
    add(world.inventory, "a", "b")
    world.put("a", availability_status=ONLINE)
    with pytest.raises(RefusedByGuard, match=r"offline: b\b"):
        world.inventory.set_management(names, MANAGED, now=LATER, by="eve", online_only=True)
    assert one(world.inventory, "a").management_state is UNMANAGED


def test_offline_ones_that_are_managed_already_are_no_obstacle(world: World) -> None:
    add(world.inventory, "a", "b")
    world.put("a", availability_status=ONLINE)
    world.put("b", management_state=MANAGED)
    transitions = world.inventory.set_management(None, MANAGED, now=LATER, by="eve", online_only=True)
    assert [told.event for told in transitions] == [InitialSyncEvent.BECAME_ELIGIBLE, None]


def test_a_name_given_twice_is_one_subcloud(inventory: Inventory) -> None:
    add(inventory, "a")
    assert len(inventory.set_management(["a", "a"], MANAGED, now=LATER, by="eve")) == 1


# --- asking ---


@pytest.mark.parametrize(
    "before", [{}, FAILED, RUNNING, {"initial_sync_state": InitialSyncState.COMPLETED, "subsequent_sync": True}]
)
def test_a_request_starts_anew_from_any_state(world: World, before: dict[str, Any]) -> None:
    add(world.inventory, "a")
    world.put("a", management_state=MANAGED, availability_status=ONLINE, generation=7, **before)
    (transition,) = world.inventory.request(["a"], now=LATER, by="eve")
    assert (transition.event, transition.state) == (InitialSyncEvent.ASKED, InitialSyncState.REQUESTED)
    asked = one(world.inventory, "a")
    assert (asked.initial_sync_state, asked.generation, asked.attempt) == (InitialSyncState.REQUESTED, 8, 0)
    assert (asked.run_id, asked.retry_at, asked.reason, asked.subsequent_sync) == (None, None, None, False)
    assert [told.generation for told in world.inventory.history("a")[0].requests] == [8]


@pytest.mark.parametrize("wrong", [{"management_state": UNMANAGED}, {"availability_status": OFFLINE}])
def test_nothing_is_requested_unless_all_named_are_managed_and_online(world: World, wrong: dict[str, Any]) -> None:
    add(world.inventory, "a", "b")
    world.put("a", management_state=MANAGED, availability_status=ONLINE)
    world.put("b", **({"management_state": MANAGED, "availability_status": ONLINE} | wrong))
    with pytest.raises(RefusedByGuard, match="b"):
        world.inventory.request(["a", "b"], now=LATER, by="eve")
    assert one(world.inventory, "a").initial_sync_state is InitialSyncState.NONE


def test_asking_for_all_means_the_managed_and_online(world: World) -> None:
    add(world.inventory, "a", "b")
    world.put("b", management_state=MANAGED, availability_status=ONLINE)
    assert [told.name for told in world.inventory.request(None, now=LATER, by="eve")] == ["b"]
    assert one(world.inventory, "a").generation == 0


def test_history_tells_the_newest_request_first(world: World) -> None:
    add(world.inventory, "a")
    world.put("a", availability_status=ONLINE)
    world.inventory.set_management(["a"], MANAGED, now=NOON, by="eve")
    world.inventory.request(["a"], now=LATER, by="adam")
    assert [(told.generation, told.requested_by) for told in world.inventory.history("a")[0].requests] == [
        (2, "adam"),
        (1, "eve"),
    ]
