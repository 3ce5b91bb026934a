"""What stops a repair although a difference was found, and a change of the central cloud although it was seen; pure."""

from __future__ import annotations

from collections.abc import Mapping

from dcsync.audit.ports import AuditPart
from dcsync.model.ending import Failure
from dcsync.model.reasons import Reason

REPAIRS_OF_ONE_DIFFERENCE = 3
"""After so many in a row the same difference is not repaired again, until it changes or an operator asks."""

SMALL_LIST = 4
"""A list shorter than this may shrink as it likes, though not to nothing: half of it is one or two records."""


def shrunk(*, before: Mapping[str, int], now: Mapping[str, int]) -> Failure | None:
    """Why a central cloud with lists of these lengths is not believed: more than half of one is gone, or all of it."""
    gone = [
        f"{what} went from {count} to {now[what]}"
        for what, count in sorted(before.items())
        if what in now and (now[what] == 0 < count or (count >= SMALL_LIST and now[what] * 2 < count))
    ]
    return Failure(Reason.GUARD_REFUSED, f"the central {', '.join(gone)}; nothing was changed") if gone else None


def too_many_deletions(*, deletions: int, allowed: int, part: AuditPart) -> Failure | None:
    """Why a repair that would delete so many records and grants is not begun."""
    if part.deletes_allowed or deletions <= allowed:
        return None
    return Failure(
        Reason.GUARD_REFUSED,
        f"{deletions} records and grants would be deleted, {allowed} may be; the repair was not begun",
    )


def not_converging(*, part: AuditPart, difference: str | None, named: str) -> Failure | None:
    """Why a difference that came back after every repair is left as it is."""
    if difference is None or difference != part.difference or part.difference_repairs < REPAIRS_OF_ONE_DIFFERENCE:
        return None
    return Failure(Reason.NOT_CONVERGING, f"still differs after {part.difference_repairs} repairs: {named}")
