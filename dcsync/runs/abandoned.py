"""When nobody works on a run any more."""

from __future__ import annotations

from datetime import datetime, timedelta

ABANDONED_LIMIT = 3
"""Runs of one request that may end with their worker's death before it is held off like a failure."""


def is_abandoned(*, claimed_at: datetime, lock_is_gone: bool, now: datetime, lock_ttl: timedelta) -> bool:
    """In progress, its lock gone, claimed longer ago than one lock lifetime: nobody is working on it."""
    return lock_is_gone and now - claimed_at > lock_ttl
