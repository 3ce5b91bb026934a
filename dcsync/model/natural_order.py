"""The order of names as people count: subcloud2 before subcloud10."""

from __future__ import annotations

import re


def in_natural_order(name: str) -> tuple[list[str | int], str]:
    """Returns a sort key for names; the name itself decides between edge-1 and edge-01."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)], name
