"""Has the central cloud changed? Compares it with what was last accepted, and raises the generation of what changed.

So a changed password is on its way to every subcloud within one look, long before their audits would be due.
A central cloud that cannot be read, is empty or has shrunk beyond belief changes nothing, and what is kept says why.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from dcsync.audit import guards
from dcsync.audit.endpoints import REGISTRY, audited_types
from dcsync.audit.endpoints.base import AuditedEndpoint
from dcsync.audit.ports import CentralState, CentralStates
from dcsync.model.errors import CloudError
from dcsync.model.identity import CentralData
from dcsync.model.subcloud import EndpointType
from dcsync.runs.clouds import Clouds
from dcsync.runs.ports import Loop

EVENTS_APART = timedelta(seconds=60)
"""Revocation events alone raise the generation no more often: every logout at the central cloud makes one."""

LOOK_SECONDS = 5.0
"""How old what the watch sees may be at most, however old runs may use it: a change must not wait for their cache, and
keys from before a rotation must not pass for a change after it."""


@dataclass(frozen=True)
class Sight:
    """What one look at the central cloud came to, for one endpoint type: rows made due, or why it was refused."""

    kind: EndpointType
    raised: int = 0
    refused: str | None = None


@dataclass(frozen=True)
class CentralWatch:
    """The periodic look at the central cloud. Two at once are harmless: one of them is told that it came second."""

    store: CentralStates
    clouds: Clouds
    loop: Loop

    def run(self, *, now: datetime) -> list[Sight]:
        """One look; what is worth telling of it. Raises BrokerUnreachable or DatabaseUnreachable."""
        try:
            data = self.loop.run(self.clouds.central_audit_data(max_age=LOOK_SECONDS))
        except CloudError as exc:
            why = f"{exc.reason}: {exc.detail}"
            for kind in audited_types():
                self.store.refuse_central(kind, why=why, now=now)
            return [Sight(kind, refused=why) for kind in audited_types()]
        sights = [self._compare(room, _state_of(data, room), now=now) for room in REGISTRY.values()]
        return [sight for sight in sights if sight.raised or sight.refused]

    def _compare(self, room: AuditedEndpoint[Any], seen: CentralState, *, now: datetime) -> Sight:
        old = self.store.central_state(seen.kind)
        if old is None:
            # Audits may have been done with what the central cloud held before this first look: nobody can tell any
            # more.
            self.store.add_rows(seen.kind, now=now)
            raised = self.store.raise_generation(seen.kind, now=now, by="first look at the central cloud")
            self.store.accept_central(seen, old=None, now=now)
            return Sight(seen.kind, raised=raised)
        shrunk = None if old.shrink_allowed else guards.shrunk(before=old.counts, now=seen.counts)
        if shrunk is not None:
            self.store.refuse_central(seen.kind, why=shrunk.detail, now=now)
            return Sight(seen.kind, refused=shrunk.detail)
        if not _is_news(seen, old, now=now):
            self.store.confirm_central(seen.kind, now=now)
            return Sight(seen.kind)
        accepted = self.store.accept_central(seen, old=old, now=now, unless_rotating=room.carries_keys)
        return Sight(seen.kind, raised=accepted or 0)


def _is_news(seen: CentralState, old: CentralState, *, now: datetime) -> bool:
    if seen.fingerprint != old.fingerprint:
        return True
    if seen.events_fingerprint == old.events_fingerprint:
        return False
    return old.changed_at is None or now - old.changed_at >= EVENTS_APART


def _state_of(data: CentralData, room: AuditedEndpoint[Any]) -> CentralState:
    return CentralState(
        kind=room.endpoint_type,
        fingerprint=room.central_fingerprint(data),
        events_fingerprint=room.central_events_fingerprint(data),
        counts=room.central_counts(data),
    )
