"""Decides which changes of matched records are possible and which conflict. One type at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from dcsync.model.identity import Record
from dcsync.planner.differences import differing_fields
from dcsync.planner.match import Match
from dcsync.planner.order import above, in_order
from dcsync.planner.writes import Change, Create, Update


@dataclass(frozen=True)
class Pair:
    """A central record, the matching subcloud record, and the fields in which they differ."""

    new: Record
    old: Record
    fields: tuple[str, ...]


@dataclass(frozen=True)
class Part:
    """The records of one type: matching pairs, and the changes that the other records need."""

    pairs: tuple[Pair, ...]
    """Matching records, except `stuck` ones."""
    changes: tuple[Change, ...]
    """Updates of pairs, and creations, ordered: a name is released before it is reused, a parent project is created
    before its children."""
    stuck: tuple[Record, ...]
    """Central records whose name or id belongs to another subcloud record. If that one is deleted in this run, the next
    pass can resolve it; otherwise an operator must."""
    deleted: tuple[Record, ...]
    in_use: tuple[Record, ...]
    """Projects that cannot be deleted because they are parents of records created by the subcloud."""
    others: tuple[Record, ...]
    """Subcloud records that are not changed."""
    is_repaired: bool = True

    def without_repair(self) -> Part:
        """Returns the same part for a type that is only compared."""
        return replace(self, changes=(), is_repaired=False)

    @property
    def updates(self) -> tuple[Update, ...]:
        return tuple(each for each in self.changes if isinstance(each, Update))

    @property
    def created(self) -> tuple[Create, ...]:
        return tuple(each for each in self.changes if isinstance(each, Create))

    @property
    def removed(self) -> tuple[Record, ...]:
        """Records that the repair deletes."""
        return self.deleted if self.is_repaired else ()

    @property
    def placed_after(self) -> frozenset[str]:
        """Ids of records placed by dcsync once the repair is done."""
        ids = {pair.new.id if self.is_repaired else pair.old.id for pair in self.pairs}
        kept = () if self.is_repaired else self.deleted
        return frozenset(ids).union(
            (each.record.id for each in self.created), (record.id for record in (*kept, *self.in_use))
        )

    @property
    def ids_after(self) -> frozenset[str]:
        """Every id the subcloud has once the repair is done."""
        return self.placed_after.union(record.id for record in self.others)


def resolve(match: Match, *, always: Collection[str] = ()) -> Part:
    """Resolves conflicts over names and ids; a stuck record is not changed, and may block others.

    `always`: names of records that are updated even if no field differs.
    """
    pairs = [Pair(new, old, differing_fields(new, old)) for new, old in match.pairs]
    missing, others, stuck = list(match.missing), list(match.others), list[Record]()
    while True:
        updates = [Update(pair.old, pair.new) for pair in pairs if pair.fields or pair.new.name in always]
        changes, circular = in_order([*updates, *map(Create, missing)])
        held = [*others, *match.surplus]
        lost = _taken([*(pair.new for pair in pairs), *missing], held)
        lost |= _under_the_stuck(changes, stuck, there={record.id for record in (*held, *(p.old for p in pairs))})
        lost |= {each.record.id: each.record for each in circular}
        if not lost:
            in_use = _in_use(match.surplus, others)
            return Part(
                pairs=tuple(pairs),
                changes=tuple(changes),
                stuck=tuple(stuck),
                deleted=tuple(record for record in match.surplus if record.id not in in_use),
                in_use=tuple(record for record in match.surplus if record.id in in_use),
                others=tuple(others),
            )
        others += (pair.old for pair in pairs if pair.new.id in lost)
        stuck += lost.values()
        pairs = [pair for pair in pairs if pair.new.id not in lost]
        missing = [record for record in missing if record.id not in lost]


def _taken(wanted: Iterable[Record], held: Collection[Record]) -> dict[str, Record]:
    """Returns the wanted records whose id or name belongs to a record that is not changed."""
    ids, keys = {record.id for record in held}, {record.key for record in held}
    return {record.id: record for record in wanted if record.id in ids or record.key in keys}


def _under_the_stuck(
    changes: Iterable[Change], stuck: Iterable[Record], *, there: Collection[str]
) -> dict[str, Record]:
    """Returns projects whose parent cannot be written and does not exist yet."""
    lacking = {record.id for record in stuck}.difference(there)
    return {each.record.id: each.record for each in changes if lacking and not lacking.isdisjoint(above(each.record))}


def _in_use(surplus: Iterable[Record], others: Iterable[Record]) -> set[str]:
    """Returns ids of projects that are parents of remaining records: Keystone refuses to delete them."""
    left = list(surplus)
    needed = {id_ for record in others for id_ in above(record)}
    in_use: set[str] = set()
    while more := [record for record in left if record.id in needed]:
        in_use |= {record.id for record in more}
        needed = {id_ for record in more for id_ in above(record)}
        left = [record for record in left if record.id not in in_use]
    return in_use
