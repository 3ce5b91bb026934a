"""`dcsync keys`: rotates the central cloud's fernet keys, and shows how many subclouds have them. It reads no keys."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import click

from dcsync.cli import waiting
from dcsync.cli.central import central_trouble
from dcsync.cli.operations import acting
from dcsync.cli.operator import Operator, output_option, pass_operator
from dcsync.cli.output import ago, json_text, many, note, say, span, until
from dcsync.cli.selection import confirm, show_selection, which_option, yes_option
from dcsync.model.errors import RefusedByGuard
from dcsync.model.pair import Pair
from dcsync.model.states.initial_sync import InitialSyncState
from dcsync.model.states.rotation import RotationState
from dcsync.model.subcloud import Subcloud
from dcsync.rotation.ports import KeyHolding

if TYPE_CHECKING:
    from dcsync.rotation.ports import KeyRotationRow, Spread

SHOWN_DIGITS = 8

_WHY_NOT = {
    KeyHolding.LACK: "not known to have the keys; dcsync sync-request platform NAME --wait repairs it, or says why not",
    KeyHolding.FAILED: "its initial sync failed; it gets the keys when that succeeds",
    KeyHolding.SYNCING: "its initial sync has not ended; it gets the keys from it",
    KeyHolding.AWAY: "offline; it gets the keys when it comes back",
}


@dataclass(frozen=True)
class Sight:
    """The rows of the rotation at one time."""

    row: KeyRotationRow
    fingerprint: str | None
    """Fingerprint of the central cloud's keys as last read by the watch or a rotation; None before that."""
    spread: Spread
    oldest_reading: datetime | None
    """When the keys of those that have them were read, of the one where that is longest ago."""

    @property
    def shown_fingerprint(self) -> str | None:
        return self.fingerprint[:SHOWN_DIGITS] if self.fingerprint else None


@click.group()
def keys() -> None:
    """Show and rotate the central cloud's fernet keys, which sign every token."""


@keys.command(short_help="Rotate the keys now and distribute them.")
@click.option(
    "--force", is_flag=True, help="Rotate even if subclouds lack the current keys or the last rotation is recent."
)
@click.option(
    "--max-in-flight", type=click.IntRange(1), metavar="N", help="Subclouds that receive keys at the same time."
)
@waiting.wait_options("every subcloud has the keys")
@which_option
@output_option
@yes_option
@pass_operator
def rotate(
    operator: Operator,
    *,
    force: bool,
    max_in_flight: int | None,
    wait_for_it: bool,
    timeout: float | None,
    dry_run: bool,
    as_json: bool,
    yes: bool,
) -> int:
    """Make the staged key primary and stage a new one at the central cloud, then send the new set to all subclouds
    in waves.

    Refused (exit 5) while too many subclouds lack the current keys, including the staged one: they would reject every
    token that the central cloud issues after the rotation. --timeout implies --wait.

    \b
    Example:
      dcsync keys rotate --max-in-flight 50 --wait --timeout 900
    """
    operator.requires("database_url", "redis_url")
    before = _look(operator)
    if dry_run:
        if not force:
            _refuse_if_unsafe(operator, before)
        show_selection(filter(_gets_keys_now, operator.inventory.all()), "receive new keys")
        return 0
    subclouds = f"{many(before.spread.have + before.spread.lack)} that are online and completed"
    with acting(operator) as intent:
        if not force:
            _refuse_if_unsafe(operator, before)
        confirm(operator, f"Rotate the keys of the central cloud and {subclouds}?", yes=yes)
        operator.key_rotation_store.ask(
            now=operator.now(), by=operator.name, forced=force, max_in_flight=max_in_flight, intent=intent
        )
    operator.hint_key_rotation()
    note(f"rotation requested; {subclouds} will receive the new keys")
    if wait_for_it or timeout is not None:
        code, seen = _wait(operator, before, timeout=timeout)
    else:
        code, seen = 0, _look(operator)
    if as_json:
        click.echo(json_text(_object(seen)))
    return code


def _gets_keys_now(known: Subcloud) -> bool:
    pair = Pair(known.management_state, known.availability_status)
    return pair.is_eligible and known.initial_sync_state is InitialSyncState.COMPLETED


def _refuse_if_unsafe(operator: Operator, seen: Sight) -> None:
    """Raises RefusedByGuard. The rotation itself checks again, against the central cloud's keys."""
    from dcsync.rotation.key_rotation import refusal

    if seen.fingerprint is None:
        return
    settings = operator.settings
    why_not = refusal(
        seen.spread,
        max_share_behind=settings.key_max_behind,
        last_rotated_at=seen.row.last_rotated_at,
        token_lifetime=timedelta(seconds=settings.token_lifetime),
        now=operator.now(),
    )
    if why_not is not None:
        raise RefusedByGuard(f"{why_not}; --force overrides this")


def _wait(operator: Operator, before: Sight, *, timeout: float | None) -> tuple[int, Sight]:
    """Returns 0 when every managed subcloud has the keys; 1 when the rotation failed, some do not have them, or the
    time is up; and what was seen last."""
    seen, elapsed = waiting.until(operator, lambda: _look(operator), _is_over, timeout=timeout)
    if not _is_over(seen):
        note(f"still {seen.row.state} after {span(elapsed)}: {seen.spread}")
        return 1, seen
    is_rotated = seen.row.last_rotated_at != before.row.last_rotated_at
    note(f"{'rotated' if is_rotated else 'not rotated'} after {span(elapsed)}: {seen.row.detail}")
    if seen.spread.have < seen.spread.managed:
        _print_without_keys(operator, seen)
        return 1, seen
    return 0 if is_rotated else 1, seen


def _print_without_keys(operator: Operator, seen: Sight) -> None:
    missing = operator.key_rotation_store.without_keys(seen.fingerprint or "", limit=waiting.NAMED_AT_MOST)
    for name, holding in missing:
        note(f"  {name}: {_WHY_NOT[holding]}")
    left = seen.spread.managed - seen.spread.have - len(missing)
    if left > 0:
        note(f"  and {left} more")


def _is_over(seen: Sight) -> bool:
    return seen.row.requested_at is None and seen.row.state is RotationState.IDLE


@keys.command(short_help="Show the schedule, and how many subclouds have the keys.")
@output_option
@pass_operator
def show(operator: Operator, *, as_json: bool) -> None:
    """Show the last and next rotation, and how many subclouds have the central cloud's current keys.

    Key sets are shown as short fingerprints, from which no key can be recovered.
    """
    seen, now = _look(operator), operator.now()
    if as_json:
        click.echo(json_text(_object(seen)))
        return
    row, spread = seen.row, seen.spread
    lines = {
        "keys": seen.shown_fingerprint or "not read yet",
        "subclouds": f"{spread}; {spread.unmanaged} unmanaged" if seen.fingerprint else "-",
        "read": f"{ago(seen.oldest_reading, now=now)} or later" if seen.oldest_reading else "-",
        "rotation": row.state + (f": {row.detail}" if row.detail else ""),
        "last": ago(row.last_rotated_at, now=now),
        "next": _next(row, now=now),
    }
    problem = central_trouble(operator)
    if problem is not None:
        lines["central"] = problem
    if row.window_until is not None and row.window_until > now:
        lines["no alarms"] = f"for differing keys, until {span((row.window_until - now).total_seconds())} from now"
    for name, value in lines.items():
        say(f"{name:<9}  {value}")


def _next(row: KeyRotationRow, *, now: datetime) -> str:
    if row.requested_at is not None:
        return f"now, requested by {row.requested_by} {ago(row.requested_at, now=now)}"
    return until(row.next_due_at, now=now) if row.next_due_at else "only on request"


def _look(operator: Operator) -> Sight:
    from dcsync.audit.endpoints import endpoint_type_of_keys

    row, known = operator.key_rotation_store.row(), operator.audit_store.central_state(endpoint_type_of_keys())
    fingerprint = known.fingerprint if known else None
    store = operator.key_rotation_store
    return Sight(row, fingerprint, store.spread(fingerprint or ""), store.oldest_reading(fingerprint or ""))


def _object(seen: Sight) -> dict[str, object]:
    row, spread = seen.row, seen.spread
    return {
        "state": row.state,
        "detail": row.detail,
        "fingerprint": seen.shown_fingerprint,
        "sites": spread.managed,
        "behind": spread.behind,
        "subclouds": {"managed": spread.managed} | asdict(spread),
        "oldest_reading_at": seen.oldest_reading,
        "last_rotated_at": row.last_rotated_at,
        "next_due_at": row.next_due_at,
        "window_until": row.window_until,
        "requested_at": row.requested_at,
        "requested_by": row.requested_by,
        "max_in_flight": row.max_in_flight,
    }
