"""Which fields of two records of the same thing differ, and differences in words: names and fields, never a value.

Source: docs/upstream/identity-sync.md section 9, with its named defects left out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from dcsync.model.identity import Record, ResourceType, record_digest

COMPARED: Mapping[ResourceType, Mapping[str, tuple[str, ...]]] = {
    ResourceType.USERS: {
        "user": ("id", "domain_id", "default_project_id", "enabled", "created_at", "extra"),
        "local_user": ("domain_id", "name", "user_id"),
    },
    ResourceType.GROUPS: {"group": ("id", "domain_id", "name", "description", "extra")},
    ResourceType.PROJECTS: {
        "project": ("id", "domain_id", "name", "extra", "description", "enabled", "parent_id", "is_domain")
    },
    ResourceType.ROLES: {"role": ("id", "domain_id", "name", "description", "extra")},
}
"""The columns that decide. `last_active_at` is not among them: it changes with every first login of a day on each side
(docs/upstream/real-keystone.md K11), upstream's comparison of it makes records differ again minutes after a sync."""

MEMBERS = "local_user_ids"
MISSING = "missing"
DELETED = "deleted centrally"
TAKEN = "name or id taken by another record"
IN_USE = "deleted centrally, but in use by the subcloud"

ASSIGNMENTS = "project_role_assignments"
REVOCATION_EVENTS = "revoke_events"


@dataclass(frozen=True)
class Difference:
    """One thing that differs: what it is, by type and name, and in which fields; never a value."""

    type: str
    name: str
    fields: tuple[str, ...]
    wanted: Record | str = field(default="", repr=False)
    """What the central cloud has, or a digest of it, so that the same field with a newer value is another difference.
    """

    @property
    def digest(self) -> str:
        return record_digest(self.wanted) if isinstance(self.wanted, Record) else self.wanted

    def __str__(self) -> str:
        return f"{self.type} {self.name}: {', '.join(self.fields)}"


def digest(differences: Iterable[Difference]) -> str | None:
    """What distinguishes one set of differences from another; None for none.

    Revocations beside something else do not count: the central cloud makes new ones all the time, and what differs for
    ever would never be seen to be the same.
    """
    found = list(differences)
    others = [each for each in found if each.type != REVOCATION_EVENTS]
    lines = sorted(f"{each} {each.digest}" for each in others or found)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest() if lines else None


def differing_fields(new: Record, old: Record) -> tuple[str, ...]:
    """Names of the fields in which two records of the same thing differ, group members not among them.

    A column counts only where both sides have it: an older subcloud that omits one is not out of sync.
    """
    found = [
        f"{part}.{column}"
        for part, columns in COMPARED[new.type].items()
        if (mine := new.body[part]) != (theirs := old.body[part])
        for column in columns
        if column in mine and column in theirs and mine[column] != theirs[column]
    ]
    if new.type is ResourceType.USERS:
        if password_hashes(new) != password_hashes(old):
            found.append("password")
        if "user_option" in new.body and "user_option" in old.body and _options(new) != _options(old):
            found.append("user_option")
    return tuple(found)


def stored_as_sent(*, sent: Record, stored: Record) -> bool:
    """Whether what a PUT answered is the record it was given, as far as a PUT can write it.

    Not compared: auto ids and what a login changes; `failed_auth_*` is not written together with an id
    (docs/upstream/recorded-traffic.md: local_user follows by cascade).
    """
    same = (sent.id, sent.name, sent.domain_id) == (stored.id, stored.name, stored.domain_id)
    if sent.type is ResourceType.GROUPS:
        return same and sent.member_ids == stored.member_ids
    if sent.type is ResourceType.USERS:
        return (
            same
            and password_hashes(sent) == password_hashes(stored)
            and sent.body["user"].get("enabled") == stored.body["user"].get("enabled")
        )
    return same


def password_hashes(user: Record) -> list[str]:
    """Current and earlier hashes, sorted; never to be shown."""
    return sorted(str(row.get("password_hash")) for row in user.body["password"])


def _options(user: Record) -> list[tuple[str, str]]:
    return sorted((str(row.get("option_id")), str(row.get("option_value"))) for row in user.body["user_option"])
