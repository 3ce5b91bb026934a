"""How groups let go of members whose ids change, and get their members afterwards.

Source: docs/upstream/real-keystone.md R2: Keystone's foreign keys refuse the new id of a user who is in a group.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from dcsync.model.identity import Record
from dcsync.planner.resolve import Part
from dcsync.planner.writes import Create, Update


@dataclass(frozen=True)
class GroupPlan:
    """What happens to a subcloud's groups when some of its users take other ids."""

    emptied: tuple[Update, ...]
    """To be written before the users: groups without the members that change."""
    filled: tuple[Update, ...]
    """To be written after the users, also where only fields differ."""
    created: tuple[Create, ...]
    differing: frozenset[str]
    """Ids (the subcloud's) of groups whose members differ from what they must have."""
    to_refill: Mapping[str, tuple[str, ...]]
    """Groups of the subcloud's own among them, with the members they must have at the end: nobody else knows those if
    the run dies half-way."""


def plan_groups(
    *, part: Part, groups: Collection[Record], users: Part, remembered: Mapping[str, tuple[str, ...]]
) -> GroupPlan:
    """`groups`: the subcloud's; those not matched keep their own members under their new ids. `users`: what becomes of
    the members: no group is given one that will not be there. `remembered`: `to_refill` of a plan whose run died.
    """
    new_ids = {update.old.id: update.record.id for update in users.updates if update.changes_id}
    user_ids = users.ids_after
    deleted, deleted_groups = {user.id for user in users.removed}, {group.id for group in part.removed}
    matched = {pair.old.id: pair.new for pair in part.pairs} if part.is_repaired else {}
    updated = [update.old.id for update in part.updates]
    emptied: list[Update] = []
    filled: dict[str, Update] = {}
    differing: set[str] = set()
    to_refill: dict[str, tuple[str, ...]] = {}
    for group in groups:
        staying = [member for member in group.member_ids if member not in deleted]
        held = group
        if not new_ids.keys().isdisjoint(group.member_ids):
            held = _with_members(group, [member for member in staying if member not in new_ids])
            emptied.append(Update(group, held))
        if group.id in deleted_groups:
            continue
        if group.id in matched:
            wanted = _known_members(matched[group.id], user_ids)
            is_full = wanted.member_ids == held.member_ids
        else:
            own = {new_ids.get(member, member) for member in staying}
            wanted = _with_members(group, own | {m for m in remembered.get(group.id, ()) if m in user_ids})
            is_full = held is group and set(wanted.member_ids) == set(staying)
            if not is_full:
                to_refill[group.id] = wanted.member_ids
        if not is_full or wanted.id != group.id or group.id in updated:
            filled[group.id] = Update(held, wanted)
            if wanted.member_ids != group.member_ids:
                differing.add(group.id)
    return GroupPlan(
        emptied=tuple(emptied),
        filled=tuple(filled[id_] for id_ in dict.fromkeys((*updated, *filled))),
        created=tuple(Create(_known_members(each.record, user_ids)) for each in part.created),
        differing=frozenset(differing),
        to_refill=to_refill,
    )


def _known_members(group: Record, user_ids: Collection[str]) -> Record:
    return _with_members(group, [member for member in group.member_ids if member in user_ids])


def _with_members(group: Record, members: Collection[str]) -> Record:
    """The group with exactly these members."""
    return replace(group, body={**group.body, "local_user_ids": sorted(members)})
