"""`dcsync service`: the health of the processes on this host, for a supervisor.

Its exit codes are those of OCF resource agents: 0 running, 7 not running, 1 failed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import click

from dcsync.cli.alarms import refused_in_words
from dcsync.cli.central import central_trouble
from dcsync.cli.operator import Operator, output_option, pass_operator
from dcsync.cli.output import json_text, note, say

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dcsync.adapters.host.process_records import Role
    from dcsync.local.health import Health, World

ROLES = ("state", "sync", "beat")
ANSWER_SECONDS = 2
"""How long to wait for database and broker."""

_role_option = click.option("--role", type=click.Choice(ROLES), required=True, help="The processes to check.")


@click.group(short_help="Check the health of the processes on this host.")
def service() -> None:
    """Check the health of the processes on this host. Exit codes as OCF's: 0 running, 7 not running, 1 failed.

    Processes report their health in DCSYNC_RUN_DIR, which must be the same for them and for this command.
    """


@service.command()
@_role_option
@pass_operator
def status(operator: Operator, role: str) -> int:
    """Check that a process of this role runs and is responsive. Needs neither database nor broker."""
    from dcsync.adapters.host.process_records import Role
    from dcsync.local import health

    checked = Role(role)
    return _print(health.status(_world(operator, checked).find(), role=checked, now=operator.monotonic()))


@service.command()
@_role_option
@output_option
@pass_operator
def monitor(operator: Operator, role: str, *, as_json: bool) -> int:
    """Check also that these processes do their work.

    The loop is responsive, database and broker answer, the queues are consumed, and waiting work is taken.

    Also shows which periodic tasks were late, and run by workers in beat's place, and a clock of this host that differs
    from the database's by more than 2 s. Neither fails the check. Takes a few seconds at most.

    \b
    Example:
      dcsync service monitor --role sync || systemctl restart 'dcsync-sync@*'
    """
    from dcsync.adapters.host.process_records import Role
    from dcsync.local import health
    from dcsync.model.errors import BrokerUnreachable, DatabaseUnreachable

    operator.requires(*(["redis_url"] if role == "beat" else ["redis_url", "database_url"]))
    busy = float(operator.settings.visibility_timeout)
    try:
        found = health.monitor(_world(operator, Role(role)), role=Role(role), busy_seconds=busy)
        if role != "beat" and found.code is health.Code.RUNNING:
            found = _with_refused_notices(operator, _with_central_cloud(operator, found))
    except (BrokerUnreachable, DatabaseUnreachable) as exc:
        what = "broker" if isinstance(exc, BrokerUnreachable) else "database"
        found = health.Health(health.Code.FAILED, f"the {what} does not answer: {operator.explained(exc)}")
    if as_json:
        click.echo(json_text(_as_json(found, role)))
        return int(found.code)
    code = _print(found)
    for line in _lines(found):
        note(line) if code else say(line)
    return code


def _as_json(found: Health, role: str) -> dict[str, object]:
    return {
        "role": role,
        "code": int(found.code),
        "text": found.text,
        "late_total": dict(found.late),
        "clock_seconds_ahead": {name: round(ahead, 3) for name, ahead in found.clocks.items()},
        "wrong_clocks": sorted(found.wrong_clocks),
    }


def _lines(found: Health) -> Iterator[str]:
    if found.late:
        yield f"late, and run by a worker: {', '.join(f'{name} {count}x' for name, count in found.late.items())}"
    for name, ahead in found.wrong_clocks.items():
        direction = "ahead of" if ahead > 0 else "behind"
        yield f"the clock of this host is {abs(ahead):.1f} s {direction} the database's, by {name}; check its NTP"


def _with_central_cloud(operator: Operator, found: Health) -> Health:
    """No fault of these processes, which restarting them would not repair: the code stays."""
    problem = central_trouble(operator)
    return found if problem is None else replace(found, text=f"{found.text}; the central cloud is {problem}")


def _with_refused_notices(operator: Operator, found: Health) -> Health:
    problem = refused_in_words(operator)
    return found if problem is None else replace(found, text=f"{found.text}; {problem}")


def _world(operator: Operator, role: Role) -> World:
    from dcsync.adapters.broker.queues import QueueLengths
    from dcsync.adapters.broker.redis_client import make_client
    from dcsync.adapters.broker.ticks import Ticks
    from dcsync.adapters.host import process_records
    from dcsync.adapters.postgres import database
    from dcsync.local.health import World

    settings = operator.settings
    url = settings.redis_url.get_secret_value() if settings.redis_url else None
    system = process_records.system_of(url) if url else None
    return World(
        find=lambda: process_records.find(settings.run_folder, role=role, system=system),
        check_database=lambda: database.check(operator.database_url, seconds=ANSWER_SECONDS),
        waiting=QueueLengths(url or "redis://", timeout_seconds=ANSWER_SECONDS).waiting,
        late_totals=Ticks(make_client(url or "redis://", timeout_seconds=ANSWER_SECONDS, retries=0)).late_totals,
        clock_ahead=operator.clock_ahead,
        monotonic=operator.monotonic,
        sleep=operator.sleep,
    )


def _print(found: Health) -> int:
    (say if found.code == 0 else note)(found.text)
    return int(found.code)
