"""JSON documents in which values are replaced."""

from __future__ import annotations

import copy
from typing import Any


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values inside a JSON value, its own first."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] + [place for key, child in inner for place in places(child, (*path, key))]


def replaced(document: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A copy with another value at this path, or none for `...`; the same where the path is not there any more."""
    if not path:
        return None if new is ... else new
    copied = copy.deepcopy(document)
    inner = copied
    for key in path[:-1]:
        if not isinstance(inner, dict | list):
            return document
        try:
            inner = inner[key]
        except (KeyError, IndexError, TypeError):
            return document
    if isinstance(inner, dict) and new is ...:
        inner.pop(path[-1], None)
    elif isinstance(inner, dict) or (isinstance(inner, list) and isinstance(path[-1], int) and path[-1] < len(inner)):
        inner[path[-1]] = None if new is ... else new
    return copied
