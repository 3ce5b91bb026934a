"""In which order a plan is written, and which write needs which earlier one.

Every action says what it gives and what it requires as tags; a write needs whoever gives what it requires. What nobody
gives is there already. The tags are the rules of Keystone's tables: a name is free only once its holder has given it
up, a project stands under one that is there, a member exists, and a user whose id changes is in no group.
Source: docs/upstream/real-keystone.md R1 to R7; what a real dcdbsync refuses.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import assert_never

from dcsync.model.identity import Record, ResourceType
from dcsync.planner.writes import Action, AddEvent, Change, Create, Delete, Grant, Revoke, SetPassword, Update, Write

USERS, GROUPS, PROJECTS = ResourceType.USERS, ResourceType.GROUPS, ResourceType.PROJECTS


def in_order(changes: Sequence[Change]) -> tuple[list[Change], list[Change]]:
    """Changes of records of one type, each after all it needs; and those that need one another in a circle, or
    something in it. Those that need nothing come first, and each in the order given where nothing else decides."""
    needs = needs_of(changes)
    waiting = set(range(len(changes)))
    ordered: list[Change] = []
    while ready := [number for number in sorted(waiting) if waiting.isdisjoint(needs[number])]:
        ordered += (changes[number] for number in ready)
        waiting.difference_update(ready)
    return ordered, [changes[number] for number in sorted(waiting)]


def children_first(projects: Sequence[Record]) -> list[Record]:
    """Projects in the order in which Keystone deletes them."""
    ordered, circular = in_order([Create(project) for project in projects])
    return [change.record for change in reversed((*ordered, *circular))]


def as_writes(actions: Sequence[Action]) -> tuple[Write, ...]:
    """The actions, in the order given, with what each of them needs."""
    return tuple(Write(*each) for each in zip(actions, map(_sorted, needs_of(actions)), strict=True))


def needs_of(actions: Sequence[Action]) -> list[set[int]]:
    """For each action, the indices of those it needs."""
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
    """Ids of the projects a project stands under: its parent and its domain; none for the other types."""
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
    """What must exist before a record does: its domain, the projects it stands under, its members."""
    yield "id", PROJECTS, record.domain_id
    if record.type is PROJECTS:
        yield from (("project", id_) for id_ in above(record))
    if record.type is GROUPS:
        yield from (("id", USERS, member) for member in record.member_ids)


def _sorted(numbers: set[int]) -> tuple[int, ...]:
    return tuple(sorted(numbers))
