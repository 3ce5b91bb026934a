"""Describes differences for a preview: names and fields, and for passwords a short fingerprint of each side. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable

from dcsync.model.identity import Record, Records, ResourceType
from dcsync.planner.differences import Difference, password_hashes

SHOWN_DIGITS = 8


def describe(
    differences: Iterable[Difference], *, central: Records, subcloud: Records, only: Collection[str] | None
) -> tuple[str, ...]:
    """Returns the differences of `only` these resource types (None: all); a secret is shown by its fingerprint only."""
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
    """Returns a fingerprint of the stored password hashes and their history; it reveals neither."""
    text = "\n".join(password_hashes(user)).encode(errors="backslashreplace")
    return hashlib.sha256(text).hexdigest()[:SHOWN_DIGITS]
