"""When nobody works on a run any more, and what becomes of it."""

from __future__ import annotations

from datetime import timedelta

from dcsync.runs.abandoned import is_abandoned
from tests.builders import NOON


def test_only_a_run_without_its_lock_and_older_than_a_lock_is_abandoned() -> None:
    ttl = timedelta(seconds=30)
    assert is_abandoned(claimed_at=NOON, lock_is_gone=True, now=NOON + timedelta(seconds=31), lock_ttl=ttl)
    assert not is_abandoned(claimed_at=NOON, lock_is_gone=True, now=NOON + timedelta(seconds=30), lock_ttl=ttl)
    assert not is_abandoned(claimed_at=NOON, lock_is_gone=False, now=NOON + timedelta(hours=1), lock_ttl=ttl)
