"""Every kind of write in a plan. A closed set: code that carries them out ends its `match` in `assert_never`."""

from __future__ import annotations

from dataclasses import dataclass

from dcsync.model.identity import Assignment, Record, ResourceType, RevocationEvent
from dcsync.planner.differences import ASSIGNMENTS, REVOCATION_EVENTS


@dataclass(frozen=True)
class Update:
    """Replaces the subcloud record `old`, as it is at that time, with `record` by PUT."""

    old: Record
    record: Record

    @property
    def changes_id(self) -> bool:
        return self.old.id != self.record.id

    @property
    def words(self) -> str:
        return f"PUT {self.record.type} {self.record.name}"


@dataclass(frozen=True)
class Create:
    """Creates a record by POST."""

    record: Record
    changes_id = False

    @property
    def words(self) -> str:
        return f"POST {self.record.type} {self.record.name}"


@dataclass(frozen=True)
class SetPassword:
    """Sets a user's plain password by PATCH through Keystone, whose hook stores it in the subcloud's keyring."""

    user: Record

    @property
    def words(self) -> str:
        return f"PATCH {self.user.type} {self.user.name}"


@dataclass(frozen=True)
class Grant:
    """Grants a role to a user or group on a project."""

    assignment: Assignment

    @property
    def words(self) -> str:
        return f"PUT {ASSIGNMENTS} {assignment_name(self.assignment)}"


@dataclass(frozen=True)
class AddEvent:
    """Adds a revocation event that is missing on the subcloud."""

    event: RevocationEvent

    @property
    def words(self) -> str:
        return f"POST {REVOCATION_EVENTS}"


@dataclass(frozen=True)
class Revoke:
    """Revokes a grant."""

    assignment: Assignment

    @property
    def words(self) -> str:
        return f"DELETE {ASSIGNMENTS} {assignment_name(self.assignment)}"


@dataclass(frozen=True)
class Delete:
    """Deletes a record with its dependent rows."""

    record: Record

    @property
    def words(self) -> str:
        return f"DELETE {self.record.type} {self.record.name}"


Change = Update | Create
"""How a central record is written to the subcloud."""

Action = Update | Create | SetPassword | Grant | AddEvent | Revoke | Delete


@dataclass(frozen=True)
class Write:
    """One action of a plan, with its dependencies."""

    action: Action
    needs: tuple[int, ...] = ()
    """Indices of earlier writes of the same plan that must succeed before this one; what can be sent although one of
    them was refused says `refused.still_possible`."""

    @property
    def words(self) -> str:
        """Readable form: verb, type and name."""
        return self.action.words

    @property
    def kind(self) -> str:
        """Verb and type."""
        return " ".join(self.words.split(" ", 2)[:2])

    @property
    def is_deletion(self) -> bool:
        """Whether a record or grant is removed, as counted by the guard."""
        return isinstance(self.action, Delete | Revoke)

    @property
    def changes_id(self) -> bool:
        return isinstance(self.action, Update) and self.action.changes_id

    @property
    def is_of_group(self) -> bool:
        return isinstance(self.action, Update | Create) and self.action.record.type is ResourceType.GROUPS

    @property
    def may_be_concurrent(self) -> bool:
        """Whether it may be sent concurrently with other such writes: users only, because Keystone rejects concurrent
        writes of roles that depend on each other (docs/upstream/real-keystone.md R7)."""
        return isinstance(self.action, Update) and self.action.record.type is ResourceType.USERS


def assignment_name(assignment: Assignment) -> str:
    return f"{assignment.project_id}_{assignment.actor_id}_{assignment.role_id}"
