"""`dcsync login`: the logins that clouds refused, which are not tried again before their time."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from dcsync.cli.operations import acting
from dcsync.cli.operator import Operator, output_option, pass_operator
from dcsync.cli.output import instant, json_text, note, say, say_table

if TYPE_CHECKING:
    from dcsync.runs.logins import RefusedUser


@click.group(short_help="Show and forget refused logins.")
def login() -> None:
    """Show and forget refused logins.

    A password that a cloud refused is not tried there again before its time, so that the user is not locked out.
    """


@login.command("list")
@output_option
@pass_operator
def list_(operator: Operator, *, as_json: bool) -> None:
    """List where a login was refused, the newest refusal first, and when it is tried again."""
    operator.requires("redis_url")
    counts, refused = operator.refused_logins.counts(), operator.refused_logins.remembered()
    if as_json:
        click.echo(json_text(asdict(counts) | {"logins": [asdict(each) for each in refused]}))
        return
    note(f"{counts.refused} logins refused so far, {counts.held_back} not sent because of that")
    if refused:
        say_table(["CLOUD", "USER", "REFUSED", "TIMES", "NOT BEFORE"], [_row(each) for each in refused])


@login.command()
@click.option("--cloud", metavar="URL", help="Only those at this Keystone, as `dcsync login list` shows it.")
@pass_operator
def forget(operator: Operator, *, cloud: str | None) -> int:
    """Forget refused logins, so that the password is tried at once: after it was corrected on the cloud.

    A password that was changed in dcsync's settings is tried at once without this.

    Exit 1 if there was nothing to forget.
    """
    operator.requires("database_url", "redis_url")
    with acting(operator) as intent:
        forgotten = operator.refused_logins.forget_all(cloud)
        operator.operations.record(intent.done((), now=operator.now(), detail=f"{forgotten} forgotten"), ())
    say(f"{forgotten} forgotten")
    return 0 if forgotten else 1


def _row(refused: RefusedUser) -> list[str]:
    times = str(refused.in_a_row)
    return [refused.cloud, refused.user, instant(refused.refused_at), times, instant(refused.retry_at)]
