"""Keystone's own virtual environment: made once, made anew when it must be, and its absence told as it should be."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.real_cloud import environment
from tests.real_cloud.environment import EnvironmentUnavailableError, ensure
from tests.real_cloud.fixtures import skip_or_fail


@pytest.fixture
def requirements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pins of the test's own, none at first; nothing can be fetched."""
    pins = tmp_path / "requirements.txt"
    pins.write_text("")
    monkeypatch.setattr(environment, "REQUIREMENTS", pins)
    monkeypatch.setattr(environment, "VENV", tmp_path / "venv")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return pins


def test_it_is_made_once_and_made_anew_when_the_pins_change(requirements: Path) -> None:
    left_behind = ensure().parent / "left-behind"
    left_behind.touch()
    ensure()
    assert left_behind.exists()
    requirements.write_text("# other pins\n")
    assert ensure().exists()
    assert not left_behind.exists()


def test_what_cannot_be_installed_is_told_each_time_and_not_taken_for_made(requirements: Path) -> None:
    requirements.write_text("no-such-thing-at-all==1.0\n")
    for _ in range(2):
        with pytest.raises(EnvironmentUnavailableError, match="no-such-thing-at-all"):
            ensure()


def test_without_it_tests_are_skipped_with_the_reason() -> None:
    with pytest.raises(pytest.skip.Exception, match="no network"):
        skip_or_fail(EnvironmentUnavailableError("no network"), environ={})


def test_without_it_tests_fail_in_ci() -> None:
    with pytest.raises(EnvironmentUnavailableError, match="no network"):
        skip_or_fail(EnvironmentUnavailableError("no network"), environ={"CI": "true"})
