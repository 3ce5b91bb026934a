"""What a preview prints and answers: every write it would make counts, whether anything differs or not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, cast

import pytest

from dcsync.cli.operator import Operator
from dcsync.cli.previews import Part, show
from tests.builders import a_subcloud

IN_ANY_CASE = ("PUT users admin", "PUT users sysinv", "PUT users dcmanager", "POST fernet_repo")


class NobodyAtWork:
    def owners(self, region_names: Sequence[str]) -> dict[str, str | None]:
        return dict.fromkeys(region_names)


class Services:
    locks = NobodyAtWork()


class Looking:
    """As much of an `Operator` as a preview needs."""

    previews = Services()

    def requires(self, *names: str) -> None:
        pass


def shown(part: Part, *, as_json: bool = False) -> int:
    operator = cast("Operator", Looking())
    return show(operator, [a_subcloud()], lambda services: lambda known: (part,), as_json=as_json, single=True)


def test_writes_that_are_made_in_any_case_are_listed_and_count(capsys: pytest.CaptureFixture[str]) -> None:
    """A subcloud without a difference is written all the same when its sync is requested."""
    part = Part(of="initial sync", writes=IN_ANY_CASE)
    assert shown(part) == 1
    printed = capsys.readouterr()
    assert "initial sync: no difference\n" in printed.out
    assert f"would be written: {', '.join(IN_ANY_CASE)}" in printed.out
    assert "1 of 1 subcloud would be changed" in printed.err
    assert shown(part, as_json=True) == 1
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (told["differs"], told["writes"]) == (True, list(IN_ANY_CASE))


def test_a_preview_without_differences_and_writes_is_a_no(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(Part(of="identity"), as_json=True) == 0
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (told["differs"], told["writes"]) == (False, [])


def test_a_difference_that_cannot_be_written_counts(capsys: pytest.CaptureFixture[str]) -> None:
    part = Part(of="identity", differences=("users vim: name or id taken by another record",))
    assert shown(part) == 1
    assert "would be written: nothing" in capsys.readouterr().out
