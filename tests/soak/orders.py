"""What the dice choose from: faults of sites and of the central cloud, drift, and central changes. Values only."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any

from dcsync.fake_cloud.faults import Fault

Change = tuple[str, dict[str, Any]]
"""Action and arguments, as `FakeCloud.drift` takes them."""

SITE_FAULTS = (
    Fault("hang"),
    Fault("hang", service="dbsync", verb="write"),
    Fault("refuse"),
    Fault("reset"),
    Fault("reset", every=3),
    Fault("status", status=500),
    Fault("status", status=500, service="dbsync", verb="write"),
    Fault("status", status=500, service="dbsync", verb="write", every=2),
    Fault("status", status=500, service="sysinv", verb="write"),
    Fault("status", status=503, retry_after=2),
    Fault("status", status=429, retry_after=3),
    Fault("garbage"),
    Fault("html", service="dbsync"),
    Fault("wrong-shape"),
    Fault("empty-list", service="dbsync"),
    Fault("truncated", verb="GET"),
    Fault("hang-mid-body"),
    Fault("drip"),
    Fault("endless"),
    Fault("lost-answer", service="dbsync", verb="write"),
    Fault("lost-answer", service="sysinv", verb="write"),
    Fault("partial-keys"),
    Fault("unauthorized"),
    Fault("unauthorized", times=1),
    Fault("wrong-password"),
    Fault("swallow", times=2),
    Fault("latency", seconds=0.5),
)
"""`swallow` only now and then: a site that claims for ever to have stored what it has not is left to an operator."""

OUTAGES = (
    Fault("hang"),
    Fault("refuse"),
    Fault("reset"),
    Fault("status", status=500, verb="write"),
    Fault("status", status=500, service="dbsync", verb="write"),
    Fault("lost-answer", service="dbsync", verb="write"),
)
"""Of many sites at once; with the latter ones they are still there, and take nothing."""

CENTRAL_FAULTS = (
    Fault("hang"),
    Fault("reset"),
    Fault("reset", every=4),
    Fault("status", status=500),
    Fault("status", status=503, retry_after=1),
    Fault("unauthorized"),
    Fault("wrong-password"),
    Fault("garbage"),
    Fault("wrong-shape", service="dbsync"),
    Fault("empty-list", service="dbsync"),
    Fault("empty-list", service="sysinv"),
    Fault("truncated", verb="GET"),
)

_USERS = ("barbican", "mtce", "vim", "operator1")
"""Shared users whose ids deployment did not align; what befalls them never locks dcsync out."""


@dataclass
class Central:
    """What the storm has added at the central cloud and may take away again, and the next change."""

    dice: Random
    users: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    roles: list[str] = field(default_factory=list)
    projects: list[str] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def next_change(self) -> Change:
        choose: list[Callable[[], Change]] = [
            self._password, self._password, self._add_user, self._remove, self._remove, self._add_group, self._members,
            self._add_role, self._add_project, self._grant, self._grant, self._revoke_tokens, self._extra,
            self._enabled,
        ]  # fmt: skip
        return self.dice.choice(choose)()

    def _name(self, kind: str) -> str:
        return f"central-{kind}{next(self._numbers)}"

    def _user(self) -> str:
        return self.dice.choice([*_USERS, *self.users])

    def _password(self) -> Change:
        user = self.dice.choice([*_USERS, "sysinv", *self.users])
        return "set-password", {"user": user, "password": f"Changed-{next(self._numbers)}-pw-1!"}

    def _add_user(self) -> Change:
        self.users.append(self._name("user"))
        return "add-user", {"user": self.users[-1], "password": f"{self.users[-1].capitalize()}-pw-1!"}

    def _add_group(self) -> Change:
        self.groups.append(self._name("group"))
        return "add-group", {"group": self.groups[-1], "members": sorted({self._user(), self._user()})}

    def _add_role(self) -> Change:
        self.roles.append(self._name("role"))
        return "add-role", {"role": self.roles[-1]}

    def _add_project(self) -> Change:
        self.projects.append(self._name("project"))
        return "add-project", {"project": self.projects[-1]}

    def _members(self) -> Change:
        group = self.dice.choice(["ops", *self.groups])
        return "set-members", {"group": group, "members": sorted({self._user(), self._user(), "admin"})}

    def _grant(self) -> Change:
        project = self.dice.choice(["services", "admin", *self.projects])
        role = self.dice.choice(["reader", "member", *self.roles])
        if self.groups and self.dice.random() < 0.3:
            return "grant", {"project": project, "role": role, "group": self.dice.choice(self.groups)}
        return "grant", {"project": project, "role": role, "user": self._user()}

    def _revoke_tokens(self) -> Change:
        return "revoke-tokens", {"user": self._user()}

    def _extra(self) -> Change:
        return "set-extra", {"user": self._user(), "extra": {"email": f"{next(self._numbers)}@localhost"}}

    def _enabled(self) -> Change:
        return "set-enabled", {"user": self._user(), "enabled": self.dice.random() < 0.7}

    def _remove(self) -> Change:
        """Only what the storm itself added; a change of another kind where there is nothing."""
        added = {"users": self.users, "groups": self.groups, "roles": self.roles, "projects": self.projects}
        there = [type_ for type_, names in added.items() if names]
        if not there:
            return self._password()
        type_ = self.dice.choice(there)
        name = self.dice.choice(added[type_])
        added[type_].remove(name)
        return "remove", {"type": type_, "name": name}


@dataclass
class Drift:
    """What somebody does on a site behind everybody's back. Whatever is the site's own has to survive."""

    dice: Random
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def next_change(self) -> Change:
        user = self.dice.choice(_USERS)
        number = next(self._numbers)
        some_type, name = self.dice.choice([("users", user), ("roles", "operator"), ("roles", "reader")])
        choices: list[Change] = [
            ("set-password", {"user": self.dice.choice([*_USERS, "sysinv"]), "password": f"Drifted-{number}-pw-1!"}),
            ("set-password", {"user": user, "password": f"Drifted-{number}-pw-1!"}),
            ("replace-keys", {}),
            ("halve-keys", {}),
            ("swap-keys", {}),
            ("rotate-keys", {}),
            ("remove", {"type": "users", "name": user}),
            ("move-id", {"type": some_type, "name": name}),
            ("set-members", {"group": "ops", "members": ["admin", user]}),
            ("set-extra", {"user": user, "extra": {"email": f"drift{number}@localhost"}}),
            ("set-enabled", {"user": user, "enabled": False}),
            ("set-option", {"user": user, "option": "1001", "value": None}),
            ("forget-passwords", {"user": "mtce"}),
            ("forget-events", {}),
            ("revoke", {"project": "services", "role": "admin", "user": self.dice.choice(_USERS[:3])}),
            ("add-user", {"user": f"site-user{number}", "password": f"Site-user{number}-pw-1!"}),
            ("add-role", {"role": f"site-role{number}"}),
            ("add-project", {"project": f"site-project{number}"}),
            ("add-group", {"group": f"site-group{number}", "members": ["sub-only", user]}),
            ("grant", {"project": "site-lab", "role": "reader", "user": user}),
            ("grant", {"project": "services", "role": "reader", "user": "sub-only"}),
        ]
        return self.dice.choice(choices)
