"""What the tables of states have in common: (state, event) -> state, and the questions a statement asks of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

S = TypeVar("S", bound=StrEnum)
E = TypeVar("E", bound=StrEnum)


@dataclass(frozen=True, kw_only=True)
class StateTable(Generic[S, E]):
    """All that may happen to one kind of row; what is not in `transitions` must not happen."""

    states: type[S]
    events: type[E]
    first: S
    """The state of a new row."""
    transitions: Mapping[tuple[S, E], S]

    def next_state(self, state: S, event: E) -> S | None:
        """The state after `event`, or None where the table does not allow it."""
        return self.transitions.get((state, event))

    def states_before(self, event: E) -> tuple[S, ...]:
        """The states in which `event` may happen: what a conditional UPDATE must find."""
        return tuple(state for state in self.states if (state, event) in self.transitions)

    def state_after(self, event: E) -> S:
        """The one state `event` leads to; every event of a table has exactly one (a test holds it to that)."""
        (after,) = {after for (_, happened), after in self.transitions.items() if happened is event}
        return after
