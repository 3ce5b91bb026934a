"""The command that makes the centre rotate: no shell, a deadline, nothing of what it prints."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from dcsync.adapters.central_rotation import new_key, rotate_command
from dcsync.errors import KeyRotationFailed, MisconfiguredError
from dcsync.identity import FernetKeys


def run(script: str, *, deadline: float = 20) -> None:
    rotate_command(f"{sys.executable} -c '{script}'", deadline_seconds=deadline)()


def test_keys_are_good_and_never_the_same() -> None:
    keys = [new_key() for _ in range(50)]
    assert len(set(keys)) == 50
    assert FernetKeys(dict(enumerate(keys))).problems() == []


def test_a_command_runs_without_a_shell_and_sees_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DCSYNC_PASSWORD", "s3cret")
    seen = tmp_path / "seen"
    script = f'import os, sys; open("{seen}", "w").write(sys.argv[1] + str("DCSYNC_PASSWORD" in os.environ))'
    rotate_command(f"{sys.executable} -c '{script}' '$HOME;false'", deadline_seconds=20)()
    assert seen.read_text() == "$HOME;falseFalse"


def test_a_failure_tells_the_exit_code_and_nothing_that_was_printed(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyRotationFailed) as told:
        run('import sys; print("canary"); print("canary", file=sys.stderr); sys.exit(3)')
    assert "exit code 3" in str(told.value)
    assert "canary" not in str(told.value) + "".join(capfd.readouterr())


def test_a_command_that_hangs_is_ended_with_all_it_started(tmp_path: Path) -> None:
    sign = tmp_path / "child-lives"
    child = f'import time, pathlib; time.sleep(1.5); pathlib.Path("{sign}").touch()'
    script = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    file = tmp_path / "hang.py"
    file.write_text(script)
    began = time.monotonic()
    with pytest.raises(KeyRotationFailed, match="longer than 0.7 s"):
        rotate_command(f"{sys.executable} {file}", deadline_seconds=0.7)()
    assert time.monotonic() - began < 1.4
    time.sleep(1.5)
    assert not sign.exists()


def test_a_command_that_is_not_there_is_named() -> None:
    with pytest.raises(KeyRotationFailed, match="/nowhere/rotate cannot be run"):
        rotate_command("/nowhere/rotate --now", deadline_seconds=1)()


@pytest.mark.parametrize("text", ["'", "   "])
def test_a_command_that_cannot_be_taken_apart_is_a_wrong_setting(text: str) -> None:
    with pytest.raises(MisconfiguredError, match="DCSYNC_KEY_ROTATE_COMMAND"):
        rotate_command(text, deadline_seconds=1)
