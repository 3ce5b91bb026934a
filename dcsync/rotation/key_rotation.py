"""Computes rotated sets of fernet keys, whether a rotation is safe now, and when the next is due. Pure.

`rotate_keys.py` carries rotations out; audits compare and repair the subclouds' keys.

Why no subcloud ever rejects a token that the central cloud issues
-------------------------------------------------------
Keystone issues tokens with the primary key (the highest id) and accepts tokens of every key it holds, including the
staged one (id 0). A rotation makes the staged key primary and stages a new one. So, for the n-th set S(n):

1. primary(n) = staged(n-1), and staged(n-1) is in S(n-1). So a subcloud that holds S(n-1) accepts what the central
   cloud issues from the moment of the rotation on: rotate first, distribute afterwards, in any order and at any pace.
2. Conversely, such a subcloud still issues tokens with primary(n-1). The central cloud accepts them, because S(n) has
   it as a secondary if a set holds at least MIN_KEYS (staged, primary, one secondary).
3. A subcloud that holds only S(n-2) lacks staged(n-1): the next rotation must wait until nearly all subclouds hold
   S(n-1) (`refusal`). An offline subcloud does not count: it receives the whole set first when it returns.
4. Tokens issued earlier stay valid through a secondary key: with three keys, until the next rotation. Two rotations
   within one token lifetime would invalidate tokens that have not expired (`refusal`).
5. This also holds while a set is written file by file: the primary key is sent first and the staged key last
   (`adapters/cloud/sysinv.py`).

tests/unit/rotation/test_key_rotation.py checks this with a model of subclouds that receive sets late, in any order.
Source: keystone.common.fernet_utils (rotate_keys), docs/upstream/generic-sync-and-audit.md section 11,
docs/upstream/lessons.md R24, R25.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from dcsync.model.identity import FernetKeys, KeySet
from dcsync.model.marks import is_void
from dcsync.rotation.ports import Spread

STAGED = 0
"""The id of the key that becomes primary next."""

MIN_KEYS = 3
"""Staged, primary and one secondary; with fewer, a rotation would reject tokens that subclouds still issue."""


def rotated(current: FernetKeys, *, staged: str, max_active_keys: int) -> FernetKeys:
    """Returns the next set as `keystone-manage fernet_rotate` does: key 0 becomes the highest, `staged` becomes key 0,
    the oldest are removed until `max_active_keys` are left.

    Raises ValueError without a staged and a primary key, or if `max_active_keys` is below MIN_KEYS.
    """
    if max_active_keys < MIN_KEYS:
        raise ValueError(f"{max_active_keys} active keys: at least {MIN_KEYS} are needed")
    if STAGED not in current.keys or len(current.keys) < 2:
        raise ValueError(f"the keys {sorted(current.keys)} have no staged key and primary key")
    keys = {key_id: key for key_id, key in current.keys.items() if key_id != STAGED}
    keys[max(keys) + 1] = current.keys[STAGED]
    kept = sorted(keys)[-(max_active_keys - 1) :]
    return FernetKeys({STAGED: staged, **{key_id: keys[key_id] for key_id in kept}})


def is_rotation_of(*, before: KeySet, now: KeySet) -> bool:
    """Returns whether `now` is `before` after one complete rotation: the staged key became primary, and another key
    is staged."""
    return bool(before.staged) and now.primary == before.staged and now.staged not in ("", before.staged)


def refusal(
    spread: Spread,
    *,
    max_share_behind: float,
    last_rotated_at: datetime | None,
    token_lifetime: timedelta,
    now: datetime,
) -> str | None:
    """Returns why a rotation is not safe now, None if it is. An operator may force it."""
    # One in the future was stamped by a wrong clock, at some time around now.
    if last_rotated_at is not None and abs(now - last_rotated_at) < token_lifetime:
        since = max(0, int((now - last_rotated_at).total_seconds()))
        return (
            f"the last rotation was {since} s ago and tokens live {int(token_lifetime.total_seconds())} s: "
            "another one would invalidate tokens that have not expired"
        )
    if spread.share_behind > max_share_behind:
        return (
            f"{spread}; at most {max_share_behind:.0%} of those that are online may not have them, because they would "
            "reject every new token"
        )
    return None


def next_due(
    *, interval: timedelta, last_rotated_at: datetime | None, due: datetime | None, now: datetime
) -> datetime | None:
    """Returns when the next rotation is due by schedule; None when `interval` is zero (off).

    The time is stored in a row, so that restarts do not move it. If the interval was shortened, the stored time moves
    forward to one interval after the last rotation. Source: docs/upstream/lessons.md R25.
    """
    if not interval:
        return None
    rotated_at = now if last_rotated_at is None or is_void(last_rotated_at, now=now) else last_rotated_at
    latest = rotated_at + interval
    return latest if due is None else min(due, latest)
