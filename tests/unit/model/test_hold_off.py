"""How long is waited after a failure."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcsync.model.hold_off import hold_off

BASE, CAP = timedelta(seconds=60), timedelta(seconds=900)


@pytest.mark.parametrize(
    ("attempt", "seconds"), [(1, 60), (2, 120), (3, 240), (4, 480), (5, 900), (6, 900), (9999, 900)]
)
def test_the_hold_off_doubles_to_its_cap(attempt: int, seconds: float) -> None:
    assert hold_off(attempt=attempt, base=BASE, cap=CAP, jitter=0) == timedelta(seconds=seconds)


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True))
def test_no_retry_comes_before_its_base_delay_or_after_the_cap(attempt: int, jitter: float) -> None:
    delay = hold_off(attempt=attempt, base=BASE, cap=CAP, jitter=jitter)
    assert BASE <= delay <= CAP
    assert delay >= min(BASE * 2 ** min(attempt - 1, 10), CAP * 0.8)


@pytest.mark.parametrize("attempt", [1, 34, 10_000])
def test_the_longest_hold_off_that_can_be_set_is_never_more_than_a_delay_can_be(attempt: int) -> None:
    day = timedelta(days=1)
    assert hold_off(attempt=attempt, base=day, cap=day, jitter=0) == day
