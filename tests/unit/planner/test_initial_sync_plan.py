"""What an initial sync writes to a subcloud, decided from values alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcsync.model.errors import CloudError
from dcsync.model.identity import Record, Records, ResourceType
from dcsync.model.reasons import Reason
from dcsync.planner.differences import stored_as_sent
from dcsync.planner.match import excluded_names
from dcsync.planner.plan import IdentityPlan, plan_initial_sync
from dcsync.planner.writes import Update, Write
from tests.builders import a_group, a_project, a_role, a_user, records
from tests.unit.planner.clouds import GROUPS, PROJECTS, ROLES, USERS, updates


def plan(central: Records, subcloud: Records, **options: object) -> IdentityPlan:
    return plan_initial_sync(central=central, subcloud=subcloud, region_name="subcloud1", **options)  # type: ignore[arg-type]


def written(made: IdentityPlan, type_: ResourceType) -> list[tuple[str, str]]:
    return [(update.old.id, update.record.id) for update in updates(made, type_)]


def test_a_user_of_the_same_name_takes_the_central_id() -> None:
    made = plan(records(users=(a_user("vim", "c-vim"),)), records(users=(a_user("vim", "s-vim"),)))
    assert ("s-vim", "c-vim") in written(made, USERS)


@pytest.mark.parametrize("name", ["admin", "sysinv", "dcmanager"])
def test_service_users_are_written_even_when_nothing_differs(name: str) -> None:
    assert (f"user-{name}", f"user-{name}") in written(plan(records(), records()), USERS)


def test_other_users_with_equal_ids_are_not_written() -> None:
    both = records(users=(a_user("vim"),))
    assert "user-vim" not in dict(written(plan(both, both), USERS))


def test_a_user_of_another_domain_is_another_user() -> None:
    made = plan(records(users=(a_user("vim", "c-vim", domain_id="d2"),)), records(users=(a_user("vim", "s-vim"),)))
    assert "s-vim" not in dict(written(made, USERS))


@pytest.mark.parametrize("name", ["dcdbsync", "dcorch", "heat_admin", "smapi", "usm", "fm", "cindersubcloud1"])
def test_a_sites_own_service_users_are_left_alone(name: str) -> None:
    made = plan(records(users=(a_user(name, "c"),)), records(users=(a_user(name, "s"),)))
    assert "s" not in dict(written(made, USERS))


def test_the_cinder_user_of_another_region_is_not_left_alone() -> None:
    name = "cindersubcloud2"
    made = plan(records(users=(a_user(name, "c"),)), records(users=(a_user(name, "s"),)))
    assert ("s", "c") in written(made, USERS)


@pytest.mark.parametrize("name", ["heat_stack_owner", "heat_stack_user", "ResellerAdmin"])
def test_heat_and_reseller_roles_are_left_alone(name: str) -> None:
    made = plan(records(roles=(a_role(name, "c"),)), records(roles=(a_role(name, "s"),)))
    assert updates(made, ROLES) == []


def test_projects_and_roles_with_other_ids_are_written_and_equal_ones_are_not() -> None:
    made = plan(
        records(projects=(a_project("web", "c-web"), a_project("db")), roles=(a_role("member", "c-m"),)),
        records(projects=(a_project("web", "s-web"), a_project("db")), roles=(a_role("member", "s-m"),)),
    )
    assert written(made, PROJECTS) == [("s-web", "c-web")]
    assert written(made, ROLES) == [("s-m", "c-m")]


def test_what_only_one_side_knows_is_neither_created_nor_touched() -> None:
    made = plan(
        records(users=(a_user("central-only"),), projects=(a_project("central-only"),)),
        records(users=(a_user("site-only"),), projects=(a_project("site-only"),)),
    )
    names = {update.record.name for update in updates(made)}
    assert names == {"admin", "sysinv", "dcmanager"}


@pytest.mark.parametrize(
    ("central", "site"),
    [
        ({"old-bob": "c-1", "bob": "c-2"}, {"bob": "c-1"}),
        ({"bob": "c-1", "eve": "c-2"}, {"bob": "c-2", "eve": "c-1"}),
        ({"bob": "c-1"}, {"bob": "s-1", "own": "c-1"}),
    ],
    ids=["renamed, and its name given anew", "names exchanged", "the id is another record's here"],
)
@pytest.mark.parametrize("type_", ResourceType)
def test_a_record_that_is_another_one_by_its_id_does_not_take_the_id_of_its_namesake(
    type_: ResourceType, central: dict[str, str], site: dict[str, str]
) -> None:
    made = {ResourceType.USERS: a_user, ResourceType.GROUPS: a_group, ResourceType.PROJECTS: a_project}

    def side(ids: dict[str, str]) -> Records:
        return records(**{type_.value: tuple(made.get(type_, a_role)(name, id_) for name, id_ in ids.items())})

    assert [update.record.name for update in updates(plan(side(central), side(site))) if update.changes_id] == []


@pytest.mark.parametrize("type_", [ResourceType.USERS, ResourceType.PROJECTS, ResourceType.ROLES])
def test_an_empty_list_of_either_side_is_refused(type_: ResourceType) -> None:
    nothing = replace(records(), **{type_.value: ()})
    with pytest.raises(CloudError) as central_error:
        plan(nothing, records())
    with pytest.raises(CloudError) as subcloud_error:
        plan(records(), nothing)
    assert central_error.value.reason is Reason.CENTRAL_EMPTY
    assert subcloud_error.value.reason is Reason.SUBCLOUD_EMPTY


def test_a_list_that_is_empty_once_the_left_alone_are_gone_is_refused() -> None:
    only_left_alone = replace(records(), users=(a_user("fm"),))
    with pytest.raises(CloudError) as error:
        plan(records(), only_left_alone)
    assert error.value.reason is Reason.SUBCLOUD_EMPTY


def test_no_groups_on_either_side_are_no_error() -> None:
    assert updates(plan(records(groups=(a_group("ops"),)), records()), GROUPS) == []
    assert updates(plan(records(), records(groups=(a_group("ops"),))), GROUPS) == []


@pytest.mark.parametrize(
    ("type_", "name", "says"),
    [
        (ResourceType.USERS, "admin", "user admin"),
        (ResourceType.USERS, "sysinv", "user sysinv"),
        (ResourceType.USERS, "dcmanager", "user dcmanager"),
        (ResourceType.PROJECTS, "admin", "project admin"),
        (ResourceType.PROJECTS, "services", "project services"),
    ],
)
def test_ids_that_deployment_should_have_aligned_stop_the_plan(type_: ResourceType, name: str, says: str) -> None:
    subcloud = records()
    moved = tuple(_with_id(r, "own") if r.name == name else r for r in subcloud.of(type_))
    with pytest.raises(CloudError, match=says) as error:
        plan(records(), replace(subcloud, **{type_.value: moved}))
    assert error.value.reason is Reason.IDS_NOT_ALIGNED


def _with_id(record: Record, id_: str) -> Record:
    return replace(record, id=id_)


def test_a_user_who_takes_an_id_leaves_its_group_first_and_comes_back_after() -> None:
    made = plan(
        records(users=(a_user("bob", "c-bob"),), groups=(a_group("ops", "c-ops", members=("c-bob", "user-admin")),)),
        records(users=(a_user("bob", "s-bob"),), groups=(a_group("ops", "s-ops", members=("s-bob", "user-admin")),)),
    )
    emptied, filled = updates(made, GROUPS)
    assert (emptied.old.id, emptied.record.id, emptied.record.member_ids) == ("s-ops", "s-ops", ("user-admin",))
    assert (filled.old.id, filled.record.id, filled.record.member_ids) == ("s-ops", "c-ops", ("c-bob", "user-admin"))
    assert [update.record.type for update in updates(made)] == [GROUPS, *[USERS] * 4, GROUPS]


def test_a_site_only_group_gets_its_own_members_back_under_their_new_ids() -> None:
    made = plan(
        records(users=(a_user("bob", "c-bob"),)),
        records(users=(a_user("bob", "s-bob"),), groups=(a_group("site", "s-site", members=("s-bob",)),)),
    )
    emptied, filled = updates(made, GROUPS)
    assert emptied.record.member_ids == ()
    assert filled.record.id == "s-site"
    assert filled.record.member_ids == ("c-bob",)
    assert made.groups_to_refill == {"s-site": ("c-bob",)}


def test_a_site_only_group_emptied_by_a_run_that_died_is_filled_by_the_next() -> None:
    made = plan(
        records(users=(a_user("bob"),)),
        records(users=(a_user("bob"),), groups=(a_group("site", "s-site"),)),
        groups_to_refill={"s-site": ("user-bob", "gone-since")},
    )
    (filled,) = updates(made, GROUPS)
    assert filled.record.member_ids == ("user-bob",)


def test_a_central_group_emptied_by_a_run_that_died_is_filled_by_the_next() -> None:
    central = records(users=(a_user("bob"),), groups=(a_group("ops", members=("user-bob",)),))
    made = plan(central, replace(central, groups=(a_group("ops"),)))
    (filled,) = updates(made, GROUPS)
    assert filled.record.member_ids == ("user-bob",)


def test_members_a_subcloud_does_not_know_are_left_out_of_its_group() -> None:
    made = plan(
        records(users=(a_user("new"),), groups=(a_group("ops", "c-ops", members=("user-new", "user-admin")),)),
        records(groups=(a_group("ops", "s-ops"),)),
    )
    (filled,) = updates(made, GROUPS)
    assert filled.record.member_ids == ("user-admin",)


def test_a_plan_never_shows_a_hash() -> None:
    made = plan(records(users=(a_user("bob", "c", password="CANARY"),)), records(users=(a_user("bob", "s"),)))
    assert "CANARY" not in repr(made)


def test_a_stored_record_is_what_was_sent_only_with_id_hashes_and_enabled() -> None:
    sent = a_user("bob", "c", password="central")
    assert stored_as_sent(sent=sent, stored=sent)
    assert not stored_as_sent(sent=sent, stored=a_user("bob", "s", password="central"))
    assert not stored_as_sent(sent=sent, stored=a_user("bob", "c", password="own"))
    assert not stored_as_sent(sent=sent, stored=a_user("bob", "c", password="central", enabled=False))
    assert stored_as_sent(sent=sent, stored=a_user("bob", "c", password="central", last_active_at="2026-01-31"))


def test_a_stored_group_must_have_the_members_it_was_sent() -> None:
    assert not stored_as_sent(sent=a_group("ops", members=("a",)), stored=a_group("ops"))
    assert stored_as_sent(sent=a_group("ops", members=("a", "b")), stored=a_group("ops", members=("b", "a")))


NAMES = st.sampled_from([f"u{i}" for i in range(6)] + ["fm", "cindersubcloud1"])


@st.composite
def two_clouds(draw: st.DrawFn) -> tuple[Records, Records]:
    """A central cloud and a subcloud that share some names, with ids that agree or do not, and groups of their
    users."""

    def side(prefix: str, shared: set[str]) -> Records:
        users = tuple(a_user(n, f"same-{n}" if n in shared else f"{prefix}-{n}") for n in draw(st.sets(NAMES)))
        ids = [user.id for user in users] + ["user-admin"]
        groups = tuple(
            a_group(n, f"{prefix}-{n}", members=tuple(sorted(draw(st.sets(st.sampled_from(ids))))))
            for n in draw(st.sets(st.sampled_from(["g1", "g2", "g3"])))
        )
        roles = tuple(a_role(n, f"{prefix}-{n}") for n in draw(st.sets(st.sampled_from(["r1", "r2"]))))
        return records(users=users, groups=groups, roles=roles)

    shared = draw(st.sets(NAMES))
    return side("c", shared), side("s", shared)


def apply(writes: tuple[Write, ...], subcloud: Records) -> Records:
    """What a real dcdbsync would hold afterwards, with Keystone's foreign keys: a member must exist, and a user in a
    group cannot change its id (docs/upstream/real-keystone.md R2)."""
    held = {type_: {r.id: r for r in subcloud.of(type_)} for type_ in ResourceType}
    for write in writes:
        update = write.action
        assert isinstance(update, Update)
        rows = held[update.record.type]
        assert update.old.id in rows, "a PUT to an id that is not there"
        if update.record.type is USERS and update.changes_id:
            assert not any(update.old.id in group.member_ids for group in held[ResourceType.GROUPS].values())
            assert update.record.id not in rows, "two users with one id"
        if update.record.type is GROUPS:
            assert set(update.record.member_ids) <= set(held[ResourceType.USERS]), "a member that does not exist"
        del rows[update.old.id]
        rows[update.record.id] = update.record
    return Records(**{type_.value: tuple(held[type_].values()) for type_ in ResourceType})


@given(two_clouds())
def test_applying_a_plan_aligns_every_shared_record_and_touches_no_other(clouds: tuple[Records, Records]) -> None:
    central, before = clouds
    made = plan(central, before)
    after = apply(made.writes, before)
    known = {type_: {r.key: r for r in central.of(type_)} for type_ in ResourceType}
    for type_ in ResourceType:
        old = {r.key: r for r in before.of(type_)}
        assert {r.key for r in after.of(type_)} == set(old), "nothing is created or deleted"
        for record in after.of(type_):
            if record.name in excluded_names(type_, region_name="subcloud1"):
                assert record == old[record.key]
            elif record.key in known[type_]:
                assert record.id == known[type_][record.key].id
            elif type_ is not ResourceType.GROUPS:
                assert record == old[record.key]


@given(two_clouds())
def test_a_second_plan_writes_nothing_but_the_service_users(clouds: tuple[Records, Records]) -> None:
    central, before = clouds
    after = apply(plan(central, before).writes, before)
    again = plan(central, after)
    assert {update.record.name for update in updates(again)} == {"admin", "sysinv", "dcmanager"}


@given(two_clouds(), st.integers(min_value=0, max_value=20))
def test_a_run_that_dies_after_any_write_is_finished_by_the_next(clouds: tuple[Records, Records], done: int) -> None:
    central, before = clouds
    first = plan(central, before)
    half = apply(first.writes[:done], before)
    second = plan(central, half, groups_to_refill=first.groups_to_refill)
    assert _members_by_name(apply(second.writes, half)) == _members_by_name(apply(first.writes, before))


def _members_by_name(cloud: Records) -> dict[str, set[str]]:
    names = {user.id: user.name for user in cloud.users}
    return {group.name: {names[member] for member in group.member_ids} for group in cloud.groups}
