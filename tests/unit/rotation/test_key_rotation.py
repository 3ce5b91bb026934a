"""Rotation as values: what becomes of a set, when it is refused, and that no site rejects what the central cloud
issues."""

from __future__ import annotations

import base64
from datetime import timedelta

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dcsync.model.identity import FernetKeys, key_set
from dcsync.rotation.key_rotation import MIN_KEYS, STAGED, is_rotation_of, next_due, refusal, rotated
from dcsync.rotation.ports import Spread
from tests.builders import NOON

HOUR, WEEK = timedelta(hours=1), timedelta(hours=168)


def a_key(number: int) -> str:
    return base64.urlsafe_b64encode(number.to_bytes(32, "big")).decode()


def keys(*ids: int) -> FernetKeys:
    return FernetKeys({key_id: a_key(key_id + 1) for key_id in ids})


# --- one rotation ---


def test_the_staged_key_becomes_primary_and_the_oldest_goes() -> None:
    after = rotated(keys(0, 4, 5), staged=a_key(99), max_active_keys=3)
    assert after.keys == {0: a_key(99), 5: a_key(6), 6: a_key(1)}


def test_a_young_set_grows_to_its_size() -> None:
    after = rotated(keys(0, 1), staged=a_key(99), max_active_keys=3)
    assert after.keys == {0: a_key(99), 1: a_key(2), 2: a_key(1)}


def test_a_set_that_is_too_large_shrinks_to_its_size() -> None:
    assert sorted(rotated(keys(0, 1, 2, 3, 4, 5), staged=a_key(99), max_active_keys=3).keys) == [0, 5, 6]


@pytest.mark.parametrize("current", [keys(), keys(0), keys(1, 2)])
def test_a_set_without_a_staged_key_and_a_primary_is_not_rotated(current: FernetKeys) -> None:
    with pytest.raises(ValueError, match="no staged key"):
        rotated(current, staged=a_key(99), max_active_keys=3)


def test_fewer_keys_than_a_safe_rotation_needs_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 3"):
        rotated(keys(0, 1), staged=a_key(99), max_active_keys=2)


def test_a_rotation_is_recognised_by_its_primary_whoever_did_it() -> None:
    before = keys(0, 1, 2)
    ours = rotated(before, staged=a_key(98), max_active_keys=3)
    theirs = rotated(before, staged=a_key(99), max_active_keys=3)
    for after in (ours, theirs):
        assert is_rotation_of(before=key_set(before), now=key_set(after))
    assert not is_rotation_of(before=key_set(before), now=key_set(before))
    assert not is_rotation_of(before=key_set(before), now=key_set(keys(0, 7, 8)))


def test_what_rows_keep_of_a_set_holds_no_key() -> None:
    current = keys(0, 1, 2)
    assert not any(key in repr(key_set(current)) for key in current.keys.values())


# --- may it be done, and when ---


def refused(spread: Spread, *, since: timedelta = WEEK) -> str | None:
    return refusal(spread, max_share_behind=0.05, last_rotated_at=NOON - since, token_lifetime=HOUR, now=NOON)


def test_a_rotation_waits_for_sites_that_lack_the_staged_key() -> None:
    assert "94 of 100" in str(refused(Spread(have=94, lack=6)))
    assert refused(Spread(have=95, lack=5)) is None
    assert refused(Spread()) is None


@pytest.mark.parametrize(
    ("spread", "is_refused"),
    [
        (Spread(have=95, failed=3, syncing=3), True),
        (Spread(have=95, failed=3, syncing=2), False),
        (Spread(have=50, away=50), False),
        (Spread(have=50, unmanaged=50), False),
        (Spread(away=50), False),
        (Spread(failed=1), True),
    ],
)
def test_who_is_online_without_the_keys_counts_whatever_its_state(spread: Spread, *, is_refused: bool) -> None:
    assert (refused(spread) is not None) is is_refused


def test_a_spread_adds_up_to_the_managed_subclouds() -> None:
    spread = Spread(have=8, lack=1, failed=2, syncing=3, away=4, unmanaged=5)
    assert (spread.managed, spread.behind) == (18, 6)
    assert str(spread) == "8 of 18 managed subclouds have the keys (1 lack, 2 failed, 3 syncing, 4 away)"
    assert str(Spread(have=8, unmanaged=1)) == "8 of 8 managed subclouds have the keys"


def test_two_rotations_within_the_life_of_a_token_are_refused() -> None:
    assert "have not expired" in str(refused(Spread(have=100), since=timedelta(minutes=59)))
    assert refused(Spread(have=100), since=HOUR) is None


def test_a_rotation_stamped_in_the_future_neither_forbids_the_next_for_ever_nor_allows_it_at_once() -> None:
    everywhere = Spread(have=100)
    assert "another one would invalidate tokens" in str(refused(everywhere, since=timedelta(minutes=-30)))
    assert refused(everywhere, since=timedelta(days=-365)) is None
    ahead = NOON + timedelta(days=365)
    assert next_due(interval=WEEK, last_rotated_at=ahead, due=ahead + WEEK, now=NOON) == NOON + WEEK


def test_the_first_rotation_is_due_one_interval_after_the_first_look() -> None:
    assert next_due(interval=WEEK, last_rotated_at=None, due=None, now=NOON) == NOON + WEEK


def test_a_restart_moves_no_due_time() -> None:
    due = NOON + timedelta(hours=3)
    assert next_due(interval=WEEK, last_rotated_at=due - WEEK, due=due, now=NOON) == due
    assert next_due(interval=WEEK, last_rotated_at=None, due=due, now=NOON) == due


def test_a_shortened_interval_counts_at_once_and_none_is_off() -> None:
    due = NOON + WEEK
    assert next_due(interval=HOUR, last_rotated_at=NOON, due=due, now=NOON) == NOON + HOUR
    assert next_due(interval=timedelta(), last_rotated_at=NOON, due=due, now=NOON) is None


# --- sites that get each set late ---


class Sites(RuleBasedStateMachine):
    """A central cloud that rotates and sites that copy its set late, each at its own pace; sets on their way may
    overtake.

    A token is known by the key it was issued with. A site is served when it held the set of the rotation before, at
    the moment of the rotation: exactly what `refusal` waits for.
    """

    guarded = True

    @initialize(count=st.integers(2, 5), size=st.integers(MIN_KEYS, 5))
    def begin(self, count: int, size: int) -> None:
        self.size = size
        self.made = 3
        self.centre = FernetKeys({0: a_key(1), 1: a_key(2), 2: a_key(3)})
        self.sites = [self.centre for _ in range(count)]
        self.on_their_way: list[tuple[int, FernetKeys]] = []

    @property
    def behind(self) -> int:
        return sum(site != self.centre for site in self.sites)

    @precondition(lambda self: not self.guarded or self.behind == 0)
    @rule()
    def rotate(self) -> None:
        self.made += 1
        self.centre = rotated(self.centre, staged=a_key(self.made), max_active_keys=self.size)

    @rule(site=st.integers(0, 4))
    def send(self, site: int) -> None:
        self.on_their_way.append((site % len(self.sites), self.centre))

    @rule(number=st.integers(0, 50))
    def arrive(self, number: int) -> None:
        """A set that left before an earlier rotation is not written: a run compares with what the central cloud holds
        now."""
        if self.on_their_way:
            site, sent = self.on_their_way.pop(number % len(self.on_their_way))
            if sent == self.centre:
                self.sites[site] = sent

    @rule(site=st.integers(0, 4))
    def a_slow_write_arrives(self, site: int) -> None:
        """A run that read the central cloud just before the rotation may still write the set of before."""
        number = site % len(self.sites)
        if self.guarded and self.on_their_way:
            _, sent = self.on_their_way[0]
            if is_rotation_of(before=key_set(sent), now=key_set(self.centre)):
                self.sites[number] = sent

    @invariant()
    def no_site_rejects_what_the_central_cloud_issues(self) -> None:
        if hasattr(self, "sites"):
            issued = self.centre.keys[max(self.centre.keys)]
            assert all(issued in site.keys.values() for site in self.sites)

    @invariant()
    def the_central_cloud_takes_what_sites_issue(self) -> None:
        if hasattr(self, "sites"):
            assert all(site.keys[max(site.keys)] in self.centre.keys.values() for site in self.sites)

    @invariant()
    def sites_take_each_others_tokens(self) -> None:
        if hasattr(self, "sites"):
            issued = {site.keys[max(site.keys)] for site in self.sites}
            assert all(issued <= set(site.keys.values()) for site in self.sites)

    @invariant()
    def the_staged_key_is_never_one_of_the_others(self) -> None:
        if hasattr(self, "sites"):
            others = [key for key_id, key in self.centre.keys.items() if key_id != STAGED]
            assert self.centre.keys[STAGED] not in others


Sites.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestSitesThatGetEachSetLate = Sites.TestCase


class Impatient(Sites):
    """The same without waiting: must fail, or the model proves nothing."""

    guarded = False


def test_without_waiting_for_the_staged_key_sites_do_reject_tokens() -> None:
    machine = Impatient()
    machine.begin(count=2, size=3)
    machine.rotate()
    machine.no_site_rejects_what_the_central_cloud_issues()
    machine.rotate()
    with pytest.raises(AssertionError):
        machine.no_site_rejects_what_the_central_cloud_issues()
