"""What may be shown of a subcloud: a pure function of its row, the time and the freshness windows.

A status in a row is what was last seen. It is shown for as long as it was verified within its window; otherwise
`unknown` is shown with the reason. List, show, wait, JSON, counts and alarms all use these functions, so that they
cannot disagree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from dcsync.model.marks import CLOCK_TOLERANCE
from dcsync.model.reasons import Unproven
from dcsync.model.states.initial_sync import InitialSyncState
from dcsync.model.subcloud import (
    AvailabilityStatus,
    EndpointStatus,
    EndpointType,
    ManagementState,
    Subcloud,
    SyncStatus,
)


class ShownAvailability(StrEnum):
    """An availability status as shown: `unknown` when nobody has seen an online subcloud for too long."""

    ONLINE = "online"
    OFFLINE = "offline"
    UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True)
class Windows:
    """How long an observation is believed: of availability, of what dcsync audits itself, and of what others report."""

    availability: timedelta
    audited: timedelta
    reported: timedelta

    def of(self, *, is_audited: bool) -> timedelta:
        """Returns the window of an endpoint type that dcsync audits itself, or of one that others report."""
        return self.audited if is_audited else self.reported


@dataclass(frozen=True, kw_only=True)
class ShownStatus:
    """The sync status of one endpoint type as shown, and what is known of its proof."""

    endpoint_type: EndpointType
    sync_status: SyncStatus
    reason: str | None
    """A `Reason` or `Unproven`; set where `sync_status` is unknown."""
    verified_at: datetime | None
    last_good_at: datetime | None
    stored: SyncStatus
    """The status in the row, whatever its age."""

    @property
    def is_stale(self) -> bool:
        """Whether the row's status is only too old to be shown."""
        return self.reason is Unproven.STALE


@dataclass(frozen=True, kw_only=True)
class View:
    """One subcloud as it is shown at one moment."""

    subcloud: Subcloud
    availability: ShownAvailability
    endpoints: Mapping[EndpointType, ShownStatus]

    @property
    def worst(self) -> ShownStatus | None:
        """The worst of all its endpoint types, the first in their order; None when it has none."""
        return min(self.endpoints.values(), key=lambda shown: _WORST_FIRST.get(shown.sync_status, 0), default=None)


_WORST_FIRST = {SyncStatus.OUT_OF_SYNC: 0, SyncStatus.UNKNOWN: 1, SyncStatus.IN_SYNC: 2}


def view(subcloud: Subcloud, *, now: datetime, windows: Windows) -> View:
    """Returns what may be shown of this subcloud now."""
    return View(
        subcloud=subcloud,
        availability=shown_availability(subcloud, now=now, windows=windows),
        endpoints={
            type_: shown_status(subcloud, type_, status, now=now, windows=windows)
            for type_, status in subcloud.endpoints.items()
        },
    )


def shown_availability(subcloud: Subcloud, *, now: datetime, windows: Windows) -> ShownAvailability:
    """Returns `online` only if the subcloud was seen within the window. `offline` claims nothing that could become
    old: it is also the status of a subcloud that nobody has ever seen."""
    if subcloud.availability_status is AvailabilityStatus.OFFLINE:
        return ShownAvailability.OFFLINE
    is_fresh = is_within(subcloud.last_seen_at, windows.availability, now=now)
    return ShownAvailability.ONLINE if is_fresh else ShownAvailability.UNKNOWN


def shown_status(
    subcloud: Subcloud, endpoint_type: EndpointType, status: EndpointStatus, *, now: datetime, windows: Windows
) -> ShownStatus:
    """Returns the stored status only if it is proven: verified within its window, and, for a type that dcsync audits,
    since the subcloud's initial sync was completed."""
    reason = _why_unknown(subcloud, endpoint_type, status, now=now, windows=windows)
    return ShownStatus(
        endpoint_type=endpoint_type,
        sync_status=status.sync_status if reason is None else SyncStatus.UNKNOWN,
        reason=reason,
        verified_at=status.verified_at,
        last_good_at=status.last_good_at,
        stored=status.sync_status,
    )


def is_within(moment: datetime | None, window: timedelta, *, now: datetime) -> bool:
    """Whether this was at most `window` ago. A moment in the future is void."""
    return moment is not None and -CLOCK_TOLERANCE <= now - moment <= window


def _why_unknown(
    subcloud: Subcloud, endpoint_type: EndpointType, status: EndpointStatus, *, now: datetime, windows: Windows
) -> str | None:
    """Returns None where the stored status may be shown. The widest hindrance comes first."""
    if endpoint_type is not EndpointType.DC_CERT and subcloud.management_state is ManagementState.UNMANAGED:
        return Unproven.UNMANAGED
    if subcloud.availability_status is AvailabilityStatus.OFFLINE and endpoint_type is not EndpointType.DC_CERT:
        return Unproven.OFFLINE
    if status.is_audited and subcloud.initial_sync_state is not InitialSyncState.COMPLETED:
        return _why_not_completed(subcloud)
    if status.sync_status is SyncStatus.UNKNOWN:
        return status.reason or (Unproven.NOT_VERIFIED if status.verified_at else Unproven.NEVER_VERIFIED)
    return None if is_within(status.verified_at, windows.of(is_audited=status.is_audited), now=now) else Unproven.STALE


def _why_not_completed(subcloud: Subcloud) -> str:
    match subcloud.initial_sync_state:
        case InitialSyncState.FAILED:
            return subcloud.reason or Unproven.NOT_COMPLETED
        case InitialSyncState.REQUESTED:
            return Unproven.ASKED
        case InitialSyncState.IN_PROGRESS:
            return Unproven.IN_PROGRESS
        case _:
            return Unproven.NOT_COMPLETED


# --- what a wait believes ----------------------------------------------------------------------------------------


def is_proven_in_sync(shown: View, *, since: datetime | None = None) -> bool:
    """Whether all endpoint types are in-sync by proofs that are newer than what was requested of them and than the last
    known change of the central cloud; with `since`, newer than that as well."""
    return bool(shown.endpoints) and all(
        status.sync_status is SyncStatus.IN_SYNC
        and not _is_overtaken(shown.subcloud, status)
        and (since is None or (status.verified_at is not None and status.verified_at >= since))
        for status in shown.endpoints.values()
    )


def _is_overtaken(subcloud: Subcloud, shown: ShownStatus) -> bool:
    """Whether something was requested that this status does not prove yet."""
    stored = subcloud.endpoints[shown.endpoint_type]
    asked = stored.requested_at
    return stored.is_pending or (asked is not None and (shown.verified_at is None or shown.verified_at < asked))
