"""How a preview shows differences: names and fields as always, and of passwords short fingerprints of both sides.

Pure. What a preview does is `engine.Audit.preview`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable

from dcsync.model.identity import Record, Records, ResourceType
from dcsync.planner.differences import Difference, password_hashes

SHOWN_DIGITS = 8


def in_words(
    differences: Iterable[Difference], *, central: Records, subcloud: Records, only: Collection[str] | None
) -> tuple[str, ...]:
    """Differences of `only` these resource types (None: all); a secret is named by its fingerprint, never shown."""
    here = {user.name: _password(user) for user in subcloud.of(ResourceType.USERS)}
    there = {user.name: _password(user) for user in central.of(ResourceType.USERS)}
    shown = []
    for each in differences:
        if only is not None and each.type not in only:
            continue
        passwords = f" ({here[each.name]} instead of {there[each.name]})" if _is_known(each, here, there) else ""
        shown.append(f"{each}{passwords}")
    return tuple(shown)


def _is_known(difference: Difference, here: Collection[str], there: Collection[str]) -> bool:
    is_password = difference.type == ResourceType.USERS.value and "password" in difference.fields
    return is_password and difference.name in here and difference.name in there


def _password(user: Record) -> str:
    """Of the password and its history as they are stored; neither can be got back from it."""
    text = "\n".join(password_hashes(user)).encode(errors="backslashreplace")
    return hashlib.sha256(text).hexdigest()[:SHOWN_DIGITS]
