"""What a preview of an initial sync lists."""

from __future__ import annotations

import asyncio

from dcsync.initial_sync.preview import SyncPreview, preview
from dcsync.model.identity import Record
from dcsync.model.reasons import Reason
from dcsync.planner.match import Cloud
from tests.builders import a_project, a_subcloud, a_user, central_data, records
from tests.memory_clouds import MemoryClouds, MemorySite
from tests.unit.planner.clouds import a_domain

IN_ANY_CASE = ("PUT users admin", "PUT users sysinv", "PUT users dcmanager")


def previewed(*, users: tuple[Record, ...] = ()) -> SyncPreview:
    site = MemorySite(Cloud(records(projects=(a_domain("d", "s-d"), a_project("web", "s-web")), users=users)))
    central = central_data(records(projects=(a_domain("d", "c-d"), a_project("web", "c-web"))))
    clouds = MemoryClouds(central=central, site=site)
    seen = asyncio.run(preview(clouds=clouds, subcloud=a_subcloud(), request_id="req-1"))
    assert site.writes == []
    return seen


def test_the_ids_of_domains_come_first_and_the_keys_last() -> None:
    seen = previewed()
    assert (seen.writes, seen.refused) == (("PUT projects d", "POST fernet_repo"), None)


def test_a_domain_that_must_keep_its_id_is_not_listed_and_neither_are_the_keys() -> None:
    seen = previewed(users=(a_user("own", domain_id="s-d"),))
    assert seen.writes == (*IN_ANY_CASE, "PUT projects web")
    assert "projects d: project.id" in seen.differences
    assert seen.refused is not None
    assert seen.refused.reason is Reason.GUARD_REFUSED
    assert "PUT projects d" in seen.refused.detail
