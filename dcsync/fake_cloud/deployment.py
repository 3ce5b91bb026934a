"""How a cloud looks before anything was synced: made from a seed, so that it can be made again for comparison.

On a subcloud the ids of users admin, sysinv and dcmanager and of projects admin and services are the central ones, as
deployment aligns them (R1); all other ids, all password hashes and the keys are its own. operator1 is in a group (R2),
a member of that group exists centrally only, roles are tied by implication (R7), and each side has records that the
other has not.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from dcsync.fake_cloud.passwords import hash_password

Row = dict[str, Any]
Assignment = tuple[str, str, str, str]
"""("user" | "group", actor id, project id, role id)"""

DOMAIN = "default"
ROOT = "<<keystone.domain.root>>"
NULL = "<<null>>"
PASSWORD_LIFE = timedelta(days=90)
_AGE = timedelta(hours=1)
"""How long ago a cloud's records were made."""

ALIGNED = frozenset({"admin", "sysinv", "dcmanager"})
SHARED_USERS = (
    "admin", "sysinv", "dcmanager", "barbican", "mtce", "vim", "dcdbsync", "dcorch", "fm", "smapi", "usm", "operator1",
)  # fmt: skip
ROLES = ("reader", "member", "manager", "admin", "service", "operator", "configurator", "heat_stack_owner")
IMPLIED = (("admin", "manager"), ("manager", "member"), ("member", "reader"))


@dataclass(slots=True)
class Tables:
    """One cloud's rows. `users` and the like map an id to the record as dcdbsync lists it."""

    users: dict[str, Row]
    groups: dict[str, Row]
    projects: dict[str, Row]
    roles: dict[str, Row]
    implied: set[tuple[str, str]]
    assignments: set[Assignment]
    keys: dict[int, str]
    events: list[Row] = field(default_factory=list)
    tags: set[tuple[str, str]] = field(default_factory=set)
    """(project id, tag)."""
    last_row: int = 1000
    """The highest automatic row id given out."""

    def of(self, type_: str) -> dict[str, Row]:
        table: dict[str, Row] = getattr(self, type_)
        return table

    def next_row(self) -> int:
        self.last_row += 1
        return self.last_row


@dataclass(frozen=True, slots=True)
class Deployment:
    """The recipe of one cloud. `region_name` is None for the central cloud."""

    seed: int
    deployed_at: datetime
    region_name: str | None = None
    aligned: bool = True

    def build(self) -> Tables:
        """Fresh tables; the same every time."""
        names = (*SHARED_USERS, *self._own_users())
        users = {self._id("users", name): self._user(number, name) for number, name in enumerate(names, start=1)}
        projects = {row["project"]["id"]: row for row in self._projects()}
        roles = {self._id("roles", name): self._role(name) for name in ROLES}
        groups = {row["group"]["id"]: row for row in self._groups()}
        implied = {(self._id("roles", prior), self._id("roles", tied)) for prior, tied in IMPLIED}
        return Tables(users, groups, projects, roles, implied, self._assignments(), self._keys())

    @property
    def is_central(self) -> bool:
        return self.region_name is None

    def password_of(self, name: str) -> str:
        """The plain password of a user here: one for all clouds for the three aligned users, else its own."""
        side = "Peer" if name in ALIGNED else "Central" if self.is_central else "Subcloud"
        return f"{side}-{name}-pw-1!"

    def _own_users(self) -> tuple[str, ...]:
        return ("central-only",) if self.is_central else ("sub-only", f"cinder{self.region_name}")

    def _own_project(self) -> str:
        return "central-lab" if self.is_central else "site-lab"

    def _id(self, type_: str, name: str) -> str:
        shared = self.aligned and (
            (type_ == "users" and name in ALIGNED) or (type_ == "projects" and name in {"admin", "services"})
        )
        return _digest(16, self.seed, "" if shared or self.is_central else self.region_name, type_, name).hex()

    def _user(self, number: int, name: str) -> Row:
        id_ = self._id("users", name)
        created = self.deployed_at - _AGE + timedelta(seconds=number)
        option = "1001" if name in SHARED_USERS[1:9] else None
        passwords = [self._password(number, name, created)]
        if name == "mtce":
            passwords.insert(0, self._password(number, name, created - timedelta(days=30), retired=True))
        return {
            "local_user": {
                "id": number, "user_id": id_, "domain_id": DOMAIN, "name": name, "failed_auth_count": 0,
                "failed_auth_at": None,
            },
            "user": {
                "id": id_, "extra": "{}" if name == "admin" else f'{{"email": "{name}@localhost"}}', "enabled": True,
                "default_project_id": None, "created_at": moment(created), "last_active_at": None, "domain_id": DOMAIN,
            },
            "password": passwords,
            "user_option": [{"user_id": id_, "option_id": option, "option_value": "true"}] if option else [],
        }  # fmt: skip

    def _password(self, number: int, name: str, created: datetime, *, retired: bool = False) -> Row:
        plain = f"{self.password_of(name)}-retired" if retired else self.password_of(name)
        hashed = hash_password(plain, salt=f"{self.seed}/{self.region_name}/{name}/{retired}")
        return password_row(number + (500 if retired else 0), number, hashed, created)

    def _projects(self) -> list[Row]:
        return [
            _project(ROOT, ROOT, domain_id=ROOT, parent_id=None, is_domain=True, enabled=False),
            _project(DOMAIN, "Default", domain_id=ROOT, parent_id=None, is_domain=True),
            *(_project(self._id("projects", name), name) for name in ("admin", "services", self._own_project())),
        ]

    def _role(self, name: str) -> Row:
        row = {"id": self._id("roles", name), "name": name, "extra": "{}", "domain_id": NULL, "description": None}
        return {"role": row}

    def _groups(self) -> list[Row]:
        members = ["admin", "operator1", *(["central-only"] if self.is_central else [])]
        groups = [self._group("ops", members)]
        if not self.is_central:
            groups.append(self._group("site-ops", ["sub-only"]))
        return groups

    def _group(self, name: str, members: list[str]) -> Row:
        row = {"id": self._id("groups", name), "domain_id": DOMAIN, "name": name, "description": "", "extra": "{}"}
        return {"group": row, "local_user_ids": sorted(self._id("users", member) for member in members)}

    def _assignments(self) -> set[Assignment]:
        granted = [("user", name, "services", "admin") for name in SHARED_USERS[1:11]]
        granted += [("user", name, "admin", "admin") for name in ALIGNED]
        granted += [("user", "operator1", "admin", "reader"), ("group", "ops", "services", "operator")]
        granted += [("user", name, self._own_project(), "member") for name in self._own_users()[:1]]
        return {
            (kind, self._id(f"{kind}s", actor), self._id("projects", project), self._id("roles", role))
            for kind, actor, project, role in granted
        }

    def _keys(self) -> dict[int, str]:
        ids = (0, 2, 3) if self.is_central else (0, 1)
        return {key_id: fernet_key(self.seed, self.region_name, "key", key_id) for key_id in ids}


def fernet_key(*parts: object) -> str:
    """A well-formed fernet key made from these parts: 44 characters, 32 bytes."""
    return base64.urlsafe_b64encode(_digest(32, *parts)).decode()


def password_row(row_id: int, local_user_id: int, password_hash: str, created: datetime) -> Row:
    """A row of table `password` as dcdbsync shows it."""
    expires = (created + PASSWORD_LIFE).replace(microsecond=0)
    return {
        "id": row_id, "local_user_id": local_user_id, "expires_at": expires.strftime("%Y-%m-%d %H:%M:%S"),
        "self_service": False, "password_hash": password_hash, "created_at_int": microseconds(created),
        "expires_at_int": microseconds(expires), "created_at": moment(created),
    }  # fmt: skip


def moment(at: datetime) -> str:
    """A time as Keystone's tables show it."""
    return at.strftime("%Y-%m-%d %H:%M:%S.%f")


def microseconds(at: datetime) -> int:
    return int((at - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(microseconds=1))


def _digest(size: int, *parts: object) -> bytes:
    return hashlib.blake2b("/".join(str(part) for part in parts).encode(), digest_size=size).digest()


def _project(
    id_: str,
    name: str,
    *,
    domain_id: str = DOMAIN,
    parent_id: str | None = DOMAIN,
    is_domain: bool = False,
    enabled: bool = True,
) -> Row:
    row = {
        "id": id_, "name": name, "extra": "{}", "description": "", "enabled": enabled, "domain_id": domain_id,
        "parent_id": parent_id, "is_domain": is_domain,
    }  # fmt: skip
    return {"project": row}
