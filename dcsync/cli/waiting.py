"""The one polling loop of every command that waits, and its progress: one line on a terminal, plain lines in a pipe."""

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
    WORST_FIRST,
    clean,
    counts,
    in_natural_order,
    least_in_sync,
    many,
    note,
    outlook,
    say,
    span,
)
from dcsync.model.errors import DatabaseUnreachable
from dcsync.model.states.initial_sync import InitialSyncState
from dcsync.model.subcloud import AvailabilityStatus, EndpointType, Subcloud, SyncStatus

Command = TypeVar("Command", bound=Callable[..., Any])
Seen = TypeVar("Seen")

SHORTEST_PAUSE = 0.3
"""Seconds between two looks at the rows. A look at a large fleet takes longer, and earns a longer pause."""
QUICK_PAUSE = 0.1
PAUSE_PER_LOOK = 4
LONGEST_SILENCE_OF_THE_DATABASE = 60.0
"""Seconds for which the database may be away: every command has had an answer of it before it waits."""
NAMED_AT_MOST = 20


def _outlook(known: Subcloud, now: datetime) -> str:
    return outlook(known, now=now)


@dataclass(frozen=True)
class Goal:
    """A state that subclouds are to reach: the word for it, the word for the present state, and its reason."""

    reached: str
    word: Callable[[Subcloud], str]
    order: tuple[str, ...]
    why: Callable[[Subcloud, datetime], str] = _outlook


COMPLETED = Goal(InitialSyncState.COMPLETED, lambda known: known.initial_sync_state, WORST_FIRST)
IN_SYNC = Goal(SyncStatus.IN_SYNC, least_in_sync, LEAST_FIRST)


def availability(status: AvailabilityStatus) -> Goal:
    return Goal(status, lambda known: known.availability_status, tuple(AvailabilityStatus), lambda known, now: "")


ONLINE = availability(AvailabilityStatus.ONLINE)
GOALS = {str(goal.reached): goal for goal in (COMPLETED, IN_SYNC, ONLINE)}


def endpoint(type_: EndpointType, status: SyncStatus, *, why: Callable[[Subcloud], str]) -> Goal:
    return Goal(
        status,
        lambda known: known.sync_status.get(type_, SyncStatus.UNKNOWN),
        IN_SYNC.order,
        lambda known, now: why(known) if status is not SyncStatus.UNKNOWN else "",
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
    """Returns 0 when all that `look` finds are there, and 1 after `timeout` seconds (None: never), having printed who
    is not and why.

    `quick`: a short wait, without progress. `unexplained` is printed where `goal` knows no reason for one that is
    missing. `report` prints that all are there.
    """

    def missing(subclouds: Sequence[Subcloud]) -> list[Subcloud]:
        return [known for known in subclouds if goal.word(known) != goal.reached]

    subclouds, elapsed = until(
        operator,
        look,
        lambda subclouds: not missing(subclouds),
        timeout=timeout,
        shortest_pause=QUICK_PAUSE if quick else SHORTEST_PAUSE,
        describe=None if quick else lambda subclouds: counts(map(goal.word, subclouds), order=goal.order),
    )
    left = missing(subclouds)
    if not left:
        report(f"{many(len(subclouds))} {goal.reached} after {span(elapsed)}")
        return 0
    note(f"{len(left)} of {many(len(subclouds))} not {goal.reached} after {span(elapsed)}:")
    _tell_missing(operator, left, goal, unexplained=unexplained)
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
    """Looks at once, now and then, and a last time when the time is up; what was seen last, and after how many seconds.

    A database that becomes unreachable is waited for, and stderr says so; it is raised when it stays away, or is away
    when the time is up. `describe`: the progress that is shown.
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
                if is_last or operator.monotonic() - last_answer > LONGEST_SILENCE_OF_THE_DATABASE:
                    raise
                # The first of an outage: the next ones differ in words only.
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


def _tell_missing(operator: Operator, missing: list[Subcloud], goal: Goal, *, unexplained: str) -> None:
    missing.sort(key=lambda known: (goal.order.index(goal.word(known)), in_natural_order(known.name)))
    now = operator.now()
    for known in missing[:NAMED_AT_MOST]:
        why = goal.why(known, now)
        note(f"  {known.name}: {goal.word(known)}" + (f", {why}" if why else ""))
    if len(missing) > NAMED_AT_MOST:
        note(f"  and {len(missing) - NAMED_AT_MOST} more; see dcsync subcloud list --sort-by state")
    if unexplained and not all(goal.why(known, now) for known in missing):
        note(unexplained)


class Progress:
    """Prints progress on stderr whenever there is something new; the last line remains."""

    def __init__(self, *, is_terminal: bool) -> None:
        self._is_terminal = is_terminal
        self._told = ""
        self._width = 0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._is_terminal and self._told:
            click.echo(err=True)

    def show(self, when: str, text: str) -> None:
        if self._is_terminal:
            line = clean(f"{when}: {text}")
            # Blanks wipe out what was longer before: a terminal need not understand anything.
            click.echo(f"\r{line:<{self._width}}", err=True, nl=False)
            self._width = len(line)
        elif text != self._told:
            note(f"{when}: {text}")
        self._told = text
