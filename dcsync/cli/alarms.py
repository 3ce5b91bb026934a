"""`dcsync alarm`: lists active and cleared alarms."""

from __future__ import annotations

from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING

import click

from dcsync.cli.operator import Operator, output_option, pass_operator
from dcsync.cli.output import ago, json_text, note, say_table
from dcsync.model.shown import is_within

if TYPE_CHECKING:
    from dcsync.state.ports import AlarmNotice

SHOWN_AT_MOST = 100_000
CHECKED_WITHIN = timedelta(seconds=120)
"""Every worker process checks every 30 s."""


@click.group()
def alarm() -> None:
    """Show alarms: 280.001 (offline), 280.002 (out-of-sync), and those that report silence (dcsync.*).

    \b
    dcsync.nobody-observes      subclouds without a recent status
    dcsync.central-unreadable   the central cloud cannot be read or is refused
    dcsync.sweep-late           nothing that is due is started
    dcsync.keys-behind          subclouds lack the central keys after the window
    dcsync.sync-failing         an initial sync or audit keeps failing
    """


@alarm.command("list")
@click.option("--history", is_flag=True, help="Include cleared alarms, newest first.")
@click.option("--limit", type=click.IntRange(1, SHOWN_AT_MOST), default=SHOWN_AT_MOST, help="Show at most this many.")
@output_option
@pass_operator
def list_(operator: Operator, *, history: bool, limit: int, as_json: bool) -> None:
    """List the active alarms: those that report silence, then by alarm, oldest first.

    \b
    Example:
      dcsync alarm list --history -o json
    """
    alarms = operator.alarm_store.alarms(history=history, limit=limit)
    _warn_if_nobody_checks(operator)
    if as_json:
        click.echo(json_text([asdict(each) for each in alarms]))
        return
    if not alarms:
        note("no alarm was ever raised" if history else "no alarm is active")
        return
    cleared = ["CLEARED"] if history else []
    say_table(
        ["ALARM", "SEVERITY", "ENTITY", "RAISED", *cleared, "REASON"],
        [_row(each, operator, history=history) for each in alarms],
    )


def _warn_if_nobody_checks(operator: Operator) -> None:
    """An alarm that is not listed is not active only if somebody has looked."""
    checked_at, now = operator.alarm_store.checked_at(), operator.now()
    if checked_at is None or not is_within(checked_at, CHECKED_WITHIN, now=now):
        since = f"last checked {ago(checked_at, now=now)}" if checked_at else "never checked"
        note(f"warning: whether anybody observes was {since}: no worker runs, so these alarms may be out of date")


def _row(alarm: AlarmNotice, operator: Operator, *, history: bool) -> list[str]:
    """The reason comes last, for it may be long."""
    now = operator.now()
    cleared = [ago(alarm.cleared_at, now=now) if alarm.cleared_at else "active"] if history else []
    shown = [alarm.alarm_id, alarm.severity, alarm.entity, ago(alarm.raised_at, now=now)]
    return [*shown, *cleared, alarm.reason_text]
