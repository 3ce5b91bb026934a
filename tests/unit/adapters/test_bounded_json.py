"""JSON of clouds that are not trusted: the same as `json` makes of it, or an error, and never at the cost of others."""

from __future__ import annotations

import asyncio
import json
import math
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcsync.adapters.cloud.bounded_json import JsonLimits, Listed, TooDeep, TooMuch, listed, parsed
from dcsync.adapters.cloud.cost import RETURN_MEMORY_AFTER_BYTES, Cost, ReturnedMemory, malloc_trim
from dcsync.adapters.cloud.dbsync import Dbsync
from dcsync.adapters.cloud.http import Limits
from dcsync.adapters.cloud.keystone_api import KeystoneApi
from dcsync.model.errors import CloudError
from dcsync.model.identity import ResourceType
from dcsync.model.reasons import Reason
from tests.unit.adapters.answers import Answers, run

LIMITS = JsonLimits()
NOT_JSON = (ValueError,)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
SPACES = st.sampled_from(["", " ", "\n\t ", "\r\n"])
ALMOST_JSON = st.text(alphabet='[]{},:"\\ \n0123456789.eE+-truefalsn\u00e9x', max_size=40)


def read(body: bytes | str, key: str | None = None, limits: JsonLimits = LIMITS) -> Listed[Any] | None:
    raw = body if isinstance(body, bytes) else body.encode()
    return run(listed(raw, limits, read=lambda element: element, key=key))


def no_constant(name: str) -> float:
    raise ValueError(name)


def finite(text: str) -> float:
    if math.isinf(float(text)):
        raise ValueError(text)
    return float(text)


@given(st.lists(VALUES, max_size=6), SPACES)
def test_a_list_is_read_as_json_reads_it(elements: list[Any], space: str) -> None:
    text = space + json.dumps(elements, separators=(f"{space},{space}", f"{space}:{space}")) + space
    found = read(text)
    assert found is not None
    assert (found.elements, found.others) == (elements, {})


@given(st.dictionaries(st.text(), VALUES, max_size=4), st.lists(VALUES, max_size=4), SPACES)
def test_a_list_in_an_object_is_read_with_the_other_members(
    others: dict[str, Any], elements: list[Any], space: str
) -> None:
    others.pop("rows", None)
    text = json.dumps(others | {"rows": elements}, separators=(f"{space},{space}", f"{space}:{space}"))
    found = read(text, "rows")
    assert found is not None
    assert (found.elements, found.others) == (elements, others)


@given(ALMOST_JSON | st.text() | VALUES.map(json.dumps))
def test_any_text_is_read_as_json_reads_it_or_is_an_error_in_both(text: str) -> None:
    try:
        expected = json.loads(text, parse_constant=no_constant, parse_float=finite)
    except ValueError:
        for key in (None, "rows"):
            with pytest.raises(NOT_JSON):
                read(text.encode(errors="replace"), key)
        with pytest.raises(NOT_JSON):
            parsed(text.encode(errors="replace"), LIMITS)
        return
    found = read(text)
    assert (found.elements if found else None) == (expected if isinstance(expected, list) else None)
    assert parsed(text.encode(), LIMITS) == expected


@given(st.binary(max_size=60))
def test_any_bytes_are_json_or_a_value_error(body: bytes) -> None:
    for key in (None, "rows"):
        try:
            read(body, key)
        except ValueError:
            with pytest.raises(NOT_JSON):
                parsed(body, LIMITS)


@pytest.mark.parametrize("text", ["[NaN]", "[Infinity]", "[-Infinity]", "[1e999]", "[" + "9" * 5000 + "]"])
def test_a_number_that_cannot_be_sent_on_is_an_error(text: str) -> None:
    with pytest.raises(NOT_JSON):
        read(text)
    with pytest.raises(NOT_JSON):
        parsed(text.encode(), LIMITS)


def test_a_member_given_twice_is_no_list() -> None:
    assert read('{"rows": [1], "rows": [2]}', "rows") is None


def test_values_are_counted_before_anything_is_parsed() -> None:
    limits = JsonLimits(max_values=10)
    assert parsed(b"[1,2,3,4,5,6,7,8,9,10]", limits) == [*range(1, 11)]
    for text in (b"[" + b"[]," * 10 + b"[]]", b"{" + b'"k":1,' * 10 + b'"k":1}', b'["' + b"," * 11):
        with pytest.raises(TooMuch, match="more than 10 JSON values"):
            parsed(text, limits)
        with pytest.raises(TooMuch, match="more than 10 JSON values"):
            read(text, None, limits)


@pytest.mark.parametrize("brackets", ["[]", '{"a":}'])
def test_deep_nesting_is_an_error(brackets: str) -> None:
    opening, closing = brackets[:-1], brackets[-1]

    def nested(depth: int) -> str:
        return "[" + opening * depth + "1" + closing * depth + "]"

    limits = JsonLimits(max_depth=8)
    assert parsed(nested(7).encode(), limits)
    assert read(nested(7), None, limits)
    for text in (nested(9), nested(900), nested(100_000), "[" + opening * 100_000):
        with pytest.raises(TooDeep):
            parsed(text.encode(), limits)
        with pytest.raises(TooDeep):
            read(text, None, limits)


def test_a_list_has_a_limit_of_records() -> None:
    limits = JsonLimits(max_records=3)
    assert read("[1,2,3]", None, limits)
    with pytest.raises(TooMuch, match="more than 3 records"):
        read("[1,2,3,4]", None, limits)


async def test_others_run_between_the_slices_of_a_long_list() -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    body = json.dumps([{"a": list(range(20))}] * 20_000).encode()
    await listed(body, LIMITS, read=lambda element: element)
    task.cancel()
    assert turns >= 5


# --- what a reply may cost ---------------------------------------------------------------------------------------


def list_of(body: bytes, limits: Limits | None = None, type_: ResourceType = ResourceType.PROJECTS) -> int:
    return len(run(Dbsync(Answers(body, limits), url="http://site").list(type_)))  # type: ignore[arg-type]


def projects(count: int, filling: int = 0) -> bytes:
    row = {"id": "p", "name": "n", "domain_id": "d", "extra": "x" * filling}
    return json.dumps([{"project": row | {"id": f"p{number}"}} for number in range(count)]).encode()


HOSTILE = {
    "16 MiB of lists": b"[" + b"[]," * 5_500_000 + b"[]]",
    "an object with 1.6 million keys": b"[{" + b'"k%d":1,' * 1_600_000 % tuple(range(1_600_000)) + b'"k":1}]',
    "204,000 records": projects(204_000),
    "as many lists as are allowed": b"[" + b"[]," * 249_000 + b"[]]",
    "one list as long as allowed": b"[[" + b"1," * 499_000 + b"1]]",
    "as deep as is allowed, many times": b"[" + (b"[" * 60 + b"]" * 60 + b",") * 8_000 + b"1]",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_list_costs_little_cpu(what: str) -> None:
    started = time.thread_time()
    with pytest.raises(CloudError) as caught:
        list_of(HOSTILE[what])
    assert caught.value.reason in (Reason.REPLY_TOO_LARGE, Reason.BAD_REPLY)
    assert time.thread_time() - started < 1.0


def test_ten_times_a_large_keystone_is_read() -> None:
    assert list_of(projects(20_000)) == 20_000


def test_a_flood_of_assignments_or_group_members_is_too_large() -> None:
    grant = {"scope": {"project": {"id": "p"}}, "user": {"id": "u"}, "role": {"id": "r"}}
    grants = json.dumps({"role_assignments": [grant] * 20_001}).encode()
    with pytest.raises(CloudError) as caught:
        run(KeystoneApi(Answers(grants), url="http://site").assignments())  # type: ignore[arg-type]
    assert (caught.value.reason, "20000 records" in caught.value.detail) == (Reason.REPLY_TOO_LARGE, True)
    group = {"id": "g", "name": "g", "domain_id": "d"}
    members = json.dumps([{"group": group, "local_user_ids": ["u"] * 600_000}]).encode()
    with pytest.raises(CloudError) as caught:
        list_of(members, type_=ResourceType.GROUPS)
    assert (caught.value.reason, "500000 JSON values" in caught.value.detail) == (Reason.REPLY_TOO_LARGE, True)


def test_one_run_has_a_budget_of_cpu() -> None:
    with pytest.raises(CloudError, match=r"more than 0\.001 s of CPU") as caught:
        list_of(projects(20_000), Limits(max_run_cpu=0.001))
    assert caught.value.reason is Reason.REPLY_TOO_LARGE


def test_one_run_has_a_budget_of_bytes_over_all_replies() -> None:
    cost = Cost(max_bytes=100, max_cpu_seconds=1)
    cost.receive(60, call="GET a")
    with pytest.raises(CloudError, match="GET b: more than 100 bytes in one run") as caught:
        cost.receive(60, call="GET b")
    assert caught.value.reason is Reason.REPLY_TOO_LARGE


async def test_memory_is_returned_some_time_after_many_bytes_and_once() -> None:
    trimmed = asyncio.Event()
    count = 0
    loop = asyncio.get_running_loop()

    def trim() -> None:
        nonlocal count
        count += 1
        loop.call_soon_threadsafe(trimmed.set)

    memory = ReturnedMemory(trim, delay_seconds=0.01)
    memory.received(RETURN_MEMORY_AFTER_BYTES - 1)
    memory.received(1)
    memory.received(RETURN_MEMORY_AFTER_BYTES)
    async with asyncio.timeout(30):
        await trimmed.wait()
    assert count == 1


def test_trimming_works_or_does_nothing_on_this_machine() -> None:
    malloc_trim()
