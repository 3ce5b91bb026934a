"""Reports to the state service, acknowledged only after they were committed. `report_payloads` defines their JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple, TypeAlias

from dcsync.model.errors import BadReport
from dcsync.model.subcloud import AvailabilityStatus, EndpointType, SyncStatus


class Mark(NamedTuple):
    """When something was observed; `sequence` orders what one observer saw at the same instant. Later is greater."""

    observed_at: datetime
    sequence: int


MAX_FAIL_COUNT = 9999
MAX_REASON = 200
MAX_SEQUENCE = 2**62


@dataclass(frozen=True, slots=True, kw_only=True)
class AvailabilityReport:
    """One subcloud's availability, and how many probes of it failed in a row (0 to MAX_FAIL_COUNT, None: not reported).

    Without `availability_status` it reports the fail count only. `state_only` changes no row: it requests that the
    alarms of this subcloud are reconciled with its row. Source: docs/upstream/state-service.md section 5.
    """

    region_name: str
    mark: Mark
    availability_status: AvailabilityStatus | None = None
    fail_count: int | None = None
    state_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointReport:
    """The sync status of one endpoint type, or (None) of all except `ignored`; of one subcloud, or (None) of all
    subclouds.

    Source: docs/upstream/state-service.md section 3.
    """

    region_name: str | None
    mark: Mark
    sync_status: SyncStatus
    endpoint_type: EndpointType | None = None
    ignored: frozenset[EndpointType] = frozenset()
    alarmable: bool = True
    reason: str | None = None
    """Why it is `unknown`, MAX_REASON characters at most; ignored with any other status."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BulkReport:
    """The result of one observation of one subcloud: its availability and the status of several endpoints.

    Source: docs/upstream/state-service.md section 6.
    """

    availability: AvailabilityReport | None
    endpoints: tuple[EndpointReport, ...]

    @property
    def region_name(self) -> str | None:
        return self.availability.region_name if self.availability else self.endpoints[0].region_name

    @property
    def mark(self) -> Mark:
        return self.availability.mark if self.availability else self.endpoints[0].mark


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointTypesReport:
    """These endpoint types exist on this subcloud from now on, or (`present` false) no longer exist.

    Source: docs/upstream/state-service.md section 7.
    """

    region_name: str
    mark: Mark
    endpoint_types: frozenset[EndpointType]
    present: bool


Report: TypeAlias = AvailabilityReport | EndpointReport | BulkReport | EndpointTypesReport


def bulk_report(
    *,
    region_name: str,
    mark: Mark,
    endpoints: Mapping[EndpointType, SyncStatus],
    availability_status: AvailabilityStatus | None = None,
    fail_count: int | None = None,
    alarmable: bool = True,
) -> BulkReport:
    """Returns availability (omitted when neither status nor fail count is given) and endpoint statuses in one report.

    Raises BadReport when the report would be empty.
    """
    if not endpoints and availability_status is None and fail_count is None:
        raise BadReport("the report is empty")
    availability = AvailabilityReport(
        region_name=region_name, mark=mark, availability_status=availability_status, fail_count=fail_count
    )
    return BulkReport(
        availability=availability if availability_status or fail_count is not None else None,
        endpoints=tuple(
            EndpointReport(
                region_name=region_name,
                mark=mark,
                endpoint_type=endpoint_type,
                sync_status=sync_status,
                alarmable=alarmable,
            )
            for endpoint_type, sync_status in endpoints.items()
        ),
    )
