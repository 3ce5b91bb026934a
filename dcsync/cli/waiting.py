"""Waits for subclouds to get somewhere, and says how it goes: one line on a terminal, plain lines in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

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

SHORTEST_PAUSE = 0.5
"""Seconds between two looks at the rows. A look at a large fleet takes longer, and earns a longer pause."""
QUICK_PAUSE = 0.1
PAUSE_PER_LOOK = 4
LONGEST_SILENCE_OF_THE_DATABASE = 60.0
"""Seconds for which a database that answered before may be away."""
NAMED_AT_MOST = 20


def _outlook(known: Subcloud, now: datetime) -> str:
    return outlook(known, now=now)


@dataclass(frozen=True)
class Goal:
    """Where subclouds should get to: the word for it, the word that says where one is now, and why it is there."""

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


def wait(
    operator: Operator,
    look: Callable[[], Sequence[Subcloud]],
    goal: Goal,
    *,
    timeout: float | None,
    quietly: bool = False,
    tell: Callable[[str], None] = say,
) -> int:
    """0 when all that `look` finds are there, 1 after `timeout` seconds (None: never), having said who is not and why.

    A database that goes away for a while meanwhile is waited for. `quietly`: a short wait, without progress. `tell`:
    where it is said that all are there.
    """
    with Progress(is_terminal=sys.stderr.isatty(), quiet=quietly) as progress:
        pause = QUICK_PAUSE if quietly else SHORTEST_PAUSE
        for elapsed, subclouds in _looks(operator, look, progress, timeout=timeout, shortest_pause=pause):
            progress.show(span(elapsed), counts(map(goal.word, subclouds), order=goal.order))
            if all(goal.word(known) == goal.reached for known in subclouds):
                progress.end()
                tell(f"{many(len(subclouds))} {goal.reached} after {span(elapsed)}")
                return 0
    _tell_missing(operator, subclouds, goal, after=elapsed)
    return 1


def _looks(
    operator: Operator,
    look: Callable[[], Sequence[Subcloud]],
    progress: Progress,
    *,
    timeout: float | None,
    shortest_pause: float,
) -> Iterator[tuple[float, Sequence[Subcloud]]]:
    """What is seen, and after how many seconds: at once, now and then, and a last time when the time is up."""
    began = last_answer = operator.monotonic()
    answered = False
    while True:
        looked_at = operator.monotonic()
        last = timeout is not None and looked_at - began >= timeout
        try:
            seen = look()
        except DatabaseUnreachable as exc:
            silence = operator.monotonic() - last_answer
            if not answered or last or silence > LONGEST_SILENCE_OF_THE_DATABASE:
                raise
            progress.show(span(looked_at - began), f"the database does not answer ({exc}); still trying")
        else:
            answered, last_answer = True, operator.monotonic()
            yield last_answer - began, seen
        if last:
            return
        now = operator.monotonic()
        pause = max(shortest_pause, (now - looked_at) * PAUSE_PER_LOOK)
        operator.sleep(pause if timeout is None else max(0.0, min(pause, began + timeout - now)))


def _tell_missing(operator: Operator, subclouds: Sequence[Subcloud], goal: Goal, *, after: float) -> None:
    missing = sorted(
        (known for known in subclouds if goal.word(known) != goal.reached),
        key=lambda known: (goal.order.index(goal.word(known)), in_natural_order(known.name)),
    )
    note(f"{len(missing)} of {many(len(subclouds))} not {goal.reached} after {span(after)}:")
    now = operator.now()
    for known in missing[:NAMED_AT_MOST]:
        why = goal.why(known, now)
        note(f"  {known.name}: {goal.word(known)}" + (f", {why}" if why else ""))
    if len(missing) > NAMED_AT_MOST:
        note(f"  and {len(missing) - NAMED_AT_MOST} more; see dcsync subcloud list --sort-by state")


class Progress:
    """Says how it goes on stderr, whenever there is something new to say; leaves the last line standing."""

    def __init__(self, *, is_terminal: bool, quiet: bool) -> None:
        self._is_terminal = is_terminal
        self._quiet = quiet
        self._told = ""
        self._width = 0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exc: object) -> None:
        self.end()

    def show(self, when: str, text: str) -> None:
        if self._quiet:
            return
        if self._is_terminal:
            line = clean(f"{when}: {text}")
            # Blanks wipe out what was longer before: a terminal need not understand anything.
            click.echo(f"\r{line:<{self._width}}", err=True, nl=False)
            self._width = len(line)
        elif text != self._told:
            note(f"{when}: {text}")
        self._told = text

    def end(self) -> None:
        if self._is_terminal and self._told:
            click.echo(err=True)
        self._told = ""
