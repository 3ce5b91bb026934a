"""What is still written when a write is refused: everything that does not depend on it, as far as that is possible."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given

from dcsync.model.errors import CloudError
from dcsync.model.identity import Assignment, Placed, Record, ResourceType
from dcsync.model.reasons import Reason
from dcsync.planner.match import Cloud
from dcsync.planner.passwords import NOBODYS_HASH
from dcsync.planner.plan import ALWAYS_WRITTEN_USERS, IdentityPlan
from dcsync.planner.writes import Create, Update
from dcsync.runs.clouds import Seen
from dcsync.runs.delivery import Delivered, carry_out
from tests.builders import a_group, a_project, a_role, a_user, records
from tests.memory_clouds import MemorySite
from tests.unit.planner.clouds import (
    GROUPS,
    PROJECTS,
    ROLES,
    USERS,
    Drift,
    a_domain,
    audit,
    changed,
    drifts,
    grant,
    no_objection,
    of,
    repaired,
)
from tests.unit.planner.test_properties import SEEDS, initial_sync


def delivered(plan: IdentityPlan, site: MemorySite, *, refusing: Sequence[str] = ()) -> Delivered:
    """Carried out on a subcloud that refuses the writes of these words."""

    def refuse(call: str) -> None:
        if call in refusing:
            raise CloudError(Reason.SERVER_ERROR, f"{call}: 500")

    site.before_call = refuse
    try:
        return asyncio.run(carry_out(plan.writes, session=site, check_ownership=no_objection, users_at_once=4))
    finally:
        site.before_call = lambda call: None


def names(site: MemorySite, type_: ResourceType) -> set[str]:
    return {record.name for record in site.tables[type_].values()}


# --- groups and grants of a record that was refused ---------------------------------------------------------------


def test_a_group_keeps_the_member_whose_id_was_refused_and_gets_the_others() -> None:
    central = of(
        users=(a_user("bob", "c-bob"), a_user("eve", "c-eve")), groups=(a_group("ops", members=("c-bob", "c-eve")),)
    )
    own = a_group("own", "s-own", members=("s-bob", "s-eve"))
    site = MemorySite(
        of(
            users=(a_user("bob", "s-bob"), a_user("eve", "s-eve")),
            groups=(a_group("ops", members=("s-bob", "s-eve")), own),
        )
    )
    delivered(audit(central, site.cloud), site, refusing=["PUT users bob"])
    assert site.named(USERS, "eve").id == "c-eve"
    assert site.named(GROUPS, "ops").member_ids == ("c-eve", "s-bob")
    assert site.named(GROUPS, "own").member_ids == ("c-eve", "s-bob")


def test_a_group_is_created_without_a_member_that_was_refused() -> None:
    central = of(users=(a_user("bob"), a_user("eve")), groups=(a_group("ops", members=("user-bob", "user-eve")),))
    site = MemorySite(of())
    delivered(audit(central, site.cloud), site, refusing=["POST users bob"])
    assert site.named(GROUPS, "ops").member_ids == ("user-eve",)


def test_grants_are_revoked_and_granted_under_an_id_that_was_not_changed() -> None:
    wanted = grant("project-admin", "c-bob", "role-admin")
    central = Cloud(records(users=(a_user("bob", "c-bob"),)), frozenset({wanted}))
    placed = Assignment("project-services", wanted.actor_type, "s-bob", "role-admin")
    site = MemorySite(Cloud(records(users=(a_user("bob", "s-bob"),)), frozenset({placed})))
    plan = audit(central, site.cloud, Placed(assignments=frozenset({placed})))
    assert len(delivered(plan, site, refusing=["PUT users bob"]).not_written) == 1
    assert site.grants == {grant("project-admin", "s-bob", "role-admin")}


def test_nothing_is_granted_to_a_user_who_was_not_created() -> None:
    wanted = grant("project-admin", "user-bob", "role-admin")
    site = MemorySite(of())
    plan = audit(Cloud(records(users=(a_user("bob"),)), frozenset({wanted})), site.cloud)
    found = delivered(plan, site, refusing=["POST users bob"])
    assert site.writes == []
    assert [each.reason for each in found.not_written] == [Reason.SERVER_ERROR, None]


# --- projects -----------------------------------------------------------------------------------------------------


def test_a_project_whose_parent_keeps_an_old_description_is_written_all_the_same() -> None:
    child = changed(a_project("child"), parent_id="project-top", description="new")
    central = of(projects=(changed(a_project("top"), description="new"), child))
    site = MemorySite(of(projects=(a_project("top"), changed(child, description="old"))))
    delivered(audit(central, site.cloud), site, refusing=["PUT projects top"])
    assert site.named(PROJECTS, "child") == child


def test_a_project_under_one_that_was_not_created_is_not_sent() -> None:
    child = changed(a_project("child"), parent_id="project-top")
    site = MemorySite(of())
    found = delivered(audit(of(projects=(a_project("top"), child)), site.cloud), site, refusing=["POST projects top"])
    assert [each.reason for each in found.not_written] == [Reason.SERVER_ERROR, None]
    assert names(site, PROJECTS) == {"admin", "services"}


def test_a_project_with_tags_whose_id_changes_is_refused_with_what_to_do() -> None:
    site = MemorySite(of(projects=(a_project("web", "s-web"),), roles=(a_role("r", "s-r"),)))
    site.tagged = {"s-web"}
    central = of(projects=(a_project("web", "c-web"),), roles=(a_role("r", "c-r"),))
    with pytest.raises(CloudError, match=r"PUT projects web: .* 500 .the id of a project .* tags or options") as error:
        initial_sync(central.records, site)
    assert error.value.reason is Reason.SERVER_ERROR
    assert site.named(ROLES, "r").id == "c-r"


# --- any drift ----------------------------------------------------------------------------------------------------


@given(drifts(), SEEDS)
def test_one_refused_write_leads_to_no_other_refusal_and_the_next_audit_makes_up_for_it(
    drift: Drift, seed: int
) -> None:
    site = MemorySite(drift.site)
    plan = audit(drift.central, site.cloud, drift.placed)
    records_written = [write for write in plan.writes if isinstance(write.action, Update | Create)]
    refusing = [random.Random(seed).choice(records_written).words] if records_written else []
    found = delivered(plan, site, refusing=refusing)
    assert {each.action.words for each in found.not_written if each.reason is not None} <= set(refusing)
    assert len(found.written) + len(found.not_written) == len(plan.writes)
    placed = drift.placed | plan.placed_meanwhile
    for _ in range(2):
        placed = placed | repaired(drift.central, site, placed, groups_to_refill=plan.groups_to_refill).placed
    whole = MemorySite(drift.site)
    repaired(drift.central, whole, drift.placed)
    assert names_and_members(site) == names_and_members(whole)


def names_and_members(site: MemorySite) -> dict[ResourceType, set[tuple[str, str, tuple[str, ...]]]]:
    return {
        type_: {(record.id, record.name, record.member_ids) for record in site.tables[type_].values()}
        for type_ in ResourceType
    }


# --- users without a password -------------------------------------------------------------------------------------


def without_password(name: str) -> Record:
    user = a_user(name)
    return replace(user, body={**user.body, "password": []})


def test_a_user_without_a_password_is_created_with_one_that_nobody_knows_and_loses_it_at_once() -> None:
    site, bob = MemorySite(of()), without_password("bob")
    sent: list[Record] = []
    stored = site.create

    async def noted(record: Record) -> Record:
        sent.append(record)
        return await stored(record)

    site.create = noted  # type: ignore[method-assign]
    central = of(users=(bob,), groups=(a_group("ops", members=("user-bob",)),))
    assert repaired(central, site).words == ("POST users bob", "PUT users bob", "POST groups ops")
    assert [row["password_hash"] for row in sent[0].body["password"]] == [NOBODYS_HASH]
    assert site.named(USERS, "bob") == bob
    assert audit(central, site.cloud).is_in_sync


def test_a_placeholder_that_an_interrupted_run_left_is_removed() -> None:
    central, site = of(users=(without_password("bob"),)), MemorySite(of())
    delivered(audit(central, site.cloud), site, refusing=["PUT users bob"])
    assert site.named(USERS, "bob").body["password"]
    repaired(central, site)
    assert site.named(USERS, "bob") == without_password("bob")


# --- domains ------------------------------------------------------------------------------------------------------


def test_a_domain_with_users_keeps_its_id_in_an_initial_sync_which_writes_the_rest_and_fails() -> None:
    central = of(projects=(a_domain("d", "c-d"),), roles=(a_role("r", "c-r"),))
    own = a_user("own", domain_id="s-d")
    site = MemorySite(of(projects=(a_domain("d", "s-d"),), users=(own,), roles=(a_role("r", "s-r"),)))
    with pytest.raises(CloudError, match=r"PUT projects d: it has another id .*own.*delete the domain") as error:
        initial_sync(central.records, site)
    assert error.value.reason is Reason.GUARD_REFUSED
    assert set(site.writes) == {*(f"PUT users {name}" for name in ALWAYS_WRITTEN_USERS), "PUT roles r"}
    assert site.named(USERS, "own") == own


def test_of_two_domains_the_empty_one_takes_its_id() -> None:
    central = of(projects=(a_domain("d", "c-d"), a_domain("e", "c-e")))
    site = MemorySite(of(projects=(a_domain("d", "s-d"), a_domain("e", "s-e")), users=(a_user("x", domain_id="s-d"),)))
    first = repaired(central, site)
    assert first.words == ("PUT projects e",)
    assert [each.action.words for each in first.refused] == ["PUT projects d"]
    second = audit(central, site.cloud)
    assert (second.words, len(second.refused)) == ((), 1)


def test_an_initial_sync_whose_write_was_refused_delivers_the_others_and_fails_with_its_name() -> None:
    central = of(users=(a_user("bob", "c-bob"), a_user("eve", "c-eve")), roles=(a_role("r", "c-r"),))
    site = MemorySite(of(users=(a_user("bob", "s-bob"), a_user("eve", "s-eve")), roles=(a_role("r", "s-r"),)))

    def refuse(call: str) -> None:
        if call == "PUT users bob":
            raise CloudError(Reason.SERVER_ERROR, "500")

    site.before_call = refuse
    with pytest.raises(CloudError) as error:
        initial_sync(central.records, site)
    assert (error.value.reason, error.value.detail) == (Reason.SERVER_ERROR, "refused: PUT users bob: 500")
    assert (site.named(USERS, "eve").id, site.named(ROLES, "r").id) == ("c-eve", "c-r")
    site.before_call, site.seen = lambda call: None, Seen()
    initial_sync(central.records, site)
    assert site.named(USERS, "bob").id == "c-bob"
