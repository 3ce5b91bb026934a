"""Table of transitions: (state, event) -> state, with the lookups that SQL statements need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

S = TypeVar("S", bound=StrEnum)
E = TypeVar("E", bound=StrEnum)


@dataclass(frozen=True, kw_only=True)
class StateTable(Generic[S, E]):
    """All transitions of one kind of row; any other is forbidden."""

    states: type[S]
    events: type[E]
    first: S
    """The state of a new row."""
    transitions: Mapping[tuple[S, E], S]

    def next_state(self, state: S, event: E) -> S | None:
        """Returns the state after `event`, or None where the table does not allow it."""
        return self.transitions.get((state, event))

    def states_before(self, event: E) -> tuple[S, ...]:
        """Returns the states in which `event` may happen, for the WHERE of a conditional UPDATE."""
        return tuple(state for state in self.states if (state, event) in self.transitions)

    def state_after(self, event: E) -> S:
        """Returns the one state `event` leads to; a test checks that every event has exactly one."""
        (after,) = {after for (_, happened), after in self.transitions.items() if happened is event}
        return after
