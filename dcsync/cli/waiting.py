"""The polling loop of all commands that wait, and its progress: one line on a terminal, several lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

import click

from dcsync.cli.operator import Operator
from dcsync.cli.output import (
    LEAST_FIRST,
    PENDING,
    WORST_FIRST,
    clean,
    counts,
    in_natural_order,
    many,
    note,
    outlook,
    say,
    span,
    worst_in_words,
)
from dcsync.model.errors import DatabaseUnreachable
from dcsync.model.shown import ShownAvailability, View, is_proven_in_sync
from dcsync.model.states.initial_sync import InitialSyncState
from dcsync.model.subcloud import AvailabilityStatus, EndpointType, ManagementState, Subcloud, SyncStatus

Command = TypeVar("Command", bound=Callable[..., Any])
Seen = TypeVar("Seen")

SHORTEST_PAUSE = 0.3
"""Seconds between two queries. Queries for many subclouds take longer and are followed by a longer pause."""
QUICK_PAUSE = 0.1
PAUSE_PER_LOOK = 4
LONGEST_DATABASE_OUTAGE = 60.0
"""Seconds for which the database may be unreachable; every command has queried it successfully before it waits."""
NAMED_AT_MOST = 20
NONE_LEFT = "all of them were deleted meanwhile: there is nothing to wait for"


def _outlook(shown: View, now: datetime) -> str:
    return outlook(shown, now=now)


def _never(shown: View) -> bool:
    return False


def _is_unmanaged(shown: View) -> bool:
    return shown.subcloud.management_state is ManagementState.UNMANAGED


@dataclass(frozen=True)
class Goal:
    """A state to wait for: its name, the name of a subcloud's present state, the reason for that, and whether a
    subcloud cannot reach it as it is."""

    reached: str
    word: Callable[[View], str]
    order: tuple[str, ...]
    why: Callable[[View, datetime], str] = _outlook
    is_hopeless: Callable[[View], bool] = _never


COMPLETED = Goal(
    InitialSyncState.COMPLETED,
    lambda shown: shown.subcloud.initial_sync_state,
    WORST_FIRST,
    is_hopeless=_is_unmanaged,
)
ONLINE = Goal(ShownAvailability.ONLINE, lambda shown: shown.availability, tuple(ShownAvailability))


def in_sync(*, since: datetime | None = None, audits_on_request: bool = False) -> Goal:
    """All endpoint types in-sync, proven after what was last requested of them; with `since`, after that as well.

    `audits_on_request`: no audit is made unless it is requested, so what is unknown without a request stays so.
    """

    def word(shown: View) -> str:
        if is_proven_in_sync(shown, since=since):
            return SyncStatus.IN_SYNC
        worst = shown.worst.sync_status if shown.worst else SyncStatus.UNKNOWN
        return PENDING if worst is SyncStatus.IN_SYNC else worst

    def stays_unknown(shown: View) -> bool:
        return audits_on_request and any(_is_unknown_without_a_request(shown, type_) for type_ in shown.endpoints)

    def why(shown: View, now: datetime) -> str:
        text = outlook(shown, now=now) or worst_in_words(shown, now=now)
        return f"{text}; no audit is due, --fresh requests one" if stays_unknown(shown) else text

    return Goal(
        SyncStatus.IN_SYNC,
        word,
        LEAST_FIRST,
        why,
        is_hopeless=lambda shown: _is_unmanaged(shown) or stays_unknown(shown),
    )


def _is_unknown_without_a_request(shown: View, type_: EndpointType) -> bool:
    stored = shown.subcloud.endpoints[type_]
    is_audited_now = (
        stored.is_audited
        and shown.subcloud.initial_sync_state is InitialSyncState.COMPLETED
        and shown.subcloud.availability_status is AvailabilityStatus.ONLINE
    )
    return is_audited_now and not stored.is_pending and shown.endpoints[type_].sync_status is SyncStatus.UNKNOWN


GOALS: dict[str, Goal] = {str(goal.reached): goal for goal in (COMPLETED, in_sync(), ONLINE)}


def availability(status: AvailabilityStatus) -> Goal:
    """Written to the rows: whether it is shown depends on its age as well."""
    return Goal(
        status,
        lambda shown: shown.subcloud.availability_status,
        tuple(AvailabilityStatus),
        lambda shown, now: "",
    )


def endpoint(type_: EndpointType, status: SyncStatus, *, why: Callable[[Subcloud], str]) -> Goal:
    """As `availability`, of one endpoint type."""
    return Goal(
        status,
        lambda shown: shown.subcloud.sync_status.get(type_, SyncStatus.UNKNOWN),
        LEAST_FIRST,
        lambda shown, now: why(shown.subcloud) if status is not SyncStatus.UNKNOWN else "",
    )


def wait_options(what: str) -> Callable[[Command], Command]:
    """Adds --wait (until `what`) and --timeout; the command gets `wait_for_it` and `timeout`, which implies it."""
    option = click.option("--wait", "wait_for_it", is_flag=True, help=f"Wait until {what}.")
    return lambda command: option(timeout_option(command))


timeout_option = click.option(
    "--timeout", type=click.FloatRange(min=0), metavar="SECONDS", help="Give up waiting after this long, exit 1."
)


def wait(
    operator: Operator,
    look: Callable[[], Sequence[Subcloud]],
    goal: Goal,
    *,
    timeout: float | None,
    quick: bool = False,
    unexplained: str = "",
    report: Callable[[str], None] = say,
) -> int:
    """Returns 0 when all subclouds that `look` returns have reached the goal, and 1 after `timeout` seconds (None:
    never) or as soon as one cannot reach it, having printed those that have not, and why; also 1 when none is left.

    `quick`: a short wait, without progress. `unexplained` is printed when `goal` gives no reason for one of them.
    `report` prints that all have reached it.
    """

    def missing(views: Sequence[View]) -> list[View]:
        return [shown for shown in views if goal.word(shown) != goal.reached]

    def is_over(views: Sequence[View]) -> bool:
        return not missing(views) or any(map(goal.is_hopeless, missing(views)))

    subclouds, elapsed = until(
        operator,
        lambda: operator.views(look()),
        is_over,
        timeout=timeout,
        shortest_pause=QUICK_PAUSE if quick else SHORTEST_PAUSE,
        describe=None if quick else lambda views: counts(map(goal.word, views), order=goal.order),
    )
    if not subclouds:
        note(NONE_LEFT)
        return 1
    left = missing(subclouds)
    if not left:
        report(f"{many(len(subclouds))} {goal.reached} after {span(elapsed)}")
        return 0
    note(f"{len(left)} of {many(len(subclouds))} not {goal.reached} after {span(elapsed)}:")
    _print_missing(operator, left, goal, unexplained=unexplained)
    return 1


def until(
    operator: Operator,
    look: Callable[[], Seen],
    is_over: Callable[[Seen], bool],
    *,
    timeout: float | None,
    shortest_pause: float = SHORTEST_PAUSE,
    describe: Callable[[Seen], str] | None = None,
) -> tuple[Seen, float]:
    """Calls `look` until `is_over`, and a last time after `timeout`; returns its last result and the elapsed seconds.

    While the database is unreachable it retries, with a message on stderr; DatabaseUnreachable is raised when that
    lasts too long or the time is up. `describe` returns the progress to show.
    """
    began = last_answer = operator.monotonic()
    complaint = ""
    with Progress(is_terminal=sys.stderr.isatty()) as progress:
        while True:
            looked_at = operator.monotonic()
            is_last = timeout is not None and looked_at - began >= timeout
            try:
                seen = look()
            except DatabaseUnreachable as exc:
                if is_last or operator.monotonic() - last_answer > LONGEST_DATABASE_OUTAGE:
                    raise
                # The first error of an outage: the following ones differ only in their text.
                complaint = complaint or f"the database does not answer ({exc}); still trying"
                progress.show(span(looked_at - began), complaint)
                pause = shortest_pause
            else:
                last_answer = operator.monotonic()
                if describe:
                    progress.show(span(last_answer - began), describe(seen))
                elif complaint:
                    progress.show(span(last_answer - began), "the database answers again")
                if is_last or is_over(seen):
                    return seen, last_answer - began
                complaint, pause = "", max(shortest_pause, (last_answer - looked_at) * PAUSE_PER_LOOK)
            left = pause if timeout is None else max(0.0, began + timeout - operator.monotonic())
            operator.sleep(min(pause, left))


def _print_missing(operator: Operator, missing: list[View], goal: Goal, *, unexplained: str) -> None:
    missing.sort(key=lambda shown: (goal.order.index(goal.word(shown)), in_natural_order(shown.subcloud.name)))
    # Those for which waiting is over come first.
    missing.sort(key=goal.is_hopeless, reverse=True)
    now = operator.now()
    for shown in missing[:NAMED_AT_MOST]:
        why = goal.why(shown, now)
        note(f"  {shown.subcloud.name}: {goal.word(shown)}" + (f", {why}" if why else ""))
    if len(missing) > NAMED_AT_MOST:
        note(f"  and {len(missing) - NAMED_AT_MOST} more; see dcsync subcloud list --sort-by state")
    if unexplained and not all(goal.why(shown, now) for shown in missing):
        note(unexplained)


def print_reasons(operator: Operator, views: Sequence[View]) -> None:
    """Prints why these subclouds are where they are."""
    now = operator.now()
    ordered = sorted(views, key=lambda shown: in_natural_order(shown.subcloud.name))
    for shown in ordered[:NAMED_AT_MOST]:
        note(f"  {shown.subcloud.name}: {shown.subcloud.initial_sync_state}, {outlook(shown, now=now)}")
    if len(views) > NAMED_AT_MOST:
        note(f"  and {len(views) - NAMED_AT_MOST} more; see dcsync subcloud list --sort-by state")


class Progress:
    """Prints progress on stderr when it changes; the last line remains."""

    def __init__(self, *, is_terminal: bool) -> None:
        self._is_terminal = is_terminal
        self._shown = ""
        self._width = 0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._is_terminal and self._shown:
            click.echo(err=True)

    def show(self, when: str, text: str) -> None:
        if self._is_terminal:
            line = clean(f"{when}: {text}")
            # Padded with spaces to overwrite a longer line, which works on every terminal.
            click.echo(f"\r{line:<{self._width}}", err=True, nl=False)
            self._width = len(line)
        elif text != self._shown:
            note(f"{when}: {text}")
        self._shown = text
