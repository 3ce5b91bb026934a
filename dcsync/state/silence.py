"""Decides which alarms report that nobody observes, or that nothing succeeds. Pure: facts and `now` in, alarms out.

Beside the alarms of `rules`, which follow from what was observed, these follow from what was not. Each is checked by
every worker process in turn (`silence_check`), so that no process has to report its own silence.

An alarm is raised at one limit and cleared at a lower one: a condition around its limit does not make it come and go.
A moment in the future is void, as if nothing had been recorded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from dcsync.model.marks import CLOCK_TOLERANCE
from dcsync.model.reasons import Reason
from dcsync.model.shown import Windows
from dcsync.model.subcloud import EndpointType
from dcsync.state.ports import AlarmRow, FailingFacts, ObservedFacts, SilenceCutoffs, SilenceFacts


class SilenceId(StrEnum):
    """The ids of these alarms."""

    NOBODY_OBSERVES = "dcsync.nobody-observes"
    CENTRAL_UNREADABLE = "dcsync.central-unreadable"
    SWEEP_LATE = "dcsync.sweep-late"
    KEYS_BEHIND = "dcsync.keys-behind"
    SYNC_FAILING = "dcsync.sync-failing"


_SEVERITY = {
    SilenceId.NOBODY_OBSERVES: "critical",
    SilenceId.CENTRAL_UNREADABLE: "critical",
    SilenceId.SWEEP_LATE: "critical",
    SilenceId.KEYS_BEHIND: "major",
    SilenceId.SYNC_FAILING: "major",
}

SMALL_FLEET = 10
"""In a fleet of fewer subclouds, one that nobody observes is enough."""

NAMED = 5
DETAIL_CHARACTERS = 200

CENTRAL_REASONS = frozenset(
    {
        Reason.CENTRAL_UNREACHABLE,
        Reason.CENTRAL_AUTH_FAILED,
        Reason.CENTRAL_BAD_REPLY,
        Reason.CENTRAL_EMPTY,
        Reason.CENTRAL_KEYS_INVALID,
    }
)
"""Failures of the central cloud: one alarm reports them, not one for each subcloud."""


@dataclass(frozen=True, kw_only=True)
class SilenceLimits:
    """When something has been silent, or failing, for too long."""

    unobserved_share: float
    failing_after: timedelta
    failing_attempts: int
    retry_within: timedelta
    """Within which a failed run is tried again at the latest."""
    sweep_late_after: timedelta
    central_unreadable_after: timedelta
    central_silent_after: timedelta | None
    """None: the central cloud is not checked periodically, and what was recorded of it is old."""
    key_window: timedelta


def cutoffs(windows: Windows, limits: SilenceLimits, *, now: datetime) -> SilenceCutoffs:
    """Returns the moments with which rows are counted as `dcsync.model.shown` would show them now."""
    return SilenceCutoffs(
        availability=now - windows.availability,
        audited=now - windows.audited,
        reported=now - windows.reported,
        requested=now - limits.failing_after,
        future=now + CLOCK_TOLERANCE,
    )


def expected(facts: SilenceFacts, *, limits: SilenceLimits, now: datetime) -> list[AlarmRow]:
    """Returns the alarms that should be active, each once."""
    return [
        *_nobody_observes(facts, limits, now),
        *_central_unreadable(facts, limits, now),
        *_sweep_late(facts, limits, now),
        *_keys_behind(facts, limits, now),
        *_sync_failing(facts, limits, now),
    ]


# --- nobody observes ---------------------------------------------------------------------------------------------


def _nobody_observes(facts: SilenceFacts, limits: SilenceLimits, now: datetime) -> Iterator[AlarmRow]:
    for each in facts.observed:
        resource = each.endpoint_type or "availability"
        which = "managed, online" if each.endpoint_type else "managed"
        entity = f"fleet.resource={resource}"
        is_active = (SilenceId.NOBODY_OBSERVES, entity) in facts.active
        if each.stale > _tolerated(each, limits, is_active=is_active):
            text = (
                f"{each.stale} of {each.subclouds} {which} subclouds have no recent {resource} status"
                f" ({_named(each.names, each.stale)}): check that sync workers, state workers and beat run and take"
                " their queues (dcsync service monitor), and that the central cloud can be read (dcsync central)"
            )
            yield _alarm(SilenceId.NOBODY_OBSERVES, entity, text, now, endpoint_type=each.endpoint_type)


def _tolerated(observed: ObservedFacts, limits: SilenceLimits, *, is_active: bool) -> float:
    if observed.subclouds < SMALL_FLEET:
        return 0
    return limits.unobserved_share * observed.subclouds * (0.5 if is_active else 1)


# --- the central cloud -------------------------------------------------------------------------------------------


def _central_unreadable(facts: SilenceFacts, limits: SilenceLimits, now: datetime) -> Iterator[AlarmRow]:
    text = _why_central_is_unreadable(facts, limits, now)
    if text is not None:
        yield _alarm(SilenceId.CENTRAL_UNREADABLE, "central", text, now)


def _why_central_is_unreadable(facts: SilenceFacts, limits: SilenceLimits, now: datetime) -> str | None:
    central = facts.central
    if limits.central_silent_after is None:
        return None
    checked_at = _past(central.checked_at, now) or min(facts.first_checked_at, now)
    if now - checked_at > limits.central_silent_after:
        return (
            f"the central cloud was not checked since {_at(checked_at)}:"
            " check that sync workers and beat run (dcsync service monitor)"
        )
    if central.unreadable_since is not None:
        since = min(central.unreadable_since, now)
        is_active = (SilenceId.CENTRAL_UNREADABLE, "central") in facts.active
        if not is_active and now - since < limits.central_unreadable_after:
            return None
        reason = central.unreadable_reason
        advice = _advice(reason.partition(":")[0])
        return f"the central cloud cannot be read since {_at(since)}, {_cut(reason)}{advice}"
    if not central.refused:
        return None
    first = min(central.refused, key=lambda refused: refused.since)
    return (
        f"what the central cloud lists of {first.endpoint_type} is refused since {_at(min(first.since, now))},"
        f" {_cut(first.reason)}: if it is meant to be so, dcsync audit --all --allow-deletes accepts it"
    )


def _advice(reason: str) -> str:
    return f": {Reason(reason).advice}" if reason in set(Reason) else ""


# --- the sweep ---------------------------------------------------------------------------------------------------


def _sweep_late(facts: SilenceFacts, limits: SilenceLimits, now: datetime) -> Iterator[AlarmRow]:
    swept_at = _past(facts.swept_at, now)
    since = swept_at or min(facts.first_checked_at, now)
    if now - since > limits.sweep_late_after:
        text = (
            f"no sweep has ended well since {_at(since)}, so nothing that is due is started:"
            " check that sync workers and beat run and that Redis answers (dcsync service monitor)"
        )
        yield _alarm(SilenceId.SWEEP_LATE, "fleet.resource=sweep", text, now)


# --- keys --------------------------------------------------------------------------------------------------------


def _keys_behind(facts: SilenceFacts, limits: SilenceLimits, now: datetime) -> Iterator[AlarmRow]:
    keys = facts.keys
    if not keys.behind or keys.changed_at is None:
        return
    is_over = now - min(keys.changed_at, now) > limits.key_window
    is_window_open = keys.window_until is not None and now < keys.window_until <= now + limits.key_window
    if is_over and not is_window_open:
        text = (
            f"{keys.behind} of {keys.subclouds} managed, online and completed subclouds lack the current central keys,"
            f" which changed at {_at(min(keys.changed_at, now))} ({_named(keys.names, keys.behind)}):"
            " see dcsync keys show, and dcsync audit NAME --endpoint-type platform --wait for the reason"
        )
        yield _alarm(SilenceId.KEYS_BEHIND, "fleet.resource=keys", text, now)


# --- failing subclouds -------------------------------------------------------------------------------------------


def _sync_failing(facts: SilenceFacts, limits: SilenceLimits, now: datetime) -> Iterator[AlarmRow]:
    """One alarm for each subcloud, about what has been failing longest there."""
    reported: set[int] = set()
    for each in sorted(facts.failing, key=lambda failing: (failing.since, failing.endpoint_type or "")):
        entity = f"subcloud={each.name}"
        is_active = (SilenceId.SYNC_FAILING, entity) in facts.active
        if each.subcloud_id not in reported and (is_active or _fails_for_too_long(each, facts, limits, now)):
            reported.add(each.subcloud_id)
            yield _alarm(SilenceId.SYNC_FAILING, entity, _failing_text(each, now), now, subcloud_id=each.subcloud_id)


def _fails_for_too_long(failing: FailingFacts, facts: SilenceFacts, limits: SilenceLimits, now: datetime) -> bool:
    """A subcloud is not failing while it is away, nor before a run after its return has failed."""
    if not failing.is_online or failing.reason is None:
        return False
    since = min(max(failing.since, _past(failing.online_since, now) or failing.since), now)
    if failing.reason not in CENTRAL_REASONS:
        return now - since >= limits.failing_after or failing.failures >= limits.failing_attempts
    # Runs that failed because of the central cloud are tried again after their hold-off: only what still fails then is
    # not explained by the alarm about the central cloud.
    if limits.central_silent_after is not None and facts.central.unreadable_since is not None:
        return False
    readable_since = _past(facts.central.readable_since, now) or since
    return now - max(since, readable_since) >= limits.failing_after + limits.retry_within


def _failing_text(failing: FailingFacts, now: datetime) -> str:
    what = f"audits of {failing.endpoint_type} have" if failing.endpoint_type else "the initial sync has"
    times = "once" if failing.failures == 1 else f"{failing.failures} times in a row"
    text = f"{failing.name}: {what} failed {times} since {_at(min(failing.since, now))}"
    if failing.reason is not None:
        detail = f" ({_cut(failing.detail)})" if failing.detail else ""
        text += f", last {failing.reason}{detail}: {failing.reason.advice}"
    return f"{text}; see dcsync history {failing.name}"


# --- words -------------------------------------------------------------------------------------------------------


def _alarm(
    alarm_id: SilenceId,
    entity: str,
    text: str,
    now: datetime,
    *,
    subcloud_id: int | None = None,
    endpoint_type: EndpointType | None = None,
) -> AlarmRow:
    return AlarmRow(
        alarm_id=alarm_id.value,
        entity=entity,
        subcloud_id=subcloud_id,
        endpoint_type=endpoint_type,
        severity=_SEVERITY[alarm_id],
        reason_text=text,
        raised_at=now,
    )


def _past(moment: datetime | None, now: datetime) -> datetime | None:
    return None if moment is None or moment > now + CLOCK_TOLERANCE else min(moment, now)


def _named(names: Sequence[str], count: int) -> str:
    more = count - len(names[:NAMED])
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")


def _cut(text: str) -> str:
    return text if len(text) <= DETAIL_CHARACTERS else f"{text[:DETAIL_CHARACTERS]}..."


def _at(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def alarm_ids() -> Iterable[str]:
    """Returns the ids of the alarms that `expected` decides about."""
    return [each.value for each in SilenceId]
