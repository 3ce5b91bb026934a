"""The three state columns and what an event writes to them: "set B where it is still A".

Services decide which event happened; the states before and after it are read from the table of states.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic

import sqlalchemy as sa

from dcsync.adapters.postgres.tables import key_rotation, subcloud, subcloud_sync
from dcsync.model.states.audit import AUDIT
from dcsync.model.states.initial_sync import INITIAL_SYNC
from dcsync.model.states.rotation import ROTATION
from dcsync.model.states.table import E, S, StateTable


@dataclass(frozen=True)
class Moves(Generic[S, E]):
    """A state column, changed only by the events of its table."""

    column: sa.Column[Any]
    table: StateTable[S, E]

    def where(self, event: E) -> sa.ColumnElement[bool]:
        """Returns the condition for rows in which the event may happen."""
        return self.column.in_(self.table.states_before(event))

    def after(self, event: E) -> sa.ColumnElement[bool]:
        """Returns the condition for rows in the state after the event."""
        return self.column == self.table.state_after(event)

    def to(self, event: E) -> dict[str, Any]:
        """Returns the column's new value, for `values`."""
        return {self.column.name: self.table.state_after(event)}


INITIAL_SYNC_MOVES = Moves(subcloud.c.initial_sync_state, INITIAL_SYNC)
AUDIT_MOVES = Moves(subcloud_sync.c.audit_status, AUDIT)
ROTATION_MOVES = Moves(key_rotation.c.state, ROTATION)
