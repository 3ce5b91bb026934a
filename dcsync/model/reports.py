"""Reports to the state service, acknowledged only after they were committed, and the payloads they travel as."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple, TypeAlias, TypeVar

from dcsync.model.errors import BadReport
from dcsync.model.subcloud import AvailabilityStatus, EndpointType, SyncStatus


class Mark(NamedTuple):
    """When something was observed; `sequence` orders what one observer saw at the same instant. Later is greater."""

    observed_at: datetime
    sequence: int


MAX_FAIL_COUNT = 9999


MAX_SEQUENCE = 2**62


@dataclass(frozen=True, slots=True, kw_only=True)
class AvailabilityReport:
    """One subcloud's availability, and how many looks at it failed in a row (0 to MAX_FAIL_COUNT, None: not told).

    Without `availability_status` it tells the fail count only. `state_only` changes no row: it asks that the alarms of
    this subcloud be made to agree with its row once more. Source: docs/upstream/state-service.md section 5.
    """

    region_name: str
    mark: Mark
    availability_status: AvailabilityStatus | None = None
    fail_count: int | None = None
    state_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointReport:
    """The sync status of one endpoint type, or (None) of all but `ignored`; of one subcloud, or (None) of every one.

    Source: docs/upstream/state-service.md section 3.
    """

    region_name: str | None
    mark: Mark
    sync_status: SyncStatus
    endpoint_type: EndpointType | None = None
    ignored: frozenset[EndpointType] = frozenset()
    alarmable: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class BulkReport:
    """What one look at one subcloud told: its availability and the status of several endpoints, at one instant.

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
    """These endpoint types are there on this subcloud from now on, or (`present` false) are not.

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
    """Availability (left out when neither status nor fail count is given) and endpoint statuses in one report.

    Raises BadReport when it would say nothing at all.
    """
    if not endpoints and availability_status is None and fail_count is None:
        raise BadReport("the report says nothing")
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


def report_payload(report: Report) -> dict[str, object]:
    """The report as JSON values; what says nothing beyond the default is left out."""
    payload: dict[str, object] = {
        "kind": _KINDS[type(report)],
        "region_name": report.region_name,
        "observed_at": report.mark.observed_at.isoformat(),
        "sequence": report.mark.sequence,
    }
    match report:
        case AvailabilityReport():
            payload |= _availability_payload(report)
        case EndpointReport():
            payload |= {"endpoint_type": report.endpoint_type, "sync_status": report.sync_status}
            if report.ignored:
                payload["ignored"] = sorted(report.ignored)
            if not report.alarmable:
                payload["alarmable"] = False
        case BulkReport():
            payload |= _availability_payload(report.availability) if report.availability else {}
            payload["endpoints"] = {str(each.endpoint_type): each.sync_status for each in report.endpoints}
            if not all(each.alarmable for each in report.endpoints):
                payload["alarmable"] = False
        case EndpointTypesReport():
            payload |= {"endpoint_types": sorted(report.endpoint_types), "present": report.present}
    return payload


def _availability_payload(report: AvailabilityReport) -> dict[str, object]:
    payload: dict[str, object] = {}
    if report.availability_status is not None:
        payload["availability_status"] = report.availability_status
    if report.fail_count is not None:
        payload["fail_count"] = report.fail_count
    if report.state_only:
        payload["state_only"] = True
    return payload


def report_from_payload(payload: object) -> Report:
    """The report that `report_payload` made; raises BadReport that says what is wrong with anything else."""
    if not isinstance(payload, dict):
        raise BadReport("the report is not an object")
    fields = dict(payload)
    kind = fields.pop("kind", None)
    read = _READERS.get(kind) if isinstance(kind, str) else None
    if read is None:
        raise BadReport(f"unknown kind of report: {payload.get('kind')!r:.80}")
    mark = Mark(_moment(fields.pop("observed_at", None)), _count(fields.pop("sequence", 0), "sequence", MAX_SEQUENCE))
    report = read(fields, _region_name(fields.pop("region_name", None)), mark)
    if fields:
        raise BadReport(f"unknown fields: {', '.join(sorted(map(repr, fields)))[:80]}")
    return report


HIDDEN = "***"
"""Stands for what nobody may read: it might be a secret that was sent by mistake."""


def readable(payload: object) -> object:
    """What may be stored and shown of a payload that is no report: the plain values of the fields a report has."""
    if not isinstance(payload, dict):
        return HIDDEN
    return {str(name): _readable(value) if name in _FIELDS else HIDDEN for name, value in payload.items()}


def _readable(value: object) -> object:
    if isinstance(value, dict):
        return {name: _plain(status) for name, status in value.items() if name in _ENDPOINT}
    return [_plain(each) for each in value] if isinstance(value, list) else _plain(value)


def _plain(value: object) -> object:
    return value if value is None or isinstance(value, str | int | float) else HIDDEN


_FIELDS = frozenset({
    "kind", "region_name", "observed_at", "sequence", "availability_status", "fail_count", "state_only",
    "endpoint_type", "sync_status", "ignored", "alarmable", "endpoints", "endpoint_types", "present", "updates",
})  # fmt: skip


def _read_availability(fields: dict[str, object], region_name: str | None, mark: Mark) -> AvailabilityReport:
    status, count = fields.pop("availability_status", None), fields.pop("fail_count", None)
    state_only = _truth(fields.pop("state_only", False), "state_only")
    if status is None and count is None and not state_only:
        raise BadReport("neither an availability status nor a fail count is given")
    return AvailabilityReport(
        region_name=_required(region_name),
        mark=mark,
        availability_status=None if status is None else _word(_AVAILABILITY, status, "availability status"),
        fail_count=None if count is None else _count(count, "fail_count", MAX_FAIL_COUNT),
        state_only=state_only,
    )


def _read_endpoint(fields: dict[str, object], region_name: str | None, mark: Mark) -> EndpointReport:
    endpoint_type = fields.pop("endpoint_type", None)
    return EndpointReport(
        region_name=region_name,
        mark=mark,
        sync_status=_word(_SYNC, fields.pop("sync_status", None), "sync status"),
        endpoint_type=None if endpoint_type is None else _word(_ENDPOINT, endpoint_type, "endpoint type"),
        ignored=_endpoint_types(fields.pop("ignored", [])),
        alarmable=_truth(fields.pop("alarmable", True), "alarmable"),
    )


def _read_bulk(fields: dict[str, object], region_name: str | None, mark: Mark) -> BulkReport:
    statuses = fields.pop("endpoints", None)
    if not isinstance(statuses, dict):
        raise BadReport("endpoints is not an object")
    told = {"availability_status", "fail_count"} & fields.keys()
    if not told and not statuses:
        raise BadReport("the report says nothing")
    alarmable = _truth(fields.pop("alarmable", True), "alarmable")
    return BulkReport(
        availability=_read_availability(fields, region_name, mark) if told else None,
        endpoints=tuple(
            EndpointReport(
                region_name=_required(region_name),
                mark=mark,
                endpoint_type=_word(_ENDPOINT, endpoint_type, "endpoint type"),
                sync_status=_word(_SYNC, sync_status, "sync status"),
                alarmable=alarmable,
            )
            for endpoint_type, sync_status in statuses.items()
        ),
    )


def _read_types(fields: dict[str, object], region_name: str | None, mark: Mark) -> EndpointTypesReport:
    return EndpointTypesReport(
        region_name=_required(region_name),
        mark=mark,
        endpoint_types=_endpoint_types(fields.pop("endpoint_types", None)),
        present=_truth(fields.pop("present", None), "present"),
    )


_KINDS: dict[type, str] = {
    AvailabilityReport: "availability",
    EndpointReport: "endpoint",
    BulkReport: "bulk",
    EndpointTypesReport: "endpoint-types",
}


_READERS: Mapping[str, Callable[[dict[str, object], str | None, Mark], Report]] = {
    "availability": _read_availability,
    "endpoint": _read_endpoint,
    "bulk": _read_bulk,
    "endpoint-types": _read_types,
}


Word = TypeVar("Word", AvailabilityStatus, SyncStatus, EndpointType)


_AVAILABILITY = {str(word): word for word in AvailabilityStatus}


_SYNC = {str(word): word for word in SyncStatus}


_ENDPOINT = {str(word): word for word in EndpointType}


def _word(words: Mapping[str, Word], value: object, what: str) -> Word:
    word = words.get(value) if isinstance(value, str) else None
    if word is None:
        raise BadReport(f"unknown {what}: {value!r:.80}")
    return word


def _endpoint_types(values: object) -> frozenset[EndpointType]:
    if not isinstance(values, Iterable) or isinstance(values, str | dict):
        raise BadReport("endpoint types are not a list")
    return frozenset(_word(_ENDPOINT, value, "endpoint type") for value in values)


def _region_name(value: object) -> str | None:
    if value is not None and not (isinstance(value, str) and 0 < len(value) <= 255 and value.isprintable()):
        raise BadReport("the region name is not 1 to 255 printable characters")
    return value


def _required(region_name: str | None) -> str:
    if region_name is None:
        raise BadReport("no region name is given")
    return region_name


def _truth(value: object, what: str) -> bool:
    if not isinstance(value, bool):
        raise BadReport(f"{what} is neither true nor false")
    return value


def _count(value: object, what: str, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise BadReport(f"{what} is not a whole number from 0 to {most}")
    return value


def _moment(value: object) -> datetime:
    try:
        moment = datetime.fromisoformat(value)  # type: ignore[arg-type]
    except (TypeError, ValueError) as exc:
        raise BadReport("observed_at is not a time") from exc
    if moment.tzinfo is UTC:
        return moment
    if moment.tzinfo is None:
        raise BadReport("observed_at has no time zone")
    try:
        return moment.astimezone(UTC)
    except OverflowError as exc:
        raise BadReport("observed_at is not a time") from exc
