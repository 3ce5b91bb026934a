"""Which write needs which: each rule on the smallest plan that shows it."""

from __future__ import annotations

from dataclasses import replace

from dcsync.model.identity import Placed, Record
from dcsync.planner.match import Cloud
from dcsync.planner.plan import IdentityPlan
from tests.builders import a_group, a_project, a_role, a_user
from tests.unit.planner.clouds import PROJECTS, ROLES, USERS, audit, changed, grant, of


def needs(plan: IdentityPlan) -> dict[str, list[str]]:
    """Words of each write, and of those it needs."""
    return {write.words: [plan.writes[need].words for need in write.needs] for write in plan.writes}


def under(parent: str, project: Record) -> Record:
    return changed(project, parent_id=parent)


def test_independent_writes_need_nothing() -> None:
    plan = audit(of(users=(a_user("a"), a_user("b")), roles=(a_role("r"),)), of())
    assert needs(plan) == {"POST users a": [], "POST users b": [], "POST roles r": []}


def test_who_takes_a_name_needs_the_one_who_gives_it_up() -> None:
    plan = audit(of(users=(a_user("b", "c-1"), a_user("x", "c-2"))), of(users=(a_user("a", "c-1"), a_user("b", "c-2"))))
    assert needs(plan) == {"PUT users x": [], "PUT users b": ["PUT users x"]}


def test_a_child_needs_its_parent() -> None:
    plan = audit(of(projects=(under("c-up", a_project("down")), a_project("up", "c-up"))), of())
    assert needs(plan) == {"POST projects up": [], "POST projects down": ["POST projects up"]}


def test_a_member_whose_id_changes_needs_its_groups_emptied_and_the_group_needs_it_to_be_filled() -> None:
    plan = audit(
        of(users=(a_user("bob", "c-bob"),), groups=(a_group("ops", members=("c-bob",)),)),
        of(users=(a_user("bob", "s-bob"),), groups=(a_group("ops", members=("s-bob",)),)),
    )
    assert [write.words for write in plan.writes] == ["PUT groups ops", "PUT users bob", "PUT groups ops"]
    assert [write.needs for write in plan.writes] == [(), (0,), (0, 1)]


def test_a_grant_needs_what_it_ties_together_as_far_as_that_is_new() -> None:
    central = of(users=(a_user("new"),), projects=(a_project("web", "c-web"),))
    granted = grant("c-web", "user-new", "role-admin")
    plan = audit(replace(central, assignments=frozenset({granted})), of(projects=(a_project("web", "s-web"),)))
    (words,) = [words for words in needs(plan) if words.startswith("PUT project_role_assignments")]
    assert needs(plan)[words] == ["POST users new", "PUT projects web"]


def test_a_project_is_deleted_after_those_below_it_were_deleted_or_moved_away() -> None:
    site = of(
        projects=(
            a_project("top", "c-top"),
            under("c-top", a_project("leaf", "c-leaf")),
            under("c-top", a_project("a")),
        )
    )
    plan = audit(of(projects=(a_project("a"),)), site, Placed({PROJECTS: frozenset({"c-top", "c-leaf"})}))
    assert needs(plan)["DELETE projects top"] == ["PUT projects a", "DELETE projects leaf"]


def test_deletions_need_no_other_deletion_of_another_type() -> None:
    site = of(users=(a_user("u", "c-u"),), roles=(a_role("r", "c-r"),))
    plan = audit(of(), site, Placed({USERS: frozenset({"c-u"}), ROLES: frozenset({"c-r"})}))
    assert needs(plan) == {"DELETE users u": [], "DELETE roles r": []}
    assert [write.is_deletion for write in plan.writes] == [True, True]


def test_the_hash_of_admin_needs_its_plain_password_to_be_set_before() -> None:
    site = of().records
    drifted = Cloud(replace(site, users=(a_user("admin", password="old"), *site.users[1:])))
    plan = audit(of(), drifted, knows_admin_password=True)
    assert needs(plan) == {"PATCH users admin": [], "PUT users admin": ["PATCH users admin"]}
    assert needs(audit(of(), drifted)) == {"PUT users admin": []}
