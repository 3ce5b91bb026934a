"""Why an audit must stop, decided from its rows and its subcloud's."""

from __future__ import annotations

import pytest

from dcsync.audit.standing import standing_of
from dcsync.model.ending import Ending


def test_an_audit_that_owns_rows_of_an_eligible_subcloud_goes_on() -> None:
    assert standing_of(owns_rows=True, is_eligible=True) is None


def test_an_audit_of_a_subcloud_that_is_no_longer_eligible_is_cancelled() -> None:
    standing = standing_of(owns_rows=True, is_eligible=False)
    assert standing is not None
    assert (standing.ending, "no longer managed" in standing.detail) == (Ending.CANCELLED, True)


@pytest.mark.parametrize("is_eligible", [True, False])
def test_an_audit_without_rows_is_superseded(is_eligible: bool) -> None:
    standing = standing_of(owns_rows=False, is_eligible=is_eligible)
    assert standing is not None
    assert standing.ending is Ending.SUPERSEDED
