"""Words of closed sets as another release wrote them.

After a rollback, rows may hold words that this release does not know. Reading such a row must not fail: the word is
shown as it is written, and equals no word of this release.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TypeVar

WordT = TypeVar("WordT", bound=StrEnum)


def as_written(words: type[WordT], text: str) -> WordT:
    """Returns the member with this value; for an unknown value an instance outside of the set, which is that text."""
    known = words._value2member_map_.get(text)
    if isinstance(known, words):
        return known
    unknown = str.__new__(words, text)
    unknown._name_ = text
    unknown._value_ = text
    return unknown
