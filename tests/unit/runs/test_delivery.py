"""How a plan is carried out: in its order, users side by side, and what depends on a refused write is not sent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from dcsync.model.errors import CloudError
from dcsync.model.identity import Record
from dcsync.model.reasons import Reason
from dcsync.planner.match import Cloud
from dcsync.planner.order import as_writes
from dcsync.planner.writes import Action, Delete, SetPassword, Update
from dcsync.runs.delivery import REFUSED_IN_A_ROW, Delivered, carry_out
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


def sent(site: MemorySite, *actions: Action, at_once: int = 2, **options: Any) -> Delivered:
    async def no_objection() -> None:
        return

    return asyncio.run(
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


def said(delivered: Delivered) -> list[str]:
    return [str(each) for each in delivered.not_written]


def test_a_refused_write_is_named_and_independent_ones_are_sent() -> None:
    site, role, noted = MemorySite(Cloud(records(roles=(a_role("x"),)))), a_role("x"), list[str]()
    delivered = sent(
        site,
        Update(a_role("gone"), a_role("gone")),
        Update(role, role),
        note_not_written=lambda it: noted.append(str(it)),
    )
    assert site.writes == ["PUT roles gone", "PUT roles x"]
    assert [write.words for write in delivered.written] == ["PUT roles x"]
    assert said(delivered) == noted == ["PUT roles gone: PUT /identity/roles/role-gone: 404"]
    assert delivered.not_written[0].reason is Reason.REFUSED


def test_a_name_that_was_not_given_up_is_not_taken() -> None:
    first, second, third = a_user("a"), a_user("b"), a_user("c")
    site = MemorySite(Cloud(records(users=(first, second, third))))
    site.before_call = raising_at("PUT users z")
    delivered = sent(site, renamed(first, "z"), renamed(second, "a"), renamed(third, "b"))
    assert site.writes == []
    assert said(delivered) == [
        "PUT users z: no",
        "PUT users a: not sent, it depends on PUT users z",
        "PUT users b: not sent, it depends on PUT users a",
    ]


def raising_at(*calls: str, error: CloudError | None = None) -> Callable[[str], None]:
    def hook(about_to: str) -> None:
        if about_to.startswith(calls):
            raise error or CloudError(Reason.SERVER_ERROR, "no")

    return hook


def test_a_record_that_is_stored_otherwise_than_it_was_sent_is_not_written() -> None:
    site = MemorySite()
    user = a_user("sysinv")

    async def forgetful(old_id: str, record: Record) -> Record:
        return a_user("sysinv", password="own")

    site.update = forgetful  # type: ignore[method-assign]
    delivered = sent(site, Update(user, user))
    assert delivered.written == ()
    assert [each.reason for each in delivered.not_written] == [Reason.IDENTITY_NOT_VERIFIED]


@pytest.mark.parametrize(
    "error",
    [
        CloudError(Reason.UNREACHABLE, "gone"),
        CloudError(Reason.TIMEOUT, "slow"),
        CloudError(Reason.TLS_FAILED, "expired"),
        CloudError(Reason.AUTH_FAILED, "401"),
        CloudError(Reason.TOO_MANY_REQUESTS, "429"),
        CloudError(Reason.ADDRESS_REFUSED, "127.0.0.1"),
        CloudError(Reason.REPLY_TOO_LARGE, "16 MiB"),
        CloudError(Reason.SERVER_ERROR, "503 with a Retry-After", 60),
    ],
    ids=lambda error: error.detail,
)
def test_nothing_is_sent_after_a_failure_that_is_not_about_the_record(error: CloudError) -> None:
    role = a_role("x")
    site = MemorySite(Cloud(records(roles=(role,))))
    site.before_call = raising_at("PUT roles admin", error=error)
    with pytest.raises(CloudError) as raised:
        sent(site, Update(a_role("admin"), a_role("admin")), Update(role, role))
    assert raised.value is error
    assert site.writes == []


@pytest.mark.parametrize("at_once", [1, 4])
def test_a_subcloud_that_refuses_everything_costs_few_requests_of_each_kind(at_once: int) -> None:
    users = tuple(a_user(f"u{number}") for number in range(3000))
    site, calls = MemorySite(Cloud(records(users=users))), list[str]()

    def refuse(call: str) -> None:
        calls.append(call)
        raise CloudError(Reason.REFUSED, "403")

    site.before_call = refuse
    updates, deletions = [Update(user, user) for user in users], [Delete(user) for user in users]
    delivered = sent(site, *updates, *deletions, at_once=at_once)
    assert REFUSED_IN_A_ROW * 2 <= len(calls) < REFUSED_IN_A_ROW * 2 + at_once
    assert len(delivered.not_written) == 6000
    assert said(delivered)[-1] == "DELETE users u2999: not sent, because 10 such writes in a row were refused"
    assert calls[-1] == "DELETE users u9"


def test_refusals_that_are_not_in_a_row_stop_nothing() -> None:
    users = tuple(a_user(f"{'bad' if number % 3 else 'good'}{number}") for number in range(60))
    site = MemorySite(Cloud(records(users=users)))
    site.before_call = raising_at("PUT users bad")
    delivered = sent(site, *(Update(user, user) for user in users), at_once=1)
    assert (len(delivered.written), len(delivered.not_written)) == (20, 40)


def test_a_password_nobody_knows_is_never_set() -> None:
    site = MemorySite()
    with pytest.raises(ValueError, match="not known"):
        sent(site, SetPassword(a_user("admin")))
    assert site.writes == []
