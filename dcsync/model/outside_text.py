"""Text that comes from outside: cut to a length and made storable before it reaches a row, a log or a terminal."""

from __future__ import annotations

LONGEST_TEXT = 200
"""In characters, of one text from outside."""
LONGEST_DETAIL = 1000
"""In characters, of a `detail`, which may name several such texts."""

_NOT_STORABLE = {0: "\N{REPLACEMENT CHARACTER}"} | dict.fromkeys(range(0xD800, 0xE000), "\N{REPLACEMENT CHARACTER}")


def cut(text: str, *, at_most: int = LONGEST_TEXT) -> str:
    """Returns a storable text of at most that many characters; a longer one ends with how long it was.

    NUL and unpaired surrogates, which PostgreSQL does not store, are replaced.
    """
    if len(text) > at_most:
        end = f"... ({len(text)} characters)"
        text = text[: max(0, at_most - len(end))] + end[:at_most]
    return text.translate(_NOT_STORABLE)
