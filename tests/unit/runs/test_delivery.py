"""How a plan is carried out: in its order, users side by side, and nothing after the first refusal."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from dcsync.model.errors import CloudError
from dcsync.model.identity import Record
from dcsync.model.reasons import Reason
from dcsync.planner.match import Cloud
from dcsync.planner.order import as_writes
from dcsync.planner.writes import Action, SetPassword, Update
from dcsync.runs.delivery import carry_out
from tests.builders import a_group, a_role, a_user, records
from tests.memory_clouds import MemorySite


class SlowSite(MemorySite):
    """Answers each PUT late, and knows how many were under way at the same time."""

    def __init__(self, cloud: Cloud) -> None:
        super().__init__(cloud)
        self.under_way = self.most = 0
        self.log: list[str] = []

    async def update(self, old_id: str, record: Record) -> Record:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        self.log.append(f"begin {record.name}")
        await asyncio.sleep(0.001)
        self.under_way -= 1
        self.log.append(f"end {record.name}")
        return await super().update(old_id, record)


def sent(site: MemorySite, *actions: Action, at_once: int = 2, **options: Any) -> None:
    async def no_objection() -> None:
        return

    asyncio.run(
        carry_out(as_writes(actions), session=site, check_ownership=no_objection, users_at_once=at_once, **options)
    )


def renamed(user: Record, name: str) -> Update:
    return Update(user, a_user(name, user.id))


@pytest.mark.parametrize(("at_once", "most"), [(1, 1), (3, 3), (9, 4)])
def test_users_go_side_by_side_but_not_too_many_at_once(at_once: int, most: int) -> None:
    users = [a_user(name) for name in "abcd"]
    site = SlowSite(Cloud(records(users=tuple(users))))
    sent(site, *(Update(user, user) for user in users), at_once=at_once)
    assert site.most == most


def test_roles_and_groups_go_one_after_another() -> None:
    roles, groups = [a_role(name) for name in "ab"], [a_group(name) for name in "ab"]
    site = SlowSite(Cloud(records(roles=tuple(roles), groups=tuple(groups))))
    sent(site, *(Update(record, record) for record in (*groups, *roles)))
    assert site.most == 1


def test_a_user_who_takes_a_name_waits_for_the_one_who_gives_it_up() -> None:
    first, second, other = a_user("a"), a_user("b"), a_user("c")
    site = SlowSite(Cloud(records(users=(first, second, other))))
    sent(site, renamed(first, "z"), Update(other, other), renamed(second, "a"), at_once=9)
    assert site.most == 2
    assert site.log.index("begin a") > max(site.log.index("end z"), site.log.index("end c"))


def test_nothing_is_written_after_the_first_refusal() -> None:
    site = MemorySite(Cloud(records(roles=(a_role("x"),))))
    role = a_role("x")
    with pytest.raises(CloudError) as error:
        sent(site, Update(a_role("missing"), a_role("missing")), Update(role, role))
    assert error.value.reason is Reason.REFUSED
    assert site.writes == ["PUT roles missing"]


def test_a_record_that_is_stored_otherwise_than_it_was_sent_is_an_error() -> None:
    site = MemorySite()
    user = a_user("sysinv")

    async def forgetful(old_id: str, record: Record) -> Record:
        return a_user("sysinv", password="own")

    site.update = forgetful  # type: ignore[method-assign]
    with pytest.raises(CloudError) as error:
        sent(site, Update(user, user))
    assert error.value.reason is Reason.IDENTITY_NOT_VERIFIED


def test_a_password_nobody_knows_is_never_set() -> None:
    site = MemorySite()
    with pytest.raises(ValueError, match="not known"):
        sent(site, SetPassword(a_user("admin")))
    assert site.writes == []
