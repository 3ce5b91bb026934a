"""Compares role assignments and revocation events: which ones are missing, and which grants are revoked."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from dcsync.model.identity import Assignment, Placed, ResourceType, RevocationEvent
from dcsync.planner.match import Cloud, concerned
from dcsync.planner.resolve import Part


@dataclass(frozen=True)
class Grants:
    """Grants of both clouds, expressed with the new ids of records."""

    wanted: frozenset[Assignment]
    missing: tuple[Assignment, ...]
    grantable: tuple[Assignment, ...]
    """The missing ones whose user or group, project and role will all exist."""
    revocable: tuple[Assignment, ...]
    """Placed by dcsync, removed centrally, and not removed already with a deleted record."""


def compare_grants(
    *, central: Cloud, subcloud: Cloud, parts: Mapping[ResourceType, Part], placed: Placed, region_name: str
) -> Grants:
    """Compares grants on records that both clouds have. Of the subcloud's other grants, those dcsync placed are
    revoked.

    Grants follow a record's id when it changes, so the subcloud's grants and the placed ones are compared as they will
    be after the writes.
    """
    if not central.assignments and not placed.assignments:
        return Grants(frozenset(), (), (), ())
    known = {
        type_: {record.id for record in concerned(central.records, type_, region_name=region_name)}
        for type_ in ResourceType
    }
    wanted = frozenset(each for each in central.assignments if _are_all_in(known, each))
    moved = {
        (type_, update.old.id): update.record.id
        for type_, part in parts.items()
        for update in part.updates
        if update.changes_id
    }
    present, ours = subcloud.assignments, placed.assignments
    if moved:
        present, ours = frozenset(each.moved(moved) for each in present), placed.followed(moved).assignments
    after = {type_: part.ids_after for type_, part in parts.items()}
    missing = sorted(wanted - present)
    return Grants(
        wanted=wanted,
        missing=tuple(missing),
        grantable=tuple(each for each in missing if _are_all_in(after, each)),
        revocable=tuple(each for each in sorted((present & ours) - wanted) if _are_all_in(after, each)),
    )


def _are_all_in(ids: Mapping[ResourceType, Collection[str]], assignment: Assignment) -> bool:
    return all(id_ in ids[type_] for type_, id_ in assignment.ids)


def missing_events(
    central: frozenset[RevocationEvent], subcloud: frozenset[RevocationEvent]
) -> tuple[RevocationEvent, ...]:
    """Returns central events missing on the subcloud, compared by the columns both clouds have; none is deleted."""
    if central <= subcloud:
        return ()
    common = {column for event in (*central, *subcloud) for column in event.body}
    for event in (*central, *subcloud):
        common &= event.body.keys()
    there = {_shown(event, common) for event in subcloud}
    missing = [event for event in central if _shown(event, common) not in there]
    return tuple(sorted(missing, key=lambda event: json.dumps(event.body)))


def _shown(event: RevocationEvent, columns: Collection[str]) -> tuple[tuple[str, str | None], ...]:
    return tuple((column, value) for column, value in event.columns if column in columns)
