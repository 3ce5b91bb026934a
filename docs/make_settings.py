"""Writes docs/settings.md, reasons.md and endpoint-types.md from the code: `python docs/make_settings.py`.

A test compares them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from dcsync.audit.endpoints import REGISTRY, REPORTED_ONLY
from dcsync.model.reasons import Reason
from dcsync.settings import PREFIX, SECRETS, Settings, shown

DOCS = Path(__file__).parent
SIGNS = {Ge: ("ge", "≥"), Gt: ("gt", ">"), Le: ("le", "≤"), Lt: ("lt", "<")}


def settings_page() -> str:
    """Every setting: name, default, limits, meaning."""
    rows = "\n".join(
        f"| `{PREFIX}{name.upper()}` | {_default(name, field)} | {_limits(field)} | {_cell(field.description or '')} |"
        for name, field in Settings.model_fields.items()
    )
    secrets = ", ".join(f"`{PREFIX}{name.upper()}`" for name in SECRETS)
    return f"""# Settings

Written from `dcsync/settings.py` by `python docs/make_settings.py`; do not edit.

Settings are environment variables. Times are seconds, sizes bytes. An empty value counts as not set; an unknown
`{PREFIX}` name is an error, and all errors are told at once at the start. `dcsync config show` prints what a process
sees, secrets masked.

A secret may be given as a file instead, as `{PREFIX}PASSWORD_FILE=/path`; a line break at its end does not count.
Secrets are {secrets}.

| Setting | Default | Limits | Meaning |
| --- | --- | --- | --- |
{rows}
"""


def reasons_page() -> str:
    """Every reason a run may fail with, and what to do."""
    rows = "\n".join(
        f"| `{reason}` | {'a person' if reason.needs_a_person else 'mostly by itself'} | {_cell(reason.advice)} |"
        for reason in Reason
    )
    return f"""# Reasons

Written from `dcsync/model/reasons.py` by `python docs/make_settings.py`; do not edit.

Why a run failed, as `dcsync subcloud list` and `dcsync history NAME` show it. Every one is tried again after its
hold-off. "A person" says that waiting alone is unlikely to help.

| Reason | Mended by | What to do |
| --- | --- | --- |
{rows}
"""


def endpoint_types_page() -> str:
    """Every endpoint type: audited here, or only reported."""
    rows = "\n".join(
        f"| `{room.endpoint_type}` | {_cell(room.purpose)} | {', '.join(f'`{name}`' for name in room.resource_types)} |"
        for room in REGISTRY.values()
    )
    others = ", ".join(f"`{endpoint_type}`" for endpoint_type in sorted(REPORTED_ONLY))
    return f"""# Endpoint types

Written from the registry in `dcsync/audit/endpoints/` by `python docs/make_settings.py`; do not edit.

dcsync audits these endpoint types itself, in this order: it compares a subcloud with the central cloud, repairs what
differs, and reports. A repair may be restricted to some resource types (`dcsync audit --resource-type`).

| Endpoint type | in-sync means | Resource types |
| --- | --- | --- |
{rows}

Others are known, and only reported by whoever audits them: {others}.
"""


PAGES = {"settings.md": settings_page, "reasons.md": reasons_page, "endpoint-types.md": endpoint_types_page}


def _default(name: str, field: FieldInfo) -> str:
    default: Any = field.default
    if default is None or default == ():
        return "secret, not set" if name in SECRETS else "not set"
    return f"`{shown(default)}`"


def _limits(field: FieldInfo) -> str:
    limits = [
        f"{sign} {getattr(limit, attribute):g}"
        for limit in field.metadata
        for kind, (attribute, sign) in SIGNS.items()
        if isinstance(limit, kind)
    ]
    return ", ".join(limits)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    for file_name, page in PAGES.items():
        (DOCS / file_name).write_text(page(), encoding="utf-8")
