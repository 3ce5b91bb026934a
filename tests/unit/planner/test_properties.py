"""What holds of every plan, whatever the clouds: it goes through on a strict cloud, parents first, and a completed
initial sync leaves the first audit nothing to find."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcsync.initial_sync.steps import align_identity
from dcsync.model.errors import CloudError
from dcsync.model.identity import ActorType, Assignment, NewIds, Placed, Record, Records, ResourceType
from dcsync.model.reasons import Reason
from dcsync.planner.match import Cloud
from dcsync.planner.order import above
from dcsync.planner.plan import ALWAYS_WRITTEN_USERS, IdentityPlan, plan_initial_sync
from dcsync.planner.writes import Create, Update, Write
from dcsync.runs.clouds import Seen
from dcsync.runs.delivery import carry_out
from tests.builders import a_group, a_project, a_role, a_user, records
from tests.memory_clouds import MemorySite
from tests.unit.planner.clouds import (
    PROJECTS,
    REGION,
    USERS,
    Drift,
    a_domain,
    an_event,
    audit,
    changed,
    drifts,
    grant,
    named,
    no_objection,
    of,
    repaired,
)

SEEDS = st.integers(min_value=0, max_value=2**32)


def initial_sync(central: Records, site: MemorySite) -> None:
    """The identity step of an initial sync, carried out."""

    async def forget_groups(groups: Mapping[str, tuple[str, ...]]) -> None:
        return

    async def forget_placed(placed: Placed, new_ids: NewIds) -> None:
        return

    asyncio.run(
        align_identity(
            session=site,
            central=central,
            region_name=REGION,
            groups_to_refill={},
            remember_groups=forget_groups,
            remember_placed=forget_placed,
            check_ownership=no_objection,
            users_at_once=4,
            always=ALWAYS_WRITTEN_USERS,
        )
    )
    site.seen = Seen()  # the session ends


def sync_plan(central: Records, subcloud: Records) -> IdentityPlan:
    return plan_initial_sync(central=central, subcloud=subcloud, region_name=REGION)


# --- parents before children ---------------------------------------------------------------------------------------

LEVELS = 4


@st.composite
def a_tree(draw: st.DrawFn, prefix: str, shared: Sequence[bool]) -> tuple[Record, ...]:
    """Projects p0, p1, ... in any tree of up to four levels, listed in any order; `shared` are those whose id is the
    same on both clouds."""
    ids = [f"id-{n}" if same else f"{prefix}-{n}" for n, same in enumerate(shared)]
    born = draw(st.permutations(range(len(shared))))
    level: dict[int, int] = {}
    made: dict[int, Record] = {}
    for n in born:
        parent = draw(st.sampled_from([None, *(m for m in made if level[m] < LEVELS)]))
        level[n] = 1 if parent is None else level[parent] + 1
        columns: dict[str, Any] = {"parent_id": "default" if parent is None else ids[parent]}
        made[n] = changed(a_project(f"p{n}", ids[n]), description=draw(st.sampled_from("ab")), **columns)
    return tuple(made[n] for n in draw(st.permutations(range(len(shared)))))


@st.composite
def two_trees(draw: st.DrawFn) -> tuple[Records, Records]:
    """The same projects under other ids, in another tree and in another order; or in the central one."""
    shared = draw(st.lists(st.booleans(), min_size=2, max_size=6))
    central = draw(a_tree("c", shared))
    return records(projects=central), records(projects=draw(a_tree("s", shared)))


def parents_come_first(writes: Sequence[Write]) -> bool:
    place = {
        each.action.record.id: number
        for number, each in enumerate(writes)
        if isinstance(each.action, Update | Create) and each.action.record.type is PROJECTS
    }
    actions = [each.action for each in writes if isinstance(each.action, Update | Create)]
    return all(
        place[id_] < place[action.record.id] for action in actions for id_ in above(action.record) if id_ in place
    )


@given(two_trees())
def test_an_initial_sync_writes_parents_before_children_in_every_tree(clouds: tuple[Records, Records]) -> None:
    central, subcloud = clouds
    site = MemorySite(Cloud(subcloud))
    assert parents_come_first(sync_plan(central, subcloud).writes)
    initial_sync(central, site)
    assert {r.id: above(r) for r in site.tables[PROJECTS].values()} == {r.id: above(r) for r in central.projects}


@given(two_trees(), st.data())
def test_an_audit_writes_parents_before_children_in_every_tree(
    clouds: tuple[Records, Records], data: st.DataObject
) -> None:
    central, whole = clouds
    there = data.draw(st.sets(st.sampled_from([project.name for project in whole.projects])))
    kept = [project for project in whole.projects if project.name in there or project.name in ("admin", "services")]
    ids = {project.id for project in kept}
    subcloud = replace(whole, projects=tuple(_under_known(project, ids) for project in kept))
    site = MemorySite(Cloud(subcloud))
    assert parents_come_first(audit(Cloud(central), Cloud(subcloud)).writes)
    repaired(Cloud(central), site)
    assert {r.id: above(r) for r in site.tables[PROJECTS].values()} == {r.id: above(r) for r in central.projects}


def _under_known(project: Record, ids: set[str]) -> Record:
    return project if project.body["project"]["parent_id"] in ids else changed(project, parent_id="default")


def test_a_child_whose_central_parent_is_missing_keeps_its_own_until_an_audit_has_made_it() -> None:
    central = of(projects=(changed(a_project("child", "c-child"), parent_id="c-new"), a_project("new", "c-new")))
    site = MemorySite(
        of(projects=(changed(a_project("child", "s-child"), parent_id="s-own"), a_project("own", "s-own")))
    )
    initial_sync(central.records, site)
    assert above(site.tables[PROJECTS]["c-child"])[0] == "s-own"
    repaired(central, site)
    assert above(site.tables[PROJECTS]["c-child"])[0] == "c-new"


# --- on a strict cloud every plan goes through ---------------------------------------------------------------------


@given(drifts(renames=True))
def test_no_write_of_an_audit_is_refused(drift: Drift) -> None:
    site, placed = MemorySite(drift.site), drift.placed
    for _ in range(3):
        placed = placed | repaired(drift.central, site, placed).placed


@given(st.one_of(drifts(), drifts(renames=True)))
def test_no_write_of_an_initial_sync_is_refused(drift: Drift) -> None:
    site = MemorySite(drift.site)
    initial_sync(drift.central.records, site)
    initial_sync(drift.central.records, site)


@given(st.one_of(drifts(), drifts(renames=True)), SEEDS, st.booleans())
def test_any_order_that_the_needs_of_a_plan_allow_goes_through_and_ends_alike(
    drift: Drift, seed: int, is_audit: bool
) -> None:
    """So what a write needs is all it needs: the rest may go before it, beside it, or without it."""
    plan = (
        audit(drift.central, drift.site, drift.placed)
        if is_audit
        else sync_plan(drift.central.records, drift.site.records)
    )
    assert all(need < number for number, write in enumerate(plan.writes) for need in write.needs)
    as_planned, shuffled = MemorySite(drift.site), MemorySite(drift.site)
    _send(plan.writes, as_planned)
    _send([replace(write, needs=()) for write in _another_order(plan.writes, random.Random(seed))], shuffled)
    assert _content(shuffled) == _content(as_planned)


def _another_order(writes: Sequence[Write], dice: random.Random) -> list[Write]:
    waiting, chosen = dict(enumerate(writes)), list[Write]()
    while waiting:
        ready = [number for number, write in waiting.items() if waiting.keys().isdisjoint(write.needs)]
        chosen.append(waiting.pop(dice.choice(ready)))
    return chosen


def _send(writes: Sequence[Write], site: MemorySite) -> None:
    asyncio.run(carry_out(writes, session=site, check_ownership=no_objection, users_at_once=4))


def _content(site: MemorySite) -> tuple[dict[str, Any], set[Assignment]]:
    rows = {(type_, id_): row.body | {"local_user_ids": row.member_ids} for type_ in ResourceType
            for id_, row in site.tables[type_].items()}  # fmt: skip
    return rows, site.grants


# --- what an initial sync leaves ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Unchanged:
    """A subcloud that has a namesake of everything central, under whatever ids and with whatever columns."""

    central: Cloud
    site: Cloud


def an_unchanged_subcloud(seed: int) -> Unchanged:
    """Local records, grants and members beside those of the central cloud, and rows in any physical order."""
    dice = random.Random(seed)
    names = [f"n{number}" for number in range(4)]
    same = {name for name in names if dice.random() < 0.4}
    domain_moves, has_domain = dice.random() < 0.3, dice.random() < 0.5

    def id_of(prefix: str, kind: str, name: str) -> str:
        return f"{kind}-{name}" if name in same else f"{kind}-{prefix}{name}"

    def side(prefix: str, own: Sequence[str]) -> Cloud:
        domain = f"{prefix}-d" if domain_moves else "the-d"
        users = [
            a_user(
                name,
                id_of(prefix, "u", name),
                domain_id=domain if has_domain and name == "n0" and not domain_moves else "default",
                password=dice.choice("ab"),
                enabled=dice.random() < 0.5,
                extra=dice.choice(["{}", '{"email": "x"}']),
                created_at=dice.choice(["2026-01-30 10:00:00.000000", "2025-01-30 10:00:00.000000"]),
                last_active_at=dice.choice([None, "2026-01-31"]),
            )
            for name in [*names, *own, "fm"]
        ]
        projects = [a_domain("d", domain)] if has_domain else []
        tree: list[Record] = []
        for name in dice.sample([*names, *own], len(names) + len(own)):
            # Whatever is central stands under what is central: else the central cloud would list a local project.
            parent = dice.choice(["default", *(p.id for p in tree if own or p.name in names)])
            columns = {"description": dice.choice("ab"), "enabled": dice.random() < 0.5, "parent_id": parent}
            tree.append(changed(a_project(name, id_of(prefix, "p", name)), **columns))
        shared_columns = {"description": dice.choice("ab")}
        services = changed(a_project("services"), description=dice.choice("ab"))
        roles = [changed(a_role(name, id_of(prefix, "r", name)), **shared_columns) for name in [*names, *own]]
        groups = [
            changed(
                a_group(name, id_of(prefix, "g", name), members=tuple(dice.sample([u.id for u in users[:4]], 2))),
                description=dice.choice("ab"),
            )
            for name in [*names, *own]
        ]
        listed = records(users=tuple(users), groups=tuple(groups), projects=(*projects, *tree), roles=tuple(roles))
        others = tuple(project for project in listed.projects if project.name != "services")
        listed = replace(listed, projects=(*others, services))
        return Cloud(Records(*(tuple(dice.sample(listed.of(t), len(listed.of(t)))) for t in ResourceType)))

    central, site = side("c", []), side("s", ["own"])
    granted = [(dice.choice(names), dice.choice(names), dice.choice(names)) for _ in range(5)]

    def grants(prefix: str) -> set[Assignment]:
        return {
            Assignment(id_of(prefix, "p", p), kind, id_of(prefix, kind.value[0], a), id_of(prefix, "r", r))
            for p, a, r in granted
            for kind in ActorType
        }

    own_grant = grant("p-sown", "u-sown", "r-sown")
    events = frozenset({an_event("a1")})
    return Unchanged(
        replace(central, assignments=frozenset(grants("c")), revocation_events=events),
        replace(site, assignments=frozenset({*grants("s"), own_grant}), revocation_events=events | {an_event("own")}),
    )


@given(SEEDS.map(an_unchanged_subcloud))
def test_after_a_completed_initial_sync_the_first_audit_finds_nothing(clouds: Unchanged) -> None:
    site = MemorySite(clouds.site)
    initial_sync(clouds.central.records, site)
    found = audit(clouds.central, site.cloud)
    assert named(found) == []
    assert found.is_empty


@given(SEEDS.map(an_unchanged_subcloud))
def test_an_initial_sync_leaves_what_is_the_subcloud_s_own(clouds: Unchanged) -> None:
    site = MemorySite(clouds.site)
    initial_sync(clouds.central.records, site)
    for type_ in ResourceType:
        assert len(site.tables[type_]) == len(clouds.site.records.of(type_))
        assert any(record.name == "own" for record in site.tables[type_].values())
    assert grant("p-sown", "u-sown", "r-sown") in site.grants
    assert site.named(USERS, "fm") == next(user for user in clouds.site.records.users if user.name == "fm")


def test_a_domain_takes_its_id_first_and_everything_in_it_in_the_same_step() -> None:
    central = records(projects=(a_domain("d", "c-d"), a_project("web", "c-web", domain_id="c-d")))
    site = MemorySite(of(projects=(a_domain("d", "s-d"), a_project("web", "s-web", domain_id="s-d"))))
    initial_sync(central, site)
    assert site.writes[0] == "PUT projects d"
    assert site.named(PROJECTS, "web") == a_project("web", "c-web", domain_id="c-d")


def test_a_subcloud_that_never_keeps_the_id_of_a_domain_ends_the_step() -> None:
    central, site = records(projects=(a_domain("d", "c-d"),)), MemorySite(of(projects=(a_domain("d", "s-d"),)))

    async def forgetful(old_id: str, record: Record) -> Record:
        return record

    site.update = forgetful  # type: ignore[method-assign]
    with pytest.raises(CloudError) as error:
        initial_sync(central, site)
    assert error.value.reason is Reason.IDENTITY_NOT_VERIFIED
