"""From a row of `subcloud` to the record the services know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from dcsync.errors import Reason
from dcsync.subcloud import EndpointType, Subcloud, SyncStatus

_COLUMNS = tuple(field.name for field in fields(Subcloud) if field.name not in ("reason", "sync_status"))


def subcloud_from_row(row: Mapping[str, Any], sync_status: Mapping[str, str] | None = None) -> Subcloud:
    """A Subcloud from a row with (at least) its columns, and its endpoint statuses where they were read as well."""
    found = sync_status or {}
    return Subcloud(
        **{column: row[column] for column in _COLUMNS},
        reason=Reason(row["reason"]) if row["reason"] is not None else None,
        sync_status={type_: SyncStatus(found[type_]) for type_ in EndpointType if type_ in found},
    )
