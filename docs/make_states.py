"""Draws docs/states.md from dcsync/model/lifecycle.py: `python docs/make_states.py`. A test keeps them equal."""

from __future__ import annotations

from pathlib import Path

from dcsync.model.lifecycle import TRANSITIONS, Event
from dcsync.model.subcloud import InitialSyncState

PAGE = Path(__file__).with_name("states.md")


def page() -> str:
    """The whole page."""
    edges = "\n".join(
        f"    {_node(before)} --> {_node(after)}: {event.value}" for (before, event), after in TRANSITIONS.items()
    )
    rows = "\n".join(
        f"| {event.value} | {', '.join(f'`{state}`' for state in InitialSyncState if (state, event) in TRANSITIONS)} "
        f"| {', '.join(sorted({f'`{after}`' for (_, e), after in TRANSITIONS.items() if e is event}))} |"
        for event in Event
    )
    return f"""# States of an initial sync

Drawn from `TRANSITIONS` in `dcsync/model/lifecycle.py` by `python docs/make_states.py`; do not edit.
A new subcloud begins in `none`; deleting it removes the row from any state.

```mermaid
stateDiagram-v2
    [*] --> {_node(InitialSyncState.NONE)}
{edges}
```

| What happens | In | Leads to |
| --- | --- | --- |
{rows}
"""


def _node(state: InitialSyncState) -> str:
    return state.value.replace("-", "_")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
