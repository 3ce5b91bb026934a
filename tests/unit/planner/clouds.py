"""Clouds for tests of plans: small ones made by hand, drifts made from a seed, plans carried out on a strict model."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from hypothesis import strategies as st

from dcsync.model.identity import (
    ActorType,
    Assignment,
    Placed,
    Record,
    ResourceType,
    RevocationEvent,
    record_from_body,
    revocation_event,
)
from dcsync.planner.match import Cloud
from dcsync.planner.plan import IdentityPlan, plan_audit
from dcsync.planner.writes import Update
from dcsync.runs.delivery import carry_out, read_cloud
from tests.builders import a_group, a_project, a_role, a_user, records
from tests.memory_clouds import MemorySite

T = TypeVar("T")

REGION = "subcloud1"
USERS, GROUPS, PROJECTS, ROLES = ResourceType


def audit(central: Cloud, subcloud: Cloud, placed: Placed | None = None, **options: Any) -> IdentityPlan:
    return plan_audit(central=central, subcloud=subcloud, region_name=REGION, placed=placed or Placed(), **options)


def of(**lists: tuple[Record, ...]) -> Cloud:
    return Cloud(records(**lists))


def changed(record: Record, **columns: Any) -> Record:
    """The record with these columns of its own row; a column that is ... is left out."""
    part = record.type.value.removesuffix("s")
    row = {**record.body[part], **columns}
    body = {**record.body, part: {column: value for column, value in row.items() if value is not ...}}
    return record_from_body(record.type, body)


def a_domain(name: str, id_: str) -> Record:
    return changed(a_project(name, id_, domain_id="root"), is_domain=True, parent_id=None)


def grant(project: str, user: str, role: str) -> Assignment:
    return Assignment(project, ActorType.USER, user, role)


def an_event(audit_id: str, **columns: str | None) -> RevocationEvent:
    return revocation_event({"user_id": None, "audit_id": audit_id, "issued_before": "2026-01-31", **columns})


async def no_objection() -> None:
    return


def repaired(
    central: Cloud,
    site: MemorySite,
    placed: Placed | None = None,
    *,
    check_ownership: Callable[[], Any] = no_objection,
    **options: Any,
) -> IdentityPlan:
    """Audit the site and carry the repair out."""

    async def work() -> IdentityPlan:
        found = audit(central, await read_cloud(site), placed, **options)
        await carry_out(found.writes, session=site, check_ownership=check_ownership, users_at_once=4)
        return found

    return asyncio.run(work())


def updates(plan: IdentityPlan, type_: ResourceType | None = None) -> list[Update]:
    """The updates of a plan, in its order; of one type, or of all (None)."""
    found = [write.action for write in plan.writes if isinstance(write.action, Update)]
    return [update for update in found if type_ in (None, update.record.type)]


def named(found: IdentityPlan) -> list[str]:
    return [str(each) for each in found.differences]


@dataclass(frozen=True)
class Drift:
    central: Cloud
    site: Cloud
    placed: Placed


NAMES = [f"n{number}" for number in range(5)]


def a_drift(seed: int, *, renames: bool = False) -> Drift:
    """A central cloud, and a site that may lack its records, have them under other ids or with other fields, and more.

    Made from a seed, for hypothesis would shrink for minutes what has so many parts.
    """
    dice = random.Random(seed)

    def some(items: Iterable[T]) -> list[T]:
        return [item for item in items if dice.random() < 0.6]

    shared = set(some(NAMES))

    def side(prefix: str, names: list[str]) -> Cloud:
        def chosen(kind: str) -> list[tuple[str, str]]:
            labels = some(names)
            if renames:
                return list(zip(labels, dice.sample([f"{kind}-c{n}" for n in range(6)], len(labels)), strict=True))
            return [(name, f"{kind}-{name}" if name in shared else f"{kind}-{prefix}{name}") for name in labels]

        left_alone = [(name, f"u-{prefix}{name}") for name in some(["fm"])]
        users = tuple(
            a_user(name, id_, password=dice.choice("ab"), enabled=dice.random() < 0.5)
            for name, id_ in [*chosen("u"), *left_alone]
        )
        ids = [user.id for user in users] + ["user-admin"]
        groups = tuple(a_group(name, id_, members=tuple(some(ids))) for name, id_ in chosen("g"))
        projects: list[Record] = []
        for name, id_ in chosen("p"):
            parent = dice.choice(["default", *(p.id for p in projects)])
            projects.append(changed(a_project(name, id_), parent_id=parent, description=dice.choice("ab")))
        dice.shuffle(projects)
        roles = tuple(changed(a_role(name, id_), description=dice.choice("ab")) for name, id_ in chosen("r"))
        listed = records(users=users, groups=groups, projects=tuple(projects), roles=roles)
        possible = _possible(listed)
        grants = dice.sample(possible, min(8, len(possible)))
        return Cloud(listed, frozenset(grants), frozenset(map(an_event, some("xyz"))))

    central, site = side("c", NAMES), side("s", [*NAMES, "own"])
    ids = {type_: frozenset(r.id for r in some(site.records.of(type_))) for type_ in ResourceType}
    return Drift(central, site, Placed(ids, frozenset(some(sorted(site.assignments)))))


def drifts(*, renames: bool = False) -> st.SearchStrategy[Drift]:
    seeds = st.integers(min_value=0, max_value=2**32)
    return seeds.map(lambda seed: a_drift(seed, renames=renames))


def _possible(listed: Any) -> list[Assignment]:
    actors = [(ActorType.USER, r.id) for r in listed.users] + [(ActorType.GROUP, r.id) for r in listed.groups]
    return [Assignment(p.id, *actor, r.id) for p in listed.projects for actor in actors for r in listed.roles]
