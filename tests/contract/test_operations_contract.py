"""What operators did is recorded once, whatever store carries it out, and found by the subcloud's name."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from dcsync.adapters.postgres.inventory import SqlInventory
from dcsync.adapters.postgres.operations import SqlOperations
from dcsync.cli.ports import Inventory, Operations
from dcsync.model.errors import RefusedByGuard
from dcsync.model.history import NAMED_AT_MOST
from dcsync.model.operation import Intent, Operation, OperationOutcome
from dcsync.model.subcloud import ManagementState, new_subcloud
from tests.builders import NOON, an_address
from tests.contract.held import Held
from tests.fake_inventory import FakeInventory

HELD = (Held(FakeInventory, Operations),)

LATER = NOON + timedelta(minutes=5)


class World:
    def __init__(self, inventory: Inventory, operations: Operations) -> None:
        self.inventory, self.operations = inventory, operations

    def add(self, *names: str, now: Any = NOON) -> None:
        new = [
            new_subcloud(name=name, management_ip=an_address(name), region_name=None, software_version=None)
            for name in names
        ]
        self.inventory.add(new, now=now, intent=intent("subcloud import"))

    def commands(self, name: str | None = None, limit: int = 100) -> list[str]:
        return [each.command for each in self.operations.newest(limit=limit, name=name)]


@pytest.fixture(params=["memory", "postgresql"])
def world(request: pytest.FixtureRequest) -> World:
    if request.param == "memory":
        inventory = FakeInventory()
        return World(inventory, inventory)
    engine = request.getfixturevalue("engine")
    return World(SqlInventory(engine), SqlOperations(engine))


def intent(command: str) -> Intent:
    return Intent(who="eve", host="central-1", command=command, keep=timedelta(days=30))


def test_every_change_is_recorded_with_who_where_and_what(world: World) -> None:
    world.add("a", "b")
    world.inventory.set_management(
        ["b"], ManagementState.MANAGED, now=LATER, by="eve", intent=intent("subcloud manage --force")
    )
    newest, oldest = world.operations.newest(limit=9)
    assert (newest.at, newest.who, newest.host, newest.command) == (
        LATER, "eve", "central-1", "subcloud manage --force",
    )  # fmt: skip
    assert (newest.names, newest.count, newest.outcome) == (("b",), 1, OperationOutcome.DONE)
    assert (oldest.names, oldest.count, oldest.keep_until) == (("a", "b"), 2, NOON + timedelta(days=30))


def test_a_change_that_is_refused_leaves_no_record_of_having_been_done(world: World) -> None:
    world.add("a")
    with pytest.raises(RefusedByGuard):
        world.inventory.set_management(
            ["a"], ManagementState.MANAGED, now=LATER, by="eve", online_only=True, intent=intent("subcloud manage")
        )
    assert world.commands() == ["subcloud import"]


def test_operations_are_found_by_the_name_of_any_subcloud_concerned(world: World) -> None:
    names = [f"edge-{number:02}" for number in range(NAMED_AT_MOST + 5)]
    world.add(*names)
    world.add("other")
    (imported,) = world.operations.newest(limit=9, name=names[-1])
    assert (imported.count, imported.names) == (len(names), tuple(names[:NAMED_AT_MOST]))
    assert world.commands("other") == ["subcloud import"]
    assert world.commands("nobody") == []


def test_a_refused_command_is_found_by_the_names_it_gave(world: World) -> None:
    world.add("a")
    refused = intent("sync").ended(OperationOutcome.REFUSED, ["a", "nobody"], now=LATER, detail="a is offline")
    world.operations.record(refused, ["a", "nobody"])
    assert world.operations.newest(limit=1) == [refused]
    assert world.commands("a") == ["sync", "subcloud import"]
    assert world.commands("nobody") == ["sync"]


def test_the_newest_come_first_up_to_a_limit(world: World) -> None:
    for number in range(5):
        done = intent(f"keys rotate {number}").done((), now=NOON + timedelta(seconds=number))
        world.operations.record(done, ())
    assert world.commands(limit=2) == ["keys rotate 4", "keys rotate 3"]


def test_operations_and_history_outlive_the_subcloud_and_two_lives_are_told_apart(world: World) -> None:
    world.add("a")
    world.inventory.delete(["a"], now=LATER, intent=intent("subcloud delete"))
    assert world.commands("a") == ["subcloud delete", "subcloud import"]
    again = LATER + timedelta(minutes=1)
    world.add("a", now=again)
    newer, older = world.inventory.history("a")
    assert (newer.added_at, newer.deleted_at) == (again, None)
    assert (older.added_at, older.deleted_at) == (NOON, LATER)
    assert newer.subcloud_id != older.subcloud_id
    assert [told(life.entries) for life in (newer, older)] == [
        ["subcloud import"], ["subcloud delete", "subcloud import"],
    ]  # fmt: skip
    assert len(world.commands("a")) == 3


def told(entries: Any) -> list[str]:
    return [entry.command for entry in entries if isinstance(entry, Operation)]
