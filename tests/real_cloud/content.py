"""What each cloud holds at the start, and which password opens what. Plain data, for both Pythons.

The central cloud and its subclouds have the same service users, projects and roles by name. Only what deployment aligns
has the same ids (`ALIGNED_USERS`, `ALIGNED_PROJECTS`); all else has ids of its own on each cloud.
Source: docs/upstream/real-keystone.md section 6, R1 and R2.
"""

from __future__ import annotations

from dataclasses import dataclass

CENTRAL = "central"
CENTRAL_REGION = "RegionOne"

ALIGNED_USERS = ("admin", "sysinv", "dcmanager")
ALIGNED_PROJECTS = ("admin", "services")

SAME_PASSWORD_EVERYWHERE = ("sysinv", "dcmanager")
"""What services of both sides log in with; every other user of a subcloud has a password of its own."""

UNTOUCHED_USERS = ("dcdbsync", "dcorch", "fm", "smapi", "usm")
"""Users on both sides that a sync leaves alone. Source: docs/upstream/identity-sync.md section 4."""

SITE_USER, CENTRAL_USER = "site-only", "central-only"
SITE_GROUP, SITE_ROLE = "night", "site-operator"
FILTERED_ROLE = "ResellerAdmin"


@dataclass(frozen=True)
class User:
    """`grants`: (project, role) pairs. So that these travel as well: `never_expires` is a user option and
    `changed_password` puts an earlier password into the history."""

    name: str
    grants: tuple[tuple[str, str], ...]
    never_expires: bool = False
    changed_password: bool = False


@dataclass(frozen=True)
class Group:
    name: str
    members: tuple[str, ...]
    grants: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Content:
    """Besides what Keystone's own bootstrap makes: user and project admin, roles admin > manager > member > reader."""

    users: tuple[User, ...]
    groups: tuple[Group, ...]
    projects: tuple[str, ...]
    roles: tuple[str, ...]
    implied_roles: tuple[tuple[str, str], ...]


def _service(name: str) -> User:
    return User(name, (("services", "admin"),), never_expires=True)


SERVICES = (
    "sysinv", "dcmanager", "barbican", "mtce", "vim", "fm", "dcdbsync", "dcorch", "smapi", "usm",
)  # fmt: skip
_COMMON_USERS = (
    *(_service(name) for name in SERVICES),
    User("operator1", (("lab", "operator"), ("admin", "reader")), changed_password=True),
    User("operator2", ()),
)
_OPS_MEMBERS = ("admin", "operator1", "operator2")
_OPS_GRANTS = (("lab", "member"),)
_PROJECTS = ("services", "lab")
_ROLES = ("operator", "configurator", FILTERED_ROLE)
_IMPLIED = (("configurator", "operator"),)

CENTRAL_CONTENT = Content(
    users=(*_COMMON_USERS, User(CENTRAL_USER, (("lab", "reader"),))),
    groups=(Group("ops", (*_OPS_MEMBERS, CENTRAL_USER), _OPS_GRANTS),),
    projects=_PROJECTS,
    roles=_ROLES,
    implied_roles=_IMPLIED,
)
SUBCLOUD_CONTENT = Content(
    users=(*_COMMON_USERS, User(SITE_USER, (("lab", SITE_ROLE),))),
    groups=(Group("ops", _OPS_MEMBERS, _OPS_GRANTS), Group(SITE_GROUP, ("operator2", SITE_USER), (("lab", "reader"),))),
    projects=_PROJECTS,
    roles=(*_ROLES, SITE_ROLE),
    implied_roles=_IMPLIED,
)


def content_of(cloud: str) -> Content:
    return CENTRAL_CONTENT if cloud == CENTRAL else SUBCLOUD_CONTENT


def first_password(cloud: str, user: str) -> str:
    """The password `user` has on `cloud` before anything is synced."""
    return f"Peer-{user}-pw-1!" if user in SAME_PASSWORD_EVERYWHERE else f"{cloud.capitalize()}-{user}-pw-1!"
