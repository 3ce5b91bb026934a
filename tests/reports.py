"""Reports and subclouds for tests of the state service: times are seconds after NOON, everything else has a default."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from dcsync.model.reports import AvailabilityReport, EndpointReport, EndpointTypesReport, Mark, Report, bulk_report
from dcsync.model.states.initial_sync import InitialSyncState
from dcsync.model.subcloud import AvailabilityStatus, EndpointType, ManagementState, SyncStatus
from dcsync.state.ports import EndpointRow, StateRow
from tests.builders import NOON

ONLINE, OFFLINE = AvailabilityStatus.ONLINE, AvailabilityStatus.OFFLINE
MANAGED, UNMANAGED = ManagementState.MANAGED, ManagementState.UNMANAGED
UNKNOWN, IN_SYNC, OUT_OF_SYNC = SyncStatus.UNKNOWN, SyncStatus.IN_SYNC, SyncStatus.OUT_OF_SYNC
PLATFORM, IDENTITY, DC_CERT = EndpointType.PLATFORM, EndpointType.IDENTITY, EndpointType.DC_CERT
FIRMWARE, SOFTWARE = EndpointType.FIRMWARE, EndpointType.SOFTWARE
SEVEN_TYPES = tuple(type_ for type_ in EndpointType if type_ is not EndpointType.IDENTITY_OPENSTACK)
"""What an installation with every StarlingX auditor has configured."""


def at(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


NOW = at(250)
"""When reports are taken; what they tell was observed before."""


def mark(seconds: float, sequence: int = 0) -> Mark:
    return Mark(at(seconds), sequence)


def online(seconds: float, region_name: str = "subcloud1", **more: Any) -> AvailabilityReport:
    return AvailabilityReport(region_name=region_name, mark=mark(seconds), availability_status=ONLINE, **more)


def offline(seconds: float, region_name: str = "subcloud1", **more: Any) -> AvailabilityReport:
    return AvailabilityReport(region_name=region_name, mark=mark(seconds), availability_status=OFFLINE, **more)


def fails(seconds: float, count: int, region_name: str = "subcloud1") -> AvailabilityReport:
    return AvailabilityReport(region_name=region_name, mark=mark(seconds), fail_count=count)


def endpoint(
    seconds: float,
    endpoint_type: EndpointType | None,
    status: SyncStatus,
    region_name: str | None = "subcloud1",
    **more: Any,
) -> EndpointReport:
    return EndpointReport(
        region_name=region_name, mark=mark(seconds), endpoint_type=endpoint_type, sync_status=status, **more
    )


def bulk(
    seconds: float, endpoints: dict[EndpointType, SyncStatus], region_name: str = "subcloud1", **more: Any
) -> Report:
    return bulk_report(region_name=region_name, mark=mark(seconds), endpoints=endpoints, **more)


def types(seconds: float, *endpoint_types: EndpointType, present: bool, region_name: str = "subcloud1") -> Report:
    return EndpointTypesReport(
        region_name=region_name, mark=mark(seconds), endpoint_types=frozenset(endpoint_types), present=present
    )


def a_state_row(region_name: str = "subcloud1", **changes: Any) -> StateRow:
    """A managed subcloud as it was added: never seen, each of seven endpoints unknown."""
    values: dict[str, Any] = {
        "subcloud_id": 1,
        "name": f"name-of-{region_name}",
        "region_name": region_name,
        "management_state": MANAGED,
        "initial_sync_state": InitialSyncState.NONE,
        "availability_status": OFFLINE,
        "online_mark": None,
        "offline_mark": None,
        "fail_count": 0,
        "fail_mark": None,
        "unmanaged_at": None,
        "added_at": NOON,
        "endpoints": {type_: EndpointRow(UNKNOWN, True, None) for type_ in SEVEN_TYPES},
        "memory": {},
    }
    return StateRow(**(values | changes))
