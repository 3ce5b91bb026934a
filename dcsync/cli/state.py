"""`dcsync state`: reports an observation, as an auditor would, and lists rejected reports.

Reports are sent through the `state` queue like any other report.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from dcsync.cli import waiting
from dcsync.cli.operations import acting
from dcsync.cli.operator import Operator, output_option, pass_operator
from dcsync.cli.output import ago, json_text, many, note, say, say_table
from dcsync.cli.selection import (
    SubcloudName,
    confirm_all,
    names_or_all,
    selected,
    show_selection,
    which_option,
    yes_option,
)
from dcsync.model.reports import AvailabilityReport, EndpointReport, Mark
from dcsync.model.subcloud import AvailabilityStatus, EndpointType, ManagementState, Subcloud, SyncStatus

if TYPE_CHECKING:
    from dcsync.model.operation import Intent

TAKEN_WITHIN_SECONDS = 10.0
"""How long a command waits until a state worker has stored the reports; longer for many subclouds."""
SUBCLOUDS_A_SECOND = 500
"""A quarter of what one state worker stores on a busy machine."""

REJECTED_AT_MOST = 10_000
"""The number of rejected reports that are kept."""
CUT_AFTER = 100
"""The length of a rejected report in the table, in characters."""

_wait_option = click.option(
    "--wait/--no-wait",
    "wait_for_it",
    default=True,
    show_default=True,
    help=f"Wait up to {TAKEN_WITHIN_SECONDS:.0f} s (longer for many) until a state worker has stored it.",
)


@click.group(short_help="Report an observation; list rejected reports.")
def state() -> None:
    """Report an observation about subclouds, as an auditor would, and list rejected reports."""


@state.command("availability")
@click.argument("status", type=click.Choice([str(status) for status in AvailabilityStatus]))
@names_or_all
@_wait_option
@which_option
@yes_option
@pass_operator
def availability(
    operator: Operator,
    status: str,
    names: Sequence[str],
    *,
    everything: bool,
    wait_for_it: bool,
    dry_run: bool,
    yes: bool,
) -> int:
    """Report subclouds as online or offline.

    Online and managed: the initial sync starts. Offline: a running sync stops, and every endpoint becomes unknown.

    \b
    Example:
      dcsync state availability online edge-1 edge-2
    """
    chosen = selected(names, everything=everything)
    if dry_run:
        found = operator.inventory.all() if chosen is None else operator.inventory.find(chosen)
        show_selection(found, f"be reported {status}")
        return 0
    operator.requires("database_url", "redis_url")
    confirm_all(operator, chosen, f"Report as {status}", yes=yes)
    observed = AvailabilityStatus(status)
    with acting(operator, chosen or ()) as intent:
        known = operator.inventory.all() if chosen is None else operator.inventory.find(chosen)
        if not known:
            note("there are no subclouds")
            return 0
        mark = Mark(operator.now(), 0)
        operator.report(
            [
                AvailabilityReport(region_name=each.region_name, mark=mark, availability_status=observed)
                for each in known
            ]
        )
        _record_sent(operator, intent, [each.name for each in known])
    if not wait_for_it:
        say(f"{many(len(known))} reported {status}")
        return 0
    names = [each.name for each in known]
    return _until_written(
        operator, lambda: operator.inventory.find(names), waiting.availability(observed), subclouds=len(names)
    )


@state.command("endpoint")
@click.argument("names", metavar="NAME...", nargs=-1, required=True, type=SubcloudName())
@click.argument("endpoint_type", type=click.Choice([str(type_) for type_ in EndpointType]), metavar="ENDPOINT_TYPE")
@click.argument("status", type=click.Choice([str(status) for status in SyncStatus]))
@_wait_option
@pass_operator
def endpoint(operator: Operator, names: Sequence[str], endpoint_type: str, status: str, *, wait_for_it: bool) -> int:
    """Report the sync status of one endpoint type of these subclouds.

    \b
    Example:
      dcsync state endpoint edge-1 edge-2 firmware out-of-sync
    """
    operator.requires("database_url", "redis_url")
    type_, observed = EndpointType(endpoint_type), SyncStatus(status)
    chosen = list(dict.fromkeys(names))
    with acting(operator, chosen) as intent:
        known = operator.inventory.find(chosen)
        mark = Mark(operator.now(), 0)
        operator.report(
            [
                EndpointReport(region_name=each.region_name, mark=mark, endpoint_type=type_, sync_status=observed)
                for each in known
            ]
        )
        _record_sent(operator, intent, chosen)
    if not wait_for_it:
        for name in chosen:
            say(f"{name}: {type_} reported {status}")
        return 0
    return _until_written(
        operator,
        lambda: operator.inventory.find(chosen),
        waiting.endpoint(type_, observed, why=_why_ignored),
        subclouds=len(chosen),
    )


@state.command("rejected")
@click.option(
    "--limit", type=click.IntRange(1, REJECTED_AT_MOST), default=50, show_default=True, help="Show at most this many."
)
@output_option
@pass_operator
def rejected(operator: Operator, *, limit: int, as_json: bool) -> None:
    """List the reports that were rejected, newest first, and why.

    \b
    Example:
      dcsync state rejected --limit 10 -o json
    """
    reports = operator.rejected_reports.newest(limit=limit)
    if as_json:
        click.echo(json_text([asdict(each) for each in reports]))
    elif not reports:
        note("no report was rejected")
    else:
        now = operator.now()
        say_table(
            ["RECEIVED", "REGION", "REASON", "REPORT"],
            [
                [ago(each.received_at, now=now), each.region_name or "-", each.reason, _cut(each.report)]
                for each in reports
            ],
        )


def _record_sent(operator: Operator, intent: Intent, names: list[str]) -> None:
    """A report is a message: whether it changes anything is decided by the state worker that takes it."""
    operator.operations.record(intent.done(names, now=operator.now(), detail="sent to the state workers"), names)


def _cut(report: str) -> str:
    """Returns its beginning; -o json prints all of it."""
    return report if len(report) <= CUT_AFTER else f"{report[:CUT_AFTER]}..."


def _until_written(
    operator: Operator, look: Callable[[], Sequence[Subcloud]], goal: waiting.Goal, *, subclouds: int = 1
) -> int:
    return waiting.wait(
        operator,
        look,
        goal,
        timeout=TAKEN_WITHIN_SECONDS + subclouds // SUBCLOUDS_A_SECOND,
        quick=True,
        unexplained=(
            "reported, but not stored in time; check that a state worker is running "
            "(celery -A dcsync.worker worker -Q state) and that the report was not rejected (dcsync state rejected)"
        ),
    )


def _why_ignored(known: Subcloud) -> str:
    """Returns why a report was ignored. Source: docs/upstream/state-service.md section 3.3."""
    if known.availability_status is AvailabilityStatus.OFFLINE:
        return "an offline subcloud's endpoints stay unknown until it is online"
    if known.management_state is ManagementState.UNMANAGED:
        return "an unmanaged subcloud's endpoints stay unknown, except for dc-cert"
    return ""
