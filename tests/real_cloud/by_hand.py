"""A sync as an operator with curl would do it: the yardstick for the clouds themselves, with nothing of dcsync in it.

Source: contracts/real-keystone.md section 6 (the order that works), spec/identity-sync.md section 3.
"""

from __future__ import annotations

from typing import Any

from tests.real_cloud.checks import KEPT
from tests.real_cloud.clouds import Answer, Cloud


def record(cloud: Cloud, kind: str, name: str) -> dict[str, Any]:
    """One record as dcdbsync gives it."""
    answer = cloud.identity("GET", f"{kind}/{cloud.ids(kind)[name]}")
    assert answer.status == 200, answer.status
    found: dict[str, Any] = answer.body
    return found


def put(*, central: Cloud, site: Cloud, kind: str, name: str, **changes: Any) -> Answer:
    """The central record, with these parts changed, over the site's record of that name."""
    body = record(central, kind, name) | changes
    return site.identity("PUT", f"{kind}/{site.ids(kind)[name]}", body=body)


def align_identity(*, central: Cloud, site: Cloud) -> None:
    """Groups emptied, users, groups filled, projects, roles; the site's own groups end with the members they had."""
    members = site.members()
    site_groups = {name: record(site, "groups", name) for name in KEPT["groups"]}
    for name, body in site_groups.items():
        _done(site.identity("PUT", f"groups/{site.ids('groups')[name]}", body=body | {"local_user_ids": []}))
    for name in _shared(central, site, "groups"):
        _done(put(central=central, site=site, kind="groups", name=name, local_user_ids=[]))
    for kind in ("users", "groups", "projects", "roles"):
        for name in _shared(central, site, kind):
            _done(put(central=central, site=site, kind=kind, name=name))
    user_ids = site.ids("users")
    for name, body in site_groups.items():
        refilled = body | {"local_user_ids": [user_ids[member] for member in members[name]]}
        _done(site.identity("PUT", f"groups/{body['group']['id']}", body=refilled))


def copy_keys(*, central: Cloud, site: Cloud) -> None:
    keys = central.fernet_repo().body["keys"]
    answer = site.fernet_repo("POST", body=keys)
    assert answer.status == 201, answer.status


def _shared(central: Cloud, site: Cloud, kind: str) -> list[str]:
    return sorted((central.ids(kind).keys() & site.ids(kind).keys()) - KEPT[kind])


def _done(answer: Answer) -> None:
    assert answer.status == 200, (answer.status, answer.body)
