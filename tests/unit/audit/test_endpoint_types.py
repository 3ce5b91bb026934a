"""The registry of endpoint types: each has a room or none, and a new one is added without touching anything else."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
from click.testing import CliRunner

from dcsync.audit.endpoints import REGISTRY, REPORTED_ONLY, audited_types, endpoint_type_of_keys, resource_types
from dcsync.audit.watch import CentralWatch
from dcsync.cli import root
from dcsync.model.identity import SHAPES, Records, ResourceType
from dcsync.model.reasons import Reason
from dcsync.model.subcloud import EndpointType, SyncStatus
from dcsync.runs.outcome import Result
from tests.fakes_sync import OwnLoop
from tests.toy_endpoint import Firmware
from tests.unit.audit.test_engine import REGION, World

FIRMWARE = EndpointType.FIRMWARE
IN_SYNC, OUT_OF_SYNC = SyncStatus.IN_SYNC, SyncStatus.OUT_OF_SYNC


# --- closed sets ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("endpoint_type", EndpointType)
def test_each_endpoint_type_is_audited_here_or_only_reported(endpoint_type: EndpointType) -> None:
    assert (endpoint_type in REGISTRY) != (endpoint_type in REPORTED_ONLY), (
        f"{endpoint_type} needs a class in dcsync/audit/endpoints, or a place in REPORTED_ONLY"
    )


@pytest.mark.parametrize("endpoint_type", audited_types())
def test_a_room_is_listed_under_its_own_name_and_documents_itself(endpoint_type: EndpointType) -> None:
    room = REGISTRY[endpoint_type]
    assert room.endpoint_type is endpoint_type
    assert room.purpose
    assert room.compared
    assert room.resource_types


def test_no_two_rooms_compare_resources_of_one_name() -> None:
    assert len(resource_types()) == sum(len(room.resource_types) for room in REGISTRY.values())


def test_one_endpoint_type_carries_the_keys() -> None:
    assert endpoint_type_of_keys() is EndpointType.PLATFORM


@pytest.mark.parametrize("kind", ResourceType)
def test_each_kind_of_resource_has_its_columns_and_its_list(kind: ResourceType) -> None:
    assert kind in SHAPES, f"{kind} needs its columns in dcsync/model/identity.py SHAPES"
    assert kind.value in Records.__dataclass_fields__, f"{kind} needs its list in dcsync/model/identity.py Records"
    assert kind.value in REGISTRY[EndpointType.IDENTITY].resource_types


# --- a toy endpoint type, in the test tree only --------------------------------------------------------------------


@dataclass
class Images:
    """The toy's service, in memory; every write is noted."""

    held: dict[str, str]
    writes: list[str] = field(default_factory=list)

    async def read(self) -> dict[str, str]:
        return dict(self.held)

    async def put(self, name: str, version: str) -> None:
        self.writes.append(f"PUT {name} {version}")
        self.held[name] = version

    async def delete(self, name: str) -> None:
        self.writes.append(f"DELETE {name}")
        self.held.pop(name, None)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """A subcloud in line with its central cloud, which has two firmware images."""
    monkeypatch.setitem(REGISTRY, FIRMWARE, Firmware())
    world = World()
    _central_has(world, bios="2.1", nic="7")
    world.site.services[FIRMWARE] = Images({"bios": "2.1", "nic": "7"})
    return world


def _central_has(world: World, **images: str) -> None:
    world.clouds.central = replace(world.clouds.central, others={FIRMWARE: images})


def _images(world: World) -> Images:
    images: Images = world.site.services[FIRMWARE]
    return images


def test_a_toy_in_line_is_audited_and_reported_like_any_other(world: World) -> None:
    assert world.run().result is Result.DONE
    assert world.told(FIRMWARE) == [IN_SYNC]
    assert world.row(FIRMWARE).result is IN_SYNC
    assert _images(world).writes == []


def test_a_toy_that_differs_is_repaired_and_looked_at_again(world: World) -> None:
    _images(world).held = {"bios": "1.0", "stale": "3", "nic": "7"}
    world.run()
    assert _images(world).writes == ["PUT bios 2.1", "DELETE stale"]
    assert world.told(FIRMWARE) == [IN_SYNC]
    assert world.row(FIRMWARE).differences == ("images bios: version", "old_images stale: deleted centrally")


def test_a_toy_repair_stops_where_a_guard_stops_it(world: World) -> None:
    _images(world).held |= {f"stale{n}": "1" for n in range(6)}
    world.run()
    assert _images(world).writes == []
    assert world.row(FIRMWARE).reason is Reason.GUARD_REFUSED
    assert world.told(FIRMWARE) == [OUT_OF_SYNC]
    assert world.told(EndpointType.IDENTITY) == [IN_SYNC]


def test_a_toy_repair_may_be_restricted_to_some_of_its_resources(world: World) -> None:
    _images(world).held = {"bios": "1.0", "stale": "3", "nic": "7"}
    world.store.request([REGION], [FIRMWARE], now=world.now, by="test", resource_types=["old_images"])
    world.run()
    assert _images(world).writes == ["DELETE stale"]
    assert world.told(FIRMWARE) == [OUT_OF_SYNC]


def test_the_watch_sees_the_toy_change_and_refuses_one_that_vanished(world: World) -> None:
    watch = CentralWatch(store=world.store, clouds=world.clouds, loop=OwnLoop())
    watch.run(now=world.now)
    assert watch.run(now=world.now) == []
    _central_has(world, bios="2.2", nic="7")
    (result,) = watch.run(now=world.now)
    assert (result.endpoint_type, result.raised) == (FIRMWARE, 1)
    _central_has(world)
    (result,) = watch.run(now=world.now)
    assert (result.endpoint_type, result.refused) == (
        FIRMWARE, "the central firmware images went from 2 to 0; nothing was changed",
    )  # fmt: skip


def test_a_toy_that_shrank_centrally_is_not_believed_by_an_audit_either(world: World) -> None:
    CentralWatch(store=world.store, clouds=world.clouds, loop=OwnLoop()).run(now=world.now)
    _central_has(world)
    world.run()
    assert world.row(FIRMWARE).reason is Reason.GUARD_REFUSED
    assert _images(world).held == {"bios": "2.1", "nic": "7"}


def test_a_preview_shows_what_would_be_written_to_the_toy(world: World) -> None:
    _images(world).held["bios"] = "1.0"
    (preview,) = world.engine().preview(REGION, frozenset({FIRMWARE}))
    assert (preview.differences, preview.writes) == (("images bios: version",), ("PUT images bios",))


@pytest.mark.parametrize("command", ["audit", "diff"])
def test_the_command_line_offers_the_toy_and_its_resources(world: World, command: str) -> None:
    shown = CliRunner().invoke(root, [command, "--help"], terminal_width=200).output
    assert "firmware" in shown
    assert "old_images" in shown


def test_the_command_line_offers_no_toy_where_none_is_registered() -> None:
    shown = CliRunner().invoke(root, ["audit", "--help"], terminal_width=200).output
    assert "identity" in shown
    assert "firmware" not in shown
