"""Compares the central cloud with what was last accepted, and raises the generation of what changed.

A central change is therefore sent to every subcloud at once, not only when its next audit is due. A central cloud that
cannot be read, is empty or has shrunk too much changes nothing; the reason is stored.
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
from dcsync.model.marks import is_void
from dcsync.model.subcloud import EndpointType
from dcsync.runs.clouds import Clouds
from dcsync.runs.ports import Loop

EVENTS_MIN_INTERVAL = timedelta(seconds=60)
"""Revocation events alone raise the generation at most this often: every logout at the central cloud adds one."""

MAX_AGE_SECONDS = 5.0
"""Maximum age of the central data the watch uses, whatever runs allow: a change must not wait for their cache, and keys
from before a rotation must not count as a change after it."""


@dataclass(frozen=True)
class WatchResult:
    """The result of one comparison for one endpoint type: the number of rows made due, or why it was refused."""

    endpoint_type: EndpointType
    raised: int = 0
    refused: str | None = None


@dataclass(frozen=True)
class CentralWatch:
    """The periodic comparison of the central cloud. Of two at once, only one can accept a change."""

    store: CentralStates
    clouds: Clouds
    loop: Loop

    def run(self, *, now: datetime) -> list[WatchResult]:
        """Compares once; returns the results that changed or refused something. Raises DatabaseUnreachable."""
        try:
            data = self.loop.run(self.clouds.central_audit_data(max_age=MAX_AGE_SECONDS))
        except CloudError as exc:
            why = f"{exc.reason}: {exc.detail}"
            self.store.note_central_check(unreadable=why, now=now)
            for endpoint_type in audited_types():
                self.store.refuse_central(endpoint_type, why=why, now=now)
            return [WatchResult(endpoint_type, refused=why) for endpoint_type in audited_types()]
        self.store.note_central_check(unreadable=None, now=now)
        results = [self._compare(endpoint, _state_of(data, endpoint), now=now) for endpoint in REGISTRY.values()]
        return [result for result in results if result.raised or result.refused]

    def _compare(self, endpoint: AuditedEndpoint[Any], seen: CentralState, *, now: datetime) -> WatchResult:
        old = self.store.central_state(seen.endpoint_type)
        if old is None:
            # Earlier audits may have used other central data, which cannot be determined any more.
            self.store.add_rows(seen.endpoint_type, now=now)
            raised = self.store.raise_generation(seen.endpoint_type, now=now, by="first look at the central cloud")
            self.store.accept_central(seen, old=None, now=now)
            return WatchResult(seen.endpoint_type, raised=raised)
        shrunk = None if old.shrink_allowed else guards.shrunk(before=old.counts, now=seen.counts)
        if shrunk is not None:
            self.store.refuse_central(seen.endpoint_type, why=shrunk.detail, now=now)
            return WatchResult(seen.endpoint_type, refused=shrunk.detail)
        if not _is_changed(seen, old, now=now):
            self.store.confirm_central(seen.endpoint_type, now=now)
            return WatchResult(seen.endpoint_type)
        accepted = self.store.accept_central(seen, old=old, now=now, unless_rotating=endpoint.distributes_keys)
        return WatchResult(seen.endpoint_type, raised=accepted or 0)


def _is_changed(seen: CentralState, old: CentralState, *, now: datetime) -> bool:
    if seen.fingerprint != old.fingerprint:
        return True
    if seen.events_fingerprint == old.events_fingerprint:
        return False
    changed_at = old.changed_at
    return changed_at is None or now - changed_at >= EVENTS_MIN_INTERVAL or is_void(changed_at, now=now)


def _state_of(data: CentralData, endpoint: AuditedEndpoint[Any]) -> CentralState:
    return CentralState(
        endpoint_type=endpoint.endpoint_type,
        fingerprint=endpoint.central_fingerprint(data),
        events_fingerprint=endpoint.central_events_fingerprint(data),
        counts=endpoint.central_counts(data),
    )
