"""Commands about this installation: `up`, `demo`, `db upgrade`, `config show`, `version`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from dcsync.cli.operator import Operator, output_option, pass_operator
from dcsync.cli.output import json_text, say

Command = TypeVar("Command", bound=Callable[..., Any])


def _process_options(command: Command) -> Command:
    """Adds the options of `up` and `demo`; the command gets `flower`, `flower_port` and `verbose`."""
    port = click.IntRange(1, 65535)
    for option in (
        click.option("--verbose", "-v", is_flag=True, help="Show the logs of the processes as well."),
        click.option("--flower-port", type=port, metavar="PORT", help="Default: 5555, or a free port."),
        click.option("--flower/--no-flower", default=True, show_default=True, help="Also run Flower, the dashboard."),
    ):
        command = option(command)
    return command


@click.command(short_help="Run everything on this machine.")
@_process_options
def up(*, flower: bool, flower_port: int | None, verbose: bool) -> int:
    """Run everything on this machine, with embedded servers where no URL is set; Ctrl-C stops it."""
    from dcsync.local import up as local_up

    return local_up.run(options=local_up.Options(flower=flower, flower_port=flower_port, verbose=verbose))


@click.command(short_help="Run a demo with a fake cloud.")
@click.option("--subclouds", type=click.IntRange(1, 5000), default=20, show_default=True, metavar="N", help="How many.")
@click.option("--latency", type=click.FloatRange(0, 10), default=0.0, metavar="SECONDS", help="Added to every request.")
@click.option("--drift", is_flag=True, help="Damage subclouds and change the central cloud instead of an outage.")
@_process_options
def demo(*, subclouds: int, latency: float, drift: bool, flower: bool, flower_port: int | None, verbose: bool) -> int:
    """Run the whole system with a fake central cloud and N fake subclouds; ends with a verdict, exit 0 or 1."""
    from dcsync.local import demo as local_demo
    from dcsync.local.drift import DriftDemo
    from dcsync.local.up import Options

    options = Options(flower=flower, flower_port=flower_port, verbose=verbose)
    return local_demo.run(subclouds, latency=latency, options=options, demo_class=DriftDemo if drift else None)


@click.group("db")
def database() -> None:
    """Manage the database schema."""


@database.command()
@pass_operator
def upgrade(operator: Operator) -> None:
    """Upgrade the schema to the newest revision; does nothing when it is up to date."""
    from dcsync.adapters.postgres import database as adapter

    before, now = adapter.upgrade(operator.database_url)
    if before != now:
        done = operator.intent().done((), now=operator.now(), detail=f"from {before or 'nothing'} to {now}")
        operator.operations.record(done, ())
    say(f"the database is at revision {now}" + ("" if before != now else " already"))


@click.group()
def config() -> None:
    """Show the settings."""


@config.command()
@output_option
@pass_operator
def show(operator: Operator, *, as_json: bool) -> None:
    """Show every setting as this process sees it, secrets masked; in JSON with numbers, lists and null."""
    if as_json:
        click.echo(json_text(operator.settings.typed()))
        return
    shown = operator.settings.shown()
    width = max(map(len, shown))
    for variable, value in shown.items():
        say(f"{variable:<{width}}  {value}")


@click.command()
def version() -> None:
    """Print the release of dcsync."""
    from importlib.metadata import version as installed

    say(f"dcsync {installed('dcsync')}")
