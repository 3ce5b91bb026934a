"""Whether a command line of a deployment file is one that the program really takes; nothing of it is run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click
from celery.bin.base import CLIContext
from celery.bin.celery import celery
from flower.options import default_options
from pydantic import SecretStr

from dcsync.cli import root
from dcsync.settings import Settings
from dcsync.tasks.app import make_app


def parsed(command: Sequence[str]) -> dict[str, Any]:
    """The parameters that `dcsync ...` or `celery --app=dcsync.worker ...` would work with.

    Raises click.ClickException where the program would complain of them.
    """
    program, *arguments = command
    if program == "dcsync":
        return _parsed_by(root, arguments)
    assert program == "celery", command
    app, role, *options = arguments
    assert app == "--app=dcsync.worker", command
    if role == "flower":
        return _flower(options)
    context = CLIContext(
        app=make_app(Settings(redis_url=SecretStr("redis://127.0.0.1:1/0"))), no_color=True, workdir=None
    )
    return dict(celery.commands[role].make_context(role, options, obj=context).params)


def _parsed_by(group: click.Command, arguments: list[str]) -> dict[str, Any]:
    command: click.Command = group
    context: click.Context | None = None
    while isinstance(command, click.Group):
        name, *arguments = arguments
        context = click.Context(command, parent=context, info_name=name)
        found = command.get_command(context, name)
        if found is None:
            raise click.UsageError(f"no such command: {name}")
        command = found
    return dict(command.make_context(command.name, arguments, parent=context).params)


def _flower(options: list[str]) -> dict[str, Any]:
    """Flower's options are Tornado's, which click passes on unseen."""
    given: dict[str, Any] = {}
    for option in options:
        name, equals, value = option.removeprefix("--").partition("=")
        known = name.replace("_", "-")
        if not (option.startswith("--") and equals and known in default_options):
            raise click.UsageError(f"no such option of Flower: {option}")
        given[name] = value
    return given
