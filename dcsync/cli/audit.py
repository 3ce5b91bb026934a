"""`dcsync audit`, `dcsync sync-request` and `dcsync diff`: compare and repair now, or show what would be written."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

from dcsync.cli import previews, waiting
from dcsync.cli.central import central_trouble
from dcsync.cli.operations import acting
from dcsync.cli.operator import Operator, output_option, pass_operator
from dcsync.cli.output import ago, in_natural_order, json_text, many, note, say, say_table, span, until
from dcsync.cli.selection import (
    SubcloudName,
    confirm_all,
    names_or_all,
    selected,
    show_selection,
    which_option,
    yes_option,
)
from dcsync.model.pair import Pair
from dcsync.model.reasons import Reason
from dcsync.model.shown import View
from dcsync.model.states.audit import AuditStatus
from dcsync.model.states.initial_sync import InitialSyncState
from dcsync.model.subcloud import EndpointType, ManagementState, SyncStatus

if TYPE_CHECKING:
    from dcsync.audit.ports import AuditRow
    from dcsync.bootstrap import PreviewServices

Command = TypeVar("Command", bound=Callable[..., Any])


class OneOf(click.ParamType[str]):
    """A choice whose values are read when they are needed, from the registry of endpoint types."""

    name = "choice"

    def __init__(self, listed: Callable[[], Iterable[str]]) -> None:
        self._listed = listed

    @property
    def _choice(self) -> click.Choice[str]:
        return click.Choice([str(word) for word in self._listed()])

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return self._choice.convert(value, param, ctx)

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str | None:
        return self._choice.get_metavar(param, ctx)

    def get_missing_message(self, param: click.Parameter, ctx: click.Context | None) -> str:
        return self._choice.get_missing_message(param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return self._choice.shell_complete(ctx, param, incomplete)


def audited_types() -> tuple[EndpointType, ...]:
    """Returns the types of the registry; imported only when needed, because it imports the planner."""
    from dcsync.audit import endpoints

    return endpoints.audited_types()


def resource_types() -> dict[str, EndpointType]:
    """Returns resource type -> endpoint type; imported as in audited_types."""
    from dcsync.audit import endpoints

    return endpoints.resource_types()


@dataclass(frozen=True)
class Scope:
    """The endpoint types that are compared, and the resource types that are repaired (None: all)."""

    endpoint_types: tuple[EndpointType, ...]
    resource_types: tuple[str, ...] | None


def _scope_options(command: Command) -> Command:
    """Adds --endpoint-type and --resource-type; the command gets `endpoint_types` and `restricted_to`."""
    for option in (
        click.option(
            "--resource-type",
            "restricted_to",
            multiple=True,
            type=OneOf(resource_types),
            help="Repair these only; may be repeated.",
        ),
        click.option(
            "--endpoint-type",
            "endpoint_types",
            multiple=True,
            type=OneOf(audited_types),
            help="Only this; may be repeated. Default: all audited types.",
        ),
    ):
        command = option(command)
    return command


def _scope(endpoint_types: Sequence[str], restricted_to: Sequence[str]) -> Scope:
    """Returns the scope; resource types imply their endpoint types. A usage error where both are given and conflict."""
    chosen = {EndpointType(type_) for type_ in endpoint_types}
    endpoint_type_of = resource_types()
    implied = {endpoint_type_of[type_] for type_ in restricted_to}
    if chosen and implied and not implied <= chosen:
        odd = ", ".join(type_ for type_ in restricted_to if endpoint_type_of[type_] not in chosen)
        raise click.UsageError(f"{odd}: not of endpoint type {' or '.join(chosen)}", click.get_current_context())
    wanted = implied or chosen or set(audited_types())
    return Scope(
        endpoint_types=tuple(type_ for type_ in audited_types() if type_ in wanted),
        resource_types=tuple(restricted_to) or None,
    )


# --- audit and sync-request ---------------------------------------------------------------------------------------


@click.command(short_help="Compare and repair now.")
@names_or_all
@_scope_options
@click.option("--allow-deletes", is_flag=True, help="For this run, allow deletes and shrinking that guards refuse.")
@click.option("--dry-run", is_flag=True, help="Only show what would be written; exit 1 if there is something.")
@waiting.wait_options("all have been audited")
@output_option
@yes_option
@pass_operator
def audit(
    operator: Operator,
    names: Sequence[str],
    *,
    everything: bool,
    endpoint_types: Sequence[str],
    restricted_to: Sequence[str],
    allow_deletes: bool,
    dry_run: bool,
    wait_for_it: bool,
    timeout: float | None,
    as_json: bool,
    yes: bool,
) -> int:
    """Compare subclouds with the central cloud and repair what differs, now, without waiting for a hold-off.

    Subclouds that are offline or not completed are audited once they are. --timeout implies --wait.

    \b
    Examples:
      dcsync audit edge-1 --wait
      dcsync audit --all --resource-type users
      dcsync audit edge-1 --dry-run                 what would be written
      dcsync audit edge-1 --allow-deletes           after a guard refused it
    """
    scope = _scope(endpoint_types, restricted_to)
    chosen = selected(names, everything=everything)
    if dry_run:
        return _show(operator, chosen, scope, as_json=as_json)
    operator.requires("database_url", "redis_url")
    confirm_all(operator, chosen, "Audit and repair" + (", deletions allowed," if allow_deletes else ""), yes=yes)
    return _request(
        operator, chosen, scope, allow_deletes=allow_deletes, wait_for_it=wait_for_it, timeout=timeout, as_json=as_json
    )


@click.command("sync-request", short_help="Audit one endpoint type now.")
@click.argument("endpoint_type", type=OneOf(audited_types))
@click.argument("names", nargs=-1, type=SubcloudName())
@click.option("--all", "everything", is_flag=True, help="Every subcloud; the default without NAME.")
@waiting.wait_options("all have been audited")
@which_option
@output_option
@yes_option
@pass_operator
def sync_request(
    operator: Operator,
    endpoint_type: str,
    names: Sequence[str],
    *,
    everything: bool,
    wait_for_it: bool,
    timeout: float | None,
    dry_run: bool,
    as_json: bool,
    yes: bool,
) -> int:
    """Audit one endpoint type, as dcsync does by itself when the central cloud changed.

    \b
    Examples:
      dcsync sync-request identity                  everywhere
      dcsync sync-request platform edge-1 --wait
    """
    chosen = selected(names, everything=everything or not names)
    if dry_run:
        found = operator.inventory.all() if chosen is None else operator.inventory.find(chosen)
        show_selection(found, f"be audited for {endpoint_type}")
        return 0
    operator.requires("database_url", "redis_url")
    confirm_all(operator, chosen, f"Request an audit of {endpoint_type} on", yes=yes)
    scope = Scope((EndpointType(endpoint_type),), None)
    return _request(
        operator, chosen, scope, allow_deletes=False, wait_for_it=wait_for_it, timeout=timeout, as_json=as_json
    )


def _request(
    operator: Operator,
    names: list[str] | None,
    scope: Scope,
    *,
    allow_deletes: bool,
    wait_for_it: bool,
    timeout: float | None,
    as_json: bool,
) -> int:
    with acting(operator, names or ()) as intent:
        regions = operator.audit_store.request(
            names,
            scope.endpoint_types,
            now=operator.now(),
            by=operator.name,
            allow_deletes=allow_deletes,
            resource_types=scope.resource_types,
            intent=intent,
        )
    operator.hint_audit_sweep()
    requested = _requested_rows(operator, names, scope)
    away = len({row.name for row in requested if not row.is_eligible})
    note(
        f"audits of {many(len(regions))} requested"
        + (f"; {away} of them not managed, online and completed: when they are" if away else "")
    )
    problem = central_trouble(operator)
    if problem is not None:
        note(f"warning: the central cloud is {problem}")
    if not wait_for_it and timeout is None:
        if as_json:
            click.echo(json_text([_object(row, answer=None) for row in requested]))
        return 0
    if names is None:
        known = operator.inventory.all()
        managed = {each.name for each in known if each.management_state is ManagementState.MANAGED}
        requested = [row for row in requested if row.name in managed]
    return _wait(operator, requested, timeout=timeout, as_json=as_json)


def _requested_rows(operator: Operator, names: list[str] | None, scope: Scope) -> list[AuditRow]:
    return [row for row in operator.audit_store.audits(names) if row.endpoint_type in scope.endpoint_types]


def _wait(operator: Operator, requested: list[AuditRow], *, timeout: float | None, as_json: bool) -> int:
    """Returns 0 when all that was requested is done and in-sync, 5 when a guard refused some of it, else 1: also when
    the time is up, as soon as a subcloud cannot be audited as it is, and when none of them is left."""
    wanted = {(row.name, row.endpoint_type): row.generation for row in requested}
    if not wanted:
        note("no subcloud is managed: there is nothing to wait for")
        if as_json:
            click.echo(json_text([]))
        return 1

    def look() -> tuple[list[AuditRow], list[View]]:
        rows = _look(operator, wanted)
        waiting_for = sorted(
            {row.name for row in rows if not row.is_eligible and not _is_done(row, wanted)}, key=in_natural_order
        )
        views = operator.views(operator.inventory.find(waiting_for)) if waiting_for else []
        return rows, [shown for shown in views if _cannot_be_audited(shown)]

    def is_over(seen: tuple[list[AuditRow], list[View]]) -> bool:
        rows, hopeless = seen
        return bool(hopeless) or all(_is_done(row, wanted) for row in rows)

    (rows, hopeless), elapsed = waiting.until(operator, look, is_over, timeout=timeout)
    if not rows:
        note(waiting.NONE_LEFT)
        if as_json:
            click.echo(json_text([]))
        return 1
    if all(_is_done(row, wanted) for row in rows):
        note(f"{many(len({row.name for row in rows}))} audited after {span(elapsed)}")
    if hopeless:
        note(f"{many(len(hopeless))} cannot be audited now:")
        waiting.print_reasons(operator, hopeless)
    answers = [_answer(row) if _is_done(row, wanted) else None for row in rows]
    _print(operator, list(zip(rows, answers, strict=True)), as_json=as_json)
    if any(_is_done(row, wanted) and row.reason is Reason.GUARD_REFUSED for row in rows):
        return 5
    return 0 if all(answer is SyncStatus.IN_SYNC for answer in answers) else 1


def _cannot_be_audited(shown: View) -> bool:
    """Unmanaged, offline or failed; one that is being synced will be."""
    known = shown.subcloud
    is_syncing = known.initial_sync_state in (InitialSyncState.REQUESTED, InitialSyncState.IN_PROGRESS)
    is_completed = known.initial_sync_state is InitialSyncState.COMPLETED
    is_eligible = Pair(known.management_state, known.availability_status).is_eligible
    return not is_eligible or not (is_syncing or is_completed)


def _is_done(row: AuditRow, wanted: dict[tuple[str, EndpointType], int]) -> bool:
    return row.observed_generation >= wanted[row.name, row.endpoint_type]


def _answer(row: AuditRow) -> SyncStatus | None:
    """Returns what the last audit found; None if it failed before it could compare: the result is an earlier one's."""
    is_earlier = row.audit_status is AuditStatus.FAILED and row.result is SyncStatus.IN_SYNC
    return None if is_earlier else row.result


def _look(operator: Operator, wanted: Collection[tuple[str, EndpointType]]) -> list[AuditRow]:
    """Returns the rows, without subclouds that were deleted meanwhile unless there was only one."""
    names = sorted({name for name, _ in wanted}, key=in_natural_order)
    every = operator.audit_store.audits(None if len(names) > 1 else names)
    return [row for row in every if (row.name, row.endpoint_type) in wanted]


def _print(operator: Operator, ends: Sequence[tuple[AuditRow, SyncStatus | None]], *, as_json: bool) -> None:
    """Prints the rows with the answer to what was requested, None where there is none (yet)."""
    if as_json:
        click.echo(json_text([_object(row, answer=answer) for row, answer in ends]))
        return
    shown = [
        (row, answer)
        for row, answer in ends
        if answer is not SyncStatus.IN_SYNC or row.repaired_at == row.last_audit_time
    ]
    if shown:
        say_table(["SUBCLOUD", "ENDPOINT", "STATUS", "DETAIL"], [_line(row, answer, operator) for row, answer in shown])
    else:
        say(f"{many(len({row.name for row, _ in ends}))} in-sync, nothing was changed")


def _line(row: AuditRow, answer: SyncStatus | None, operator: Operator) -> list[str]:
    if row.audit_status is AuditStatus.FAILED:
        detail = f"{row.reason}: {row.detail}; next try {until(row.due_at, now=operator.now())}"
    elif answer is SyncStatus.IN_SYNC:
        detail = f"repaired {'; '.join(row.differences)}"
    elif answer is SyncStatus.OUT_OF_SYNC and row.difference_at == row.last_audit_time:
        detail = "; ".join(row.differences)
    else:
        detail = f"requested {ago(row.requested_at, now=operator.now())}"
    return [row.name, row.endpoint_type, answer or SyncStatus.UNKNOWN, detail]


def _object(row: AuditRow, *, answer: SyncStatus | None) -> dict[str, object]:
    """Returns the audit row of one endpoint type of one subcloud as JSON values. `result` is the answer to what was
    requested, null where there is none (yet)."""
    return {
        "name": row.name,
        "region_name": row.region_name,
        "endpoint_type": row.endpoint_type,
        "is_eligible": row.is_eligible,
        "generation": row.generation,
        "observed_generation": row.observed_generation,
        "audit_status": row.audit_status,
        "result": answer,
        "last_result": row.result,
        "reason": row.reason,
        "detail": row.detail,
        "differences": list(row.differences),
        "difference_at": row.difference_at,
        "repaired_at": row.repaired_at,
        "requested_at": row.requested_at,
        "requested_by": row.requested_by,
        "last_audit_time": row.last_audit_time,
        "last_good_at": row.last_good_at,
        "due_at": row.due_at,
        "attempt": row.attempt,
    }


# --- diff ---------------------------------------------------------------------------------------------------------


@click.command(short_help="Show what an audit would write.")
@click.argument("name", type=SubcloudName())
@_scope_options
@output_option
@pass_operator
def diff(
    operator: Operator, name: str, *, endpoint_types: Sequence[str], restricted_to: Sequence[str], as_json: bool
) -> int:
    """Compare one subcloud with the central cloud and write nothing: names and fields, secrets as short fingerprints.

    Exit 0 no difference, 1 a difference, 4 a cloud does not answer, 5 a run is in progress or a guard would refuse.

    \b
    Example:
      dcsync diff edge-1 --resource-type users
    """
    scope = _scope(endpoint_types, restricted_to)
    return _show(operator, [name], scope, as_json=as_json, single=True)


def _show(operator: Operator, names: list[str] | None, scope: Scope, *, as_json: bool, single: bool = False) -> int:
    """Shows the previews; None means all subclouds that are eligible for an audit now."""
    operator.requires("database_url", "redis_url", "central_auth_url", "password")
    if names is None:
        names = sorted({row.name for row in operator.audit_store.audits(None) if row.is_eligible}, key=in_natural_order)

    def choose(services: PreviewServices) -> previews.Look:
        return previews.audit_look(services, scope.endpoint_types, scope.resource_types)

    return previews.show(operator, operator.inventory.find(names), choose, as_json=as_json, single=single)
