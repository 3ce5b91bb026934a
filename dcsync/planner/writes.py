"""Every kind of write a plan may hold. A closed set: who carries them out matches on it and ends in `assert_never`."""

from __future__ import annotations

from dataclasses import dataclass

from dcsync.model.identity import Assignment, Record, ResourceType, RevocationEvent
from dcsync.planner.differences import ASSIGNMENTS, REVOCATION_EVENTS


@dataclass(frozen=True)
class Update:
    """PUT `record` over what the subcloud holds as `old` by the time this is written."""

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
    """POST a record the subcloud does not have."""

    record: Record

    @property
    def words(self) -> str:
        return f"POST {self.record.type} {self.record.name}"


@dataclass(frozen=True)
class SetPassword:
    """PATCH a user's plain password through Keystone, whose hook stores it in the subcloud's keyring."""

    user: Record

    @property
    def words(self) -> str:
        return f"PATCH {self.user.type} {self.user.name}"


@dataclass(frozen=True)
class Grant:
    """A role that a user or group is granted on a project."""

    assignment: Assignment

    @property
    def words(self) -> str:
        return f"PUT {ASSIGNMENTS} {assignment_name(self.assignment)}"


@dataclass(frozen=True)
class AddEvent:
    """A revocation event the subcloud does not have."""

    event: RevocationEvent

    @property
    def words(self) -> str:
        return f"POST {REVOCATION_EVENTS}"


@dataclass(frozen=True)
class Revoke:
    """A grant taken back."""

    assignment: Assignment

    @property
    def words(self) -> str:
        return f"DELETE {ASSIGNMENTS} {assignment_name(self.assignment)}"


@dataclass(frozen=True)
class Delete:
    """A record deleted with what hangs on it."""

    record: Record

    @property
    def words(self) -> str:
        return f"DELETE {self.record.type} {self.record.name}"


Change = Update | Create
"""What a record of the central cloud becomes on the subcloud."""

Action = Update | Create | SetPassword | Grant | AddEvent | Revoke | Delete


@dataclass(frozen=True)
class Write:
    """One action in its place in a plan."""

    action: Action
    needs: tuple[int, ...] = ()
    """Indices of the earlier writes of the same plan without which this one cannot succeed."""

    @property
    def words(self) -> str:
        """As people read it: verb, type and name."""
        return self.action.words

    @property
    def is_deletion(self) -> bool:
        """Whether a record or grant is removed: what a guard counts."""
        return isinstance(self.action, Delete | Revoke)

    @property
    def changes_id(self) -> bool:
        return isinstance(self.action, Update) and self.action.changes_id

    @property
    def goes_beside_others(self) -> bool:
        """Whether it may be sent while another such write is under way: users only, for tied roles that are written
        together are refused (docs/upstream/real-keystone.md R7)."""
        return isinstance(self.action, Update) and self.action.record.type is ResourceType.USERS


def assignment_name(assignment: Assignment) -> str:
    return f"{assignment.project_id}_{assignment.actor_id}_{assignment.role_id}"
