"""Compares matched records field by field, and describes differences by names and fields, never by values.

Source: docs/upstream/identity-sync.md section 9, without the defects named there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from dcsync.model.identity import Record, ResourceType, record_digest
from dcsync.model.outside_text import cut

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
"""The columns that are compared. `last_active_at` is not even read: it changes with every first login of a day on each
side (docs/upstream/real-keystone.md K11), and upstream, which compares it, finds differences again minutes after a
sync."""

MEMBERS = "local_user_ids"
MISSING = "missing"
DELETED = "deleted centrally"
TAKEN = "name or id taken by another record"
IN_USE = "deleted centrally, but in use by the subcloud"

ASSIGNMENTS = "project_role_assignments"
REVOCATION_EVENTS = "revoke_events"


@dataclass(frozen=True)
class Difference:
    """One record, grant or key set that differs, by type and name, and the fields; never a value."""

    type: str
    name: str
    fields: tuple[str, ...]
    wanted: Record | str = field(default="", repr=False)
    """The central value or a digest of it, so that a newer value of the same field is a new difference."""

    @property
    def digest(self) -> str:
        return record_digest(self.wanted) if isinstance(self.wanted, Record) else self.wanted

    def __str__(self) -> str:
        return f"{self.type} {cut(self.name)}: {', '.join(self.fields)}"


def digest(differences: Iterable[Difference]) -> str | None:
    """Returns a digest of a set of differences, None when it is empty.

    Revocation events are ignored when anything else differs: they change constantly at the central cloud, and a lasting
    difference would never be recognized as unchanged.
    """
    found = list(differences)
    others = [each for each in found if each.type != REVOCATION_EVENTS]
    lines = sorted(f"{each} {each.digest}" for each in others or found)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest() if lines else None


def differing_fields(new: Record, old: Record) -> tuple[str, ...]:
    """Returns the names of the fields in which two matched records differ, except group members.

    A column is compared only if both clouds have it: an older subcloud without it is not out of sync.
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
    """Returns whether the record in the reply to a PUT equals the record sent, in all columns a PUT can write.

    Automatic ids are not compared.
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
    """Returns current and earlier password hashes, sorted; they must never be shown."""
    return sorted(str(row.get("password_hash")) for row in user.body["password"])


def _options(user: Record) -> list[tuple[str, str]]:
    return sorted((str(row.get("option_id")), str(row.get("option_value"))) for row in user.body["user_option"])
