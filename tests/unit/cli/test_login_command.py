"""`dcsync login`: which logins were refused, and how they are forgotten."""

from __future__ import annotations

import pytest

from dcsync.adapters.host.refused_logins import ProcessRefusedLogins
from dcsync.runs.logins import Account, Admitted, Verdict
from tests.unit.cli.conftest import Shell

CLOUD = "http://192.0.2.1:5000/v3"


@pytest.fixture
def refused(dcsync: Shell) -> ProcessRefusedLogins:
    """One login was refused at noon of the first of January 2026, and one was held back since."""
    logins = ProcessRefusedLogins(now=lambda: 1767268800.0, jitter=lambda: 0.0)
    account = Account(cloud=CLOUD, user="dcmanager", password="canary")
    admitted = logins.admit(account)
    assert isinstance(admitted, Admitted)
    logins.settle(account, admitted.permit, Verdict.REFUSED)
    logins.admit(account)
    dcsync.operator.refused_logins = logins
    return logins


def test_refused_logins_are_listed_with_the_time_of_the_next_try(dcsync: Shell, refused: ProcessRefusedLogins) -> None:
    answer = dcsync("login", "list")
    assert (answer.code, answer.err) == (0, "1 logins refused so far, 1 not sent because of that\n")
    _, row = answer.out.splitlines()
    assert row.split()[:2] == [CLOUD, "dcmanager"]
    assert "12:05:00" in row
    assert "canary" not in answer.out


def test_as_json_they_have_counts_and_times(dcsync: Shell, refused: ProcessRefusedLogins) -> None:
    found = dcsync("login", "list", "-o", "json").json
    assert (found["refused"], found["held_back"]) == (1, 1)
    (login,) = found["logins"]
    assert (login["cloud"], login["user"], login["in_a_row"]) == (CLOUD, "dcmanager", 1)
    assert login["retry_at"].startswith("2026-01-01T12:05:00")


def test_forgetting_says_how_many_and_nothing_to_forget_is_a_no(dcsync: Shell, refused: ProcessRefusedLogins) -> None:
    assert dcsync("login", "forget", "--cloud", "http://192.0.2.9/v3").code == 1
    answer = dcsync("login", "forget", "--cloud", CLOUD)
    assert (answer.code, answer.out) == (0, "1 forgotten\n")
    assert refused.remembered() == []
