"""Creates a user without a password, which dcdbsync refuses: with a placeholder that is removed at once.

Source: dcdbsync `user_create` inserts the list of passwords even if it is empty, which makes a row of nothing that the
table refuses (500); `user_update` deletes the stored passwords and inserts each of the list.
"""

from __future__ import annotations

from dataclasses import replace

from dcsync.model.identity import Record
from dcsync.planner.writes import Change, Create, Update

NOBODYS_HASH = f"$2b$12${'.' * 53}"
"""Well-formed, so that Keystone answers a login with 401 as usual; no password is known that hashes to it."""

_NOBODYS = {
    "self_service": False,
    "password_hash": NOBODYS_HASH,
    "created_at": "1970-01-01 00:00:00.000000",
    "created_at_int": 0,
    "expires_at": None,
    "expires_at_int": None,
}


def created(user: Record) -> tuple[Change, ...]:
    """Returns the writes that create the user, two for one without a password."""
    if user.body["password"]:
        return (Create(user),)
    held = replace(user, body={**user.body, "password": [_NOBODYS]})
    return Create(held), Update(held, user)
