"""Which subclouds a command means: NAME... or --all, completed by the shell, and asked back about where it matters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from dcsync.cli.operator import Operator
from dcsync.cli.output import clean, many

COMPLETED_AT_MOST = 200
"""Names offered to a shell."""

Command = TypeVar("Command", bound=Callable[..., Any])


class SubcloudName(click.ParamType[str]):
    """A name of a subcloud; whether there is one is the store's answer."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not isinstance(value, str) or not value or not value.isprintable():
            self.fail(f"{clean(str(value))!r} cannot be a subcloud's name", param, ctx)
        return value

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        try:
            names = ctx.ensure_object(Operator).inventory.names_starting_with(incomplete, limit=COMPLETED_AT_MOST)
        except Exception:  # noqa: BLE001 - a shell that completes must stay silent whatever is wrong
            return []
        return [CompletionItem(name) for name in names]


def names_or_all(command: Command) -> Command:
    """Adds NAME... and --all: exactly one of them is given. The command gets `names` (a list) and `everything`."""
    command = click.option("--all", "everything", is_flag=True, help="Every subcloud.")(command)
    return click.argument("names", nargs=-1, type=SubcloudName())(command)


def selected(names: Sequence[str], *, everything: bool) -> list[str] | None:
    """The names without repetition, or None for --all; anything else is a usage error."""
    if everything and names:
        raise click.UsageError("give names or --all, not both", click.get_current_context())
    if not everything and not names:
        raise click.UsageError("give at least one NAME, or --all", click.get_current_context())
    return None if everything else list(dict.fromkeys(names))


def ask(operator: Operator, question: str, *, yes: bool) -> None:
    """Ask on a terminal whether to go on; elsewhere, or with --yes, go on. Raises click's Exit (1) on a no."""
    if yes or not operator.is_at_terminal:
        return
    if not click.confirm(clean(question), err=True):
        click.echo("nothing was changed", err=True)
        raise click.exceptions.Exit(1)


def ask_about_all(operator: Operator, names: list[str] | None, doing: str, *, yes: bool) -> None:
    """Before a command for the whole fleet: say how many subclouds it is about."""
    if names is None and not yes and operator.is_at_terminal:
        ask(operator, f"{doing} {many(len(operator.inventory.all()))}?", yes=yes)


yes_option = click.option("--yes", "-y", is_flag=True, help="Do not ask.")
