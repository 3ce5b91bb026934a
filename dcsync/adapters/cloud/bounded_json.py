"""Parses JSON of clouds that are not trusted: within limits, and long lists in slices.

`json` parses a text in one call that holds the interpreter. A text of a few MiB with millions of lists or keys would
keep every other run of the process waiting, so structure is counted before anything is parsed, and the elements of a
list are parsed one by one with pauses in between.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")

SLICE_SECONDS = 0.01
"""How long a list is parsed before other coroutines run."""


class TooMuch(Exception):
    """The text has more values or records than allowed; the message names the limit, never the content."""


class TooDeep(ValueError):
    """The text is nested deeper than any reply of the expected services."""


@dataclass(frozen=True, kw_only=True)
class JsonLimits:
    """The limits of one text."""

    max_values: int = 500_000
    """Array elements and object members, at all levels. Counted by commas and brackets, so those in strings count
    as well."""
    max_depth: int = 64
    max_records: int = 20_000
    """Elements of the list that `listed` reads."""


@dataclass(frozen=True)
class Listed(Generic[T]):
    """A list of an object, and the object's other members."""

    elements: list[T]
    others: Mapping[str, Any]


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError("a number is too large")
    return number


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite)
_SPACE = re.compile(r"[ \t\n\r]*")


def parsed(body: bytes, limits: JsonLimits) -> Any:
    """Returns the value of a small text, parsed at once; raises ValueError for anything but JSON, TooDeep, TooMuch."""
    text = _text(body, limits)
    try:
        value = _DECODER.decode(text)
    except RecursionError:
        raise _too_deep(limits) from None
    _check_depth(value, limits)
    return value


async def listed(
    body: bytes,
    limits: JsonLimits,
    *,
    read: Callable[[Any], T],
    key: str | None = None,
    spend: Callable[[float], None] = lambda _: None,
) -> Listed[T] | None:
    """Returns what `read` makes of each element of a list: the whole text, or the member `key` of an object.

    None when the text has no such list. `spend` receives the CPU seconds of each slice and may raise. Raises ValueError
    for anything but JSON, TooDeep, TooMuch, and whatever `read` raises; then the elements before it were read.
    """
    reader = _Reader(_text(body, limits), limits, read=read, spend=spend)
    try:
        return await (reader.array() if key is None else reader.object(key))
    except RecursionError:
        raise _too_deep(limits) from None


class _Reader(Generic[T]):
    """Reads one text from its beginning to its end."""

    def __init__(
        self, text: str, limits: JsonLimits, *, read: Callable[[Any], T], spend: Callable[[float], None]
    ) -> None:
        self._text = text
        self._limits = limits
        self._read = read
        self._spend = spend
        self._at = 0

    async def array(self) -> Listed[T] | None:
        if not self._skips("["):
            self._value()
            self._end()
            return None
        found = await self._elements()
        self._end()
        return Listed(found, {})

    async def object(self, key: str) -> Listed[T] | None:
        if not self._skips("{"):
            self._value()
            self._end()
            return None
        found: list[T] | None = None
        others: dict[str, Any] = {}
        is_more = not self._skips("}")
        while is_more:
            name = self._value()
            if not isinstance(name, str) or not self._skips(":"):
                raise ValueError("an object's member has no name")
            if name == key and found is None and self._skips("["):
                found = await self._elements()
            else:
                others[name] = self._value()
            is_more = self._goes_on("}")
        self._end()
        return None if found is None or key in others else Listed(found, others)

    async def _elements(self) -> list[T]:
        """Reads from behind the opening bracket to behind the closing one."""
        found: list[T] = []
        is_more = not self._skips("]")
        while is_more:
            started, cpu = time.perf_counter(), time.thread_time()
            while is_more and time.perf_counter() - started < SLICE_SECONDS:
                if len(found) >= self._limits.max_records:
                    raise TooMuch(f"a list of more than {self._limits.max_records} records")
                found.append(self._read(self._value()))
                is_more = self._goes_on("]")
            self._spend(time.thread_time() - cpu)
            if is_more:
                await asyncio.sleep(0)
        return found

    def _value(self) -> Any:
        self._space()
        value, self._at = _DECODER.raw_decode(self._text, self._at)
        _check_depth(value, self._limits, levels_above=1)
        return value

    def _goes_on(self, closing: str) -> bool:
        """Returns True behind a comma and False behind the closing bracket."""
        if self._skips(","):
            return True
        if self._skips(closing):
            return False
        raise ValueError("neither a comma nor a closing bracket")

    def _skips(self, char: str) -> bool:
        self._space()
        if self._text.startswith(char, self._at):
            self._at += 1
            return True
        return False

    def _space(self) -> None:
        match = _SPACE.match(self._text, self._at)
        self._at = match.end() if match else self._at

    def _end(self) -> None:
        self._space()
        if self._at != len(self._text):
            raise ValueError("more than one value")


def _text(body: bytes, limits: JsonLimits) -> str:
    """Returns the text. Counting before parsing takes milliseconds for a reply of any allowed size."""
    if body.count(b",") + body.count(b"[") + body.count(b"{") > limits.max_values:
        raise TooMuch(f"more than {limits.max_values} JSON values")
    return body.decode("utf-8")


def _check_depth(value: Any, limits: JsonLimits, *, levels_above: int = 0) -> None:
    level = _containers([value])
    for _ in range(limits.max_depth - levels_above):
        if not level:
            return
        level = [child for each in level for child in _containers(each.values() if isinstance(each, dict) else each)]
    if level:
        raise _too_deep(limits)


def _containers(values: Iterable[Any]) -> list[dict[str, Any] | list[Any]]:
    return [value for value in values if isinstance(value, dict | list)]


def _too_deep(limits: JsonLimits) -> TooDeep:
    return TooDeep(f"JSON nested deeper than {limits.max_depth} levels")
