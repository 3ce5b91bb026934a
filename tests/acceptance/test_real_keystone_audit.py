"""What changes at a real Keystone arrives at its subclouds' real Keystones, by itself, and nothing else is touched.

One dcsync brings both subclouds in line once, in `kept`; each test then changes central data over Keystone's API and
looks at rows and logins. A wrong password locks a user (docs/upstream/real-keystone.md K12), so arrival is seen in rows
first and a login is tried once.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dcsync.local.servers import EmbeddedPostgres, EmbeddedRedis
from tests.acceptance.test_real_keystone import (
    PATIENT,
    SUBCLOUDS,
    WAIT_SECONDS,
    manage,
    output_of,
    start_dcsync,
    wait_for,
)
from tests.conftest import data_folder
from tests.processes import Processes, Running, wait_until
from tests.real_cloud import content
from tests.real_cloud.clouds import Answer, Cloud, RealClouds, ask

pytestmark = [pytest.mark.keystone, pytest.mark.xdist_group("keystone"), pytest.mark.timeout(900)]

WAIT = ("--wait", "--timeout", str(WAIT_SECONDS))


@dataclass(frozen=True)
class Kept:
    """Clouds that a running dcsync keeps in line."""

    clouds: RealClouds
    processes: Processes
    environ: dict[str, str]
    running: list[Running]

    @property
    def central(self) -> Cloud:
        return self.clouds.central

    @property
    def sites(self) -> list[Cloud]:
        return [self.clouds[name] for name in SUBCLOUDS]

    def cli(self, *arguments: str, expect: int = 0) -> str:
        return self.processes.cli(*arguments, environ=self.environ, expect=expect, seconds=WAIT_SECONDS + 60).stdout

    def wait_for(self, goal: str, *names: str) -> None:
        wait_for(self.processes, self.environ, goal, *names)

    def at_the_central_cloud(self, method: str, path: str, body: Any = None) -> Answer:
        """Asked of the central Keystone by its admin."""
        token = self.central.token("admin", project="admin")
        answer = ask(method, f"{self.central.urls['keystone']}/{path}", token=token, body=body)
        assert answer.status in (200, 201, 204), (method, path, answer.status, answer.body)
        return answer

    def id(self, kind: str, name: str) -> str:
        return self.central.ids(kind)[name]

    def arrives(self, question: Callable[[Cloud], bool], what: str) -> None:
        """On every site, within bounds."""

        def everywhere() -> bool:
            return all(question(site) for site in self.sites)

        wait_until(everywhere, seconds=WAIT_SECONDS, what=lambda: f"{what}\n{output_of(self.running)[-8000:]}")


@pytest.fixture(scope="module")
def kept(real_cloud: RealClouds, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kept]:
    folder: Path = tmp_path_factory.mktemp("dcsync")
    with (
        data_folder() as servers,
        EmbeddedPostgres(servers, fast=True) as postgres,
        EmbeddedRedis(servers, fast=True) as redis,
        Processes(folder) as processes,
    ):
        environ = {
            **real_cloud.environment(),
            "DCSYNC_DATABASE_URL": postgres.url,
            "DCSYNC_REDIS_URL": redis.url,
            "DCSYNC_SWEEP_INTERVAL": "1",
            **PATIENT,
            "DCSYNC_CENTRAL_WATCH_INTERVAL": "1",
            "DCSYNC_CENTRAL_MAX_AGE": "1",
            "DCSYNC_TOKEN_LIFETIME": "0",
            "DCSYNC_HOLD_OFF": "2",
        }
        processes.cli("db", "upgrade", environ=environ, expect=0)
        running = start_dcsync(processes, environ, folder)
        kept = Kept(real_cloud, processes, environ, running)
        manage(processes, environ, real_cloud)
        kept.wait_for("completed", *SUBCLOUDS)
        kept.wait_for("in-sync", *SUBCLOUDS)
        yield kept


def add_user(kept: Kept, name: str) -> str:
    """At the central cloud; its password."""
    password = f"Central-{name}-pw-1!"
    user = {"name": name, "password": password, "domain_id": "default", "enabled": True}
    kept.at_the_central_cloud("POST", "users", {"user": user})
    return password


def test_a_changed_password_arrives_and_the_old_one_is_worth_nothing(kept: Kept) -> None:
    kept.at_the_central_cloud("PATCH", f"users/{kept.id('users', 'vim')}", {"user": {"password": "Changed-vim-pw-1!"}})
    wanted = kept.central.password_hashes()["vim"]
    kept.arrives(lambda site: site.password_hashes()["vim"] == wanted, "vim's new password")
    for site in kept.sites:
        assert site.login("vim", "Changed-vim-pw-1!").status == 201
        assert site.login("vim", kept.central.password("vim")).status == 401


def test_a_new_user_arrives_with_its_role_and_can_work_there(kept: Kept) -> None:
    password = add_user(kept, "oncall")
    user, project, role = kept.id("users", "oncall"), kept.id("projects", "lab"), kept.id("roles", "operator")
    kept.at_the_central_cloud("PUT", f"projects/{project}/users/{user}/roles/{role}")
    kept.arrives(lambda site: site.ids("users").get("oncall") == user, "user oncall")
    kept.arrives(lambda site: ("oncall", "lab", "operator") in site.grants_by_name(), "its role")
    for site in kept.sites:
        assert site.login("oncall", password, project="lab").status == 201
        assert site.validate(kept.central.token("oncall", password, project="lab")).status == 200


def test_a_user_removed_at_the_central_cloud_goes_and_nobody_else_does(kept: Kept) -> None:
    add_user(kept, "passing")
    kept.arrives(lambda site: "passing" in site.ids("users"), "user passing")
    before = {site.name: whole(site) for site in kept.sites}
    kept.at_the_central_cloud("DELETE", f"users/{kept.id('users', 'passing')}")
    kept.arrives(lambda site: "passing" not in site.ids("users"), "passing is gone")
    for site in kept.sites:
        was, now = before[site.name], whole(site)
        assert was["users"] - now["users"] == {"passing"}
        assert now["users"] <= was["users"]
        assert {kind: now[kind] for kind in now if kind != "users"} == {
            kind: was[kind] for kind in was if kind != "users"
        }


def whole(site: Cloud) -> dict[str, set[Any]]:
    """Everything that has a name there."""
    names: dict[str, set[Any]] = {kind: set(site.ids(kind)) for kind in ("users", "groups", "projects", "roles")}
    return names | {"grants": set(site.grants_by_name()), "implied": set(site.implied_roles())}


def test_a_group_gains_and_loses_a_member(kept: Kept) -> None:
    member = f"groups/{kept.id('groups', 'ops')}/users/{kept.id('users', 'mtce')}"
    kept.at_the_central_cloud("PUT", member)
    kept.arrives(lambda site: "mtce" in site.members()["ops"], "mtce is in ops")
    kept.at_the_central_cloud("DELETE", member)
    kept.arrives(lambda site: "mtce" not in site.members()["ops"], "mtce is not in ops any more")
    assert all(site.members()[content.SITE_GROUP] == {"operator2", content.SITE_USER} for site in kept.sites)


def test_a_role_is_granted_and_taken_away(kept: Kept) -> None:
    path = (
        f"projects/{kept.id('projects', 'lab')}/users/{kept.id('users', 'operator2')}"
        f"/roles/{kept.id('roles', 'configurator')}"
    )
    grant = ("operator2", "lab", "configurator")
    kept.at_the_central_cloud("PUT", path)
    kept.arrives(lambda site: grant in site.grants_by_name(), "the grant")
    kept.at_the_central_cloud("DELETE", path)
    kept.arrives(lambda site: grant not in site.grants_by_name(), "the grant is gone")


def test_what_a_site_made_itself_survives_audits_and_deletions(kept: Kept) -> None:
    site = kept.sites[0]
    token = site.token("admin", kept.central.password("admin"), project="admin")
    user = {"name": "site-made", "password": "Site-made-pw-1!", "domain_id": "default"}
    made = ask("POST", f"{site.urls['keystone']}/users", token=token, body={"user": user})
    assert made.status == 201, made.status
    record, own = site.user_record("site-made"), site.user_record(content.SITE_USER)
    add_user(kept, "short-lived")
    kept.arrives(lambda each: "short-lived" in each.ids("users"), "user short-lived")
    kept.at_the_central_cloud("DELETE", f"users/{kept.id('users', 'short-lived')}")
    kept.arrives(lambda each: "short-lived" not in each.ids("users"), "short-lived is gone")
    kept.cli("audit", site.name, "--allow-deletes", *WAIT)
    assert (site.user_record("site-made"), site.user_record(content.SITE_USER)) == (record, own)


def test_keys_rotate_and_tokens_of_before_and_after_are_good_everywhere(kept: Kept) -> None:
    central = kept.central
    kept.cli("audit", "--all", "--yes", *WAIT)
    before = central.keys()
    issued_before = central.token("barbican")
    site_tokens = {site.name: site.token("barbican", central.password("barbican")) for site in kept.sites}
    kept.cli("keys", "rotate", "--yes", "--max-in-flight", "1", *WAIT)
    after = central.keys()
    assert after[max(after, key=int)] == before["0"], "what was staged is primary"
    assert after["0"] not in before.values()
    issued_after = central.token("barbican")
    for site in kept.sites:
        assert site.keys() == after
        for token in (issued_before, issued_after):
            assert site.validate(token).status == 200
        assert central.validate(site_tokens[site.name]).status == 200
        assert central.validate(site.token("barbican", central.password("barbican"))).status == 200


def test_between_the_rotation_and_its_distribution_tokens_are_good_as_well(kept: Kept) -> None:
    """With nobody to hand the keys out: the site knows the new primary, for it was staged there."""
    central, site = kept.central, kept.sites[0]
    kept.cli("audit", "--all", "--yes", *WAIT)
    kept.cli("subcloud", "unmanage", site.name)
    try:
        kept.cli("keys", "rotate", "--yes", *WAIT)
        assert site.keys() != central.keys()
        assert site.validate(central.token("barbican")).status == 200
        assert central.validate(site.token("barbican", central.password("barbican"))).status == 200
    finally:
        kept.cli("subcloud", "manage", site.name)
        kept.wait_for("in-sync", site.name)
    assert site.keys() == central.keys()


def test_a_user_without_a_password_arrives_without_one(kept: Kept) -> None:
    """docs/upstream/real-keystone.md R9."""
    kept.at_the_central_cloud("POST", "users", {"user": {"name": "keyless", "domain_id": "default"}})
    assert "keyless" not in kept.central.password_hashes()
    kept.cli("audit", "--all", "--yes", *WAIT)
    for site in kept.sites:
        assert site.ids("users")["keyless"] == kept.id("users", "keyless")
        assert "keyless" not in site.password_hashes()


def test_a_project_that_cannot_take_its_id_is_named_and_stops_nothing_else(kept: Kept) -> None:
    """docs/upstream/real-keystone.md R8."""
    site = kept.sites[0]

    def there(method: str, path: str, body: Any = None) -> Answer:
        token = site.token("admin", kept.central.password("admin"), project="admin")
        answer = ask(method, f"{site.urls['keystone']}/{path}", token=token, body=body)
        assert answer.status in (200, 201, 204), (method, path, answer.status, answer.body)
        return answer

    project = {"project": {"name": "tagged", "domain_id": "default"}}
    own_id = there("POST", "projects", project).body["project"]["id"]
    there("PUT", f"projects/{own_id}/tags/blue")
    kept.at_the_central_cloud("POST", "projects", project)
    add_user(kept, "beside")
    kept.arrives(lambda each: "beside" in each.ids("users"), "user beside")
    assert (
        kept.processes.cli("audit", site.name, *WAIT, environ=kept.environ, seconds=WAIT_SECONDS + 60).returncode == 1
    )
    assert site.ids("projects")["tagged"] == own_id
    said = kept.cli("history", site.name, "-o", "json")
    assert "PUT projects tagged" in said
    assert "tags or options" in said
    there("DELETE", f"projects/{own_id}/tags/blue")
    kept.cli("audit", site.name, *WAIT)
    assert site.ids("projects")["tagged"] == kept.id("projects", "tagged")


def test_in_the_end_nothing_differs(kept: Kept) -> None:
    kept.cli("audit", "--all", "--yes", *WAIT)
    for name in SUBCLOUDS:
        assert diff(kept, name).returncode == 0


def diff(kept: Kept, name: str) -> subprocess.CompletedProcess[str]:
    """Once no run is at work there: who has told the end of an audit gives its lock back a moment later."""
    seen: list[subprocess.CompletedProcess[str]] = []

    def is_free() -> bool:
        seen.append(kept.processes.cli("diff", name, environ=kept.environ))
        return "has a run in progress" not in seen[-1].stderr

    wait_until(is_free, seconds=WAIT_SECONDS, what=f"no run at work on {name}")
    return seen[-1]


def test_dcsync_printed_no_password_key_or_hash(kept: Kept) -> None:
    said = output_of(kept.running)
    clouds = (kept.central, *kept.sites)
    secrets = {
        *(key for cloud in clouds for key in cloud.keys().values()),
        *(hash_ for cloud in clouds for hashes in cloud.password_hashes().values() for hash_ in hashes),
        *(kept.central.password(user) for user in kept.central.ids("users")),
        "Changed-vim-pw-1!",
    }
    assert not [secret for secret in secrets if secret in said]
    assert "gAAAA" not in said
