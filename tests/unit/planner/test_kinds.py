"""Every kind of identity resource is read, compared and written: a new one fails here by name where it is forgotten."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from dcsync.fake_cloud.cloud import SINGULAR
from dcsync.fake_cloud.inspection import TYPES
from dcsync.model.identity import SHAPES, Placed, Record, Records, ResourceType, record_from_body
from dcsync.planner.differences import COMPARED
from dcsync.planner.match import MANDATORY, MAY_BE_EMPTY, Cloud
from dcsync.planner.plan import plan_audit, plan_initial_sync
from dcsync.planner.writes import Create, Delete, Update
from tests.builders import records

PLAN = "dcsync/planner/plan.py `_plan`"
each_kind = pytest.mark.parametrize("kind", ResourceType)


@each_kind
def test_the_columns_that_decide_are_listed_and_travel(kind: ResourceType) -> None:
    assert kind in COMPARED, f"{kind} needs its columns in dcsync/planner/differences.py COMPARED"
    travelling = SHAPES[kind].rows
    assert {part: set(columns) - set(travelling[part]) for part, columns in COMPARED[kind].items()} == {
        part: set() for part in COMPARED[kind]
    }


@each_kind
def test_a_cloud_without_any_is_refused_or_not_on_both_sides_alike(kind: ResourceType) -> None:
    assert (kind in MANDATORY) != (kind in MAY_BE_EMPTY), (
        f"{kind} needs its place in MANDATORY or MAY_BE_EMPTY, dcsync/planner/match.py"
    )


@each_kind
def test_the_fake_cloud_holds_it(kind: ResourceType) -> None:
    assert kind.value in SINGULAR, f"{kind} needs its singular in dcsync/fake_cloud/cloud.py SINGULAR"
    assert kind.value in TYPES, f"{kind} needs its place in dcsync/fake_cloud/inspection.py TYPES"


@each_kind
def test_what_is_missing_is_created(kind: ResourceType) -> None:
    new = _record(kind, "thing", id_="c1")
    created = [each.record for each in _audit(central=_cloud(new), subcloud=_cloud()) if isinstance(each, Create)]
    assert [record.id for record in created] == ["c1"], f"{kind}: created nowhere in {PLAN}"


@each_kind
def test_what_was_deleted_centrally_is_deleted(kind: ResourceType) -> None:
    old = _record(kind, "thing", id_="c1")
    placed = Placed(ids={kind: frozenset({"c1"})})
    actions = _audit(central=_cloud(), subcloud=_cloud(old), placed=placed)
    assert Delete(old) in actions, f"{kind}: deleted nowhere in {PLAN}"


@each_kind
def test_what_has_another_id_is_updated_by_an_initial_sync_and_by_an_audit(kind: ResourceType) -> None:
    new, old = _record(kind, "thing", id_="c1"), _record(kind, "thing", id_="s1")
    central, subcloud = _cloud(new), _cloud(old)
    initial = plan_initial_sync(central=central, subcloud=subcloud, region_name="r1", groups_to_refill={})
    for actions in ([write.action for write in initial.writes], _audit(central=central, subcloud=subcloud)):
        assert Update(old, new) in actions, f"{kind}: updated nowhere in {PLAN}"


def _record(kind: ResourceType, name: str, *, id_: str) -> Record:
    """Of any kind: what its shape asks for, all columns but id, name and domain empty."""
    shape = SHAPES[kind]
    known = {"id": id_, "name": name, "domain_id": "default"}
    body: dict[str, Any] = {part: {c: known.get(c) for c in columns} for part, columns in shape.rows.items()}
    body |= {part: [] for part in shape.lists} | ({"local_user_ids": []} if shape.has_members else {})
    return record_from_body(kind, body)


def _cloud(*added: Record) -> Records:
    """What every cloud has, and these."""
    base = records()
    lists: Mapping[str, tuple[Record, ...]] = {
        kind.value: (*base.of(kind), *(record for record in added if record.type is kind)) for kind in ResourceType
    }
    return Records(**lists)


def _audit(*, central: Records, subcloud: Records, placed: Placed | None = None) -> list[object]:
    plan = plan_audit(central=Cloud(central), subcloud=Cloud(subcloud), region_name="r1", placed=placed or Placed())
    return [write.action for write in plan.writes]
