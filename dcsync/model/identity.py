"""The Keystone data that dcsync synchronizes: users, groups, projects, roles, and the fernet keys.

Records are raw Keystone rows in the format of dcdbsync. Their bodies hold password hashes and keys, so no `repr` here
shows a body. How records are matched and ordered is `dcsync.planner`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from dcsync.model.errors import listed
from dcsync.model.subcloud import EndpointType


class ResourceType(StrEnum):
    """In the order they are written. Values are dcdbsync's path segments."""

    USERS = "users"
    GROUPS = "groups"
    PROJECTS = "projects"
    ROLES = "roles"


@dataclass(frozen=True)
class Shape:
    """How dcdbsync represents records of one type, reduced to the columns that every release knows.

    Left out as well is what one cloud records about its own logins: `last_active_at`, `failed_auth_count` and
    `failed_auth_at`. Sent to a subcloud, they would lock out a user there who is locked out centrally, or lift a
    lock-out there (docs/upstream/recorded-traffic.md, `local_user`; docs/upstream/real-keystone.md K11, K12).

    A part of a body is one row (`rows`), a list of rows (`lists`), or a list of user ids (`has_members`). `row` is the
    part that holds id and domain, `named_by` the part that holds the name.
    """

    row: str
    named_by: str
    rows: Mapping[str, tuple[str, ...]]
    lists: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    optional: frozenset[str] = frozenset()
    """Lists that an older release omits; an absent list is not an empty one."""
    has_members: bool = False


SHAPES: Mapping[ResourceType, Shape] = {
    ResourceType.USERS: Shape(
        row="user",
        named_by="local_user",
        rows={
            "user": ("id", "extra", "enabled", "default_project_id", "created_at", "domain_id"),
            "local_user": ("id", "domain_id", "name", "user_id"),
        },
        lists={
            "password": (
                "id", "local_user_id", "self_service", "password_hash", "created_at", "created_at_int", "expires_at",
                "expires_at_int",
            ),
            "user_option": ("user_id", "option_id", "option_value"),
        },
        optional=frozenset({"user_option"}),
    ),
    ResourceType.GROUPS: Shape(
        row="group",
        named_by="group",
        rows={"group": ("id", "domain_id", "name", "description", "extra")},
        has_members=True,
    ),
    ResourceType.PROJECTS: Shape(
        row="project",
        named_by="project",
        rows={"project": ("id", "name", "extra", "description", "enabled", "domain_id", "parent_id", "is_domain")},
    ),
    ResourceType.ROLES: Shape(
        row="role",
        named_by="role",
        rows={"role": ("id", "name", "extra", "domain_id", "description")},
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Record:
    """One user, group, project or role. `body` is the JSON object that dcdbsync returns and accepts."""

    type: ResourceType
    id: str
    name: str
    domain_id: str
    body: Mapping[str, Any] = field(repr=False, hash=False)

    @property
    def key(self) -> tuple[str, str]:
        """Name and domain, by which records of the two clouds are matched."""
        return self.name, self.domain_id

    @property
    def member_ids(self) -> tuple[str, ...]:
        """A group's members (user ids, sorted); empty for the other types."""
        return tuple(sorted(self.body.get("local_user_ids", ())))


def _only(row: Mapping[str, Any], columns: Sequence[str]) -> dict[str, Any]:
    if not isinstance(row, Mapping):
        raise TypeError("a row is not an object")
    return {column: row[column] for column in columns if column in row}


def record_from_body(type_: ResourceType, body: Mapping[str, Any]) -> Record:
    """Returns a record from one element of a dcdbsync list, reduced to the columns every release knows.

    Unknown columns are dropped: the server writes every column it receives to its table, and answers 500 for a column
    the table lacks. An absent `user_option` stays absent (an empty list would remove the subcloud's options). Raises
    KeyError, TypeError or ValueError for a malformed body. Source: docs/upstream/identity-sync.md section 5.
    """
    shape = SHAPES[type_]
    kept: dict[str, Any] = {part: _only(body[part], columns) for part, columns in shape.rows.items()}
    for part, columns in shape.lists.items():
        if part not in shape.optional or body.get(part) is not None:
            kept[part] = [_only(row, columns) for row in body[part]]
    if shape.has_members:
        kept["local_user_ids"] = _ids(body["local_user_ids"])
    row = body[shape.row]
    if not isinstance(row.get("parent_id"), str | None):
        raise TypeError("parent_id is not text")
    return _record(type_, row["id"], body[shape.named_by]["name"], row["domain_id"], kept)


def _ids(members: object) -> list[str]:
    if not isinstance(members, list) or not all(isinstance(member, str) for member in members):
        raise TypeError("local_user_ids is not a list of ids")
    return list(members)


def _record(type_: ResourceType, id_: object, name: object, domain_id: object, body: dict[str, Any]) -> Record:
    if not (isinstance(id_, str) and id_ and isinstance(name, str) and isinstance(domain_id, str | None)):
        raise TypeError(f"{type_}: id, name or domain_id is not text")
    return Record(type=type_, id=id_, name=name, domain_id=domain_id or "", body=body)


@dataclass(frozen=True)
class Records:
    """The four lists of one cloud."""

    users: tuple[Record, ...]
    groups: tuple[Record, ...]
    projects: tuple[Record, ...]
    roles: tuple[Record, ...]

    def of(self, type_: ResourceType) -> tuple[Record, ...]:
        lists: tuple[Record, ...] = getattr(self, type_.value)
        return lists

    def __repr__(self) -> str:
        return "Records(" + ", ".join(f"{len(self.of(t))} {t}" for t in ResourceType) + ")"


NUMBERED_COLUMNS = frozenset({"local_user_id"})
"""Columns that each database numbers by itself, besides `id` of its rows; they are never compared."""


def fingerprint(records: Records) -> str:
    """Returns a digest of the records, equal for equal content in any order; numbered columns are ignored."""
    digest = hashlib.sha256()
    for type_ in ResourceType:
        for line in sorted(json.dumps(_stable(record.body), sort_keys=True) for record in records.of(type_)):
            digest.update(line.encode())
            digest.update(b"\n")
        digest.update(b"\f")
    return digest.hexdigest()


def record_digest(record: Record) -> str:
    """Returns a digest of one record, computed as in `fingerprint`."""
    return hashlib.sha256(json.dumps(_stable(record.body), sort_keys=True).encode()).hexdigest()


def _stable(body: Mapping[str, Any]) -> dict[str, Any]:
    stable: dict[str, Any] = {}
    for part, value in body.items():
        if isinstance(value, Mapping):
            dropped = NUMBERED_COLUMNS | ({"id"} if part == "local_user" else set())
            stable[part] = {column: v for column, v in value.items() if column not in dropped}
        elif part == "local_user_ids":
            stable[part] = sorted(value)
        else:
            rows = [{c: v for c, v in row.items() if c not in NUMBERED_COLUMNS | {"id"}} for row in value]
            stable[part] = sorted(rows, key=lambda row: json.dumps(row, sort_keys=True))
    return stable


NAMED_KEYS = 10
"""Keys named one by one in a text; a usual repository has three to five."""


@dataclass(frozen=True, repr=False)
class FernetKeys:
    """A whole fernet repository: key id -> key. Compared without order; never shown."""

    keys: Mapping[int, str]

    def __repr__(self) -> str:
        return f"FernetKeys(ids={self.shown_ids})"

    @property
    def shown_ids(self) -> str:
        """The ids, the first few of a large set: "0, 1, 2"."""
        return listed([str(key_id) for key_id in sorted(self.keys)], at_most=NAMED_KEYS)

    def fingerprint(self) -> str:
        """Returns a digest for comparing and reporting; the keys cannot be derived from it."""
        text = "\n".join(f"{key_id}:{self.keys[key_id]}" for key_id in sorted(self.keys))
        return hashlib.sha256(text.encode()).hexdigest()

    def problems(self) -> list[str]:
        """Returns what is wrong with this set, without key material; empty when it may be sent. Of many invalid keys
        the first are named and the others counted."""
        found = [] if self.keys else ["the set is empty"]
        for key_id, key in sorted(self.keys.items()):
            if key_id < 0:
                found.append(f"key id {key_id} is negative")
            if not _is_fernet_key(key):
                found.append(f"key {key_id} is not 32 bytes of url-safe base64")
        more = len(found) - NAMED_KEYS
        return [*found[:NAMED_KEYS], f"and {more} more"] if more > 0 else found


@dataclass(frozen=True)
class KeySet:
    """What the database stores about a set of keys: fingerprints only, of the whole set and of each key."""

    fingerprint: str
    """As `FernetKeys.fingerprint`."""
    keys: tuple[tuple[int, str], ...]
    """(id, fingerprint of the key), ascending: the staged key (id 0) first, the primary last."""

    @property
    def primary(self) -> str:
        """Fingerprint of the key that tokens are issued with now."""
        return self.keys[-1][1] if self.keys else ""

    @property
    def staged(self) -> str:
        """Fingerprint of the key that becomes primary at the next rotation; empty when there is none."""
        return dict(self.keys).get(0, "")


def key_set(keys: FernetKeys) -> KeySet:
    """Returns the fingerprints of these keys; the keys cannot be derived from them."""
    ids = sorted(keys.keys)
    return KeySet(keys.fingerprint(), tuple((id_, hashlib.sha256(keys.keys[id_].encode()).hexdigest()) for id_ in ids))


def fernet_keys(pairs: Iterable[tuple[int, str]]) -> FernetKeys:
    """Returns the keys of these (id, key) pairs; raises ValueError for a duplicate id."""
    keys: dict[int, str] = {}
    for key_id, key in pairs:
        if key_id in keys:
            raise ValueError(f"duplicate key id {key_id}")
        keys[key_id] = key
    return FernetKeys(keys)


def key_as_keystone_reads_it(text: str) -> str:
    """Returns the key as 44 characters of url-safe base64; a text in which Keystone finds no key is returned as it is.

    Keystone decodes with `urlsafe_b64decode`, which skips characters outside the alphabet, so a file that ends in a
    line break holds the same key. Source: keystone `FernetUtils._get_key_files`, cryptography `Fernet.__init__`.
    """
    try:
        decoded = base64.urlsafe_b64decode(text)
    except ValueError:
        return text
    return base64.urlsafe_b64encode(decoded).decode() if len(decoded) == 32 else text


def _is_fernet_key(text: str) -> bool:
    try:
        return len(base64.b64decode(text.encode("ascii"), altchars=b"-_", validate=True)) == 32
    except (binascii.Error, UnicodeEncodeError, ValueError):
        return False


class ActorType(StrEnum):
    USER = "user"
    GROUP = "group"


ACTORS: Mapping[ActorType, ResourceType] = {ActorType.USER: ResourceType.USERS, ActorType.GROUP: ResourceType.GROUPS}


@dataclass(frozen=True, order=True)
class Assignment:
    """A role granted to a user or group on a project, all by id."""

    project_id: str
    actor_type: ActorType
    actor_id: str
    role_id: str

    @property
    def ids(self) -> tuple[tuple[ResourceType, str], ...]:
        """Types and ids of the actor, the project and the role."""
        actors = ACTORS[self.actor_type]
        return (actors, self.actor_id), (ResourceType.PROJECTS, self.project_id), (ResourceType.ROLES, self.role_id)

    def moved(self, new_ids: NewIds) -> Assignment:
        """Returns the assignment after these records take their new ids."""
        actor, project, role = (new_ids.get(each, each[1]) for each in self.ids)
        return Assignment(project_id=project, actor_type=self.actor_type, actor_id=actor, role_id=role)


NewIds = Mapping[tuple[ResourceType, str], str]
"""(type, old id) -> new id, for records whose id changes."""


REVOCATION_EVENT_COLUMNS = (
    "domain_id", "project_id", "user_id", "role_id", "trust_id", "consumer_id", "access_token_id", "issued_before",
    "expires_at", "revoked_at", "audit_id", "audit_chain_id",
)  # fmt: skip


EVENT_LEFT_OVER = timedelta(minutes=30)
"""How long Keystone keeps a revocation event after the tokens it revokes have expired."""


@dataclass(frozen=True)
class RevocationEvent:
    """One row of Keystone's revocation events; two are equal when all columns except the automatic `id` are equal."""

    columns: tuple[tuple[str, str | None], ...]
    """(column, value) in the order of REVOCATION_EVENT_COLUMNS; a column the cloud does not have is omitted."""

    @property
    def body(self) -> dict[str, str | None]:
        return dict(self.columns)

    def matters_at(self, now: datetime, *, token_lifetime: timedelta) -> bool:
        """Returns whether a token it revokes may still be valid; True when the cloud does not report the revocation
        time.

        Each Keystone removes older events when it next revokes something, so an event missing on one cloud for that
        reason is not a difference. Source: keystone's `prune` (removes the event of an expired token half an hour
        later).
        """
        try:
            revoked_at = datetime.fromisoformat(self.body.get("revoked_at") or "")
        except ValueError:
            return True
        return now - revoked_at.replace(tzinfo=UTC) <= token_lifetime + EVENT_LEFT_OVER


def revocation_event(row: Mapping[str, Any]) -> RevocationEvent:
    """Returns the event of the object that dcdbsync lists under `revocation_event`."""
    return RevocationEvent(tuple((column, row[column]) for column in REVOCATION_EVENT_COLUMNS if column in row))


@dataclass(frozen=True)
class Placed:
    """Ids of what dcsync wrote to a subcloud, or found there with the same name as a central record. When a record is
    deleted centrally, only these are deleted from the subcloud."""

    ids: Mapping[ResourceType, frozenset[str]] = field(default_factory=dict)
    assignments: frozenset[Assignment] = frozenset()

    def of(self, type_: ResourceType) -> frozenset[str]:
        return self.ids.get(type_, frozenset())

    def __or__(self, other: Placed) -> Placed:
        """Returns the union of both."""
        ids = {type_: self.of(type_) | other.of(type_) for type_ in ResourceType}
        return Placed(ids=ids, assignments=self.assignments | other.assignments)

    def followed(self, new_ids: NewIds) -> Placed:
        """Returns it with each grant under both its old and its new ids, so that a user deleted and created again at
        the central cloud does not keep the earlier user's grants."""
        return self | Placed(assignments=frozenset(each.moved(new_ids) for each in self.assignments))


@dataclass(frozen=True)
class CentralData:
    """The central data that subclouds receive; fetched once, shared by concurrent runs, kept in memory only."""

    records: Records
    keys: FernetKeys
    identity_fingerprint: str
    """Fingerprint of `records`, which an initial sync writes."""
    assignments: frozenset[Assignment] = frozenset()
    """Read for audits only, like the events; empty in the result of `Clouds.central_data`."""
    revocation_events: frozenset[RevocationEvent] = frozenset()
    others: Mapping[EndpointType, Any] = field(default_factory=dict, repr=False)
    """Data of other audited endpoint types, as returned by the adapter of each."""
