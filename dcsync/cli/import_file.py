"""Parses a file of subclouds, CSV or a JSON array, and checks every row before any is stored.

Pure: returns checked rows, or raises one error that names every problem with its line (CSV) or entry (JSON).
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

from dcsync.model.errors import BadAddress, BadRecord, DcsyncError, DuplicateSubcloud, RefusedByGuard
from dcsync.model.subcloud import NewSubcloud, Subcloud, SubcloudUpdate

COLUMNS = ("name", "management_ip", "region_name", "software_version")
REQUIRED = COLUMNS[:2]
LARGEST_FILE = 16 * 1024 * 1024
"""In bytes. 20,000 subclouds take about 2 MB."""

SHOWN_AT_MOST = 50
"""Problems printed one by one; the others are counted."""


@dataclass(frozen=True)
class Row:
    """The fields of one subcloud, not yet checked; `where` is `line 3` or `entry 2`."""

    where: str
    fields: Mapping[str, str]


@dataclass(frozen=True)
class Problem:
    where: str
    text: str

    def __str__(self) -> str:
        return f"{self.where}: {self.text}"


@dataclass(frozen=True)
class Plan:
    """What a file asks for: subclouds that do not exist yet, and what it says of those that do."""

    new: tuple[NewSubcloud, ...]
    updates: tuple[SubcloudUpdate, ...]


def read_rows(content: bytes) -> tuple[list[Row], list[Problem]]:
    """Returns the rows of a file and the problems found; raises BadRecord when the file as a whole is invalid."""
    if len(content) > LARGEST_FILE:
        raise BadRecord(f"the file is larger than {LARGEST_FILE // 1024 // 1024} MiB; split it")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise BadRecord(f"the file is not UTF-8 text (byte {exc.start})") from exc
    rows: list[Row] = []
    problems: list[Problem] = []
    for found in _json_rows(text) if text.lstrip().startswith("[") else _csv_rows(text):
        rows.append(found) if isinstance(found, Row) else problems.append(found)
    if not rows and not problems:
        raise BadRecord(f"the file lists no subclouds; a CSV file begins with the line {','.join(COLUMNS)}")
    return rows, problems


def checked(
    rows: Collection[Row],
    problems: Collection[Problem],
    *,
    check: Callable[[Row], NewSubcloud],
    known: Collection[Subcloud],
    accepts_existing: bool = False,
) -> Plan:
    """Returns all rows as subclouds that may be stored, or raises one error with every problem.

    `check` raises BadRecord, BadAddress or RefusedByGuard; `known` are the subclouds that exist, which are problems
    unless `accepts_existing`. Raises DuplicateSubcloud when the only problem is that some exist already, RefusedByGuard
    when it is that some would share a management IP, otherwise BadRecord.
    """
    good: list[tuple[Row, NewSubcloud]] = []
    found = list(problems)
    for row in rows:
        try:
            good.append((row, check(row)))
        except (BadRecord, BadAddress, RefusedByGuard) as exc:
            found.append(Problem(row.where, str(exc)))
    found += _duplicates(good)
    names = {each.name: each for each in known}
    given = [(row, new) for row, new in good if new.name not in names or not accepts_existing]
    again = [(row, new) for row, new in good if new.name in names and accepts_existing]
    found += [
        Problem(row.where, f"region name {new.region_name} is not that of {new.name}, {names[new.name].region_name}")
        for row, new in again
        if row.fields.get("region_name") and new.region_name != names[new.name].region_name
    ]
    error: type[DcsyncError] = BadRecord if found else DuplicateSubcloud
    found += _existing(
        given, {f"name {name}" for name in names} | {f"region name {each.region_name}" for each in known}
    )
    error = error if found else RefusedByGuard
    found += _sharing(good)
    if found:
        raise error(_summary(found))
    return Plan(tuple(new for _, new in given), tuple(_update(row, new) for row, new in again))


def _update(row: Row, new: NewSubcloud) -> SubcloudUpdate:
    """What a file says of a subcloud that exists; a field that is left out or empty is left as it is."""
    version = new.software_version if row.fields.get("software_version") else None
    return SubcloudUpdate(name=new.name, management_ip=new.management_ip, software_version=version)


def _sharing(good: Collection[tuple[Row, NewSubcloud]]) -> list[Problem]:
    """Those that are given an address that is in the file already; what rows in the database have, the store checks."""
    problems = []
    first: dict[str, tuple[str, str]] = {}
    for row, new in good:
        where, name = first.setdefault(new.management_ip, (row.where, new.name))
        if where != row.where and name != new.name:
            problems.append(Problem(row.where, f"{new.management_ip} is the management IP of {name} in {where}"))
    return problems


def _csv_rows(text: str) -> Iterator[Row | Problem]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    line = 1
    try:
        for fields in reader:
            where, line = f"line {line}", reader.line_num + 1
            fields = [field.strip() for field in fields]
            if not any(fields):
                continue
            if header is None:
                header = _header(fields)
            elif len(fields) > len(header):
                yield Problem(where, f"has {len(fields)} fields, the header {len(header)}")
            else:
                yield _row(where, dict(zip(header, fields, strict=False)))
    except csv.Error as exc:
        yield Problem(f"line {reader.line_num}", f"is not CSV: {exc}")


def _header(fields: list[str]) -> list[str]:
    """Returns the columns in their order; raises BadRecord for an unknown, missing or duplicate one."""
    wrong = [f"unknown column {field!r}" for field in fields if field not in COLUMNS]
    wrong += [f"duplicate column {field}" for field in COLUMNS if fields.count(field) > 1]
    wrong += [f"no column {field}" for field in REQUIRED if field not in fields]
    if wrong:
        raise BadRecord(f"line 1: {'; '.join(wrong)}; the header is {','.join(COLUMNS)}")
    return fields


def _json_rows(text: str) -> Iterator[Row | Problem]:
    try:
        entries = json.loads(text)
    except json.JSONDecodeError as exc:
        raise BadRecord(f"line {exc.lineno}: not JSON: {exc.msg}") from exc
    except (RecursionError, ValueError) as exc:
        raise BadRecord("not a JSON array of objects") from exc
    for number, entry in enumerate(entries, start=1):
        where = f"entry {number}"
        if not isinstance(entry, dict):
            yield Problem(where, "is not an object")
            continue
        wrong = [f"unknown field {field!r}" for field in entry if field not in COLUMNS]
        wrong += [f"{field} is not text" for field, value in entry.items() if not isinstance(value, str | None)]
        yield Problem(where, "; ".join(wrong)) if wrong else _row(where, {k: v for k, v in entry.items() if v})


def _row(where: str, fields: Mapping[str, str]) -> Row | Problem:
    missing = [field for field in REQUIRED if not fields.get(field)]
    return Problem(where, f"{' and '.join(missing)} missing") if missing else Row(where, fields)


def _duplicates(good: Collection[tuple[Row, NewSubcloud]]) -> list[Problem]:
    problems = []
    for what in ("name", "region_name"):
        first: dict[str, str] = {}
        for row, new in good:
            value = getattr(new, what)
            if (earlier := first.setdefault(value, row.where)) is not row.where:
                problems.append(Problem(row.where, f"{what.replace('_', ' ')} {value} is already in {earlier}"))
    return problems


def _existing(good: Collection[tuple[Row, NewSubcloud]], taken: Collection[str]) -> list[Problem]:
    return [
        Problem(row.where, f"{what} {value} already exists")
        for row, new in good
        for what, value in (("name", new.name), ("region name", new.region_name))
        if f"{what} {value}" in taken
    ]


def _summary(problems: list[Problem]) -> str:
    shown = "; ".join(map(str, problems[:SHOWN_AT_MOST]))
    more = len(problems) - SHOWN_AT_MOST
    return f"nothing was stored: {shown}" + (f"; and {more} more problems" if more > 0 else "")
