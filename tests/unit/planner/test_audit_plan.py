"""What an audit finds and repairs: from values alone, and carried out on a subcloud with Keystone's manners."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcsync.model.errors import CloudError
from dcsync.model.identity import Assignment, Placed, Record, ResourceType, RevocationEvent, record_from_body
from dcsync.model.reasons import Reason
from dcsync.planner.differences import ASSIGNMENTS, IN_USE, TAKEN, digest
from dcsync.planner.match import Cloud, excluded_names, is_vital
from dcsync.planner.writes import AddEvent, Create, Grant, Update
from dcsync.runs.delivery import carry_out, read_cloud
from tests.builders import a_group, a_project, a_role, a_user, records
from tests.memory_clouds import MemorySite
from tests.unit.planner.clouds import (
    GROUPS,
    PROJECTS,
    REGION,
    ROLES,
    USERS,
    Drift,
    an_event,
    audit,
    changed,
    drifts,
    grant,
    named,
    no_objection,
    of,
    repaired,
    updates,
)

# --- comparing ---------------------------------------------------------------------------------------------------


def test_equal_clouds_differ_in_nothing_and_nothing_is_written() -> None:
    both = of(users=(a_user("bob"),), groups=(a_group("ops", members=("user-bob",)),))
    found = audit(both, both)
    assert (named(found), found.is_empty) == ([], True)


@pytest.mark.parametrize(
    ("central", "site", "says"),
    [
        (a_user("bob", password="new"), a_user("bob"), "users bob: password"),
        (a_user("bob", enabled=False), a_user("bob"), "users bob: user.enabled"),
        (a_user("bob", extra='{"email": "b@x"}'), a_user("bob"), "users bob: user.extra"),
        (changed(a_project("web"), description="x"), a_project("web"), "projects web: project.description"),
        (changed(a_role("member"), description="x"), a_role("member"), "roles member: role.description"),
        (changed(a_group("ops"), description="x"), a_group("ops"), "groups ops: group.description"),
    ],
)
def test_a_field_that_differs_is_named_and_put_right(central: Record, site: Record, says: str) -> None:
    list_ = central.type.value
    found = audit(of(**{list_: (central,)}), of(**{list_: (site,)}))
    assert named(found) == [says]
    assert [write.split()[0] for write in found.words] == ["PUT"]


def test_what_a_cloud_records_of_its_own_logins_is_neither_compared_nor_written() -> None:
    """A login, or a lock-out: five wrong passwords on one side."""
    body = a_user("bob").body
    locked = {
        **body,
        "user": {**body["user"], "last_active_at": "2026-01-31"},
        "local_user": {**body["local_user"], "failed_auth_count": 5, "failed_auth_at": "2026-01-31 08:15:00"},
    }
    central, other = record_from_body(USERS, locked), a_user("bob", "s-bob", password="own")
    assert audit(of(users=(central,)), of(users=(a_user("bob"),))).is_in_sync
    for subcloud in (of(), of(users=(other,))):
        for write in audit(of(users=(central,)), subcloud).writes:
            assert isinstance(write.action, Update | Create)
            columns = {column for row in ("user", "local_user") for column in write.action.record.body[row]}
            assert columns.isdisjoint({"last_active_at", "failed_auth_count", "failed_auth_at"})


def test_a_column_an_older_site_does_not_know_is_not_compared() -> None:
    central = of(users=(a_user("bob"),), projects=(changed(a_project("web"), description="x"),))
    bob = a_user("bob")
    older = replace(bob, body={part: value for part, value in bob.body.items() if part != "user_option"})
    options = replace(bob, body={**bob.body, "user_option": [{"option_id": "1", "option_value": "true"}]})
    site = of(users=(older,), projects=(changed(a_project("web"), description=...),))
    assert audit(central, site).is_in_sync
    assert audit(of(users=(options,)), of(users=(older,))).is_in_sync
    assert named(audit(of(users=(options,)), of(users=(bob,)))) == ["users bob: user_option"]


def test_an_adopted_record_is_compared_at_once() -> None:
    found = audit(of(users=(a_user("bob", "c-bob", password="central"),)), of(users=(a_user("bob", "s-bob"),)))
    assert named(found) == ["users bob: user.id, local_user.user_id, password"]
    (update,) = updates(found)
    assert (update.old.id, update.record.id) == ("s-bob", "c-bob")
    assert "c-bob" in found.placed.of(USERS)


def test_a_record_renamed_at_the_central_cloud_keeps_its_id_and_takes_the_name() -> None:
    found = audit(of(users=(a_user("robert", "c-bob"),)), of(users=(a_user("bob", "c-bob"),)))
    assert [(u.old.id, u.record.name) for u in updates(found)] == [("c-bob", "robert")]


def test_a_name_is_given_up_before_it_is_taken() -> None:
    central = of(users=(a_user("bob", "c-1"), a_user("carol", "c-2")))
    site = MemorySite(of(users=(a_user("alice", "c-1"), a_user("bob", "c-2"))))
    repaired(central, site)
    assert audit(central, site.cloud).is_in_sync


def test_a_name_the_site_gave_to_a_record_of_its_own_is_for_a_person_to_sort_out() -> None:
    central = of(users=(a_user("bob", "c-1"), a_user("eve", password="new")))
    site = MemorySite(of(users=(a_user("x", "c-1"), a_user("bob", "s-own"), a_user("eve"))))
    found = repaired(central, site)
    assert f"users bob: {TAKEN}" in named(found)
    assert named(audit(central, site.cloud)) == [f"users bob: {TAKEN}"]
    assert site.named(USERS, "bob").id == "s-own"


def with_events(*events: RevocationEvent) -> Cloud:
    return replace(of(), revocation_events=frozenset(events))


def test_revocation_events_are_compared_by_the_columns_both_sides_know() -> None:
    older, newer = an_event("a1"), an_event("a1", revoked_at="2026-01-31")
    assert audit(with_events(newer), with_events(older)).is_in_sync
    missing = audit(with_events(older, an_event("a2")), with_events(newer))
    assert [write.action for write in missing.writes] == [AddEvent(an_event("a2"))]


def test_events_only_the_site_knows_stay() -> None:
    assert audit(of(), replace(of(), revocation_events=frozenset({an_event("own")}))).is_in_sync


@pytest.mark.parametrize("type_", [USERS, PROJECTS, ROLES])
def test_an_empty_list_of_the_central_cloud_is_refused_and_deletes_nothing(type_: ResourceType) -> None:
    central = Cloud(replace(records(), **{type_.value: ()}))
    with pytest.raises(CloudError) as error:
        audit(central, of(), Placed({type_: frozenset({"user-admin"})}))
    assert error.value.reason is Reason.CENTRAL_EMPTY


def test_a_digest_tells_newer_values_apart_and_shows_none() -> None:
    site = of(users=(a_user("bob"),))
    first, second = (audit(of(users=(a_user("bob", password=word),)), site) for word in ("CANARY1", "CANARY2"))
    assert named(first) == named(second)
    assert digest(first.differences) != digest(second.differences)
    assert "CANARY" not in repr(first) + repr(second) + str(digest(first.differences))
    assert digest(()) is None


# --- deleting ----------------------------------------------------------------------------------------------------


def test_what_was_placed_and_is_gone_centrally_is_deleted_and_a_site_s_own_record_is_not() -> None:
    site = MemorySite(of(users=(a_user("gone", "c-gone"), a_user("own", "s-own"))))
    repaired(of(), site, Placed({USERS: frozenset({"c-gone"})}))
    names = {user.name for user in site.cloud.records.users}
    assert "gone" not in names
    assert "own" in names


@pytest.mark.parametrize(
    "record", [a_role("admin"), changed(a_project("d2", "d2"), is_domain=True), a_user("smapi"), a_project("services")]
)
def test_some_records_are_never_deleted(record: Record) -> None:
    others = tuple(r for r in records().of(record.type) if r.name != record.name) or (a_role("other"),)
    central = Cloud(replace(records(), **{record.type.value: others}))
    site = Cloud(replace(records(), **{record.type.value: (record, *others)}))
    found = audit(central, site, Placed({record.type: frozenset({record.id})}))
    assert found.deletions == 0


def test_a_grant_that_was_placed_and_is_gone_centrally_is_revoked_and_another_stays() -> None:
    ours, theirs = (grant(f"project-{name}", "user-admin", "role-admin") for name in ("admin", "services"))
    site = MemorySite(Cloud(records(), frozenset({ours, theirs})))
    found = repaired(of(), site, Placed(assignments=frozenset({ours})))
    assert site.grants == {theirs}
    assert found.deletions == 1


@pytest.mark.parametrize("dies", [False, True], ids=["in one go", "the run dies once the id is written"])
def test_who_was_made_anew_at_the_central_cloud_does_not_inherit_the_grants_of_the_one_before(dies: bool) -> None:
    hers, own = grant("project-admin", "c-alice1", "role-admin"), grant("project-services", "c-alice1", "role-admin")
    central = of(users=(a_user("alice", "c-alice2"),))
    site = MemorySite(Cloud(records(users=(a_user("alice", "c-alice1"),)), frozenset({hers, own})))
    placed = Placed({USERS: frozenset({"c-alice1"})}, frozenset({hers}))
    left = iter(range(1 if dies else 9))

    async def until_it_dies() -> None:
        if next(left, None) is None:
            raise Dies

    meanwhile = placed | audit(central, site.cloud, placed).placed_meanwhile
    with contextlib.suppress(Dies):
        repaired(central, site, placed, check_ownership=until_it_dies)
    repaired(central, site, meanwhile)
    assert site.grants == {replace(own, actor_id="c-alice2")}


def test_grants_of_a_deleted_user_are_not_counted_beside_it() -> None:
    hers = grant("project-admin", "c-gone", "role-admin")
    site = MemorySite(Cloud(records(users=(a_user("gone", "c-gone"),)), frozenset({hers})))
    found = repaired(of(), site, Placed({USERS: frozenset({"c-gone"})}, frozenset({hers})))
    assert found.deletions == 1
    assert site.grants == set()


def test_a_repair_restricted_to_some_types_writes_no_others_and_still_tells_everything() -> None:
    wanted = grant("project-admin", "user-bob", "role-admin")
    central = replace(of(users=(a_user("bob"),), roles=(a_role("member"),)), assignments=frozenset({wanted}))
    found = audit(central, of(), only={ROLES.value})
    assert found.words == ("POST roles member",)
    assert len(found.differences) == 3
    users_and_grants = audit(central, of(), only={USERS.value, ASSIGNMENTS})
    assert users_and_grants.writes[-1].action == Grant(wanted)
    assert audit(central, of(), only={ASSIGNMENTS}).is_empty


def test_a_repair_restricted_to_some_types_deletes_no_others() -> None:
    site = of(users=(a_user("leaver", "c-leaver"),), roles=(a_role("old", "c-old"),))
    placed = Placed({USERS: frozenset({"c-leaver"}), ROLES: frozenset({"c-old"})})
    found = audit(of(), site, placed, only={ROLES.value})
    assert found.words == ("DELETE roles old",)
    assert "c-leaver" in found.placed.of(USERS)


def test_groups_that_are_not_to_be_repaired_get_their_members_back_all_the_same() -> None:
    central = of(users=(a_user("bob", "c-bob"),), groups=(a_group("ops", "c-ops", members=("c-bob", "user-admin")),))
    site = MemorySite(of(users=(a_user("bob", "s-bob"),), groups=(a_group("ops", "s-ops", members=("s-bob",)),)))
    found = repaired(central, site, only={USERS.value})
    assert [g.member_ids for g in site.cloud.records.groups] == [("c-bob",)]
    assert "groups ops: group.id, local_user_ids" in named(found)


def test_a_site_only_group_that_still_wants_filling_is_a_difference() -> None:
    both = of(users=(a_user("bob"),))
    site = MemorySite(Cloud(records(users=(a_user("bob"),), groups=(a_group("own", "s-own"),))))
    found = repaired(both, site, groups_to_refill={"s-own": ("user-bob",)})
    assert named(found) == ["groups own: local_user_ids"]
    assert site.named(GROUPS, "own").member_ids == ("user-bob",)


def test_a_deleted_project_with_a_project_of_the_site_s_own_under_it_stays_and_is_named() -> None:
    own = changed(a_project("own"), parent_id="c-gone")
    site = MemorySite(of(projects=(a_project("gone", "c-gone"), own)))
    found = repaired(of(), site, Placed({PROJECTS: frozenset({"c-gone"})}))
    assert named(found) == [f"projects gone: {IN_USE}"]
    assert found.is_empty
    assert "c-gone" in found.placed.of(PROJECTS)


def test_a_domain_whose_id_differs_is_moved_before_anything_else_is_compared() -> None:
    def domain(id_: str) -> Record:
        return changed(a_project("d", id_, domain_id="root"), is_domain=True, parent_id=None)

    below = a_project("web", "s-web", domain_id="s-d")
    found = audit(of(projects=(domain("c-d"),)), of(projects=(domain("s-d"), below)))
    assert found.words == ("PUT projects d",)


def test_the_keyring_is_told_before_the_hash_is_written() -> None:
    central = of()
    site = MemorySite(of())
    site.put(a_user("admin", password="old"))

    async def work() -> None:
        found = audit(central, await read_cloud(site), knows_admin_password=True)
        told.extend(found.words)
        await carry_out(
            found.writes, session=site, check_ownership=no_objection, users_at_once=4, admin_password="plain"
        )

    told: list[str] = []
    asyncio.run(work())
    assert site.writes == ["PATCH users user-admin", "PUT users admin"]
    assert told == ["PATCH users admin", "PUT users admin"]
    assert site.passwords == [("user-admin", "plain")]


# --- any drift ---------------------------------------------------------------------------------------------------


@given(drifts())
def test_one_repair_reaches_equality_and_a_second_writes_nothing(drift: Drift) -> None:
    site = MemorySite(drift.site)
    first = repaired(drift.central, site, drift.placed)
    second = audit(drift.central, site.cloud, first.placed)
    assert {each.fields for each in second.differences} <= {(IN_USE,)}
    assert second.is_empty
    assert second.placed == first.placed
    assert drift.central.revocation_events <= site.events


@given(drifts())
def test_what_is_not_ours_is_left_as_it_was_and_exactly_what_was_placed_goes(drift: Drift) -> None:
    site = MemorySite(drift.site)
    found = repaired(drift.central, site, drift.placed)
    in_use = {(each.type, each.name) for each in found.differences if each.fields == (IN_USE,)}
    for type_ in ResourceType:
        wanted = {r.key for r in drift.central.records.of(type_)} | {r.id for r in drift.central.records.of(type_)}
        for before in drift.site.records.of(type_):
            now = site.tables[type_].get(before.id)
            if before.name in excluded_names(type_, region_name=REGION):
                assert now == before
            elif not {before.key, before.id} & wanted:
                goes = before.id in drift.placed.of(type_) and not is_vital(before)
                if goes and (type_.value, before.name) not in in_use:
                    assert now is None
                elif type_ is GROUPS or type_ is PROJECTS:
                    assert now is not None
                    assert now.key == before.key
                else:
                    assert now == before
    kept = drift.site.assignments - drift.placed.assignments
    names = _names(drift.site)
    assert {_by_name(a, names) for a in kept if _survives(a, site, names)} <= {
        _by_name(a, _names(site.cloud)) for a in site.grants
    }


def _names(cloud: Cloud) -> dict[str, str]:
    return {record.id: f"{type_}:{record.name}" for type_ in ResourceType for record in cloud.records.of(type_)}


def _by_name(a: Assignment, names: dict[str, str]) -> tuple[str, ...]:
    return names[a.project_id], names[a.actor_id], names[a.role_id]


def _survives(a: Assignment, site: MemorySite, names: dict[str, str]) -> bool:
    return set(_by_name(a, names)) <= set(_names(site.cloud).values())


class Dies(Exception):
    pass


@given(drifts(), st.integers(min_value=0, max_value=25))
def test_a_repair_that_dies_after_any_write_is_finished_by_the_next(drift: Drift, writes: int) -> None:
    whole, half = MemorySite(drift.site), MemorySite(drift.site)
    repaired(drift.central, whole, drift.placed)
    left = iter(range(writes))

    async def until_it_dies() -> None:
        if next(left, None) is None:
            raise Dies

    first = audit(drift.central, half.cloud, drift.placed)
    with contextlib.suppress(Dies):
        repaired(drift.central, half, drift.placed, check_ownership=until_it_dies)
    # What the engine keeps in its rows before the first write.
    placed = drift.placed | first.placed_meanwhile
    second = repaired(drift.central, half, placed, groups_to_refill=dict(first.groups_to_refill))
    left_over = audit(drift.central, half.cloud, second.placed).differences
    assert {each.fields for each in left_over} <= {(IN_USE,)}
    assert _members_by_name(half) == _members_by_name(whole)
    assert _grants_by_name(half) == _grants_by_name(whole)
    assert {t: {r.key for r in half.tables[t].values()} for t in ResourceType} == {
        t: {r.key for r in whole.tables[t].values()} for t in ResourceType
    }


def _members_by_name(site: MemorySite) -> dict[str, set[str]]:
    names = {user.id: user.name for user in site.cloud.records.users}
    return {group.name: {names[member] for member in group.member_ids} for group in site.cloud.records.groups}


def _grants_by_name(site: MemorySite) -> set[tuple[str, ...]]:
    names = _names(site.cloud)
    return {_by_name(a, names) for a in site.grants}


@given(drifts(renames=True))
def test_whatever_names_and_ids_were_exchanged_nothing_is_refused_and_only_what_is_stuck_stays(drift: Drift) -> None:
    """Ids and names are dealt anew on both sides: swaps, circles, names and ids taken by records of the site's own."""
    site, placed = MemorySite(drift.site), drift.placed
    for _ in range(3):
        found = repaired(drift.central, site, placed)
        placed = placed | found.placed
    left = audit(drift.central, site.cloud, placed)
    assert left.is_empty
    stuck = [each for each in left.differences if each.fields in ((TAKEN,), (IN_USE,))]
    assert bool(stuck) == bool(left.differences)
