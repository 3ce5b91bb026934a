"""What must hold on a subcloud after a sync, all of it, and what a subcloud was before it.

`problems` names each thing that does not hold. Of a subcloud that was not synced, or only in part, it must name some:
a check that cannot fail proves nothing. Source: docs/upstream/real-keystone.md section 5.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.real_cloud import content
from tests.real_cloud.clouds import Cloud, ask

KINDS = ("users", "groups", "projects", "roles")
KEPT = {
    "users": {*content.UNTOUCHED_USERS, content.SITE_USER},
    "groups": {content.SITE_GROUP},
    "projects": set[str](),
    "roles": {content.FILTERED_ROLE, content.SITE_ROLE},
}
"""Names a sync leaves as they are: filtered ones, and those found on the subcloud only."""

TOKEN_USERS = ("admin", "dcmanager", "barbican", "fm", "operator1")
LEAST_TRIES = 12
"""Three for each worker thread of a Keystone, however long one takes."""
VOLATILE = {"last_active_at", "failed_auth_count", "failed_auth_at"}


@dataclass(frozen=True)
class Before:
    """A subcloud as it was."""

    ids: dict[str, dict[str, str]]
    kept_users: dict[str, list[tuple[Any, ...]]] = field(repr=False)
    members: dict[str, set[str]]
    grants: set[tuple[str, str, str]]
    implied_roles: set[tuple[str, str]]
    tokens: dict[str, str] = field(repr=False)


def before(site: Cloud) -> Before:
    """Also logs in, so that there are tokens to be refused later."""
    projects = {"admin": "admin", "operator1": "lab"}
    return Before(
        ids={kind: site.ids(kind) for kind in KINDS},
        tokens={user: site.token(user, project=projects.get(user, "services")) for user in TOKEN_USERS},
        kept_users={user: site.user_record(user) for user in KEPT["users"]},
        members=site.members(),
        grants=site.grants_by_name(),
        implied_roles=site.implied_roles(),
    )


def problems(*, central: Cloud, site: Cloud, was: Before, patience: float = 10) -> list[str]:
    """Empty when the sync is whole; `patience`: seconds an old token may take to die, for each worker thread of a
    Keystone lets one more request through (docs/upstream/real-keystone.md section 7)."""
    return [
        *_wrong_records(central, site, was),
        *_wrong_relations(central, site, was),
        *([] if site.keys() == central.keys() else ["the key files differ"]),
        *_wrong_logins(central, site),
        *_wrong_tokens(central, site, was, patience),
    ]


def _wrong_records(central: Cloud, site: Cloud, was: Before) -> Iterator[str]:
    for kind in KINDS:
        now, central_ids = site.ids(kind), central.ids(kind)
        if now.keys() != was.ids[kind].keys():
            yield f"{kind} were created or deleted: {now.keys() ^ was.ids[kind].keys()}"
        for name, id_ in now.items():
            if id_ != (was.ids[kind].get(name) if name in KEPT[kind] else central_ids.get(name)):
                yield f"{kind} {name} has the wrong id"
    for user in KEPT["users"]:
        if site.user_record(user) != was.kept_users[user]:
            yield f"user {user} was touched"
    yield from _wrong_details(central, site)


def _wrong_details(central: Cloud, site: Cloud) -> Iterator[str]:
    """Hashes, options, descriptions, extra: all a record says, but what changes by itself or is numbered locally."""
    central_token, site_token = central.token(), site.token()
    for kind in KINDS:
        wanted = records_by_name(central, kind, token=central_token)
        found = records_by_name(site, kind, token=site_token)
        for name in sorted((wanted.keys() & found.keys()) - KEPT[kind]):
            if _stable(wanted[name]) != _stable(found[name]):
                yield f"{kind} {name} differs from the central cloud's"


def records_by_name(cloud: Cloud, kind: str, *, token: str) -> dict[str, Any]:
    """Name -> record, as dcdbsync lists them, without the two domains that stand among the projects."""
    listed = cloud.identity("GET", f"{kind}/", token=token)
    assert listed.status == 200, f"{cloud.name} does not list its {kind}: {listed.status}"
    return {_name(record): record for record in listed.body if not record.get("project", {}).get("is_domain")}


def _name(record: dict[str, Any]) -> str:
    named = next(record[part] for part in ("local_user", "group", "project", "role") if part in record)
    return str(named["name"])


def _stable(record: dict[str, Any]) -> dict[str, Any]:
    """Without what changes by itself, is numbered locally, or is looked at by name: members."""
    if "group" in record:
        return {"group": record["group"]}
    if "local_user" not in record:
        return record
    kept = {column: value for column, value in record["user"].items() if column not in VOLATILE}
    passwords = [{c: v for c, v in row.items() if c not in {"id", "local_user_id"}} for row in record["password"]]
    return {"user": kept, "password": passwords, "user_option": record["user_option"]}


def _wrong_relations(central: Cloud, site: Cloud, was: Before) -> Iterator[str]:
    """Of a group's central members, those the subcloud does not know cannot be in it there."""
    known = was.ids["users"].keys()
    shared = {group: who & known for group, who in central.members().items() if group in was.members}
    if site.members() != was.members | shared:
        yield "group members differ"
    if site.implied_roles() != was.implied_roles:
        yield "implied roles changed"
    if site.grants_by_name() != was.grants:
        yield "grants by name changed"


def _wrong_logins(central: Cloud, site: Cloud) -> Iterator[str]:
    if site.login("barbican", central.password("barbican")).status != 201:
        yield "the central password does not log in"
    if site.login("mtce", site.password("mtce")).status != 401:
        yield "the subcloud's own password still logs in"
    if site.login(content.SITE_USER, project="lab").status != 201:
        yield "the site's own user cannot log in any more"


def _wrong_tokens(central: Cloud, site: Cloud, was: Before, patience: float) -> Iterator[str]:
    for user, token in was.tokens.items():
        if not is_refused(site, token, patience=patience):
            yield f"an old token of {user} is still accepted"
    for user, project in (("barbican", "services"), ("operator1", "lab")):
        issued = central.login(user, project=project)
        accepted = site.validate(issued.token)
        if accepted.status != 200:
            yield f"a central token of {user} is not accepted: {accepted.status}"
        elif _role_ids(accepted.body) != _role_ids(issued.body):
            yield f"a central token of {user} has other roles"


def _role_ids(body: Any) -> set[str]:
    return {role["id"] for role in body["token"]["roles"]}


def is_refused(site: Cloud, token: str, *, patience: float = 10) -> bool:
    """Whether the token is worth nothing as a caller, 401, within so many seconds; 0: at once."""
    url = f"{site.urls['keystone']}/auth/tokens"
    return _within(patience, lambda: ask("GET", url, token=token, X_Subject_Token=token).status == 401)


def _within(seconds: float, question: Callable[[], bool]) -> bool:
    deadline, tries_left = time.monotonic() + seconds, LEAST_TRIES if seconds else 1
    while not question():
        tries_left -= 1
        if tries_left <= 0 and time.monotonic() >= deadline:
            return False
        time.sleep(0.02)
    return True
