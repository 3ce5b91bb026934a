"""`dcsync central`: what the watch last read of the central cloud, and whether it can read it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from dcsync.cli.operator import Operator, output_option, pass_operator
from dcsync.cli.output import ago, json_text, say, span

if TYPE_CHECKING:
    from datetime import datetime

    from dcsync.settings import Settings
    from dcsync.state.ports import CentralFacts


@click.command(short_help="Show whether the central cloud can be read.")
@output_option
@pass_operator
def central(operator: Operator, *, as_json: bool) -> int:
    """Show when the central cloud was last checked, since when it cannot be read or is refused, and when it changed.

    Exit 0 it can be read and was accepted, 1 it cannot, was refused, or nobody checks.
    """
    from dcsync.audit.endpoints import audited_types

    facts, now = operator.central_checks.central_facts(), operator.now()
    changed = {type_: operator.audit_store.central_state(type_) for type_ in audited_types()}
    is_checked = operator.settings.central_silent_seconds > 0
    problem = trouble(facts, now=now, settings=operator.settings) if is_checked else NOT_CHECKED
    if as_json:
        click.echo(
            json_text(
                central_object(facts)
                | {
                    "endpoint_types": {
                        type_: {"changed_at": s.changed_at if s else None} for type_, s in changed.items()
                    }
                }
            )
        )
    else:
        say(f"{'checked':<9}  {ago(facts.checked_at, now=now) if facts.checked_at else 'never'}")
        say(f"{'state':<9}  {problem or 'readable'}")
        for type_, state in changed.items():
            say(f"{type_:<9}  " + (f"changed {ago(state.changed_at, now=now)}" if state else "not read yet"))
    return 0 if problem is None else 1


NOT_CHECKED = "not checked, audits are made on request only (DCSYNC_AUDIT_INTERVAL=0)"


def central_trouble(operator: Operator) -> str | None:
    """Returns why the central cloud is not known as it is now, in a few words; None: nothing is known to be wrong."""
    return trouble(operator.central_checks.central_facts(), now=operator.now(), settings=operator.settings)


def trouble(facts: CentralFacts, *, now: datetime, settings: Settings) -> str | None:
    if not (silent_after := settings.central_silent_seconds):
        return None
    if facts.unreadable_since is not None:
        return f"unreadable for {_for(facts.unreadable_since, now)}, {facts.unreadable_reason}"
    if facts.refused:
        first = min(facts.refused, key=lambda refused: refused.since)
        return f"refused for {_for(first.since, now)} in {first.endpoint_type}, {first.reason}"
    if facts.checked_at is None:
        return "not checked yet"
    is_silent = (now - facts.checked_at).total_seconds() > silent_after
    return f"not checked for {_for(facts.checked_at, now)}" if is_silent else None


def _for(since: datetime, now: datetime) -> str:
    return span((now - since).total_seconds())


def central_object(facts: CentralFacts) -> dict[str, object]:
    """What the watch recorded of the central cloud, as JSON."""
    return {
        "checked_at": facts.checked_at,
        "unreadable_since": facts.unreadable_since,
        "unreadable_reason": facts.unreadable_reason or None,
        "refused": [
            {"endpoint_type": each.endpoint_type, "since": each.since, "reason": each.reason} for each in facts.refused
        ],
    }
