"""Orders the writes of a plan, and records which write depends on which earlier one.

Every action provides and requires tags; a write depends on the writes that provide its required tags. A tag that none
provides is satisfied already. The tags express constraints of Keystone's tables: a name is free only once its holder
has been renamed, the parent of a project exists, a member exists, and a user whose id changes is in no group.
Source: docs/upstream/real-keystone.md R1 to R7, as a real dcdbsync enforces them.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import assert_never

from dcsync.model.identity import Record, ResourceType
from dcsync.planner.writes import Action, AddEvent, Change, Create, Delete, Grant, Revoke, SetPassword, Update, Write

USERS, GROUPS, PROJECTS = ResourceType.USERS, ResourceType.GROUPS, ResourceType.PROJECTS


def in_order(changes: Sequence[Change]) -> tuple[list[Change], list[Change]]:
    """Returns changes of records of one type, each after its dependencies, and the changes that are part of a
    dependency cycle or depend on one. Otherwise the given order is kept."""
    needs = needs_of(changes)
    waiting = set(range(len(changes)))
    ordered: list[Change] = []
    while ready := [number for number in sorted(waiting) if waiting.isdisjoint(needs[number])]:
        ordered += (changes[number] for number in ready)
        waiting.difference_update(ready)
    return ordered, [changes[number] for number in sorted(waiting)]


def children_first(projects: Sequence[Record]) -> list[Record]:
    """Returns projects in an order in which Keystone allows their deletion."""
    ordered, circular = in_order([Create(project) for project in projects])
    return [change.record for change in reversed((*ordered, *circular))]


def as_writes(actions: Sequence[Action]) -> tuple[Write, ...]:
    """Returns the actions in the given order, each with its dependencies."""
    return tuple(Write(*each) for each in zip(actions, map(_sorted, needs_of(actions)), strict=True))


def needs_of(actions: Sequence[Action]) -> list[set[int]]:
    """Returns for each action the indices of the actions it depends on."""
    givers: dict[Hashable, list[int]] = {}
    for number, action in enumerate(actions):
        for tag in _gives(action):
            givers.setdefault(tag, []).append(number)
    if not givers:
        return [set() for _ in actions]
    return [
        {giver for tag in _requires(action) for giver in givers.get(tag, ()) if giver != number}
        for number, action in enumerate(actions)
    ]


def above(record: Record) -> tuple[str, ...]:
    """Returns the ids of a project's parent and domain; none for the other types."""
    if record.type is not PROJECTS:
        return ()
    row = record.body["project"]
    return tuple(id_ for id_ in (row.get("parent_id"), row.get("domain_id")) if id_ and id_ != record.id)


def _gives(action: Action) -> Iterator[Hashable]:
    match action:
        case Update(old, record):
            if old.id != record.id:
                yield "id", record.type, record.id
            if old.key != record.key:
                yield "name", record.type, old.key
            if record.type is GROUPS:
                yield "row", record
                yield "written", old.id
                yield from (("left by", member) for member in set(old.member_ids) - set(record.member_ids))
            if record.type is PROJECTS:
                yield "project", record.id
                yield from (("nothing under", id_) for id_ in set(above(old)) - set(above(record)))
        case Create(record):
            yield "id", record.type, record.id
            if record.type is PROJECTS:
                yield "project", record.id
        case Delete(record):
            yield from (("nothing under", id_) for id_ in above(record))
        case SetPassword(user):
            yield "password", user.id
        case Grant() | Revoke() | AddEvent():
            return
        case _:
            assert_never(action)


def _requires(action: Action) -> Iterator[Hashable]:
    match action:
        case Update(old, record):
            if old.key != record.key:
                yield "name", record.type, record.key
            if record.type is GROUPS:
                yield "row", old
            if record.type is USERS:
                yield "password", old.id
                if old.id != record.id:
                    yield "left by", old.id
                else:
                    yield "id", record.type, old.id  # Created just before, see `passwords`.
            yield from _referred_to(record)
        case Create(record):
            yield "name", record.type, record.key
            yield from _referred_to(record)
        case Delete(record):
            if record.type is GROUPS:
                yield "written", record.id
            if record.type is PROJECTS:
                yield "nothing under", record.id
        case Grant(assignment) | Revoke(assignment):
            yield from (("id", type_, id_) for type_, id_ in assignment.ids)
        case SetPassword() | AddEvent():
            return
        case _:
            assert_never(action)


def _referred_to(record: Record) -> Iterator[Hashable]:
    """Yields what must exist before a record: its domain, its parent project, its members."""
    yield "id", PROJECTS, record.domain_id
    if record.type is PROJECTS:
        yield from (("project", id_) for id_ in above(record))
    if record.type is GROUPS:
        yield from (("id", USERS, member) for member in record.member_ids)


def _sorted(numbers: set[int]) -> tuple[int, ...]:
    return tuple(sorted(numbers))
