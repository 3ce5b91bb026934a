"""The subclouds of a command: NAME... or --all, with shell completion and confirmation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from dcsync.cli.operator import Operator
from dcsync.cli.output import clean, in_natural_order, many, note, say
from dcsync.model.subcloud import Subcloud

COMPLETED_AT_MOST = 200
"""The most names offered for completion."""

Command = TypeVar("Command", bound=Callable[..., Any])


class SubcloudName(click.ParamType[str]):
    """A subcloud's name; whether it exists is checked by the store."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not isinstance(value, str) or not value or not value.isprintable():
            self.fail(f"{clean(str(value))!r} cannot be a subcloud's name", param, ctx)
        return value

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        try:
            names = ctx.ensure_object(Operator).inventory.names_starting_with(incomplete, limit=COMPLETED_AT_MOST)
        except Exception:  # noqa: BLE001 - completion must print no errors
            return []
        return [CompletionItem(name) for name in names]


def names_or_all(command: Command) -> Command:
    """Adds NAME... and --all, exactly one of which is given. The command gets `names` (a list) and `everything`."""
    command = click.option("--all", "everything", is_flag=True, help="Every subcloud.")(command)
    return click.argument("names", nargs=-1, type=SubcloudName())(command)


def selected(names: Sequence[str], *, everything: bool) -> list[str] | None:
    """Returns the names without duplicates, or None for --all; anything else is a usage error."""
    if everything and names:
        raise click.UsageError("give names or --all, not both", click.get_current_context())
    if not everything and not names:
        raise click.UsageError("give at least one NAME, or --all", click.get_current_context())
    return None if everything else list(dict.fromkeys(names))


def confirm(operator: Operator, question: str, *, yes: bool) -> None:
    """Asks for confirmation on a terminal, unless --yes was given. Raises click's Exit (1) when it is denied, and a
    usage error where nobody can be asked."""
    if yes:
        return
    if not operator.is_at_terminal:
        raise click.UsageError(
            f"{question} Input or output is no terminal: give --yes, or --dry-run to see", click.get_current_context()
        )
    if not click.confirm(clean(question), err=True):
        click.echo("nothing was changed", err=True)
        raise click.exceptions.Exit(1)


def confirm_all(operator: Operator, names: list[str] | None, doing: str, *, yes: bool) -> None:
    """Asks for confirmation of a command for all subclouds, with their number."""
    if names is None and not yes:
        confirm(operator, f"{doing} {many(len(operator.inventory.all()))}?", yes=yes)


def show_selection(subclouds: Iterable[Subcloud], doing: str, *, others: int = 0) -> None:
    """Prints which subclouds a command would act on, and how many; `others` are as wanted already."""
    names = sorted((known.name for known in subclouds), key=in_natural_order)
    for name in names:
        say(name)
    note(f"{many(len(names))} would {doing}" + (f", {others} already" if others else ""))


yes_option = click.option("--yes", "-y", is_flag=True, help="Do not ask; needed where input or output is no terminal.")
which_option = click.option("--dry-run", is_flag=True, help="Only show how many subclouds it would be, and which.")
