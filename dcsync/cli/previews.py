"""Previews of what would be written: logs in, reads and compares in this process, and writes nothing.

A subcloud whose lock is held is refused, because a run in progress would make the comparison meaningless. No lock is
taken.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import click

from dcsync.cli.output import json_text, many, note, say
from dcsync.model.ending import Failure
from dcsync.model.errors import CloudError, RefusedByGuard
from dcsync.model.reasons import Reason

if TYPE_CHECKING:
    from dcsync.bootstrap import PreviewServices
    from dcsync.cli.operator import Operator
    from dcsync.model.subcloud import EndpointType, Subcloud

AT_ONCE = 16
"""Subclouds read at the same time."""

NO_ANSWER = 4
REFUSED = 5
_REFUSED_BY_THE_DATA = frozenset(
    {Reason.CENTRAL_EMPTY, Reason.CENTRAL_KEYS_INVALID, Reason.SUBCLOUD_EMPTY, Reason.IDS_NOT_ALIGNED}
)
"""Reasons for which a run would stop before its first write although both clouds answered."""


@dataclass(frozen=True)
class Part:
    """The differences and writes of one subcloud, for one endpoint type or for an initial sync."""

    of: str
    differences: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    deletions: int = 0
    refused: str | None = None


@dataclass(frozen=True)
class Preview:
    """The preview of one subcloud. `error`: why there is none; `code` is then the exit code for it."""

    name: str
    region_name: str
    parts: tuple[Part, ...] = ()
    error: str | None = None
    code: int = field(default=0)

    @property
    def differs(self) -> bool:
        """Whether a run would find something, or write something in any case."""
        return any(part.differences or part.writes for part in self.parts)

    def as_object(self) -> dict[str, object]:
        return {
            "name": self.name,
            "region_name": self.region_name,
            "differs": None if self.error else self.differs,
            "error": self.error,
            "writes": [write for part in self.parts for write in part.writes],
            "parts": {
                part.of: {
                    "differences": list(part.differences),
                    "writes": list(part.writes),
                    "deletions": part.deletions,
                    "refused": part.refused,
                }
                for part in self.parts
            },
        }


Look = Callable[["Subcloud"], tuple[Part, ...]]


def audit_look(
    services: PreviewServices, endpoint_types: Collection[EndpointType], resource_types: Collection[str] | None
) -> Look:
    """Returns the preview of an audit of these endpoint types, repairing these resource types (None: all)."""
    only = None if resource_types is None else frozenset(resource_types)

    def look(known: Subcloud) -> tuple[Part, ...]:
        return tuple(
            Part(
                of=str(each.endpoint_type),
                differences=each.differences,
                writes=each.writes,
                deletions=each.deletions,
                refused=_refused(each.refused),
            )
            for each in services.audit.preview(known.name, frozenset(endpoint_types), only)
        )

    return look


def sync_look(services: PreviewServices) -> Look:
    """Returns the preview of an initial sync."""

    def look(known: Subcloud) -> tuple[Part, ...]:
        seen = services.initial_sync(known)
        refused = _refused(seen.refused)
        return (Part(of="initial sync", differences=seen.differences, writes=seen.writes, refused=refused),)

    return look


def _refused(failure: Failure | None) -> str | None:
    return f"{failure.reason}: {failure.detail}" if failure else None


def show(
    operator: Operator,
    subclouds: Sequence[Subcloud],
    choose: Callable[[PreviewServices], Look],
    *,
    as_json: bool,
    single: bool = False,
) -> int:
    """Prints what differs. Returns 0 for nothing, 1 for something, else the higher of 4 (no answer) and
    5 (refused: a run is in progress, or a guard would stop a run). `single`: JSON is one object, not a list."""
    operator.requires("central_auth_url", "password", "redis_url")
    services = operator.previews
    look = choose(services)
    held = services.locks.owners([known.region_name for known in subclouds]) if subclouds else {}

    def one(known: Subcloud) -> Preview:
        try:
            if held[known.region_name] is not None:
                raise RefusedByGuard(f"{known.name} has a run in progress; try again when it has ended")
            return Preview(known.name, known.region_name, look(known))
        except RefusedByGuard as exc:
            return Preview(known.name, known.region_name, error=str(exc), code=REFUSED)
        except CloudError as exc:
            code = REFUSED if exc.reason in _REFUSED_BY_THE_DATA else NO_ANSWER
            return Preview(known.name, known.region_name, error=str(exc), code=code)

    with ThreadPoolExecutor(AT_ONCE) as threads:
        previews = list(threads.map(one, subclouds))
    if as_json:
        shown = [preview.as_object() for preview in previews]
        click.echo(json_text(shown[0] if single else shown))
    else:
        _print(previews)
    return max((preview.code or int(preview.differs) for preview in previews), default=0)


def _print(previews: Sequence[Preview]) -> None:
    for preview in previews:
        if preview.error:
            note(f"{preview.name}: {preview.error}")
            continue
        for part in preview.parts:
            _print_part(preview.name, part)
    differing = sum(preview.differs for preview in previews)
    unknown = sum(preview.error is not None for preview in previews)
    note(f"{differing} of {many(len(previews))} would be changed" + (f", {unknown} not known" if unknown else ""))


def _print_part(name: str, part: Part) -> None:
    say(f"{name} {part.of}: {many(len(part.differences), 'difference') if part.differences else 'no difference'}")
    for difference in part.differences:
        say(f"  {difference}")
    if part.differences or part.writes:
        say(f"  would be written: {', '.join(part.writes) or 'nothing'}")
    if part.refused:
        say(f"  but the run would fail: {part.refused}")
