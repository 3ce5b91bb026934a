"""How long to wait before retrying after a failure."""

from __future__ import annotations

from datetime import timedelta


def hold_off(*, attempt: int, base: timedelta, cap: timedelta, jitter: float) -> timedelta:
    """Returns how long to wait after failed attempt number `attempt` (1 is the first): base, doubling, never above cap.

    `jitter` in [0, 1) spreads retries over a fifth of the delay: upwards, so that no retry comes before its base
    delay, and at the cap downwards from it.
    """
    delay = min(base * 2 ** min(attempt - 1, 26), cap)  # A timedelta overflows when a day is doubled more often.
    return delay + min(delay * 0.2, cap - delay) * jitter if delay < cap else cap - cap * 0.2 * jitter
