"""`dcsync sync`, `dcsync wait`, `dcsync history`: requests an initial sync, waits for it, shows its attempts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, assert_never

import click

from dcsync.cli import previews, waiting
from dcsync.cli.operations import acting, operation_lines
from dcsync.cli.operator import Operator, output_option, pass_operator
from dcsync.cli.output import instant, json_text, many, note, say, span, subcloud_object
from dcsync.cli.selection import SubcloudName, confirm_all, names_or_all, selected, yes_option
from dcsync.model.history import AttemptHistory, AuditHistory, Life, Named, RequestHistory, StepHistory
from dcsync.model.operation import Operation
from dcsync.model.pair import Pair
from dcsync.model.subcloud import ManagementState, Subcloud, SyncStatus

if TYPE_CHECKING:
    from dcsync.cli.ports import Inventory


@click.command(short_help="Run the initial sync again now.")
@names_or_all
@waiting.wait_options("all are completed")
@click.option("--dry-run", is_flag=True, help="Only show what would be written; exit 1 if there is something.")
@output_option
@yes_option
@pass_operator
def sync(
    operator: Operator,
    names: Sequence[str],
    *,
    everything: bool,
    wait_for_it: bool,
    timeout: float | None,
    dry_run: bool,
    as_json: bool,
    yes: bool,
) -> int:
    """Run every step of the initial sync again, without waiting for a hold-off; supersedes a run in progress.

    --all means every managed and online subcloud. --timeout implies --wait.

    \b
    Examples:
      dcsync sync edge-1 edge-2 --wait --timeout 300
      dcsync sync edge-1 --dry-run                  what it would write
    """
    chosen = selected(names, everything=everything)
    if dry_run:
        return _show_plan(operator, chosen, as_json=as_json)
    operator.requires("database_url", "redis_url")
    confirm_all(operator, chosen, "Sync every managed and online one of", yes=yes)
    with acting(operator, chosen or ()) as intent:
        transitions = operator.inventory.request(chosen, now=operator.now(), by=operator.name, intent=intent)
    if not transitions:
        note("no subcloud is managed and online: nothing to sync")
    else:
        note(f"{many(len(transitions), 'initial sync')} requested")
        operator.hint_sweep()
    is_waiting = bool(transitions) and (wait_for_it or timeout is not None)
    requested = [transition.name for transition in transitions]
    code = 0
    if is_waiting:
        code = waiting.wait(
            operator,
            lambda: operator.inventory.find(requested),
            waiting.COMPLETED,
            timeout=timeout,
            report=note if as_json else say,
        )
    if as_json and is_waiting:
        click.echo(json_text([subcloud_object(shown) for shown in operator.views(operator.inventory.find(requested))]))
    elif as_json:
        click.echo(json_text([asdict(transition) for transition in transitions]))
    return code


def _show_plan(operator: Operator, names: list[str] | None, *, as_json: bool) -> int:
    operator.requires("database_url", "redis_url", "central_auth_url", "password")
    if names is None:
        found = [known for known in operator.inventory.all() if _may_sync(known)]
    else:
        found = operator.inventory.find(names)
    return previews.show(operator, found, previews.sync_look, as_json=as_json)


def _may_sync(known: Subcloud) -> bool:
    return Pair(known.management_state, known.availability_status).is_eligible


@click.command(short_help="Wait until subclouds reach a state.")
@click.option("--for", "goal", type=click.Choice(list(waiting.GOALS)), required=True, help="What to wait for.")
@click.argument("names", nargs=-1, type=SubcloudName())
@click.option(
    "--all", "everything", is_flag=True, help="Every managed one (for online: every one); the default without NAME."
)
@click.option(
    "--fresh",
    is_flag=True,
    help="For in-sync: request audits, and accept only what they find from now on.",
)
@waiting.timeout_option
@yes_option
@pass_operator
def wait(
    operator: Operator,
    goal: str,
    names: Sequence[str],
    *,
    everything: bool,
    fresh: bool,
    timeout: float | None,
    yes: bool,
) -> int:
    """Wait until subclouds are completed, in-sync (all their endpoint types) or online.

    in-sync means proven: compared after the latest request and the latest known change of the central cloud, and not
    longer ago than DCSYNC_STATUS_WINDOW. Exit 1 when the time is up, and at once when a subcloud is unmanaged, or
    stays unknown because audits are made on request only (DCSYNC_AUDIT_INTERVAL=0).

    \b
    Examples:
      dcsync wait --for in-sync --all --timeout 600
      dcsync wait --for in-sync edge-1 --fresh
    """
    if fresh and goal != SyncStatus.IN_SYNC:
        raise click.UsageError("--fresh is for --for in-sync", click.get_current_context())
    chosen = selected(names, everything=everything or not names)
    if fresh:
        confirm_all(operator, chosen, "Request audits of", yes=yes)
    every = operator.inventory.all if goal == waiting.ONLINE.reached else _all_managed(operator.inventory)
    look = every if chosen is None else lambda: operator.inventory.find(chosen)
    if not look():
        note("no subcloud is managed, or there is none: there is nothing to wait for")
        return 1
    wanted = waiting.GOALS[goal]
    if goal == SyncStatus.IN_SYNC:
        since = _request_audits(operator, [known.name for known in look()]) if fresh else None
        wanted = waiting.in_sync(since=since, audits_on_request=not operator.settings.audit_interval)
    return waiting.wait(operator, look, wanted, timeout=timeout)


def _request_audits(operator: Operator, names: list[str]) -> datetime:
    """Requests audits of all that dcsync audits; returns when."""
    from dcsync.audit.endpoints import audited_types

    operator.requires("database_url", "redis_url")
    now = operator.now()
    with acting(operator, names) as intent:
        operator.audit_store.request(names, audited_types(), now=now, by=operator.name, intent=intent)
    operator.hint_audit_sweep()
    return now


def _all_managed(inventory: Inventory) -> Callable[[], list[Subcloud]]:
    """Returns a function that finds all managed subclouds, and those that it found managed before: one that is
    unmanaged during a wait has not reached anything."""
    were_managed: set[str] = set()

    def look() -> list[Subcloud]:
        found = inventory.all()
        were_managed.update(known.name for known in found if known.management_state is ManagementState.MANAGED)
        return [known for known in found if known.name in were_managed]

    return look


# --- history -----------------------------------------------------------------------------------------------------


@click.command(short_help="Show what happened to a subcloud.")
@click.argument("name", type=SubcloudName())
@output_option
@pass_operator
def history(operator: Operator, name: str, *, as_json: bool) -> None:
    """Show what happened to a subcloud, newest first: operations, requests with their attempts and steps, and audits
    that found a difference or failed; of failures in a row the first, and the audit that ended them.

    A deleted subcloud's history is kept for DCSYNC_HISTORY_DAYS; where its name was added again, both are shown.

    \b
    Example:
      dcsync history edge-1 -o json
    """
    lives = operator.inventory.history(name)
    if as_json:
        click.echo(json_text([_object(life, entry) for life in lives for entry in life.entries]))
        return
    for life in lives:
        if len(lives) > 1 or life.deleted_at is not None:
            say(_heading(life))
        if not life.entries:
            note(f"nothing is recorded of {life.name}")
        for entry in life.entries:
            for line in _lines(entry):
                say(line)


def _heading(life: Life) -> str:
    until = f"deleted {instant(life.deleted_at)}" if life.deleted_at else "not deleted"
    return f"--- {life.name}, region {life.region_name}, added {instant(life.added_at)}, {until}"


def _object(life: Life, entry: RequestHistory | AuditHistory | Operation) -> dict[str, object]:
    """An entry as JSON: `entry` says which, and `subcloud_id` and `deleted_at` of which subcloud of this name."""
    match entry:
        case RequestHistory():
            what = "request"
        case AuditHistory():
            what = "audit"
        case Operation():
            what = "operation"
        case _:
            assert_never(entry)
    return {"entry": what, "at": entry.at, "subcloud_id": life.subcloud_id, "deleted_at": life.deleted_at} | asdict(
        entry
    )


def _lines(entry: RequestHistory | AuditHistory | Operation) -> Iterator[str]:
    match entry:
        case RequestHistory():
            return _request_lines(entry)
        case AuditHistory():
            return _audit_lines(entry)
        case Operation():
            return operation_lines(entry)
        case _:
            assert_never(entry)


def _request_lines(request: RequestHistory) -> Iterator[str]:
    yield f"{instant(request.requested_at)}  request {request.generation}: {request.cause}, by {request.requested_by}"
    if not request.attempts:
        yield "    no attempt yet"
    for attempt in request.attempts:
        yield f"    attempt {attempt.attempt}: {_ending(attempt)}"
        for step in attempt.steps:
            yield f"      {_step(step)}"
        yield f"      run {attempt.run_id} on {attempt.worker}"


def _ending(attempt: AttemptHistory) -> str:
    if attempt.ended_at is None:
        return "not ended"
    text = f"{attempt.ending or 'ended'} after {span((attempt.ended_at - attempt.started_at).total_seconds())}"
    because = ": ".join(part for part in (attempt.reason, attempt.detail) if part)
    return f"{text} ({because})" if because else text


def _step(step: StepHistory) -> str:
    if step.ended_at is None:
        return f"{step.step}: not ended"
    text = f"{step.step}: {step.outcome} in {span((step.ended_at - step.started_at).total_seconds())}"
    return f"{text} ({step.detail})" if step.detail else text


def _audit_lines(audit: AuditHistory) -> Iterator[str]:
    took = span((audit.ended_at - audit.started_at).total_seconds())
    is_repaired = audit.result is SyncStatus.IN_SYNC and audit.differences.count > 0
    found = "failed" if audit.reason else "repaired" if is_repaired else str(audit.result)
    yield f"{instant(audit.ended_at)}  audit of {audit.endpoint_type}: {found} after {took}"
    if because := ": ".join(part for part in (audit.reason, audit.detail) if part):
        yield f"    {because}"
    for what, named in (
        ("differed", audit.differences),
        ("written", audit.written),
        ("not written", audit.not_written),
    ):
        yield from _named_lines(what, named)
    yield f"    run {audit.run_id} on {audit.worker}"


def _named_lines(what: str, named: Named) -> Iterator[str]:
    for entry in named.names:
        yield f"    {what}: {entry}"
    if named.count > len(named.names):
        yield f"    {what}: {named.count - len(named.names)} more"
