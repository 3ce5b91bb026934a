"""What must be written to a subcloud so that its records carry the central ids; pure, values in and values out.

Not here: reading lists, sending updates, and creating or deleting anything (an initial sync does neither).
Source: docs/upstream/identity-sync.md sections 2-4; the group order is docs/upstream/real-keystone.md R2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dcsync.model.identity import NewIds, Placed, Record, Records, ResourceType
from dcsync.planner.alignment import Update, plan_groups, refuse_unusable, same_named

ALWAYS_WRITTEN_USERS = frozenset({"admin", "sysinv", "dcmanager"})
"""Written even when ids agree: their ids were aligned at deployment, their password hashes were not."""


@dataclass(frozen=True)
class Plan:
    """Updates in the order they must be written: each field is finished before the next one begins.

    Updates of `users` are independent of one another and may be written side by side; all others go one by one.
    """

    emptied_groups: tuple[Update, ...]
    users: tuple[Update, ...]
    groups: tuple[Update, ...]
    projects: tuple[Update, ...]
    roles: tuple[Update, ...]
    groups_to_refill: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Site-only groups among `emptied_groups`, with the members they must have at the end: to be remembered before the
    first write, for nobody else knows them if the run dies half-way."""
    placed: Placed = field(default_factory=Placed)
    """The records that are the centre's once the plan is applied, written or not."""

    @property
    def new_ids(self) -> NewIds:
        return {(update.type, update.old_id): update.record.id for update in self.updates if update.changes_id}

    @property
    def updates(self) -> tuple[Update, ...]:
        return (*self.emptied_groups, *self.users, *self.groups, *self.projects, *self.roles)


def plan_identity(
    *,
    central: Records,
    subcloud: Records,
    region_name: str,
    groups_to_refill: Mapping[str, tuple[str, ...]] | None = None,
) -> Plan:
    """Updates that give same-named subcloud records the central id; records on one side only are left alone.

    Matches on (name, domain_id); where one of the two ids belongs to another record of the other side, the record was
    renamed at the centre, or its name was given anew there, and who it is is for the audit, which can rename and create
    as well. Users admin, sysinv and dcmanager are updated even when ids agree. A group is updated
    when its id or its members differ; central members the subcloud does not know are left out. A user whose id changes
    is first taken out of its groups, for Keystone's foreign keys refuse the change otherwise. Applying a plan retires
    the old ids, so plan anew for every try. `groups_to_refill` is what an earlier plan left to be remembered.

    Raises CloudError: central-empty, subcloud-empty, or ids-not-aligned.
    """
    refuse_unusable(central=central, subcloud=subcloud, region_name=region_name)
    pairs = {type_: _same(central, subcloud, type_, region_name) for type_ in ResourceType}
    users = tuple(
        Update(old.id, new)
        for new, old in pairs[ResourceType.USERS]
        if new.id != old.id or new.name in ALWAYS_WRITTEN_USERS
    )
    new_ids = {update.old_id: update.record.id for update in users if update.changes_id}
    groups = plan_groups(
        matched={old.id: new for new, old in pairs[ResourceType.GROUPS]},
        subcloud=subcloud,
        new_ids=new_ids,
        user_ids={new_ids.get(user.id, user.id) for user in subcloud.users},
        remembered=groups_to_refill or {},
    )
    return Plan(
        emptied_groups=groups.emptied,
        users=users,
        groups=groups.filled,
        projects=_differing(pairs[ResourceType.PROJECTS]),
        roles=_differing(pairs[ResourceType.ROLES]),
        groups_to_refill=groups.to_refill,
        placed=Placed({type_: frozenset(new.id for new, _ in found) for type_, found in pairs.items()}),
    )


Pairs = tuple[tuple[Record, Record], ...]


def _differing(pairs: Pairs) -> tuple[Update, ...]:
    return tuple(Update(old.id, new) for new, old in pairs if new.id != old.id)


def _same(central: Records, subcloud: Records, type_: ResourceType, region_name: str) -> Pairs:
    """(central, subcloud) records that are the same thing by name, and not something else by id."""
    central_ids, subcloud_ids = ({record.id for record in side.of(type_)} for side in (central, subcloud))
    pairs = same_named(central, subcloud, type_, region_name=region_name)
    return tuple(
        (new, old)
        for new, old in pairs
        if new.id == old.id or (old.id not in central_ids and new.id not in subcloud_ids)
    )
