"""Draws docs/states.md from dcsync/model/states/: `python docs/make_states.py`. A test keeps them equal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dcsync.model.states.audit import AUDIT
from dcsync.model.states.initial_sync import INITIAL_SYNC
from dcsync.model.states.rotation import ROTATION
from dcsync.model.states.table import StateTable

PAGE = Path(__file__).with_name("states.md")

TABLES: dict[str, tuple[StateTable[Any, Any], str]] = {
    "Initial sync": (
        INITIAL_SYNC,
        "`INITIAL_SYNC` in `dcsync/model/states/initial_sync.py`, the column `subcloud.initial_sync_state`. A new "
        "subcloud begins in `none`; deleting it removes the row from any state. `completed` means that the run read "
        "the ids and the fernet keys from the subcloud, on whatever path, and that they were the central ones.",
    ),
    "Audit": (
        AUDIT,
        "`AUDIT` in `dcsync/model/states/audit.py`, the column `subcloud_sync.audit_status`, one row for each endpoint "
        "type of a subcloud. A request changes no state: it raises the row's generation and makes it due.",
    ),
    "Key rotation": (
        ROTATION,
        "`ROTATION` in `dcsync/model/states/rotation.py`, the column `key_rotation.state`, one row for the "
        "installation. A request or a plan changes no state: it makes the row due.",
    ),
}


def page() -> str:
    """The whole page."""
    return "\n".join([_HEAD, *(_section(title, *told) for title, told in TABLES.items())])


_HEAD = """# States

Drawn from the tables in `dcsync/model/states/` by `python docs/make_states.py`; do not edit. What a table does not
hold does not happen: every write sets the state after an event, where the row is still in one of the states before it.
"""


def _section(title: str, table: StateTable[Any, Any], text: str) -> str:
    edges = "\n".join(
        f"    {_node(before)} --> {_node(after)}: {event.value}" for (before, event), after in table.transitions.items()
    )
    rows = "\n".join(
        f"| {event.value} | {_words(table.states_before(event))} | {_words([table.state_after(event)])} |"
        for event in table.events
    )
    return f"""## {title}

{text}

```mermaid
stateDiagram-v2
    [*] --> {_node(table.first)}
{edges}
```

| What happens | In | Leads to |
| --- | --- | --- |
{rows}
"""


def _words(states: Sequence[str]) -> str:
    return ", ".join(f"`{state}`" for state in states)


def _node(state: str) -> str:
    return str(state).replace("-", "_")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
