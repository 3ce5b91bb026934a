"""What becomes of a plan when some of its writes are refused: only what depends on them is not sent. Pure.

A write is refused by the subcloud when it is sent, or by the planner before that (`plan`). Whatever depends on it is
sent in another form where there is one: a group without members that are missing, a grant under the ids that remain.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from dcsync.model.errors import CloudError, listed
from dcsync.model.identity import Record, ResourceType
from dcsync.model.reasons import Reason
from dcsync.planner.groups import with_members
from dcsync.planner.order import above, as_writes, needs_of
from dcsync.planner.writes import Action, Create, Delete, Grant, Revoke, Update, Write

USERS, GROUPS, PROJECTS, ROLES = ResourceType.USERS, ResourceType.GROUPS, ResourceType.PROJECTS, ResourceType.ROLES

NAMED_AT_MOST = 3
"""How many refused writes the detail of a failure names; the history names more."""

HAS_TAGS_OR_OPTIONS = (
    "the id of a project cannot change while it has tags or options (such as immutable) on the subcloud; remove them"
)
HAS_FOREIGN_MEMBER = (
    "dcdbsync answers so for a group with a member that has no local user (LDAP, federated); remove the member from "
    "the group on the subcloud"
)


@dataclass(frozen=True)
class NotWritten:
    """A write of a plan that was not carried out, and why."""

    action: Action
    cause: str
    reason: Reason | None = None
    """None where nobody refused this one: it was not sent, because of others that were refused."""

    def __str__(self) -> str:
        return f"{self.action.words}: {self.cause}"


def refused(action: Action, error: CloudError) -> NotWritten:
    """Returns what is recorded of a write that the subcloud refused, with what is known to cause that."""
    known = _known_cause(action)
    return NotWritten(action, f"{error.detail} ({known})" if known else error.detail, error.reason)


def _known_cause(action: Action) -> str:
    match action:
        case Update(record=record) if action.changes_id and record.type is PROJECTS:
            return HAS_TAGS_OR_OPTIONS
        case Update(record=record) | Create(record=record) if record.type is GROUPS and record.member_ids:
            return HAS_FOREIGN_MEMBER
        case _:
            return ""


def unsent(action: Action, needed: Sequence[NotWritten]) -> NotWritten:
    """Returns what is recorded of a write that depends on these."""
    return NotWritten(action, f"not sent, it depends on {needed[0].action.words}")


def failure_of(not_written: Collection[NotWritten]) -> CloudError:
    """Returns the error of a run in which these were not written, of which one was refused at least.

    What the subcloud refused comes before what the planner refused, because trying it again may help.
    """
    of_reason = [each for each in not_written if each.reason is not None]
    first = sorted(of_reason, key=lambda each: each.reason is Reason.GUARD_REFUSED)
    assert first[0].reason is not None
    others = len(not_written) - len(of_reason)
    rest = f"; not sent because of that: {others}" if others else ""
    return CloudError(first[0].reason, f"refused: {listed([*map(str, first)], at_most=NAMED_AT_MOST)}{rest}")


def without(actions: Sequence[Action], kept: Mapping[int, NotWritten]) -> tuple[tuple[Write, ...], list[NotWritten]]:
    """Returns the writes of these actions but those `kept` back, by their index, and whatever depends on them; and
    all that are left out, in order."""
    if not kept:
        return as_writes(actions), []
    needs, lost, left = needs_of(actions), dict(kept), list[Action]()
    for number, action in enumerate(actions):
        if number in lost:
            continue
        needed = [lost[need] for need in sorted(needs[number]) if need in lost]
        possible = still_possible(action, [each.action for each in needed])
        if possible is None:
            lost[number] = unsent(action, needed)
        else:
            left.append(possible)
    return as_writes(left), [lost[number] for number in sorted(lost)]


def still_possible(action: Action, lost: Collection[Action]) -> Action | None:
    """Returns the action as it can be sent although the writes `lost`, which it depends on, were not carried out; None
    if it cannot be sent, or would change nothing."""
    if not lost:
        return action
    match action:
        case Update(old, record) if record.type is GROUPS and _are_members(lost):
            group = _without_lost_members(record, lost)
            return None if group.body == old.body else Update(old, group)
        case Create(record) if record.type is GROUPS and _are_members(lost):
            return Create(_without_lost_members(record, lost))
        case Update(_, record) | Create(record) if record.type is PROJECTS and all(map(_left_in_place, lost)):
            return action
        case Grant(assignment) | Revoke(assignment):
            moved = _remaining_ids(lost)
            return None if moved is None else type(action)(assignment.moved(moved))
        case Delete(record) if record.type is GROUPS:
            return action  # Only ordered after the write that removes members.
        case _:
            return None


def _are_members(lost: Collection[Action]) -> bool:
    return all(isinstance(each, Update | Create) and each.record.type is USERS for each in lost)


def _without_lost_members(group: Record, lost: Iterable[Action]) -> Record:
    """Returns the group with those whose id did not change under their old id, and without those not created."""
    old_ids = {each.record.id: each.old.id for each in lost if isinstance(each, Update)}
    missing = {each.record.id for each in lost if isinstance(each, Create)}
    return with_members(group, [old_ids.get(id_, id_) for id_ in group.member_ids if id_ not in missing])


def _left_in_place(lost: Action) -> bool:
    """Returns whether a project stands where it was to stand, although its other fields were not written."""
    if not isinstance(lost, Update):
        return False
    return not lost.changes_id and lost.old.key == lost.record.key and above(lost.old) == above(lost.record)


def _remaining_ids(lost: Iterable[Action]) -> dict[tuple[ResourceType, str], str] | None:
    """Returns new id -> old id of the records whose id did not change; None if a record is missing."""
    remaining = {}
    for each in lost:
        if not isinstance(each, Update):
            return None
        remaining[each.record.type, each.record.id] = each.old.id
    return remaining
