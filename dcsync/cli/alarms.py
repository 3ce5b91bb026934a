"""`dcsync alarm`: lists active and cleared alarms."""

from __future__ import annotations

from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING

import click

from dcsync.cli.operator import Operator, output_option, pass_operator
from dcsync.cli.output import ago, json_text, many, note, say_table
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
@click.option("--refused", is_flag=True, help="List the notices that a sink refused, newest first.")
@click.option("--limit", type=click.IntRange(1, SHOWN_AT_MOST), default=SHOWN_AT_MOST, help="Show at most this many.")
@output_option
@pass_operator
def list_(operator: Operator, *, history: bool, refused: bool, limit: int, as_json: bool) -> None:
    """List the active alarms: those that report silence, then by alarm, oldest first.

    A notice that the webhook refuses for what is in it (400, 413, 422) is set aside and delays no other. They are
    counted here, and listed with --refused for DCSYNC_HISTORY_DAYS.

    \b
    Example:
      dcsync alarm list --history -o json
    """
    if history and refused:
        raise click.UsageError("give --history or --refused, not both", click.get_current_context())
    if refused:
        _list_refused(operator, limit=limit, as_json=as_json)
        return
    alarms = operator.alarm_store.alarms(history=history, limit=limit)
    _warn_if_nobody_checks(operator)
    if as_json:
        click.echo(json_text([asdict(each) for each in alarms]))
        return
    if not alarms:
        note("no alarm was ever raised" if history else "no alarm is active")
    else:
        cleared = ["CLEARED"] if history else []
        say_table(
            ["ALARM", "SEVERITY", "ENTITY", "RAISED", *cleared, "REASON"],
            [_row(each, operator, history=history) for each in alarms],
        )
    if problem := refused_in_words(operator):
        note(problem)


def refused_in_words(operator: Operator) -> str | None:
    """How many notices sinks refused, and the newest one; None where there are none."""
    found = operator.alarm_store.refused_notices(limit=1)
    if not found.newest:
        return None
    last = found.newest[0]
    refused = f"{many(found.total, 'alarm notice')} refused by a sink, last by {last.sink} ({last.why})"
    return f"{refused} {ago(last.refused_at, now=operator.now())}: dcsync alarm list --refused"


def _list_refused(operator: Operator, *, limit: int, as_json: bool) -> None:
    found = operator.alarm_store.refused_notices(limit=limit).newest
    if as_json:
        click.echo(json_text([asdict(each) for each in found]))
    elif not found:
        note("no notice was refused")
    else:
        now = operator.now()
        say_table(
            ["ALARM", "ENTITY", "SINK", "REFUSED", "WHY"],
            [(each.alarm_id, each.entity, each.sink, ago(each.refused_at, now=now), each.why) for each in found],
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
