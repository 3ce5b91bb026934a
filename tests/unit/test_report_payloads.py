"""Payloads of reports: what is no report is rejected, with a text that says what is wrong and is fit for a row."""

from __future__ import annotations

import hashlib
import hmac
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcsync.model.errors import BadReport
from dcsync.model.report_payloads import report_from_payload, signature_of, signature_problem
from dcsync.model.reports import MAX_FAIL_COUNT, MAX_SEQUENCE, EndpointReport, Mark
from dcsync.model.subcloud import EndpointType, SyncStatus
from tests.builders import NOON

COMMON = {"region_name": "subcloud1", "observed_at": "2026-01-31T12:00:00+00:00", "sequence": 1}
PAYLOADS: dict[str, dict[str, Any]] = {
    "availability": {**COMMON, "kind": "availability", "availability_status": "online", "fail_count": 0},
    "endpoint": {**COMMON, "kind": "endpoint", "endpoint_type": "platform", "sync_status": "in-sync"},
    "bulk": {**COMMON, "kind": "bulk", "endpoints": {"platform": "in-sync"}},
    "endpoint-types": {**COMMON, "kind": "endpoint-types", "endpoint_types": ["platform"], "present": True},
}
MISSING = object()


def changed(kind: str, **fields: object) -> dict[str, object]:
    return {name: value for name, value in {**PAYLOADS[kind], **fields}.items() if value is not MISSING}


def rejected(payload: object) -> str | None:
    try:
        report_from_payload(payload)
    except BadReport as exc:
        return str(exc)
    return None


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        (changed("availability", observed_at="yesterday"), "observed_at is not a time"),
        (changed("availability", observed_at=1769860800), "observed_at is not a time"),
        (changed("availability", observed_at="0001-01-01T00:00:00+10:00"), "observed_at is not a time"),
        (changed("availability", observed_at="2026-01-31T12:00:00"), "observed_at has no time zone"),
        (changed("availability", observed_at=MISSING), "observed_at: Field required"),
        (changed("availability", region_name=MISSING), "region_name: Field required"),
        (changed("bulk", region_name=None), "the region name is not 1 to 255 printable characters"),
        (changed("endpoint", region_name="a\x00b"), "the region name is not 1 to 255 printable characters"),
        (changed("endpoint", region_name="a" * 256), "the region name is not 1 to 255 printable characters"),
        (changed("endpoint", sequence=-1), "sequence: Input should be greater than or equal to 0, not -1"),
        (changed("endpoint", sequence=True), "sequence: Input should be a valid integer, not True"),
        (changed("endpoint", sequence="1"), "sequence: Input should be a valid integer, not '1'"),
        (
            changed("endpoint", sequence=MAX_SEQUENCE + 1),
            f"sequence: Input should be less than or equal to {MAX_SEQUENCE}, not {MAX_SEQUENCE + 1}",
        ),
        (
            changed("availability", fail_count=MAX_FAIL_COUNT + 1),
            "fail_count: Input should be less than or equal to 9999, not 10000",
        ),
        (changed("availability", state_only=1), "state_only: Input should be a valid boolean, not 1"),
        (
            changed("availability", availability_status=MISSING, fail_count=MISSING),
            "neither an availability status nor a fail count is given",
        ),
        (
            changed("endpoint", sync_status="green"),
            "sync_status: Input should be 'unknown', 'in-sync' or 'out-of-sync', not 'green'",
        ),
        (changed("endpoint", colour="red"), "colour: Extra inputs are not permitted"),
        (changed("endpoint", ignored="platform"), "ignored: Input should be a valid frozenset, not 'platform'"),
        (changed("bulk", endpoints=["platform"]), "endpoints: Input should be a valid dictionary, not ['platform']"),
        (changed("bulk", endpoints={}), "the report is empty"),
        (changed("endpoint-types", present=None), "present: Input should be a valid boolean, not None"),
    ],
)
def test_what_is_no_report_says_what_is_wrong(payload: object, text: str) -> None:
    assert rejected(payload) == text


@pytest.mark.parametrize("payload", [None, [], "report", 1, {}, {"kind": 7}, {"kind": "endpoints"}])
def test_what_is_of_no_known_kind_is_rejected(payload: object) -> None:
    assert rejected(payload)


def test_an_unknown_word_is_named_with_those_there_are() -> None:
    told = rejected(changed("bulk", endpoints={"colour": "in-sync"}))
    assert told is not None
    assert told.startswith("endpoints.colour")
    assert "'platform'" in told


def test_a_time_of_any_zone_is_kept_in_utc() -> None:
    report = report_from_payload(changed("endpoint", observed_at="2026-01-31T14:00:00+02:00", sequence=MISSING))
    assert report == EndpointReport(
        region_name="subcloud1",
        mark=Mark(NOON, 0),
        endpoint_type=EndpointType.PLATFORM,
        sync_status=SyncStatus.IN_SYNC,
    )


def test_an_endpoint_report_without_a_region_name_is_of_every_subcloud() -> None:
    assert report_from_payload(changed("endpoint", region_name=MISSING)).region_name is None


FIELDS = sorted(
    {name for payload in PAYLOADS.values() for name in payload} | {"state_only", "ignored", "alarmable", "x"}
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters())
    | st.sampled_from(["platform", "in-sync", "online", *PAYLOADS]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters()), inner, max_size=3),
    max_leaves=5,
)


@given(
    kind=st.sampled_from(list(PAYLOADS)),
    fields=st.dictionaries(st.sampled_from(FIELDS) | st.text(st.characters()), VALUES, max_size=3),
)
def test_whatever_comes_is_a_report_or_rejected_with_a_text_a_row_can_hold(kind: str, fields: dict[str, Any]) -> None:
    told = rejected({**PAYLOADS[kind], **fields})
    assert told is None or (told and told.isascii() and told.isprintable() and len(told) <= 400)


def test_a_signature_is_what_the_documentation_says() -> None:
    """Other programs sign, too: docs/state-service.md shows how."""
    key = b"0123456789abcdef0123456789abcdef"
    payloads = [{**PAYLOADS["endpoint"], "region_name": "süd"}]
    text = (
        '[{"endpoint_type":"platform","kind":"endpoint","observed_at":"2026-01-31T12:00:00+00:00",'
        '"region_name":"s\\u00fcd","sequence":1,"sync_status":"in-sync"}]'
    )

    assert signature_of(payloads, key) == hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


@given(st.lists(st.dictionaries(st.text(), st.integers() | st.text() | st.booleans() | st.none())))
def test_a_signature_survives_the_trip_as_json(payloads: list[dict[str, object]]) -> None:
    key = b"k" * 32
    assert signature_problem(json.loads(json.dumps(payloads)), signature_of(payloads, key), [key]) is None
