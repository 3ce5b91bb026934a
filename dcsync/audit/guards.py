"""Checks that refuse a repair, or a change of the central cloud. Pure: each returns a Failure, or None to proceed."""

from __future__ import annotations

from collections.abc import Mapping

from dcsync.audit.ports import AuditPart
from dcsync.model.ending import Failure
from dcsync.model.reasons import Reason

REPAIRS_OF_ONE_DIFFERENCE = 3
"""After this many repairs in a row, a difference is repaired again only if it changes or an operator requests it."""

SMALL_LIST = 4
"""A shorter list may shrink to any length but zero: half of it is only one or two records."""


def shrunk(*, before: Mapping[str, int], now: Mapping[str, int]) -> Failure | None:
    """Refuses a central cloud of which a list has lost more than half of its records, or all of them."""
    lost = [
        f"{what} went from {count} to {now[what]}"
        for what, count in sorted(before.items())
        if what in now and (now[what] == 0 < count or (count >= SMALL_LIST and now[what] * 2 < count))
    ]
    return Failure(Reason.GUARD_REFUSED, f"the central {', '.join(lost)}; nothing was changed") if lost else None


def too_many_deletions(*, deletions: int, allowed: int, part: AuditPart) -> Failure | None:
    """Refuses a repair that would delete more than `allowed` records and grants."""
    if part.deletes_allowed or deletions <= allowed:
        return None
    return Failure(
        Reason.GUARD_REFUSED,
        f"{deletions} records and grants would be deleted, {allowed} are allowed; the repair was not started",
    )


def not_converging(*, part: AuditPart, difference: str | None, named: str) -> Failure | None:
    """Refuses to repair a difference that returned after each of the last repairs."""
    if difference is None or difference != part.difference or part.difference_repairs < REPAIRS_OF_ONE_DIFFERENCE:
        return None
    return Failure(Reason.NOT_CONVERGING, f"still differs after {part.difference_repairs} repairs: {named}")
