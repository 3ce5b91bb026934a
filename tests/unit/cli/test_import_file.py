"""Files of subclouds: every problem is told with its line, and nothing passes while there is one."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcsync.cli.import_file import LARGEST_FILE, Plan, Row, checked, read_rows
from dcsync.model.errors import BadRecord, DcsyncError, DuplicateSubcloud, RefusedByGuard
from dcsync.model.subcloud import NewSubcloud, Subcloud, SubcloudUpdate, new_subcloud
from tests.builders import a_subcloud


def check(row: Row) -> NewSubcloud:
    return new_subcloud(
        name=row.fields["name"],
        management_ip=row.fields["management_ip"],
        region_name=row.fields.get("region_name") or None,
        software_version=row.fields.get("software_version") or None,
    )


def plan(content: bytes, *known: Subcloud, accepts_existing: bool = True) -> Plan:
    rows, problems = read_rows(content)
    return checked(rows, problems, check=check, known=known, accepts_existing=accepts_existing)


def subclouds(content: bytes, *known: Subcloud) -> list[NewSubcloud]:
    found = plan(content, *known, accepts_existing=False)
    assert found.updates == ()
    return list(found.new)


def csv(*lines: str, header: str = "name,management_ip,region_name,software_version") -> bytes:
    return "\n".join([header, *lines]).encode()


def a_new(name: str, ip: str = "10.0.0.1", region_name: str | None = None, version: str = "") -> NewSubcloud:
    return new_subcloud(name=name, management_ip=ip, region_name=region_name, software_version=version)


@pytest.mark.parametrize(
    "content",
    [
        csv("a,10.0.0.1,r1,24.09", "b,10.0.0.2,,"),
        csv("a,10.0.0.1,r1,24.09", "", "b,10.0.0.2"),
        b"\xef\xbb\xbf" + csv("a,10.0.0.1,r1,24.09", "b , 10.0.0.2").replace(b"\n", b"\r\n"),
        csv('10.0.0.1,"a",24.09,r1', "10.0.0.2,b", header="management_ip,name,software_version,region_name"),
        json.dumps(
            [
                {"name": "a", "management_ip": "10.0.0.1", "region_name": "r1", "software_version": "24.09"},
                {"name": "b", "management_ip": "10.0.0.2", "software_version": None},
            ]
        ).encode(),
    ],
)
def test_csv_and_json_say_the_same(content: bytes) -> None:
    assert subclouds(content) == [a_new("a", "10.0.0.1", "r1", "24.09"), a_new("b", "10.0.0.2")]


def test_every_problem_is_told_with_its_line() -> None:
    content = csv(
        "a,10.0.0.1", "b,ten", "!,10.0.0.3", ",10.0.0.4", '"c",10.0.0.5,r,v,more', "a,10.0.0.6", "d,10.0.0.7,a"
    )
    with pytest.raises(BadRecord) as told:
        subclouds(content)
    text = str(told.value)
    assert "line 3: 'ten' is not an IP address" in text
    assert "line 4: name '!' is invalid" in text
    assert "line 5: name missing" in text
    assert "line 6: has 5 fields, the header 4" in text
    assert "line 7: name a is already in line 2" in text
    assert "line 8: region name a is already in line 2" in text
    assert "line 2:" not in text


def test_the_line_of_a_record_is_where_it_begins() -> None:
    with pytest.raises(BadRecord, match=r"line 4: 'bad'"):
        subclouds(csv('a,10.0.0.1,r,"two\nlines"', "b,bad").replace(b"two\nlines", b"two\n"))


def test_many_problems_are_counted() -> None:
    with pytest.raises(BadRecord, match=r"and 10 more problems"):
        subclouds(csv(*(f"n{number},bad" for number in range(60))))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "lists no subclouds"),
        (csv(), "lists no subclouds"),
        (b"[]", "lists no subclouds"),
        (csv("a,b", header="name,ip"), "unknown column 'ip'; no column management_ip"),
        (csv("a,10.0.0.1,b", header="name,management_ip,name"), "duplicate column name"),
        (csv('a,"10.0.0.1'), "is not CSV"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"[{]", "line 1: not JSON"),
        (b"[" * 100_000, "not a JSON array"),
        (b"[7]", "entry 1: is not an object"),
        (b'[{"name": "a", "management_ip": 7}]', "entry 1: management_ip is not text"),
        (b'[{"name": "a", "management_ip": "10.0.0.1", "x": ""}]', "entry 1: unknown field 'x'"),
        (b'[{"name": "a"}]', "entry 1: management_ip missing"),
        (b"x" * (LARGEST_FILE + 1), "larger than 16 MiB"),
    ],
)
def test_what_is_no_list_of_subclouds_is_told(content: bytes, told: str) -> None:
    with pytest.raises(BadRecord, match=told):
        subclouds(content)


def test_what_exists_already_is_told_with_its_line() -> None:
    with pytest.raises(DuplicateSubcloud, match=r"line 3: region name r1 already exists"):
        subclouds(csv("a,10.0.0.1", "b,10.0.0.2,r1"), a_subcloud("r1", name="x"))


def test_two_rows_with_one_management_ip_are_refused_with_their_lines() -> None:
    with pytest.raises(RefusedByGuard, match=r"line 3: 10\.0\.0\.1 is the management IP of a in line 2$"):
        subclouds(csv("a,10.0.0.1", "b,::ffff:10.0.0.1"))


def test_what_exists_already_may_be_what_is_to_be_updated() -> None:
    found = plan(csv("a,10.0.0.1,,25.09", "b,10.0.0.2", "c,10.0.0.3"), a_subcloud("a"), a_subcloud("rb", name="b"))
    assert found.new == (a_new("c", "10.0.0.3"),)
    assert found.updates == (
        SubcloudUpdate(name="a", management_ip="10.0.0.1", software_version="25.09"),
        SubcloudUpdate(name="b", management_ip="10.0.0.2"),
    )


def test_a_region_name_is_not_updated() -> None:
    with pytest.raises(BadRecord, match="line 2: region name r2 is not that of a, r1"):
        plan(csv("a,10.0.0.1,r2"), a_subcloud("r1", name="a"))
    with pytest.raises(DuplicateSubcloud, match="line 2: region name r1 already exists"):
        plan(csv("new,10.0.0.1,r1"), a_subcloud("r1", name="a"))


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_are_subclouds_or_an_error_of_ours(content: bytes) -> None:
    with contextlib.suppress(DcsyncError):
        assert subclouds(content)
