"""The JSON payloads of reports, validated by pydantic against one type per kind of report.

Separate from `reports`, because importing pydantic adds 0.1 s to the start of a command. Measured (CPU time, CPython
3.11, compared with the hand-written readers used before): an availability report 3.3 µs (1.4 times as much), an
endpoint, a bulk of two or endpoint types 3.0 to 6.6 µs (1.0 to 1.1 times), a message of 200 mixed reports 1.2 ms (1.1
times). With models instead of typed dictionaries an availability report would cost 1.6 times as much.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, NotRequired, TypeAlias

from pydantic import ConfigDict, Field, PlainValidator, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from dcsync.model.errors import BadReport
from dcsync.model.reports import (
    MAX_FAIL_COUNT,
    MAX_REASON,
    MAX_SEQUENCE,
    AvailabilityReport,
    BulkReport,
    EndpointReport,
    EndpointTypesReport,
    Mark,
    Report,
    bulk_report,
)
from dcsync.model.subcloud import AvailabilityStatus, EndpointType, SyncStatus


def report_payload(report: Report) -> dict[str, object]:
    """Returns the report as JSON values; fields with default values are omitted."""
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
            if report.reason is not None:
                payload["reason"] = report.reason
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
    """Returns the report of this payload, the inverse of `report_payload`; raises BadReport naming the first
    problem."""
    try:
        fields = _PAYLOADS.validate_python(payload)
    except ValidationError as exc:
        raise BadReport(_first_problem(exc)) from exc
    mark = Mark(fields.pop("observed_at"), fields.pop("sequence", 0))
    return _MAKERS[fields.pop("kind")](mark=mark, **fields)


# --- the signature of a message with many reports ---


def signature_of(updates: Sequence[object], key: bytes) -> str:
    """Returns the HMAC-SHA256 of these payloads as hexadecimal digits.

    What is signed is their JSON with sorted names, without blanks, non-ASCII characters escaped, so that other programs
    can sign as well. Raises ValueError, TypeError or RecursionError for what is no JSON.
    """
    text = json.dumps(list(updates), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hmac.digest(key, text.encode(), "sha256").hex()


def signature_problem(updates: Sequence[object], signature: object, keys: Sequence[bytes]) -> str | None:
    """Returns why none of `keys` signed these payloads; None where one did."""
    if signature is None:
        return "the message is not signed"
    try:
        valid = [signature_of(updates, key) for key in keys]
    except (ValueError, TypeError, RecursionError):
        return "the message cannot be verified"
    given = signature.encode() if isinstance(signature, str) else b""
    # Every key is compared, in constant time.
    if not sum(hmac.compare_digest(each.encode(), given) for each in valid):
        return "the signature of the message is not valid"
    return None


def _availability_report(
    *, availability_status: AvailabilityStatus | None = None, fail_count: int | None = None, **others: Any
) -> AvailabilityReport:
    if availability_status is None and fail_count is None and not others.get("state_only"):
        raise BadReport("neither an availability status nor a fail count is given")
    return AvailabilityReport(availability_status=availability_status, fail_count=fail_count, **others)


def _endpoint_report(*, region_name: str | None = None, **others: Any) -> EndpointReport:
    return EndpointReport(region_name=region_name, **others)


HIDDEN = "***"
"""Replaces unexpected values, which may be secrets sent by mistake."""


def readable(payload: object) -> object:
    """Returns what may be stored and shown of an invalid payload: plain values of the known fields of a report."""
    if not isinstance(payload, dict):
        return HIDDEN
    return {str(name): _readable(value) if name in _FIELDS else HIDDEN for name, value in payload.items()}


def _readable(value: object) -> object:
    if isinstance(value, dict):
        return {name: _plain(status) for name, status in value.items() if name in set(EndpointType)}
    return [_plain(each) for each in value] if isinstance(value, list) else _plain(value)


def _plain(value: object) -> object:
    return value if value is None or isinstance(value, str | int | float) else HIDDEN


def _first_problem(error: ValidationError) -> str:
    """Returns field, problem and value found, truncated and printable."""
    problem = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(map(str, problem["loc"][1:]))[:80]
    is_hidden = isinstance(problem["input"], dict) or problem["type"] == "extra_forbidden"
    found = "" if is_hidden else f", not {problem['input']!r:.80}"
    text = f"{where}: {problem['msg']}{found}".removeprefix(": ")
    return text.encode("unicode_escape").decode()[:400]


# --- what payloads hold ---


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


def _region_name(value: object) -> str:
    if not (isinstance(value, str) and 0 < len(value) <= 255 and value.isprintable()):
        raise BadReport("the region name is not 1 to 255 printable characters")
    return value


def _reason(value: object) -> str | None:
    """Cut and made printable: it is shown on terminals."""
    if value is not None and not isinstance(value, str):
        raise BadReport("the reason is not text")
    return None if value is None else "".join(c if c.isprintable() else "?" for c in value[:MAX_REASON])


_Moment = Annotated[datetime, PlainValidator(_moment)]
_RegionName = Annotated[str, PlainValidator(_region_name)]
_Reason = Annotated[str, PlainValidator(_reason)]
# JSON strings and lists become enums and sets; everything else is strict: "1" is not a number and 1 is not a boolean.
_Availability = Annotated[AvailabilityStatus, Field(strict=False)]
_Status = Annotated[SyncStatus, Field(strict=False)]
_Endpoint = Annotated[EndpointType, Field(strict=False)]
_Endpoints = Annotated[frozenset[_Endpoint], Field(strict=False)]
_FailCount = Annotated[int, Field(ge=0, le=MAX_FAIL_COUNT)]

_EXACT = ConfigDict(extra="forbid", strict=True)


class _Payload(TypedDict):
    observed_at: _Moment
    sequence: NotRequired[Annotated[int, Field(ge=0, le=MAX_SEQUENCE)]]


@with_config(_EXACT)
class _AvailabilityPayload(_Payload):
    kind: Literal["availability"]
    region_name: _RegionName
    availability_status: NotRequired[_Availability | None]
    fail_count: NotRequired[_FailCount | None]
    state_only: NotRequired[bool]


@with_config(_EXACT)
class _BulkPayload(_Payload):
    kind: Literal["bulk"]
    region_name: _RegionName
    availability_status: NotRequired[_Availability | None]
    fail_count: NotRequired[_FailCount | None]
    endpoints: dict[_Endpoint, _Status]
    alarmable: NotRequired[bool]


@with_config(_EXACT)
class _EndpointPayload(_Payload):
    kind: Literal["endpoint"]
    region_name: NotRequired[_RegionName | None]
    sync_status: _Status
    endpoint_type: NotRequired[_Endpoint | None]
    ignored: NotRequired[_Endpoints]
    alarmable: NotRequired[bool]
    reason: NotRequired[_Reason | None]


@with_config(_EXACT)
class _EndpointTypesPayload(_Payload):
    kind: Literal["endpoint-types"]
    region_name: _RegionName
    endpoint_types: _Endpoints
    present: bool


_FIELDS = frozenset(
    field
    for payload in (_AvailabilityPayload, _BulkPayload, _EndpointPayload, _EndpointTypesPayload)
    for field in payload.__annotations__
) | {"updates"}
"""The fields of any report, and of a message with many."""

_AnyPayload: TypeAlias = _AvailabilityPayload | _BulkPayload | _EndpointPayload | _EndpointTypesPayload

_PAYLOADS: TypeAdapter[Any] = TypeAdapter(Annotated[_AnyPayload, Field(discriminator="kind")])

_KINDS: dict[type, str] = {
    AvailabilityReport: "availability",
    EndpointReport: "endpoint",
    BulkReport: "bulk",
    EndpointTypesReport: "endpoint-types",
}

_MAKERS: Mapping[str, Callable[..., Report]] = {
    "availability": _availability_report,
    "endpoint": _endpoint_report,
    "bulk": bulk_report,
    "endpoint-types": EndpointTypesReport,
}
