"""A central cloud that changes for a while, and a subcloud whose initial syncs and audits fail or die now and then: in
the end the subcloud has what the central cloud has, with nothing left over, and all that was its own.

Made from a seed, like the drifts of `tests/unit/planner/clouds.py`.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from dcsync.initial_sync.engine import InitialSync
from dcsync.model.errors import CloudError
from dcsync.model.identity import ActorType, Assignment, CentralData, Placed, Record, Records, ResourceType
from dcsync.model.messages import SyncHint
from dcsync.model.reasons import Reason
from dcsync.model.states.audit import AuditStatus
from dcsync.model.subcloud import SyncStatus
from dcsync.planner.differences import TAKEN
from dcsync.planner.match import Cloud
from dcsync.runs.ownership import BatchedOwnership
from dcsync.runs.runner import Runner
from tests.builders import NOON, a_group, a_project, a_role, a_user, central_data, records
from tests.fakes_sync import MemoryLocks, OwnLoop, a_requested_store
from tests.memory_clouds import MemorySite
from tests.unit.audit import test_engine as audits
from tests.unit.initial_sync import test_engine as syncs

REGION = audits.REGION
USERS, GROUPS, PROJECTS, ROLES = ResourceType
NAMES = ["a", "b", "c", "d"]
MAKERS: dict[ResourceType, Callable[[str, str], Record]] = {
    USERS: a_user, GROUPS: a_group, PROJECTS: a_project, ROLES: a_role,
}  # fmt: skip


class Killed(BaseException):
    """The worker dies."""


@dataclass
class Centre:
    """Names by id of each type; an id is never used again."""

    dice: random.Random
    names: dict[ResourceType, dict[str, str]] = field(default_factory=lambda: {type_: {} for type_ in ResourceType})
    passwords: dict[str, str] = field(default_factory=dict)
    members: dict[str, list[str]] = field(default_factory=dict)
    grants: set[Assignment] = field(default_factory=set)
    numbers: Any = field(default_factory=lambda: itertools.count(1))

    def records(self) -> Records:
        users = tuple(
            a_user(name, id_, password=self.passwords.get(id_, "pw")) for id_, name in self.names[USERS].items()
        )
        groups = tuple(
            a_group(name, id_, members=tuple(m for m in self.members.get(id_, ()) if m in self.names[USERS]))
            for id_, name in self.names[GROUPS].items()
        )
        projects, roles = (
            tuple(MAKERS[type_](name, id_) for id_, name in self.names[type_].items()) for type_ in (PROJECTS, ROLES)
        )
        return records(users=users, groups=groups, projects=projects, roles=roles)

    def data(self) -> CentralData:
        listed = self.records()
        known = {type_: {record.id for record in listed.of(type_)} for type_ in ResourceType}
        self.grants = {grant for grant in self.grants if all(id_ in known[type_] for type_, id_ in grant.ids)}
        return replace(central_data(listed), assignments=frozenset(self.grants))

    def change(self) -> None:
        """Somebody adds, deletes, renames or makes something anew; a password, a membership or a grant changes."""
        type_ = self.dice.choice([USERS, USERS, USERS, GROUPS, PROJECTS, ROLES])
        own = self.names[type_]
        free = [name for name in NAMES if name not in own.values()]
        action = self.dice.choice(["add", "add", "delete", "rename", "make anew", "grant", "grant", "revoke", "other"])
        if action == "add" and free:
            own[self._new_id(type_)] = self.dice.choice(free)
        elif action == "delete" and own:
            del own[self.dice.choice(list(own))]
        elif action == "rename" and own and free:
            own[self.dice.choice(list(own))] = self.dice.choice(free)
        elif action == "make anew" and own:
            own[self._new_id(type_)] = own.pop(self.dice.choice(list(own)))
        elif action == "grant":
            self._grant()
        elif action == "revoke" and self.grants:
            self.grants.discard(self.dice.choice(sorted(self.grants)))
        elif self.names[USERS] and self.names[GROUPS]:
            users = list(self.names[USERS])
            self.passwords[self.dice.choice(users)] = f"pw{self.dice.random()}"
            self.members[self.dice.choice(list(self.names[GROUPS]))] = self.dice.sample(users, len(users) // 2)

    def _new_id(self, type_: ResourceType) -> str:
        return f"c-{type_}-{next(self.numbers)}"

    def _grant(self) -> None:
        kind, actors = self.dice.choice([(ActorType.USER, USERS), (ActorType.GROUP, GROUPS)])
        parts = [list(self.names[type_]) for type_ in (PROJECTS, actors, ROLES)]
        if all(parts):
            project, actor, role = map(self.dice.choice, parts)
            self.grants.add(Assignment(project, kind, actor, role))


OWN_GRANT = Assignment("s-project", ActorType.USER, "s-own", "role-admin")


class Life:
    """One subcloud under one centre: initial syncs and audits over the same rows and the same site."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.centre = Centre(self.dice)
        self.world = audits.World()
        self.world.changes["limits"] = replace(audits.LIMITS, max_deletes=1000)
        self.world.clouds.site = self.site = self._a_site()
        self.runs = a_requested_store(REGION)
        self.numbers = itertools.count(1)

    def _a_site(self) -> MemorySite:
        users = [a_user(name, f"s-{name}") for name in self.dice.sample(NAMES, 2)]
        listed = records(
            users=(*users, a_user("own", "s-own")),
            groups=(a_group("own", "s-group", members=("s-own", *(user.id for user in users))),),
            projects=(a_project("own", "s-project"),),
            roles=(a_role("a", "s-role"),),
        )
        return MemorySite(Cloud(listed, frozenset({OWN_GRANT})))

    def goes_on(self) -> None:
        for _ in range(self.dice.randint(0, 3)):
            self.centre.change()
        self.world.clouds.central = self.centre.data()
        with self._trouble():
            self.dice.choice([self.sync, self.audit, self.audit])()

    @contextlib.contextmanager
    def _trouble(self) -> Any:
        """At one of the calls, or nowhere: the site answers 500, or the worker dies and its run is taken back."""
        at = self.dice.choice([None, self.dice.randint(0, 25)])
        error = self.dice.choice([CloudError(Reason.SERVER_ERROR, "500"), Killed()])
        calls = itertools.count()

        def hook(call: str) -> None:
            if next(calls) == at:
                raise error

        self.site.before_call = hook
        with contextlib.suppress(Killed):
            yield
        self.site.before_call = lambda call: None
        self.world.locks.held.clear()
        for row in self.world.store.rows.values():
            row.free()
            row.status = AuditStatus.NONE

    def sync(self) -> None:
        """From the start, over what audits remembered."""
        kept, audited = self.runs.rows[REGION], self.world.store
        self.runs.ask(REGION, now=NOON)
        kept.placed, kept.identity_fingerprint = audited.placed.get(REGION, Placed()), None
        kept.groups_to_refill = dict(audited.groups.get(REGION, {}))
        locks = MemoryLocks()
        engine = InitialSync(
            store=self.runs,
            ownership=BatchedOwnership(self.runs, locks, lock_ttl_seconds=30, elapsed=time.monotonic),
            clouds=self.world.clouds,
            progress=lambda run, step: None,
            limits=syncs.LIMITS,
            now=lambda: NOON,
            jitter=lambda: 0.0,
            worker="w1",
        )
        runner = Runner(
            locks=locks,
            clouds=self.world.clouds,
            deadline_seconds=3600,
            now=lambda: NOON,
            new_run_id=lambda: f"sync-{next(self.numbers)}",
            log_fault=lambda run, error: self.world.faults.append(error),
        )
        try:
            OwnLoop().run(runner.run(engine, [SyncHint(REGION, kept.subcloud.generation)]))
        finally:
            audited.placed[REGION], audited.groups[REGION] = kept.placed, kept.groups_to_refill

    def audit(self) -> None:
        self.world.store.request(None, [audits.IDENTITY], now=self.world.now, by="eve")
        self.world.run()


@given(st.integers(min_value=0, max_value=2**32))
def test_in_the_end_a_subcloud_has_what_the_central_cloud_has_and_what_is_its_own(seed: int) -> None:
    life = Life(seed)
    for _ in range(14):
        life.goes_on()
    for _ in range(3):
        life.world.now += timedelta(hours=1)
        life.audit()
    assert life.world.faults == []
    row, site = life.world.row(), life.site.cloud
    if row.result is not SyncStatus.IN_SYNC:
        assert any(TAKEN in named for named in row.differences), "only what a person must sort out may be left"
        return
    for type_ in ResourceType:
        central = {record.id: record.name for record in life.centre.data().records.of(type_)}
        here = {record.id: record.name for record in site.records.of(type_)}
        assert here.items() >= central.items()
        assert {id_ for id_ in here.keys() - central.keys() if not id_.startswith("s-")} == set()
    assert site.assignments == life.centre.grants | {OWN_GRANT}
    assert "s-own" in life.site.tables[USERS]
    assert "s-own" in life.site.tables[GROUPS]["s-group"].member_ids
