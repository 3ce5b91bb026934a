"""Where a subcloud stands against what an audit promises, and what Keystone's cascades take along."""

from __future__ import annotations

import copy
import json
import time
from typing import Any

import pytest

from dcsync.fake_cloud import changes, dbsync, keystone
from dcsync.fake_cloud.cloud import SINGULAR, Cloud, Refused, id_of, key_of
from dcsync.fake_cloud.inspection import FILTERED_ROLES, FILTERED_USERS, inspect, may_be_deleted
from dcsync.fake_cloud.tokens import Token, seal
from tests.unit.fake_cloud.builders import a_centre, a_request, a_subcloud, a_token

LEFT_ALONE = {"users": {*FILTERED_USERS, "cindersubcloud1"}, "roles": set(FILTERED_ROLES)}
TYPES = ("users", "groups", "projects", "roles")


def audit_by_hand(cloud: Cloud, centre: Cloud) -> None:
    """What an audit has to bring about, told on the tables."""
    for type_ in TYPES:
        for id_ in [id_ for id_ in cloud.tables.of(type_) if may_be_deleted(cloud, centre, type_, id_)]:
            keystone.delete_record(cloud, type_, id_)
        own = {key_of(type_, row): id_of(type_, row) for row in cloud.tables.of(type_).values()}
        for id_, row in centre.tables.of(type_).items():
            key = key_of(type_, row)
            if key[0] in LEFT_ALONE.get(type_, ()):
                continue
            if own.get(key, id_) != id_:
                changes.apply(cloud, "move-id", {"type": type_, "name": key[0], "id": id_})
            cloud.tables.of(type_)[id_] = copy.deepcopy(row)
    for group in cloud.tables.groups.values():
        group["local_user_ids"] = [member for member in group["local_user_ids"] if member in cloud.tables.users]
    about = {id_of(type_, row) for type_ in TYPES for row in of_central(centre, type_)}
    due = {grant for grant in centre.tables.assignments if about.issuperset(grant[1:])}
    gone = {grant for grant in centre.ever.grants - centre.tables.assignments if about.issuperset(grant[1:])}
    cloud.tables.assignments = (cloud.tables.assignments - gone) | due
    cloud.tables.events = copy.deepcopy(centre.tables.events)
    cloud.tables.keys = dict(centre.tables.keys)


def of_central(centre: Cloud, type_: str) -> list[Any]:
    rows = centre.tables.of(type_).values()
    return [row for row in rows if key_of(type_, row)[0] not in LEFT_ALONE.get(type_, ())]


@pytest.fixture
def centre() -> Cloud:
    return a_centre()


@pytest.fixture
def audited(centre: Cloud) -> Cloud:
    cloud = a_subcloud()
    audit_by_hand(cloud, centre)
    return cloud


def test_an_audited_subcloud_has_no_difference_and_all_of_its_own(audited: Cloud, centre: Cloud) -> None:
    standing = inspect(audited, centre)
    assert (standing.audited, standing.is_good, standing.differences, standing.problems) == (True, True, (), ())


def test_a_fresh_subcloud_lacks_what_only_the_central_cloud_has_which_an_initial_sync_does_not_give(
    centre: Cloud,
) -> None:
    differences = inspect(a_subcloud(), centre).differences
    assert {"user central-only: missing", "project central-lab: missing", "keys differ"} <= set(differences)


CENTRAL_CHANGES = [
    ("set-password", {"user": "vim", "password": "New-vim-pw-1!"}, ["user vim: password differs"]),
    ("set-extra", {"user": "vim", "extra": {"a": 1}}, ["user vim: extra differs"]),
    ("set-enabled", {"user": "vim", "enabled": False}, ["user vim: enabled differs"]),
    ("set-option", {"user": "vim", "option": "1002", "value": "true"}, ["user vim: options differs"]),
    ("add-user", {"user": "new", "password": "New-pw-1!"}, ["user new: missing"]),
    ("add-project", {"project": "new", "parent": "central-lab"}, ["project new: missing"]),
    ("add-role", {"role": "new"}, ["role new: missing"]),
    ("add-group", {"group": "new", "members": ["vim"]}, ["group new: missing"]),
    ("set-members", {"group": "ops", "members": ["vim"]}, ["group ops: members differ"]),
    ("set-column", {"type": "roles", "name": "operator", "column": "description", "value": "x"},
     ["role operator: description differs"]),
    ("grant", {"user": "vim", "project": "central-lab", "role": "member"},
     ["assignment user vim central-lab member: missing"]),
    ("revoke", {"user": "operator1", "project": "admin", "role": "reader"},
     ["assignment user operator1 admin reader: still there"]),
    ("remove", {"type": "users", "name": "operator1"}, ["user operator1: still there"]),
    ("remove", {"type": "groups", "name": "ops"}, ["group ops: still there"]),
    ("remove", {"type": "projects", "name": "central-lab"}, ["project central-lab: still there"]),
    ("remove", {"type": "roles", "name": "operator"}, ["role operator: still there"]),
    ("revoke-tokens", {"audit_id": "abc"}, ["revocation event of audit_id abc: missing"]),
    ("rename", {"type": "users", "name": "vim", "to": "vim2"}, ["user vim2: missing"]),
    ("rotate-keys", {}, ["keys differ"]),
]  # fmt: skip


@pytest.mark.parametrize(("action", "arguments", "expected"), CENTRAL_CHANGES)
def test_a_change_at_the_central_cloud_is_a_difference_until_it_is_there(
    audited: Cloud, centre: Cloud, action: str, arguments: dict[str, Any], expected: list[str]
) -> None:
    changes.apply(centre, action, arguments)
    differences = set(inspect(audited, centre).differences)
    assert set(expected) <= differences
    audit_by_hand(audited, centre)
    standing = inspect(audited, centre)
    assert (standing.differences, standing.assignments_kept, standing.untouched) == ((), True, True)


DRIFT = [
    ("set-password", {"user": "vim", "password": "Site-vim-pw-2!"}, ["user vim: password differs"]),
    ("forget-passwords", {"user": "mtce"}, ["user mtce: password differs"]),
    ("set-extra", {"user": "vim", "extra": {"a": 1}}, ["user vim: extra differs"]),
    ("set-enabled", {"user": "vim", "enabled": False}, ["user vim: enabled differs"]),
    ("set-option", {"user": "vim", "option": "1001", "value": None}, ["user vim: options differs"]),
    ("set-column", {"type": "users", "name": "vim", "column": "default_project_id", "value": "x"},
     ["user vim: default_project_id differs"]),
    ("remove", {"type": "roles", "name": "operator"},
     ["role operator: missing", "assignment group ops services operator: missing",
      "assignment changed: group ops services operator"]),
    ("remove", {"type": "projects", "name": "central-lab"},
     ["project central-lab: missing", "assignment user central-only central-lab member: missing"]),
    ("move-id", {"type": "groups", "name": "ops"},
     ["group ops: id differs", "assignment group ops services operator: missing"]),
    ("set-members", {"group": "ops", "members": ["sub-only"]}, ["group ops: members differ"]),
    ("revoke", {"user": "vim", "project": "services", "role": "admin"},
     ["assignment user vim services admin: missing", "assignment changed: user vim services admin"]),
    ("rename", {"type": "roles", "name": "operator", "to": "x"},
     ["role operator: missing", "assignment changed: group ops services operator",
      "assignment changed: group ops services x"]),
    ("halve-keys", {}, ["keys differ"]),
    ("swap-keys", {}, ["keys differ"]),
    ("replace-keys", {}, ["keys differ"]),
]  # fmt: skip


@pytest.mark.parametrize(("action", "arguments", "expected"), DRIFT)
def test_drift_is_named_and_gone_when_repaired(
    audited: Cloud, centre: Cloud, action: str, arguments: dict[str, Any], expected: list[str]
) -> None:
    changes.apply(audited, action, arguments)
    assert set(inspect(audited, centre).differences) == set(expected)
    audit_by_hand(audited, centre)
    assert inspect(audited, centre).audited


def test_lost_events_are_missed(audited: Cloud, centre: Cloud) -> None:
    changes.apply(centre, "revoke-tokens", {"audit_id": "abc"})
    audit_by_hand(audited, centre)
    changes.apply(audited, "forget-events", {})
    assert inspect(audited, centre).differences == ("revocation event of audit_id abc: missing",)


@pytest.mark.parametrize(
    ("action", "arguments", "gone"),
    [
        ("add-user", {"user": "mine", "password": "Mine-pw-1!"}, ("users", "mine")),
        ("add-project", {"project": "mine"}, ("projects", "mine")),
        ("add-role", {"role": "mine"}, ("roles", "mine")),
        ("add-group", {"group": "mine", "members": ["sub-only"]}, ("groups", "mine")),
    ],
)
def test_what_the_site_makes_is_no_difference_but_its_loss_is(
    audited: Cloud, centre: Cloud, action: str, arguments: dict[str, Any], gone: tuple[str, str]
) -> None:
    changes.apply(audited, action, arguments)
    assert inspect(audited, centre).audited
    type_, name = gone
    keystone.delete_record(audited, type_, audited.id_named(type_, name))
    assert inspect(audited, centre).differences == (f"{SINGULAR[type_]} mine: gone",)


def test_a_grant_the_site_made_is_its_own_and_any_other_that_nobody_gave_is_not(audited: Cloud, centre: Cloud) -> None:
    own = {"user": "sub-only", "project": "services", "role": "reader"}
    changes.apply(audited, "grant", own)
    assert inspect(audited, centre).audited
    changes.apply(audited, "revoke", own)
    assert inspect(audited, centre).audited
    named = (("users", "vim"), ("projects", "site-lab"), ("roles", "admin"))
    actor, project, role = (audited.id_named(*what) for what in named)
    audited.tables.assignments.add(("user", actor, project, role))
    audited.changed()
    assert inspect(audited, centre).differences == ("assignment changed: user vim site-lab admin",)


def test_a_grant_the_site_makes_after_the_central_cloud_took_it_back_is_the_sites(
    audited: Cloud, centre: Cloud
) -> None:
    grant = {"user": "vim", "project": "central-lab", "role": "member"}
    changes.apply(centre, "grant", grant)
    changes.apply(centre, "revoke", grant)
    changes.apply(audited, "grant", grant)
    assert inspect(audited, centre).audited


def test_a_grant_the_site_made_goes_with_the_central_user_it_was_made_to(audited: Cloud, centre: Cloud) -> None:
    changes.apply(audited, "grant", {"user": "operator1", "project": "site-lab", "role": "member"})
    changes.apply(centre, "remove", {"type": "users", "name": "operator1"})
    audit_by_hand(audited, centre)
    standing = inspect(audited, centre)
    assert (standing.audited, standing.assignments_kept) == (True, True)


def test_a_record_of_the_site_becomes_the_centres_with_the_name_and_may_go_with_it(
    audited: Cloud, centre: Cloud
) -> None:
    for cloud in (audited, centre):
        changes.apply(cloud, "add-user", {"user": "mine", "password": "Mine-pw-1!"})
    assert "user mine: id differs" in inspect(audited, centre).differences
    audit_by_hand(audited, centre)
    changes.apply(centre, "remove", {"type": "users", "name": "mine"})
    assert "user mine: still there" in inspect(audited, centre).differences
    audit_by_hand(audited, centre)
    assert inspect(audited, centre).audited


def test_a_record_that_is_gone_may_be_deleted_to_make_room_for_another_of_its_name(
    audited: Cloud, centre: Cloud
) -> None:
    old_id = centre.id_named("users", "barbican")
    changes.apply(centre, "remove", {"type": "users", "name": "barbican"})
    changes.apply(centre, "rename", {"type": "users", "name": "vim", "to": "barbican"})
    assert may_be_deleted(audited, centre, "users", old_id)
    assert "user barbican: id differs" in inspect(audited, centre).differences
    audit_by_hand(audited, centre)
    assert inspect(audited, centre).audited


def test_what_an_audit_adds_does_not_count_as_a_changed_assignment(audited: Cloud, centre: Cloud) -> None:
    changes.apply(centre, "grant", {"user": "vim", "project": "central-lab", "role": "member"})
    audit_by_hand(audited, centre)
    assert inspect(audited, centre).assignments_kept
    changes.apply(centre, "revoke", {"user": "vim", "project": "central-lab", "role": "member"})
    assert inspect(audited, centre).assignments_kept


@pytest.mark.parametrize(("type_", "name"), [("users", "admin"), ("projects", "services"), ("roles", "admin")])
def test_what_a_cloud_cannot_live_without_need_not_go(audited: Cloud, centre: Cloud, type_: str, name: str) -> None:
    changes.apply(centre, "remove", {"type": type_, "name": name})
    assert f"{SINGULAR[type_]} {name}: still there" not in inspect(audited, centre).differences


# Keystone's own API


def as_admin(cloud: Cloud, verb: str, path: str, body: Any = None) -> tuple[int, Any]:
    request = a_request(verb, f"/v3/{path}", body, **{"x-auth-token": a_token(cloud)})
    response = keystone.answer(cloud, request)
    return response.status, json.loads(response.body) if response.body else None


def events(cloud: Cloud) -> list[dict[str, Any]]:
    """Of each event what it names."""
    rows = (event["revocation_event"] for event in cloud.tables.events)
    named = ("user_id", "project_id", "audit_id", "role_id")
    return [{column: row[column] for column in named if row[column]} for row in rows]


def test_deleting_a_user_takes_grants_and_memberships_along_and_revokes_tokens() -> None:
    cloud = a_subcloud()
    user_id = cloud.id_named("users", "operator1")
    token = a_token(cloud, user="operator1", project="admin")
    assert as_admin(cloud, "DELETE", f"users/{user_id}")[0] == 204
    assert not any(user_id in grant for grant in cloud.tables.assignments)
    assert not any(user_id in group["local_user_ids"] for group in cloud.tables.groups.values())
    assert events(cloud) == [{"user_id": user_id}]
    assert isinstance(cloud.check_token(token), Refused)
    assert as_admin(cloud, "DELETE", f"users/{user_id}")[0] == 404


def test_deleting_a_group_revokes_the_tokens_of_its_members_only_if_it_had_roles() -> None:
    cloud = a_subcloud()
    members = cloud.tables.groups[cloud.id_named("groups", "ops")]["local_user_ids"]
    as_admin(cloud, "DELETE", f"groups/{cloud.id_named('groups', 'site-ops')}")
    assert events(cloud) == []
    as_admin(cloud, "DELETE", f"groups/{cloud.id_named('groups', 'ops')}")
    assert events(cloud) == [{"user_id": member} for member in members]


def test_a_project_goes_only_when_none_is_below_it_and_is_nobodys_default_then() -> None:
    cloud = a_subcloud()
    changes.apply(cloud, "add-project", {"project": "below", "parent": "site-lab"})
    above, below = (cloud.id_named("projects", name) for name in ("site-lab", "below"))
    changes.apply(cloud, "set-column", {"type": "users", "name": "vim", "column": "default_project_id", "value": above})
    assert as_admin(cloud, "DELETE", f"projects/{above}")[0] == 403
    assert as_admin(cloud, "DELETE", f"projects/{below}")[0] == 204
    assert as_admin(cloud, "DELETE", f"projects/{above}")[0] == 204
    user = cloud.named("users", "vim")
    assert user is not None
    assert user["user"]["default_project_id"] is None
    assert events(cloud) == [{"project_id": below}, {"project_id": above}]


def test_deleting_a_role_takes_grants_and_implications_along_and_leaves_no_event() -> None:
    cloud = a_subcloud()
    role_id = cloud.id_named("roles", "operator")
    assert as_admin(cloud, "DELETE", f"roles/{role_id}")[0] == 204
    assert not any(role_id in grant for grant in cloud.tables.assignments)
    assert events(cloud) == []


def test_a_new_password_opens_the_old_one_stays_as_history_and_older_tokens_end() -> None:
    cloud = a_subcloud()
    user_id, token = cloud.id_named("users", "vim"), a_token(cloud, user="vim")
    for number in range(6):
        body = {"user": {"password": f"Vim-pw-{number}!"}}
        assert as_admin(cloud, "PATCH", f"users/{user_id}", body)[0] == 200
    rows = cloud.tables.users[user_id]["password"]
    assert len(rows) == 5
    assert [row["expires_at_int"] > time.time() * 1e6 for row in rows] == [False] * 4 + [True]
    assert isinstance(cloud.check_token(token), Refused)


def test_grants_are_listed_in_keystones_own_form() -> None:
    cloud = a_subcloud()
    status, body = as_admin(cloud, "GET", "role_assignments")
    assert status == 200
    assert body["links"]["next"] is None
    shown = set()
    for row in body["role_assignments"]:
        (kind,) = row.keys() & {"user", "group"}
        shown.add((kind, row[kind]["id"], row["scope"]["project"]["id"], row["role"]["id"]))
    assert shown == cloud.tables.assignments
    changes.apply(cloud, "hide", {"list": "assignments"})
    assert as_admin(cloud, "GET", "role_assignments")[1]["role_assignments"] == []


def test_an_event_ends_the_tokens_it_names_issued_up_to_its_second_and_no_others() -> None:
    cloud = a_subcloud()
    user_id, now = cloud.id_named("users", "vim"), int(time.time())
    changes.apply(cloud, "revoke-tokens", {"user": "vim"})
    issued_before = cloud.tables.events[0]["revocation_event"]["issued_before"]
    assert issued_before >= time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(now))

    def is_good(user: str, issued_at: int) -> bool:
        token = Token(cloud.id_named("users", user), cloud.id_named("projects", "services"), "a", issued_at, now + 3600)
        return isinstance(cloud.check_token(seal(token, cloud.tables.keys)), Token)

    assert cloud.tables.events[0]["revocation_event"]["user_id"] == user_id
    assert not is_good("vim", now - 1)
    assert not is_good("vim", now)
    assert is_good("vim", now + 1800)
    assert is_good("barbican", now)


def test_an_event_without_its_times_is_refused_as_the_table_does() -> None:
    cloud = a_subcloud()
    body = {"revocation_event": {"audit_id": "x", "issued_before": None, "revoked_at": None}}
    request = a_request("POST", "/v1.0/identity/token-revocation-events/", body, **{"x-auth-token": a_token(cloud)})
    assert dbsync.answer(cloud, request).status == 500
