"""Texts from outside are cut and storable before they reach a row, a log or a terminal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcsync.adapters.cloud.http import Reply, _call
from dcsync.adapters.postgres.tables import DetailText, DifferenceLines, metadata
from dcsync.model.errors import CloudError
from dcsync.model.outside_text import LONGEST_DETAIL, LONGEST_TEXT, cut
from dcsync.model.reasons import Reason


@given(st.text(alphabet=st.characters(), max_size=2000), st.integers(0, 500))
def test_a_text_is_never_longer_than_asked_for_and_can_be_stored(text: str, at_most: int) -> None:
    short = cut(text, at_most=at_most)
    assert len(short) <= at_most
    assert "\0" not in short
    short.encode()
    assert cut(short, at_most=at_most) == short


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=LONGEST_TEXT))
def test_a_short_usual_text_is_unchanged(text: str) -> None:
    assert cut(text) == text


def test_a_cut_text_ends_with_how_long_it_was() -> None:
    assert cut("x" * 600_000).endswith("x... (600000 characters)")


def test_the_detail_of_an_error_is_cut() -> None:
    error = CloudError(Reason.REFUSED, "a\0" * 1_000_000)
    assert len(error.detail) == LONGEST_DETAIL
    assert len(str(error)) < LONGEST_DETAIL + 50
    assert all("\0" not in str(each) for each in error.args)


def test_a_call_shows_the_host_and_the_start_of_a_long_path() -> None:
    call = _call("PUT", f"http://user:secret@site:5000/v3/projects/{'%20' * 255}/users/{'%20' * 255}")
    assert call.startswith("PUT http://site:5000/v3/projects/%20")
    assert len(call) < LONGEST_TEXT + 40
    assert len(str(Reply(call, 500, None, b"").bad("x"))) < 2 * LONGEST_TEXT


@pytest.mark.parametrize("table", sorted(metadata.tables))
def test_every_column_that_may_hold_text_of_a_cloud_is_capped(table: str) -> None:
    for column in metadata.tables[table].columns:
        if column.name in ("detail", "refused", "difference"):
            assert isinstance(column.type, DetailText), f"{table}.{column.name}"
        if column.name.endswith("_detail"):
            assert isinstance(column.type, DifferenceLines), f"{table}.{column.name}"
