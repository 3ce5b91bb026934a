"""Removes members whose ids change from their groups, and adds them again after the change.

Source: docs/upstream/real-keystone.md R2: Keystone's foreign keys reject a new id for a user who is in a group.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from dcsync.model.identity import Record
from dcsync.planner.resolve import Part
from dcsync.planner.writes import Create, Update


@dataclass(frozen=True)
class GroupPlan:
    """Updates of a subcloud's groups when ids of its users change."""

    emptied: tuple[Update, ...]
    """Written before the users: groups without the members whose ids change."""
    filled: tuple[Update, ...]
    """Written after the users, also where only fields differ."""
    created: tuple[Create, ...]
    differing: frozenset[str]
    """Subcloud ids of groups whose members differ from the planned ones."""
    to_refill: Mapping[str, tuple[str, ...]]
    """Subcloud-only groups that are emptied, with their final members: stored, because nothing else records them if the
    run is interrupted."""


def plan_groups(
    *, part: Part, groups: Collection[Record], users: Part, remembered: Mapping[str, tuple[str, ...]]
) -> GroupPlan:
    """Plans how the members of groups are removed and added again. `groups`: the subcloud's; unmatched ones keep their
    members under their new ids. `users`: the planned changes of users; only users that will exist are added.
    `remembered`: `to_refill` of a plan whose run was interrupted.
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
            held = with_members(group, [member for member in staying if member not in new_ids])
            emptied.append(Update(group, held))
        if group.id in deleted_groups:
            continue
        if group.id in matched:
            wanted = _known_members(matched[group.id], user_ids)
            is_full = wanted.member_ids == held.member_ids
        else:
            own = {new_ids.get(member, member) for member in staying}
            wanted = with_members(group, own | {m for m in remembered.get(group.id, ()) if m in user_ids})
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
    return with_members(group, [member for member in group.member_ids if member in user_ids])


def with_members(group: Record, members: Collection[str]) -> Record:
    """Returns the group with exactly these members."""
    return replace(group, body={**group.body, "local_user_ids": sorted(members)})
