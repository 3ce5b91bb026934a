"""`dcsync operations`: what operators did, and how every command that changes something is recorded there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from dcsync.cli.operator import Operator, output_option, pass_operator
from dcsync.cli.output import instant, json_text, note, say
from dcsync.cli.selection import SubcloudName
from dcsync.model.errors import DatabaseUnreachable, DcsyncError, RefusedByGuard, SchemaOutOfDate
from dcsync.model.operation import Operation, OperationOutcome

if TYPE_CHECKING:
    from dcsync.model.operation import Intent

SHOWN_AT_MOST = 10_000
NAMED_IN_A_LINE = 3


@contextmanager
def acting(operator: Operator, names: Sequence[str] = ()) -> Iterator[Intent]:
    """Surrounds what an operator does to these subclouds: when it is refused or fails, that is recorded. What is
    carried out is recorded by whoever carries it out, in the same transaction.

    Nothing is recorded where the database does not answer: it cannot be, or may have been already.
    """
    intent = operator.intent()
    try:
        yield intent
    except (DatabaseUnreachable, SchemaOutOfDate):
        raise
    except DcsyncError as error:
        outcome = OperationOutcome.REFUSED if isinstance(error, RefusedByGuard) else OperationOutcome.FAILED
        _record(operator, intent.ended(outcome, names, now=operator.now(), detail=str(error)), names)
        raise


def _record(operator: Operator, ended: Operation, names: Sequence[str]) -> None:
    """The operator's own error is what is shown, whatever becomes of its record."""
    try:
        operator.operations.record(ended, names)
    except DcsyncError as error:
        note(f"warning: not recorded among the operations: {error}")


@click.command(short_help="List what operators did.")
@click.option("--name", "name", metavar="SUBCLOUD", type=SubcloudName(), help="Only what concerns this subcloud.")
@click.option(
    "--limit", type=click.IntRange(1, SHOWN_AT_MOST), default=50, show_default=True, help="Show so many at most."
)
@output_option
@pass_operator
def operations(operator: Operator, *, name: str | None, limit: int, as_json: bool) -> None:
    """List what operators did, newest first: who, from which host, with which command, and how it ended.

    Refused and failed commands are listed as well. Entries are kept for DCSYNC_HISTORY_DAYS, also those of subclouds
    that were deleted.

    \b
    Examples:
      dcsync operations --limit 10
      dcsync operations --name edge-1 -o json
    """
    found = operator.operations.newest(limit=limit, name=name)
    if as_json:
        click.echo(json_text([asdict(each) for each in found]))
        return
    if not found:
        note("no operation is recorded" + (f" for {name}" if name else ""))
    for each in found:
        for line in operation_lines(each):
            say(line)


def operation_lines(operation: Operation) -> Iterator[str]:
    """An operation for people."""
    yield f"{instant(operation.at)}  {operation.command}: {operation.outcome}"
    yield f"    {_about(operation)}by {operation.who} on {operation.host}"
    if operation.detail:
        yield f"    {operation.detail}"


def _about(operation: Operation) -> str:
    if not operation.count:
        return ""
    named = ", ".join(operation.names[:NAMED_IN_A_LINE])
    more = operation.count - NAMED_IN_A_LINE
    return named + (f" and {more} more, " if more > 0 else ", ")
