"""Deployment, tokens, passwords and inspection as values."""

from __future__ import annotations

import base64

import pytest

from dcsync.fake_cloud import changes
from dcsync.fake_cloud.cloud import Refused
from dcsync.fake_cloud.deployment import ALIGNED
from dcsync.fake_cloud.inspection import ids_aligned, inspect, is_subcloud_only
from dcsync.fake_cloud.passwords import hash_password, matches
from dcsync.fake_cloud.tokens import Token, seal, unseal
from tests.unit.fake_cloud.builders import a_centre, a_subcloud, a_token

TOKEN = Token("user", "project", "audit", 1, 2)


def test_deployment_aligns_the_ids_services_log_in_with_and_no_others() -> None:
    centre, subcloud = a_centre(), a_subcloud()
    common = {
        (type_, name)
        for type_ in ("users", "projects", "roles", "groups")
        for name in ("admin", "sysinv", "dcmanager", "services", "barbican", "reader", "ops", "operator1")
        if centre.named(type_, name) and centre.id_named(type_, name) == subcloud.id_named(type_, name)
    }
    assert common == {("users", name) for name in ALIGNED} | {("projects", "admin"), ("projects", "services")}


def test_an_unaligned_subcloud_shares_no_id() -> None:
    centre, subcloud = a_centre(), a_subcloud(aligned=False)
    assert not centre.tables.users.keys() & subcloud.tables.users.keys()


def test_building_twice_gives_equal_rows_that_are_not_the_same() -> None:
    cloud = a_subcloud()
    first, second = cloud.deployment.build(), cloud.deployment.build()
    assert first.users == second.users
    assert all(first.users[id_] is not second.users[id_] for id_ in first.users)


def test_keys_are_well_formed() -> None:
    keys = [*a_centre().tables.keys.values(), *a_subcloud().tables.keys.values()]
    assert {(len(key), len(base64.urlsafe_b64decode(key))) for key in keys} == {(44, 32)}
    assert len(set(keys)) == 5


def test_a_hash_tells_its_password_from_others_and_looks_like_bcrypt() -> None:
    hashed = hash_password("secret", salt="x")
    assert (len(hashed), hashed[:7]) == (60, "$2b$04$")
    assert matches("secret", hashed)
    assert not matches("Secret", hashed)
    assert hash_password("secret", salt="y") != hashed
    assert not matches("secret", "$2b$04$" + "x" * 53)


def test_a_token_opens_with_any_key_of_the_set_and_with_no_other() -> None:
    text = seal(TOKEN, {0: "staged", 3: "primary", 2: "old"})
    assert unseal(text, {2: "primary", 4: "newer"}) == TOKEN
    assert unseal(text, {0: "staged", 2: "old"}) is None
    assert unseal(text[:-2] + "xx", {3: "primary"}) is None


@pytest.mark.parametrize("text", ["", "gAAAA", "gAAAAAnonsense", "nonsense" * 20, "gAAAAä" * 20])
def test_garbage_is_no_token(text: str) -> None:
    assert unseal(text, {0: "key"}) is None


def test_roles_come_from_own_grants_groups_and_implications() -> None:
    cloud = a_subcloud()
    operator, services = cloud.id_named("users", "operator1"), cloud.id_named("projects", "services")
    assert set(cloud.role_names(operator, services).values()) == {"operator"}
    assert set(cloud.role_names(cloud.id_named("users", "vim"), services).values()) == {
        "admin", "manager", "member", "reader",
    }  # fmt: skip


def test_a_token_of_a_moved_user_is_404_and_of_replaced_keys_401() -> None:
    cloud = a_subcloud()
    text = a_token(cloud, user="vim")
    changes.apply(cloud, "move-id", {"type": "users", "name": "vim"})
    moved = cloud.check_token(text)
    assert isinstance(moved, Refused)
    assert (moved.status, "Could not find user" in moved.message) == (404, True)
    changes.apply(cloud, "replace-keys", {})
    replaced = cloud.check_token(text)
    assert isinstance(replaced, Refused)
    assert replaced.status == 401


def test_a_disabled_users_token_is_refused() -> None:
    cloud = a_subcloud()
    text = a_token(cloud, user="vim")
    changes.apply(cloud, "set-enabled", {"user": "vim", "enabled": False})
    assert isinstance(cloud.check_token(text), Refused)


def test_a_fresh_subcloud_is_untouched_and_in_nothing_aligned() -> None:
    standing = inspect(a_subcloud(), a_centre())
    assert (standing.aligned, standing.keys_match, standing.untouched, standing.assignments_kept) == (
        False, False, True, True,
    )  # fmt: skip
    assert not ids_aligned(a_subcloud(), a_centre())


@pytest.mark.parametrize(
    ("action", "arguments", "problem"),
    [
        ("set-extra", {"user": "sub-only", "extra": {"a": 1}}, "user sub-only: changed"),
        ("set-extra", {"user": "dcorch", "extra": {"a": 1}}, "user dcorch: changed"),
        ("set-extra", {"user": "cindersubcloud1", "extra": {"a": 1}}, "user cindersubcloud1: changed"),
        ("move-id", {"type": "roles", "name": "heat_stack_owner"}, "role heat_stack_owner: changed"),
        ("remove", {"type": "projects", "name": "site-lab"}, "project site-lab: gone"),
        ("set-members", {"group": "site-ops", "members": []}, "group site-ops: changed"),
    ],
)
def test_touching_what_is_the_sites_own_is_seen(action: str, arguments: dict[str, object], problem: str) -> None:
    cloud = a_subcloud()
    changes.apply(cloud, action, arguments)
    standing = inspect(cloud, a_centre())
    assert not standing.untouched
    assert problem in standing.problems


def test_logins_and_wrong_passwords_touch_nothing() -> None:
    cloud = a_subcloud()
    user = cloud.named("users", "fm")
    assert user is not None
    user["user"]["last_active_at"] = "2026-11-21"
    user["local_user"]["failed_auth_count"] = 2
    assert inspect(cloud, a_centre()).untouched


def test_site_only_is_what_is_filtered_or_has_no_namesake() -> None:
    cloud, centre = a_subcloud(), a_centre()
    own = {
        name for name in ("sub-only", "cindersubcloud1", "fm", "vim", "admin")
        if is_subcloud_only(cloud, centre, "users", cloud.id_named("users", name))
    }  # fmt: skip
    assert own == {"sub-only", "cindersubcloud1", "fm"}
    assert not is_subcloud_only(cloud, centre, "users", "unknown")
    changes.apply(centre, "rename", {"type": "users", "name": "admin", "to": "root"})
    assert not is_subcloud_only(cloud, centre, "users", cloud.id_named("users", "admin")), (
        "it is the central cloud's by its id"
    )


def test_rotation_makes_the_staged_key_primary_and_keeps_three() -> None:
    centre = a_centre()
    before = dict(centre.tables.keys)
    changes.apply(centre, "rotate-keys", {})
    after = centre.tables.keys
    assert sorted(after) == [0, 3, 4]
    assert (after[4], after[3]) == (before[0], before[3])
    assert after[0] not in before.values()


def test_moving_an_id_takes_grants_members_and_implications_along() -> None:
    cloud = a_subcloud()
    for type_, name in (("users", "operator1"), ("roles", "manager"), ("groups", "ops"), ("projects", "services")):
        changes.apply(cloud, "move-id", {"type": type_, "name": name})
    standing = inspect(cloud, a_centre())
    assert standing.assignments_kept
    operator, services = cloud.id_named("users", "operator1"), cloud.id_named("projects", "services")
    assert set(cloud.role_names(operator, services).values()) == {"operator"}
    assert "reader" in cloud.role_names(cloud.id_named("users", "vim"), services).values()


def test_unknown_actions_and_names_change_nothing() -> None:
    cloud = a_subcloud()
    for action, arguments in (
        ("paint", {}),
        ("remove", {"type": "users", "name": "nobody"}),
        ("remove", {"type": "projects", "name": "Default"}),
        ("hide", {"list": "x"}),
    ):
        with pytest.raises((KeyError, ValueError)):
            changes.apply(cloud, action, arguments)
    assert cloud.version == 0
