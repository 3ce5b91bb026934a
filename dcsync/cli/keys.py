"""`dcsync keys`: rotate the centre's fernet keys, and see how far they have got. No key is ever read or shown here."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import click

from dcsync.audit.endpoints import carrier_of_keys
from dcsync.cli.operator import Operator, output_option, pass_operator
from dcsync.cli.output import ago, json_text, many, note, say, span, until
from dcsync.cli.selection import ask, yes_option
from dcsync.model.errors import RefusedByGuard
from dcsync.model.states.rotation import RotationState

if TYPE_CHECKING:
    from dcsync.rotation.ports import KeyRotationRow, Spread

PAUSE = 0.3
SHOWN_DIGITS = 8


@click.group()
def keys() -> None:
    """The centre's fernet keys, which sign every token."""


@keys.command(short_help="Rotate them now, then hand them out.")
@click.option("--force", is_flag=True, help="Also when sites lack the current keys, or right after another rotation.")
@click.option("--max-in-flight", type=click.IntRange(1), metavar="N", help="Sites that get them at the same time.")
@click.option("--wait", "wait_for_it", is_flag=True, help="Wait until every site has them.")
@click.option(
    "--timeout", type=click.FloatRange(min=0), metavar="SECONDS", help="Give up waiting after this long, exit 1."
)
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
    as_json: bool,
    yes: bool,
) -> int:
    """Make the staged key primary and stage a new one at the centre, then bring all sites the new set in waves.

    Refused (exit 5) while too many sites lack the current keys, the staged one among them: those would reject every
    token the centre issues from then on. --timeout implies --wait.

    \b
    Example:
      dcsync keys rotate --max-in-flight 50 --wait --timeout 900
    """
    operator.requires("database_url", "redis_url")
    sites = operator.key_rotation_store.spread(_fingerprint(operator) or "").sites
    if not force:
        _refuse_if_unsafe(operator)
    ask(operator, f"Rotate the keys of the centre and {many(sites, 'site')}?", yes=yes)
    before = operator.key_rotation_store.row()
    operator.key_rotation_store.ask(now=operator.now(), by=operator.name, forced=force, max_in_flight=max_in_flight)
    operator.hint_key_rotation()
    note(f"asked for a rotation; {many(sites, 'site')} will get the new keys")
    code = _wait(operator, before, timeout=timeout) if wait_for_it or timeout is not None else 0
    if as_json:
        click.echo(json_text(_object(operator)))
    return code


def _refuse_if_unsafe(operator: Operator) -> None:
    """Raises RefusedByGuard; asked again by whoever rotates, who sees the centre's keys themselves."""
    from dcsync.rotation.key_rotation import refusal

    fingerprint = _fingerprint(operator)
    if fingerprint is None:
        return
    settings = operator.settings
    why_not = refusal(
        operator.key_rotation_store.spread(fingerprint),
        max_share_behind=settings.key_max_behind,
        last_rotated_at=operator.key_rotation_store.row().last_rotated_at,
        token_lifetime=timedelta(seconds=settings.token_lifetime),
        now=operator.now(),
    )
    if why_not is not None:
        raise RefusedByGuard(f"{why_not}; --force does it all the same")


def _wait(operator: Operator, before: KeyRotationRow, *, timeout: float | None) -> int:
    """0 when every site has the keys, 1 when the rotation failed, some do not have them, or the time is up."""
    began = operator.monotonic()
    while True:
        row = operator.key_rotation_store.row()
        elapsed = operator.monotonic() - began
        is_rotated = row.last_rotated_at != before.last_rotated_at
        if row.requested_at is None and row.state is RotationState.IDLE:
            note(f"{'rotated' if is_rotated else 'not rotated'} after {span(elapsed)}: {row.detail}")
            return 0 if is_rotated and not _spread(operator).behind else 1
        if timeout is not None and elapsed >= timeout:
            spread = _spread(operator)
            note(f"still {row.state} after {span(elapsed)}: {spread.behind} of {spread.sites} sites lack the keys")
            return 1
        operator.sleep(PAUSE if timeout is None else max(0.0, min(PAUSE, timeout - elapsed)))


@keys.command(short_help="The schedule, and who has which keys.")
@output_option
@pass_operator
def show(operator: Operator, *, as_json: bool) -> None:
    """When they are rotated next and were last, and how many sites have the centre's current set.

    Sets are told by short fingerprints, from which no key can be got back.
    """
    if as_json:
        click.echo(json_text(_object(operator)))
        return
    row, spread, now = operator.key_rotation_store.row(), _spread(operator), operator.now()
    fingerprint = _fingerprint(operator)
    lines = {
        "keys": fingerprint[:SHOWN_DIGITS] if fingerprint else "not looked at yet",
        "sites": f"{spread.sites - spread.behind} of {spread.sites} have them" if fingerprint else "-",
        "rotation": row.state + (f": {row.detail}" if row.detail else ""),
        "last": ago(row.last_rotated_at, now=now),
        "next": _next(row, now=now),
    }
    if row.window_until is not None and row.window_until > now:
        lines["no alarms"] = f"for differing keys, until {span((row.window_until - now).total_seconds())} from now"
    for name, value in lines.items():
        say(f"{name:<9}  {value}")


def _next(row: KeyRotationRow, *, now: datetime) -> str:
    if row.requested_at is not None:
        return f"now, asked for by {row.requested_by} {ago(row.requested_at, now=now)}"
    return until(row.next_due_at, now=now) if row.next_due_at else "only when asked for"


def _fingerprint(operator: Operator) -> str | None:
    """Of the centre's keys as the watch or a rotation last saw them; None before that."""
    known = operator.audit_store.central_state(carrier_of_keys())
    return known.fingerprint if known else None


def _spread(operator: Operator) -> Spread:
    return operator.key_rotation_store.spread(_fingerprint(operator) or "")


def _object(operator: Operator) -> dict[str, object]:
    row, fingerprint, spread = operator.key_rotation_store.row(), _fingerprint(operator), _spread(operator)
    return {
        "state": row.state,
        "detail": row.detail,
        "fingerprint": fingerprint[:SHOWN_DIGITS] if fingerprint else None,
        "sites": spread.sites,
        "behind": spread.behind,
        "last_rotated_at": row.last_rotated_at,
        "next_due_at": row.next_due_at,
        "window_until": row.window_until,
        "requested_at": row.requested_at,
        "requested_by": row.requested_by,
        "max_in_flight": row.max_in_flight,
    }
