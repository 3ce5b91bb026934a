"""A subcloud that still has the former password of dcsync's own user: it gets the new hash, and nothing else before."""

from __future__ import annotations

import asyncio

import pytest

from dcsync.model.errors import CloudError
from dcsync.model.identity import CentralData, Record, ResourceType
from dcsync.model.reasons import Reason
from dcsync.planner.differences import password_hashes
from dcsync.planner.match import Cloud
from dcsync.runs.login import Login
from tests.builders import a_subcloud, a_user, central_data, records
from tests.memory_clouds import MemoryClouds, MemorySite
from tests.one_run import OneWorker

USERS = ResourceType.USERS
BEFORE = "before"


def central() -> CentralData:
    return central_data(records(users=(a_user("vim", "c-vim"),)))


@pytest.fixture
def reach() -> MemoryClouds:
    """The password changed centrally and in the settings; the subcloud has the one before."""
    clouds = MemoryClouds(central=central(), site=MemorySite(Cloud(records(users=(a_user("vim", "s-vim"),)))))
    clouds.site.add_password(own(clouds).id, BEFORE)
    clouds.previous_password = BEFORE
    return clouds


def own(clouds: MemoryClouds) -> Record:
    return clouds.site.named(USERS, clouds.own_user)


class AnOwner:
    run_id = "run-1"
    subcloud = a_subcloud()


async def log_in(clouds: MemoryClouds, *, ownership: Exception | None = None) -> None:
    async def check() -> None:
        if ownership is not None:
            raise ownership

    login = Login(clouds, AnOwner())
    try:
        await login.session(central=clouds.central.records, check_ownership=check)
    finally:
        await login.close()


async def test_the_new_hash_is_delivered_with_the_password_before_and_the_run_logs_in_with_the_new_one(
    reach: MemoryClouds,
) -> None:
    await log_in(reach)
    assert reach.site.writes == ["PUT users dcmanager"], "nothing else is written under the previous password"
    assert reach.site.calls[0] == "login with the previous password"
    assert reach.site.calls[-1] == "login"
    (wanted,) = [user for user in reach.central.records.users if user.name == "dcmanager"]
    assert password_hashes(own(reach)) == password_hashes(wanted)


async def test_a_whole_run_completes_on_such_a_subcloud(reach: MemoryClouds) -> None:
    worker = OneWorker(reach)
    await worker.run()
    assert worker.endings == [("initial sync", "completed"), ("audit", "done")]


async def test_where_the_new_password_is_taken_the_one_before_is_not_tried(reach: MemoryClouds) -> None:
    await log_in(reach)
    reach.site.calls.clear()
    await log_in(reach)
    assert reach.site.calls == ["login"]


@pytest.mark.parametrize("known", [None, "quite another"])
async def test_without_a_previous_password_that_is_taken_the_refusal_stands(
    reach: MemoryClouds, known: str | None
) -> None:
    reach.previous_password = known
    with pytest.raises(CloudError) as caught:
        await log_in(reach)
    assert caught.value.reason is Reason.AUTH_FAILED
    assert reach.site.writes == []


async def test_another_failure_than_a_refusal_does_not_bring_out_the_previous_password(reach: MemoryClouds) -> None:
    reach.site_error = CloudError(Reason.UNREACHABLE, "no connection")
    with pytest.raises(CloudError) as caught:
        await log_in(reach)
    assert caught.value.reason is Reason.UNREACHABLE
    assert reach.site.calls == []


async def test_a_run_that_no_longer_owns_its_subcloud_delivers_nothing(reach: MemoryClouds) -> None:
    with pytest.raises(asyncio.InvalidStateError):
        await log_in(reach, ownership=asyncio.InvalidStateError())
    assert reach.site.writes == []


async def test_a_user_with_another_id_than_the_central_one_is_not_touched(reach: MemoryClouds) -> None:
    reach.own_user = "vim"
    reach.site.add_password("s-vim", BEFORE)
    with pytest.raises(CloudError) as caught:
        await log_in(reach)
    assert caught.value.reason is Reason.IDS_NOT_ALIGNED
    assert reach.site.writes == []


async def test_where_the_subcloud_has_the_central_hash_already_nothing_is_sent(reach: MemoryClouds) -> None:
    hashes = own(reach)
    lists = [hashes if user.name == "dcmanager" else user for user in reach.central.records.users]
    reach.central = central_data(records(users=tuple(lists)))
    with pytest.raises(CloudError, match="has the central hash") as caught:
        await log_in(reach)
    assert caught.value.reason is Reason.AUTH_FAILED
    assert reach.site.writes == []


async def test_a_subcloud_that_refuses_the_new_hash_is_named_with_the_reason(reach: MemoryClouds) -> None:
    def refuse(call: str) -> None:
        if call.startswith("PUT"):
            raise CloudError(Reason.SERVER_ERROR, "500")

    reach.site.before_call = refuse
    with pytest.raises(CloudError, match="PUT users dcmanager: 500") as caught:
        await log_in(reach)
    assert caught.value.reason is Reason.SERVER_ERROR
    assert reach.site.calls[-1] != "login"
