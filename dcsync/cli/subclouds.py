"""`dcsync subcloud`: adds, lists, shows, manages and deletes subclouds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import IO, TYPE_CHECKING

import click

from dcsync.cli.operations import acting
from dcsync.cli.operator import Operator, output_option, pass_operator
from dcsync.cli.output import (
    WORST_FIRST,
    ago,
    availability_in_words,
    counts,
    in_natural_order,
    json_text,
    many,
    note,
    outlook,
    say,
    say_table,
    status_in_words,
    subcloud_object,
    until,
    worst_first,
    worst_in_words,
)
from dcsync.cli.selection import (
    SubcloudName,
    confirm,
    confirm_all,
    names_or_all,
    selected,
    show_selection,
    which_option,
    yes_option,
)
from dcsync.model.addresses import check_address
from dcsync.model.errors import BadAddress, RefusedByGuard
from dcsync.model.shown import ShownAvailability, ShownStatus, View
from dcsync.model.states.initial_sync import InitialSyncEvent, InitialSyncState, Transition
from dcsync.model.subcloud import ManagementState, NewSubcloud, Subcloud, Updated, new_subcloud, subcloud_update

if TYPE_CHECKING:
    from dcsync.cli.import_file import Plan

WHEN_OFFLINE = (
    "wait until they are online (dcsync wait --for online NAME), or manage them now with --force; "
    "they are then synced when they come online"
)
LINES_AT_MOST = 20
"""The most subclouds printed one by one; more are only counted."""


@click.group()
def subcloud() -> None:
    """Add, list, show and manage subclouds."""


# --- adding and removing -----------------------------------------------------------------------------------------


@subcloud.command()
@click.argument("name")
@click.option("--management-ip", metavar="IP", required=True, help="Its address on the management network.")
@click.option("--region-name", metavar="R", help="The key in locks, messages and logs; default: the name.")
@click.option("--software-version", metavar="V", help="For your information only.")
@pass_operator
def add(
    operator: Operator, name: str, *, management_ip: str, region_name: str | None, software_version: str | None
) -> None:
    """Add one subcloud, unmanaged and offline.

    \b
    Example:
      dcsync subcloud add edge-1 --management-ip 10.10.0.5 --software-version 24.09
    """
    fields = {
        "name": name,
        "management_ip": management_ip,
        "region_name": region_name or "",
        "software_version": software_version or "",
    }
    with acting(operator, [name]) as intent:
        new = _checked(operator, fields)
        operator.inventory.add([new], now=operator.now(), intent=intent)
    say(f"{new.name} added, unmanaged; next, once it is online: dcsync subcloud manage {new.name}")


@subcloud.command("import")
@click.argument("file", type=click.File("rb"))
@click.option("--update", "existing", flag_value="update", help="Change those that exist to what the file says.")
@click.option("--skip-existing", "existing", flag_value="skip", help="Leave those that exist as they are.")
@pass_operator
def import_(operator: Operator, file: IO[bytes], *, existing: str | None) -> None:
    """Add many subclouds from FILE, all or none ("-": standard input).

    \b
    CSV with the header  name,management_ip,region_name,software_version  (the last two may be left out or empty),
    or a JSON array of objects with these fields.

    The same file can be imported again with --update or --skip-existing. A subcloud that exists is recognized by its
    name; its region name cannot be changed.
    """
    from dcsync.cli import import_file

    def check(row: import_file.Row) -> NewSubcloud:
        return _checked(operator, dict(row.fields))

    with acting(operator) as intent:
        rows, problems = import_file.read_rows(file.read(import_file.LARGEST_FILE + 1))
        plan = import_file.checked(
            rows, problems, check=check, known=operator.inventory.all(), accepts_existing=existing is not None
        )
        updates = plan.updates if existing == "update" else ()
        operator.requires(*(["database_url", "redis_url"] if updates else []))
        done = operator.inventory.update(updates, new=plan.new, now=operator.now(), by=operator.name, intent=intent)
    say(_imported(plan, done, skipped=len(plan.updates) if existing == "skip" else 0))
    if any(each.event is InitialSyncEvent.ASKED for each in done):
        operator.hint_sweep()


def _imported(plan: Plan, done: Sequence[Updated], *, skipped: int) -> str:
    changed = sum(bool(each.changes) for each in done)
    parts = [f"{many(len(plan.new))} added, unmanaged"] if plan.new or not (done or skipped) else []
    parts += [f"{changed} changed"] if changed else []
    parts += [f"{unchanged} unchanged"] if (unchanged := len(done) - changed) else []
    parts += [f"{skipped} skipped"] if skipped else []
    requested = sum(each.event is InitialSyncEvent.ASKED for each in done)
    parts += [f"{many(requested, 'initial sync')} requested"] if requested else []
    return ", ".join(parts)


def _checked(operator: Operator, fields: dict[str, str]) -> NewSubcloud:
    """Raises BadRecord or BadAddress for an invalid value, RefusedByGuard for an address that is not allowed."""
    new = new_subcloud(
        name=fields["name"],
        management_ip=fields["management_ip"],
        region_name=fields.get("region_name") or None,
        software_version=fields.get("software_version") or None,
    )
    _refuse_address(operator, new.management_ip)
    return new


def _refuse_address(operator: Operator, management_ip: str) -> None:
    """Raises RefusedByGuard for an address that is not allowed, or that of the central cloud or a server of dcsync."""
    try:
        check_address(management_ip, allowed_networks=operator.settings.allowed_networks)
        operator.own_servers.refuse(management_ip)
    except BadAddress as exc:
        raise RefusedByGuard(str(exc)) from exc


@subcloud.command(no_args_is_help=False)
@click.argument("name", type=SubcloudName())
@click.option("--management-ip", metavar="IP", help="Its new address on the management network.")
@click.option("--software-version", metavar="V", help="For your information only; may be empty.")
@pass_operator
def update(operator: Operator, name: str, *, management_ip: str | None, software_version: str | None) -> None:
    """Change a subcloud's management IP or software version.

    After a change of the management IP, nothing counts as in-sync until it was read at the new address: a run in
    progress stops before its next write, and a subcloud that is managed and online is synced from the first step. Its
    history, and the record of what dcsync placed there, are kept.

    \b
    Example:
      dcsync subcloud update edge-1 --management-ip 10.10.0.6
    """
    if management_ip is None and software_version is None:
        raise click.UsageError("give --management-ip or --software-version", click.get_current_context())
    operator.requires("database_url", "redis_url")
    with acting(operator, [name]) as intent:
        wanted = subcloud_update(name=name, management_ip=management_ip, software_version=software_version)
        if wanted.management_ip is not None:
            _refuse_address(operator, wanted.management_ip)
        (done,) = operator.inventory.update([wanted], now=operator.now(), by=operator.name, intent=intent)
    said = f"{name}: {', '.join(done.changes)}" if done.changes else f"{name} was so already"
    say(said + ("; initial sync requested" if done.event is InitialSyncEvent.ASKED else ""))
    if done.event is InitialSyncEvent.ASKED:
        operator.hint_sweep()


@subcloud.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True, type=SubcloudName())
@which_option
@yes_option
@pass_operator
def delete(operator: Operator, names: Sequence[str], *, dry_run: bool, yes: bool) -> None:
    """Delete subclouds; a running sync stops before its next write.

    Nothing is changed on the subclouds themselves. Their history is kept for DCSYNC_HISTORY_DAYS. Nothing is deleted
    when one of them is unknown.
    """
    chosen = list(dict.fromkeys(names))
    if dry_run:
        show_selection(operator.inventory.find(chosen), "be deleted")
        return
    with acting(operator, chosen) as intent:
        found = operator.inventory.find(chosen)
        confirm(operator, f"Delete {_in_short(found)}?", yes=yes)
        deleted = operator.inventory.delete(chosen, now=operator.now(), intent=intent)
    for each in deleted:
        say(f"{each.name} deleted")


def _in_short(found: Sequence[Subcloud]) -> str:
    if len(found) > 1:
        managed = sum(known.management_state is ManagementState.MANAGED for known in found)
        return f"{many(len(found))} ({managed} managed)"
    return ", ".join(f"{known.name} ({known.management_state}, {known.availability_status})" for known in found)


# --- managing ----------------------------------------------------------------------------------------------------


@subcloud.command()
@names_or_all
@click.option("--force", is_flag=True, help="Also those that are offline: they are synced when they come online.")
@which_option
@yes_option
@pass_operator
def manage(
    operator: Operator, names: Sequence[str], *, everything: bool, force: bool, dry_run: bool, yes: bool
) -> None:
    """Manage these subclouds: each is synced when it is online or comes online.

    All of them or none: when one of them, or with --all any subcloud that is still unmanaged, is offline, it is named,
    nothing is changed, and the exit code is 5.

    \b
    Example:
      dcsync wait --for online edge-1 --timeout 60 && dcsync subcloud manage edge-1
    """
    chosen = selected(names, everything=everything)
    if dry_run:
        _show_management(operator, chosen, ManagementState.MANAGED)
    else:
        _set_management(operator, chosen, ManagementState.MANAGED, yes=yes, online_only=not force)


@subcloud.command()
@names_or_all
@which_option
@yes_option
@pass_operator
def unmanage(operator: Operator, names: Sequence[str], *, everything: bool, dry_run: bool, yes: bool) -> None:
    """Stop managing these subclouds: a running sync stops before its next write."""
    chosen = selected(names, everything=everything)
    if dry_run:
        _show_management(operator, chosen, ManagementState.UNMANAGED)
    else:
        _set_management(operator, chosen, ManagementState.UNMANAGED, yes=yes)


def _show_management(operator: Operator, names: list[str] | None, state: ManagementState) -> None:
    found = operator.inventory.all() if names is None else operator.inventory.find(names)
    changing = [known for known in found if known.management_state is not state]
    show_selection(changing, f"become {state}", others=len(found) - len(changing))


def _set_management(
    operator: Operator, names: list[str] | None, state: ManagementState, *, yes: bool, online_only: bool = False
) -> None:
    operator.requires("database_url", "redis_url")
    confirm_all(operator, names, "Manage" if state is ManagementState.MANAGED else "Unmanage", yes=yes)
    try:
        with acting(operator, names or ()) as intent:
            transitions = operator.inventory.set_management(
                names, state, now=operator.now(), by=operator.name, online_only=online_only, intent=intent
            )
    except RefusedByGuard as exc:
        raise RefusedByGuard(f"{exc}: {WHEN_OFFLINE}") from exc
    if len(transitions) > LINES_AT_MOST:
        say(_managed_in_short(transitions, state))
    for transition in transitions if len(transitions) <= LINES_AT_MOST else ():
        say(_managed(transition, state))
    if not transitions:
        note("there are no subclouds")
    if any(transition.state is InitialSyncState.REQUESTED for transition in transitions):
        operator.hint_sweep()


def _managed(transition: Transition, state: ManagementState) -> str:
    if transition.event is None:
        return f"{transition.name} was {state} already"
    text = f"{transition.name} is now {state}"
    if state is ManagementState.UNMANAGED:
        return text
    if transition.event is InitialSyncEvent.BECAME_ELIGIBLE:
        return f"{text}; initial sync requested"
    return f"{text}; it is offline, its initial sync starts when it comes online"


def _managed_in_short(transitions: Sequence[Transition], state: ManagementState) -> str:
    events = Counter(transition.event for transition in transitions)
    parts = [f"{many(len(transitions) - events[None])} now {state}"]
    if events[None]:
        parts.append(f"{events[None]} {state} already")
    if events[InitialSyncEvent.BECAME_ELIGIBLE]:
        parts.append(f"{many(events[InitialSyncEvent.BECAME_ELIGIBLE], 'initial sync')} requested")
    if state is ManagementState.MANAGED and events[InitialSyncEvent.LEFT]:
        parts.append(f"{events[InitialSyncEvent.LEFT]} wait to come online")
    return ", ".join(parts)


# --- showing -----------------------------------------------------------------------------------------------------

_ORDERS: dict[str, Callable[[Subcloud], float]] = {
    "name": lambda known: 0,
    "state": lambda known: worst_first(known.initial_sync_state),
    "changed": lambda known: -known.updated_at.timestamp() if known.updated_at else 0,
}
_COLUMNS = (
    "NAME", "MANAGEMENT IP", "MANAGEMENT", "AVAILABILITY", "INITIAL SYNC", "SYNC", "CHANGED", "WHY AND WHAT NEXT",
)  # fmt: skip


@subcloud.command("list")
@output_option
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice([str(state) for state in InitialSyncState]),
    help="Only with this initial sync state; may be given more than once.",
)
@click.option(
    "--sort-by", type=click.Choice(list(_ORDERS)), default="name", show_default=True, help="state: worst first."
)
@pass_operator
def list_(operator: Operator, *, as_json: bool, states: Sequence[str], sort_by: str) -> None:
    """List all subclouds, with what they are waiting for.

    \b
    Examples:
      dcsync subcloud list --state failed --sort-by changed
      dcsync subcloud list -o json
    """
    subclouds = [known for known in operator.inventory.all() if not states or known.initial_sync_state in states]
    subclouds.sort(key=lambda known: (_ORDERS[sort_by](known), in_natural_order(known.name)))
    views = operator.views(subclouds)
    if as_json:
        click.echo(json_text([subcloud_object(shown) for shown in views]))
        return
    now = operator.now()
    if views:
        say_table(_COLUMNS, [_cells(shown, now=now) for shown in views])
    note(_summary(views, filtered=bool(states)))


def _cells(shown: View, *, now: datetime) -> tuple[str, ...]:
    known = shown.subcloud
    return (
        known.name,
        known.management_ip,
        known.management_state,
        shown.availability,
        known.initial_sync_state,
        worst_in_words(shown, now=now),
        ago(known.updated_at, now=now),
        outlook(shown, now=now),
    )


def _summary(views: Sequence[View], *, filtered: bool) -> str:
    if not views:
        return "no subclouds" if filtered else "no subclouds; dcsync subcloud add NAME --management-ip IP adds one"
    states = counts((shown.subcloud.initial_sync_state for shown in views), order=WORST_FIRST)
    offline = sum(shown.availability is ShownAvailability.OFFLINE for shown in views)
    unseen = sum(shown.availability is ShownAvailability.UNKNOWN for shown in views)
    unmanaged = sum(shown.subcloud.management_state is ManagementState.UNMANAGED for shown in views)
    sharing = sum(shown.subcloud.shares_ip_with is not None for shown in views)
    told = (
        (offline, "offline"),
        (unseen, "not seen lately"),
        (unmanaged, "unmanaged"),
        (sharing, "with a management IP that another subcloud has"),
    )
    apart = [f"{count} {word}" for count, word in told if count]
    return "; ".join([f"{many(len(views))}: {states}", *([", ".join(apart)] if apart else [])])


def _proof(status: ShownStatus, *, now: datetime) -> str:
    """The status, what it is about, and how old its proof is."""
    from dcsync.audit.endpoints import REGISTRY

    audited = REGISTRY.get(status.endpoint_type)
    compared = f"; compared: {audited.compared}" if audited else ""
    last_good = f", last in-sync {ago(status.last_good_at, now=now)}" if status.last_good_at else ""
    verified = f", verified {ago(status.verified_at, now=now)}" if status.verified_at else ", never verified"
    known = verified if status.reason is None else last_good or verified
    return status_in_words(status, now=now) + ("" if status.is_stale else known) + compared


@subcloud.command()
@click.argument("name", type=SubcloudName())
@output_option
@pass_operator
def show(operator: Operator, name: str, *, as_json: bool) -> None:
    """Show one subcloud: its states, since when, why, and what happens next."""
    (known,) = operator.inventory.find([name])
    (shown,) = operator.views([known])
    if as_json:
        click.echo(json_text(subcloud_object(shown)))
        return
    now = operator.now()
    facts = {
        "name": known.name,
        "region name": known.region_name,
        "management IP": known.management_ip
        + (f" (that of {known.shares_ip_with} as well)" if known.shares_ip_with else ""),
        "software version": known.software_version or "-",
        "management": known.management_state,
        "availability": availability_in_words(shown, now=now),
        "last seen": ago(known.last_seen_at, now=now),
        "initial sync": known.initial_sync_state,
        "changed": ago(known.updated_at, now=now),
        "request": f"generation {known.generation}, attempt {known.attempt}",
        "requested": ago(known.requested_at, now=now),
        "next try": until(known.retry_at, now=now),
        "run": f"{known.run_id} at {known.step or 'its start'}" if known.run_id else "-",
        "reason": known.reason or "-",
        "detail": known.detail or "-",
        "what to do": known.reason.advice if known.reason else "-",
        "what is next": outlook(shown, now=now) or "-",
        "central ids": "written by an earlier run" if known.subsequent_sync else "not written yet",
    } | {f"{type_}": _proof(status, now=now) for type_, status in shown.endpoints.items()}
    width = max(map(len, facts))
    for fact, value in facts.items():
        say(f"{fact:<{width}}  {value}")
