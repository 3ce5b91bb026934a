"""Pure: what a rotation makes of a set of fernet keys, whether one may be done now, and when the next one is due.

Carrying it out is `rotate_keys.py`; comparing and repairing a subcloud's keys is the audit's own business.

Why no subcloud ever rejects a token that the central cloud issues
-------------------------------------------------------
Keystone issues tokens with the primary key (the highest id) and takes tokens of every key it holds, the staged one
(id 0) among them. A rotation makes the staged key primary and stages a new one. So, for the n-th set S(n):

1. primary(n) = staged(n-1), and staged(n-1) is in S(n-1). So a subcloud that holds S(n-1) accepts what the central
   cloud issues from the moment of the rotation on: rotate first, distribute afterwards, in any order and at any pace.
2. The other way round: such a subcloud still issues with primary(n-1), which is in S(n) as a secondary as long as a set
   holds three keys or more (staged, primary, one secondary). Hence FEWEST_KEYS: the central cloud accepts its tokens.
3. A subcloud that holds only S(n-2) lacks staged(n-1): the next rotation must wait until S(n-1) is everywhere, or
nearly so
   (`refusal`). A subcloud that is away does not count: nobody can reach it, and when it comes back it gets the whole
   set before anything else.
4. Tokens issued before live on under a secondary key: with three keys, until the rotation after this one. Two rotations
   closer together than a token lives would end tokens that are still good (`refusal` again).
5. While a set is written, file by file, all this holds as well: it is sent with the primary first and the staged key
   last (`adapters/sysinv.py`).

tests/unit/audit/test_key_rotation.py holds all four to a model of subclouds that get each set late and in any order.
Source: keystone.common.fernet_utils (rotate_keys), docs/upstream/generic-sync-and-audit.md section 11,
docs/upstream/lessons.md R24, R25.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from dcsync.model.identity import FernetKeys, KeySet
from dcsync.rotation.ports import Spread

STAGED = 0
"""The id of the key that becomes primary next."""

FEWEST_KEYS = 3
"""Staged, primary and one secondary; with fewer a rotation would reject what subclouds still issue."""


def rotated(current: FernetKeys, *, staged: str, max_active_keys: int) -> FernetKeys:
    """The next set, as `keystone-manage fernet_rotate` makes it: key 0 becomes the highest, `staged` becomes key 0, and
    the oldest go until `max_active_keys` are left.

    Raises ValueError when there is no staged key and another to be followed, or for fewer than FEWEST_KEYS active keys.
    """
    if max_active_keys < FEWEST_KEYS:
        raise ValueError(f"{max_active_keys} active keys: at least {FEWEST_KEYS} are needed")
    if STAGED not in current.keys or len(current.keys) < 2:
        raise ValueError(f"the keys {sorted(current.keys)} have no staged key and primary key")
    keys = {key_id: key for key_id, key in current.keys.items() if key_id != STAGED}
    keys[max(keys) + 1] = current.keys[STAGED]
    kept = sorted(keys)[-(max_active_keys - 1) :]
    return FernetKeys({STAGED: staged, **{key_id: keys[key_id] for key_id in kept}})


def is_rotation_of(*, before: KeySet, now: KeySet) -> bool:
    """Whether `now` came from `before` by one whole rotation, whoever did it: its primary is what was staged, and
    another key is staged now."""
    return bool(before.staged) and now.primary == before.staged and now.staged not in ("", before.staged)


def refusal(
    spread: Spread,
    *,
    max_share_behind: float,
    last_rotated_at: datetime | None,
    token_lifetime: timedelta,
    now: datetime,
) -> str | None:
    """Why a rotation must not be done now, None when it may. Somebody who knows better may force it."""
    if last_rotated_at is not None and now - last_rotated_at < token_lifetime:
        since = int((now - last_rotated_at).total_seconds())
        return (
            f"the last rotation was {since} s ago and tokens live {int(token_lifetime.total_seconds())} s: "
            "another one would end tokens that are still good"
        )
    if spread.share_behind > max_share_behind:
        return (
            f"{spread.behind} of {spread.subclouds} subclouds have not been seen with the current keys, the staged one "
            f"among them; at most {max_share_behind:.0%} may be missing, for they would reject every new token"
        )
    return None


def next_due(
    *, interval: timedelta, last_rotated_at: datetime | None, due: datetime | None, now: datetime
) -> datetime | None:
    """When the schedule wants the next rotation; None when `interval` is zero (off).

    The time is kept in a row, so that restarts do not move it; one that lies further off than a whole interval (for the
    interval was shortened) is drawn near. Source: docs/upstream/lessons.md R25.
    """
    if not interval:
        return None
    latest = (last_rotated_at or now) + interval
    return latest if due is None else min(due, latest)
