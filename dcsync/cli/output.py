"""Output formats: data on stdout, everything else on stderr, as tables for operators or JSON for programs.

Control characters are escaped, and nothing is truncated. Colour is used on a terminal only and adds no information.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import click

from dcsync.model.natural_order import in_natural_order as in_natural_order
from dcsync.model.shown import ShownAvailability, ShownStatus, View
from dcsync.model.states.initial_sync import InitialSyncState
from dcsync.model.subcloud import AvailabilityStatus, ManagementState, Subcloud, SyncStatus

WORST_FIRST = (
    InitialSyncState.FAILED,
    InitialSyncState.NONE,
    InitialSyncState.REQUESTED,
    InitialSyncState.IN_PROGRESS,
    InitialSyncState.COMPLETED,
)


def worst_first(state: InitialSyncState) -> int:
    """Returns a sort key; a state of another release comes before all others."""
    return WORST_FIRST.index(state) if state in WORST_FIRST else -1


PENDING = "pending"
"""In-sync as far as is known, while something was requested that no audit has proven yet."""
LEAST_FIRST = (SyncStatus.OUT_OF_SYNC, SyncStatus.UNKNOWN, PENDING, SyncStatus.IN_SYNC)

_COLOUR_OF = {
    "failed": "red",
    "out-of-sync": "red",
    "offline": "red",
    "in-progress": "yellow",
    "requested": "yellow",
    "unknown": "yellow",
    "completed": "green",
    "in-sync": "green",
    "online": "green",
}


def clean(text: str) -> str:
    """Returns the text as one printable line: control and direction characters are escaped."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def say(text: str) -> None:
    """Prints data on stdout."""
    click.echo(clean(text))


def note(text: str) -> None:
    """Prints anything else on stderr."""
    click.echo(clean(text), err=True)


def json_text(value: object) -> str:
    return json.dumps(value, indent=2, default=_plain)


def _plain(value: object) -> str:
    if isinstance(value, datetime):
        return rfc3339(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def rfc3339(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def say_table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints columns as wide as their widest cell; the last one is not padded."""
    cells = [[clean(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(headers, *cells, strict=True)]
    lines = [_line(headers, widths, str)] + [_line(row, widths, _coloured) for row in cells]
    click.echo("\n".join(lines))


def _line(row: Sequence[str], widths: Sequence[int], paint: Callable[[str], str]) -> str:
    padding = [" " * (width - len(cell)) for cell, width in zip(row, widths, strict=True)]
    return "  ".join(paint(cell) + pad for cell, pad in zip(row, padding, strict=True)).rstrip()


def _coloured(cell: str) -> str:
    colour = _COLOUR_OF.get(cell.partition(" (")[0])
    return click.style(cell, fg=colour) if colour else cell


# --- time --------------------------------------------------------------------------------------------------------


def instant(moment: datetime) -> str:
    """A moment for people, to the second: `2026-01-31 12:00:00Z`."""
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def ago(moment: datetime | None, *, now: datetime) -> str:
    return "-" if moment is None else f"{span((now - moment).total_seconds())} ago"


def until(moment: datetime | None, *, now: datetime) -> str:
    if moment is None:
        return "-"
    return f"in {span((moment - now).total_seconds())}" if moment > now else "now"


def span(seconds: float) -> str:
    """Returns a duration with its unit: `0.4 s`, `45 s`, `12 min`, `5 h`, `3 d`."""
    if seconds < 10:
        return f"{max(seconds, 0):.1f} s"
    for unit, size, limit in (("s", 1, 120), ("min", 60, 7200), ("h", 3600, 172800)):
        if seconds < limit:
            return f"{int(seconds // size)} {unit}"
    return f"{int(seconds // 86400)} d"


# --- subclouds ---------------------------------------------------------------------------------------------------


def subcloud_object(shown: View) -> dict[str, Any]:
    """Returns a subcloud as JSON values. The first twelve keys are pinned: programs rely on them."""
    subcloud, statuses = shown.subcloud, shown.endpoints
    reason = subcloud.reason
    return {
        "name": subcloud.name,
        "region_name": subcloud.region_name,
        "management_ip": subcloud.management_ip,
        "software_version": subcloud.software_version,
        "management_state": subcloud.management_state,
        "availability_status": shown.availability,
        "initial_sync_state": subcloud.initial_sync_state,
        "subsequent_sync": subcloud.subsequent_sync,
        "attempt": subcloud.attempt,
        "retry_at": subcloud.retry_at,
        "reason": reason,
        "sync_status": {str(type_): status.sync_status for type_, status in statuses.items()},
        "sync_reason": {str(type_): status.reason for type_, status in statuses.items()},
        "verified_at": {str(type_): status.verified_at for type_, status in statuses.items()},
        "last_good_at": {str(type_): status.last_good_at for type_, status in statuses.items()},
        "last_seen_at": subcloud.last_seen_at,
        "step": subcloud.step,
        "generation": subcloud.generation,
        "run_id": subcloud.run_id,
        "detail": subcloud.detail,
        "advice": reason.advice if reason else None,
        "needs_a_person": reason.needs_a_person if reason else False,
        "requested_at": subcloud.requested_at,
        "claimed_at": subcloud.claimed_at,
        "updated_at": subcloud.updated_at,
        "shares_ip_with": subcloud.shares_ip_with,
    }


def outlook(shown: View, *, now: datetime) -> str:
    """Returns the reason for the subcloud's state, and what happens next."""
    subcloud = shown.subcloud
    if subcloud.shares_ip_with is not None:
        return f"{subcloud.shares_ip_with} has the same management IP: dcsync subcloud update {subcloud.name}"
    if subcloud.management_state is ManagementState.UNMANAGED:
        return f"unmanaged: dcsync subcloud manage {subcloud.name} starts it"
    if subcloud.availability_status is AvailabilityStatus.OFFLINE:
        return "offline: starts when it comes online"
    unseen = ""
    if shown.availability is ShownAvailability.UNKNOWN:
        seen_at = subcloud.last_seen_at
        unseen = f"last seen {ago(seen_at, now=now)}: dcsync service monitor" if seen_at else "never seen"
    return "; ".join(part for part in (_progress(subcloud, now=now), unseen) if part)


def _progress(subcloud: Subcloud, *, now: datetime) -> str:
    match subcloud.initial_sync_state:
        case InitialSyncState.REQUESTED:
            return f"waits for a worker, requested {ago(subcloud.requested_at, now=now)}"
        case InitialSyncState.IN_PROGRESS:
            return f"at work on {subcloud.step or 'its first step'}, {ago(subcloud.claimed_at, now=now)} claimed"
        case InitialSyncState.FAILED:
            text = f"{subcloud.reason}: {subcloud.detail}" if subcloud.detail else str(subcloud.reason)
            return f"{text}; attempt {subcloud.attempt}, next try {until(subcloud.retry_at, now=now)}"
        case _:
            return ""


def availability_in_words(shown: View, *, now: datetime) -> str:
    """Returns `online`, `offline`, or why it is unknown."""
    seen_at = shown.subcloud.last_seen_at
    if shown.availability is not ShownAvailability.UNKNOWN:
        return shown.availability
    return f"unknown (stale: last seen {ago(seen_at, now=now)})" if seen_at else "unknown (never seen)"


def worst_in_words(shown: View, *, now: datetime) -> str:
    """The worst of all endpoint types of a subcloud, which is named unless all are alike."""
    worst = shown.worst
    if worst is None:
        return "unknown (no endpoint types)"
    alike = len({(each.sync_status, each.reason) for each in shown.endpoints.values()}) == 1
    return status_in_words(worst, now=now, name="" if alike else worst.endpoint_type)


def status_in_words(status: ShownStatus, *, now: datetime, name: str = "") -> str:
    """`in-sync`, or the status with the endpoint type (`name`) and why it is unknown."""
    because = ""
    if status.reason is not None:
        because = str(status.reason)
        if status.is_stale:
            because += f": last {status.stored} {ago(status.verified_at, now=now)}"
    named = " ".join(part for part in (name, because) if part)
    is_named = named and (because or status.sync_status is not SyncStatus.IN_SYNC)
    return f"{status.sync_status} ({named})" if is_named else status.sync_status


def counts(words: Iterable[str], *, order: Sequence[str]) -> str:
    """Returns how many of each, in the given order: `2 failed, 18 completed`; words of another release come last."""
    found = Counter(words)
    in_order = [*(word for word in order if found[word]), *sorted(found.keys() - set(order))]
    return ", ".join(f"{found[word]} {word}" for word in in_order)


def many(count: int, noun: str = "subcloud") -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")
