"""A sync as an operator with curl would do it: the yardstick for the clouds themselves, with nothing of dcsync in it.

Source: docs/upstream/real-keystone.md section 6 (the order that works), docs/upstream/identity-sync.md section 3.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

from tests.real_cloud.checks import KEPT, KINDS, records_by_name
from tests.real_cloud.clouds import Answer, Cloud


class Operator:
    """Logged in at the central cloud and on one subcloud as a user whose ids a sync leaves alone."""

    def __init__(self, *, central: Cloud, site: Cloud) -> None:
        self._central = central
        self._site = site

    @cached_property
    def site_token(self) -> str:
        return self._site.token()

    @cached_property
    def wanted(self) -> dict[str, dict[str, Any]]:
        """Kind -> name -> the central cloud's record."""
        token = self._central.token()
        return {kind: records_by_name(self._central, kind, token=token) for kind in KINDS}

    def put(self, kind: str, name: str, **changes: Any) -> Answer:
        """The central record, with these parts changed, over the site's record of that name."""
        return self._put(kind, self._site.ids(kind)[name], self.wanted[kind][name] | changes)

    def _put(self, kind: str, old_id: str, body: dict[str, Any]) -> Answer:
        return self._site.identity("PUT", f"{kind}/{old_id}", token=self.site_token, body=body)

    def align_identity(self) -> None:
        """Groups emptied, users, groups filled, projects, roles; the site's own groups end as they were."""
        members = self._site.members()
        groups = records_by_name(self._site, "groups", token=self.site_token)
        for name, body in groups.items():
            _done(self._put("groups", self._site.ids("groups")[name], body | {"local_user_ids": []}))
        for kind in KINDS:
            for name in sorted((self.wanted[kind].keys() & self._site.ids(kind).keys()) - KEPT[kind]):
                _done(self.put(kind, name, **self._known_members(kind, name)))
        user_ids = self._site.ids("users")
        for name in KEPT["groups"]:
            refilled = groups[name] | {"local_user_ids": [user_ids[member] for member in members[name]]}
            _done(self._put("groups", groups[name]["group"]["id"], refilled))

    def _known_members(self, kind: str, name: str) -> dict[str, Any]:
        """A central member whom the site does not know cannot be in its group."""
        if kind != "groups":
            return {}
        known = set(self._site.ids("users").values())
        return {"local_user_ids": [id_ for id_ in self.wanted[kind][name]["local_user_ids"] if id_ in known]}

    def copy_keys(self) -> None:
        """Ends every token of the site, the operator's own as well."""
        answer = self._site.fernet_repo("POST", token=self.site_token, body=self._central.fernet_repo().body["keys"])
        assert answer.status == 201, answer.status
        del self.site_token


def _done(answer: Answer) -> None:
    assert answer.status == 200, (answer.status, answer.body)
