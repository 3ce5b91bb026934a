"""What errors say, and that they survive the trip between processes."""

from __future__ import annotations

import pickle

import pytest

from dcsync.model.errors import UnknownSubcloud, listed, refuse_unknown


def test_ten_unknown_names_are_named_and_the_others_counted() -> None:
    with pytest.raises(UnknownSubcloud) as told:
        refuse_unknown([f"edge-{number}" for number in range(1, 14)], {"edge-1"})
    names = ", ".join(f"edge-{number}" for number in range(2, 12))
    assert str(told.value) == f"there is no subcloud named {names} and 2 more"
    again = pickle.loads(pickle.dumps(told.value))
    assert (type(again), str(again)) == (UnknownSubcloud, str(told.value))


def test_known_names_are_not_refused() -> None:
    refuse_unknown(["a", "b"], {"a", "b", "c"})
    refuse_unknown([], ())


def test_a_list_that_is_short_enough_is_whole() -> None:
    assert listed(["a", "b"], at_most=2) == "a, b"
    assert listed(["a", "b", "c"], at_most=2) == "a, b and 1 more"
