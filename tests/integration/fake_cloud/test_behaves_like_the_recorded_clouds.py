"""What real clouds were seen to do (docs/upstream/recorded-traffic.md, docs/upstream/real-keystone.md), asked of the
fake."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

from dcsync.fake_cloud.control import FakeCloud
from dcsync.fake_cloud.faults import Fault
from tests.integration.fake_cloud.client import AT_ONCE, Client, Reply, Run, id_of

BARBICAN = "Subcloud-barbican-pw-1!"
CENTRAL_BARBICAN = "Central-barbican-pw-1!"


def other(run: Run) -> Client:
    return Client(run.site.ip, run.site.port)


def put_user(run: Run, name: str) -> Reply:
    own, master = run.site.records("users")[name], run.central.records("users")[name]
    return run.site.put("users", id_of("users", own), master)


def test_a_whole_sync_leaves_everything_as_it_must_be(fake: FakeCloud, run: Run, region: str) -> None:
    before = fake.state(region)
    run.whole()
    after = fake.state(region)
    assert (before["aligned"], before["keys_match"], before["untouched"], before["assignments_kept"]) == (
        False, False, True, True,
    )  # fmt: skip
    assert after["problems"] == []
    assert after["good"]
    assert after["violations"] == {}


def test_identity_alone_is_not_enough(fake: FakeCloud, run: Run, region: str) -> None:
    run.identity()
    state = fake.state(region)
    assert (state["aligned"], state["keys_match"], state["good"]) == (True, False, False)


def test_login_answers_a_scoped_token_with_catalog_and_implied_roles(run: Run) -> None:
    reply = run.central.log_in()
    token = reply.json["token"]
    assert reply.status == 201
    assert {role["name"] for role in token["roles"]} == {"admin", "manager", "member", "reader"}
    assert {entry["type"] for entry in token["catalog"]} == {"identity", "dcorch-dbsync", "platform"}
    assert {end["region"] for entry in token["catalog"] for end in entry["endpoints"]} == {"RegionOne"}


def test_wrong_password_unknown_user_and_unknown_project_are_the_same_401(run: Run) -> None:
    site = other(run)
    replies = [site.log_in("vim", "nope"), site.log_in("nobody", "x"), site.log_in("vim", "Subcloud-vim-pw-1!", "no")]
    assert [reply.status for reply in replies] == [401, 401, 401]
    assert len({reply.body for reply in replies}) == 1
    assert site.ask("POST", "/v3/auth/tokens", b"{").status == 400


def test_five_wrong_passwords_lock_a_user_out(run: Run) -> None:
    site = other(run)
    statuses = [site.log_in("mtce", "nope").status for _ in range(5)]
    assert [*statuses, site.log_in("mtce", "Subcloud-mtce-pw-1!").status] == [401] * 6


def test_a_token_of_other_keys_is_401_as_caller_and_404_as_subject(run: Run) -> None:
    foreign = run.central.token
    assert run.site.validate(foreign).status == 404
    stranger = other(run)
    stranger.token = foreign
    assert stranger.validate(foreign).status == 401
    assert stranger.ask("GET", "/v1.0/identity/roles/").status == 401
    assert stranger.ask("GET", "/v1/fernet_repo").status == 401


def test_between_identity_and_keys_a_moved_users_token_is_404_everywhere_in_keystone(run: Run) -> None:
    old = other(run)
    assert old.log_in("barbican", BARBICAN).status == 201
    assert run.identity()
    assert old.validate(old.token).status == 404
    assert old.ask("GET", "/v3/users").status == 404
    assert run.site.validate(old.token).status == 404
    assert old.ask("GET", "/v1.0/identity/roles/").status == 401
    assert run.site.validate(run.site.token).status == 200


def test_the_password_hash_travels(run: Run) -> None:
    run.identity()
    site = other(run)
    assert site.log_in("barbican", BARBICAN).status == 401
    assert site.log_in("barbican", CENTRAL_BARBICAN).status == 201


def test_after_the_keys_old_tokens_are_401_and_central_ones_good_both_ways(run: Run) -> None:
    old = run.site.token
    run.whole()
    stale = other(run)
    stale.token = old
    assert stale.validate(old).status == 401
    assert run.site.validate(old).status == 404
    guest = other(run)
    guest.token = run.central.token
    seen = guest.validate(guest.token)
    assert seen.status == 200
    assert seen.json["token"]["catalog"][0]["endpoints"][0]["region"] != "RegionOne"
    assert guest.ask("GET", "/v1.0/identity/groups/").status == 200
    assert guest.ask("GET", "/v1/fernet_repo").status == 200
    assert run.central.validate(run.site.token).status == 200


def test_keys_before_identity_leave_an_old_client_stuck_at_404(fake: FakeCloud, run: Run, region: str) -> None:
    old = other(run)
    assert run.keys() == 201
    assert run.site.log_in().status == 201
    assert old.log_in("barbican", BARBICAN).status == 201
    run.identity()
    assert old.ask("GET", "/v3/users").status == 404
    assert fake.state(region)["violations"] == {"keys-before-identity": 1}


def test_a_central_token_of_a_user_unknown_here_is_404(run: Run) -> None:
    run.whole()
    stranger = Client(run.central.ip, run.central.port)
    assert stranger.log_in("central-only", "Central-central-only-pw-1!", "central-lab").status == 201
    here = Client(run.site.ip, run.site.port, token=stranger.token)
    assert here.validate(here.token).status == 404


def test_a_logged_out_token_dies_here_when_its_audit_event_is_copied(run: Run) -> None:
    run.whole()
    victim = Client(run.central.ip, run.central.port)
    victim.log_in("barbican", CENTRAL_BARBICAN)
    assert victim.ask("DELETE", "/v3/auth/tokens", X_Subject_Token=victim.token).status == 204
    events = run.central.ask("GET", "/v1.0/identity/token-revocation-events/").json[-2:]
    by_audit, by_chain = (
        next(e for e in events if e["revocation_event"][column]) for column in ("audit_id", "audit_chain_id")
    )
    path = "/v1.0/identity/token-revocation-events"
    chained = run.site.ask("POST", f"{path}/", by_chain)
    assert (chained.status, chained.json) == (201, {})
    assert run.site.validate(victim.token).status == 200
    assert run.site.ask("POST", f"{path}/", by_audit).status == 201
    assert run.site.validate(victim.token).status == 404
    audit_id = by_audit["revocation_event"]["audit_id"]
    assert run.site.ask("GET", f"{path}/audits/{audit_id}").status == 200
    assert run.site.ask("DELETE", f"{path}/audits/{audit_id}").status == 204
    assert run.site.ask("GET", f"{path}/audits/{audit_id}").status == 404
    assert run.site.ask("DELETE", f"{path}/audits/nope").status == 204
    unknown = base64.urlsafe_b64encode(b"0123_2026-01-31 08:15:00").decode()
    assert run.site.ask("GET", f"{path}/users/{unknown}").status == 404
    assert run.site.ask("GET", f"{path}/users/bm91bmRlcnNjb3Jl").status == 404


def test_dbsync_errors_have_the_recorded_statuses(run: Run) -> None:
    site, mtce = run.site, run.site.records("users")["mtce"]
    path, id_ = "/v1.0/identity/users", id_of("users", mtce)
    vim_id = id_of("users", site.records("users")["vim"])
    unknown = run.central.records("users")["central-only"]
    with_options = unknown | {"user_option": [{"user_id": "f" * 32, "option_id": "1001", "option_value": "true"}]}
    strange = mtce | {"user": mtce["user"] | {"no_such_column": 1}}
    undated = mtce | {"user": mtce["user"] | {"created_at": "yesterdayish"}}
    asked = {
        "unknown id": site.ask("GET", f"{path}/0123").status,
        "unknown kind": site.ask("GET", "/v1.0/identity/cats/").status,
        "unknown version": site.ask("GET", "/v2.0/identity/users/").status,
        "no JSON": site.ask("PUT", f"{path}/{id_}", b"{not json").status,
        "no body": site.ask("PUT", f"{path}/{id_}").status,
        "empty object": site.ask("PUT", f"{path}/{id_}", {}).status,
        "no id": site.ask("PUT", f"{path}/", mtce).status,
        "a list": site.put("users", id_, [1]).status,
        "unknown user": site.put("users", "deadbeef", unknown | {"user_option": []}).status,
        "unknown user with options": site.put("users", "deadbeef", with_options).status,
        "id taken": site.put("users", id_, mtce | {"user": mtce["user"] | {"id": vim_id}}).status,
        "unknown column": site.put("users", id_, strange).status,
        "unreadable date": site.put("users", id_, undated).status,
        "already there": site.ask("POST", f"{path}/", mtce).status,
        "no name": site.ask("POST", f"{path}/", {"user": {}, "local_user": {"name": ""}, "password": []}).status,
        "no local_user": site.ask("POST", f"{path}/", {"user": {}}).status,
        "delete": site.ask("DELETE", f"{path}/{id_}").status,
        "patch": site.ask("PATCH", f"{path}/{id_}", {"user": {}}).status,
    }
    assert asked == {
        "unknown id": 404, "unknown kind": 404, "unknown version": 404, "no JSON": 400, "no body": 400,
        "empty object": 400, "no id": 400, "a list": 200, "unknown user": 404, "unknown user with options": 500,
        "id taken": 500, "unknown column": 500, "unreadable date": 500, "already there": 500, "no name": 400,
        "no local_user": 500, "delete": 404, "patch": 404,
    }  # fmt: skip
    assert site.records("users")["mtce"] == mtce


def test_dbsync_error_bodies_are_html_unless_json_is_wanted(run: Run) -> None:
    html = run.site.ask("GET", "/v1.0/identity/users/0123")
    plain = run.site.ask("GET", "/v1.0/identity/users/0123", Accept="application/json")
    assert html.headers["content-type"].startswith("text/html")
    assert plain.json == {
        "code": 404, "title": "Not Found", "description": "User not found: User with id 0123 doesn't exist.",
    }  # fmt: skip


def test_a_reader_may_list_and_not_write(run: Run) -> None:
    reader = other(run)
    assert reader.log_in("operator1", "Subcloud-operator1-pw-1!", "admin").status == 201
    role = {"role": {"id": "e" * 32, "name": "x", "extra": "{}", "domain_id": "<<null>>", "description": None}}
    assert reader.ask("GET", "/v1.0/identity/users/").status == 200
    assert reader.ask("POST", "/v1.0/identity/roles/", role).status == 500
    assert reader.ask("GET", "/v1/fernet_repo").status == 200
    assert reader.ask("PUT", "/v1/fernet_repo", reader.fernet_keys()).status == 403


def test_a_group_member_whose_id_changes_is_500_until_the_group_is_emptied(run: Run) -> None:
    own, master = run.site.records("groups")["ops"], run.central.records("groups")["ops"]
    assert put_user(run, "operator1").status == 500
    assert run.site.put("groups", id_of("groups", own), master).status == 500
    assert run.site.put("groups", id_of("groups", own), master | {"local_user_ids": []}).status == 200
    assert put_user(run, "operator1").status == 200


def test_a_put_may_be_repeated_to_the_old_and_to_the_new_id(run: Run) -> None:
    old_id = id_of("users", run.site.records("users")["vim"])
    master = run.central.records("users")["vim"]
    first = run.site.put("users", old_id, master)
    again = run.site.put("users", old_id, master)
    assert (first.status, again.status, again.json) == (200, 200, first.json)
    assert run.site.put("users", id_of("users", master), master).status == 200
    assert run.site.ask("GET", f"/v1.0/identity/users/{old_id}").status == 404


def test_tied_roles_written_at_once_are_500_and_untied_ones_are_not(fake: FakeCloud, run: Run, region: str) -> None:
    due = {record["role"]["name"]: (id_, record) for id_, record in run.due("roles")}
    clients = {name: other(run) for name in ("manager", "member", "operator")}
    for client in clients.values():
        client.token = run.site.token
        client.connection.connect()
    fake.set_fault(region, Fault("latency", verb="write", seconds=AT_ONCE))
    for name, client in clients.items():
        client.send_put("roles", *due[name])
    statuses = {name: client.answer().status for name, client in clients.items()}
    assert statuses["operator"] == 200
    assert sorted([statuses["manager"], statuses["member"]]) == [200, 500]
    for client in clients.values():
        client.close()
    fake.set_fault(region, None)
    assert {run.site.put("roles", *item).status for item in due.values()} == {200}


def test_an_update_moves_grants_along(fake: FakeCloud, run: Run, region: str) -> None:
    run.whole()
    admin = other(run)
    assert admin.log_in("barbican", CENTRAL_BARBICAN).status == 201
    user_id = id_of("users", run.central.records("users")["barbican"])
    found = admin.ask("GET", f"/v3/role_assignments?user.id={user_id}&include_names=true").json["role_assignments"]
    assert [(entry["scope"]["project"]["name"], entry["role"]["name"]) for entry in found] == [("services", "admin")]
    assert fake.state(region)["assignments_kept"]


def test_service_ids_that_differ_lock_the_services_out(fake: FakeCloud, begin: Callable[[str], Run]) -> None:
    run = begin("subcloud200")
    assert run.site.fernet_keys()
    assert put_user(run, "sysinv").status == 200
    assert run.site.log_in().status == 201
    assert run.site.ask("GET", "/v1/fernet_repo").status == 401
    assert run.keys() == 401
    assert run.site.ask("GET", "/v1.0/identity/groups/").status == 200
    own, master = run.site.records("projects")["services"], run.central.records("projects")["services"]
    assert run.site.put("projects", id_of("projects", own), master).status == 200
    assert run.site.log_in().status == 201
    assert run.site.ask("GET", "/v1.0/identity/groups/").status == 401


def test_fernet_repo_statuses_and_errors(run: Run) -> None:
    site = run.site
    assert other(run).ask("GET", "/v1/fernet_repo").status == 401
    bodies: tuple[Any, ...] = (b"[{", {"keys": []}, [{"id": "x", "key": "k"}])
    for body in bodies:
        reply = site.ask("PUT", "/v1/fernet_repo", body)
        assert reply.status == 400
        assert "faultstring" in reply.json["error_message"]
    texts = [{"id": str(row["id"]), "key": row["key"]} for row in site.fernet_keys()]
    reply = site.ask("PUT", "/v1/fernet_repo", texts)
    assert (reply.status, reply.body) == (202, b"")


def test_keystones_own_api_grants_revokes_patches_and_deletes(run: Run) -> None:
    site = run.site
    ids = {
        (type_, name): id_of(type_, row)
        for type_ in ("users", "projects", "roles")
        for name, row in site.records(type_).items()
    }
    grant = f"/v3/projects/{ids['projects', 'admin']}/users/{ids['users', 'sub-only']}/roles/{ids['roles', 'reader']}"
    assert [site.ask(verb, grant).status for verb in ("PUT", "DELETE", "DELETE")] == [204, 204, 404]
    sub_only = f"/v3/users/{ids['users', 'sub-only']}"
    assert site.ask("PATCH", sub_only, {"user": {"password": "Other-pw-1!"}}).status == 200
    assert other(run).log_in("sub-only", "Other-pw-1!", "site-lab").status == 201
    assert site.ask("DELETE", sub_only).status == 204
    assert site.ask("GET", sub_only).status == 404
