"""The command that makes the central cloud rotate: no shell, a deadline, nothing of what it prints."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil
import pytest

from dcsync.adapters.cloud.central_rotation import new_key, rotate_command
from dcsync.model.errors import KeyRotationFailed, MisconfiguredError
from dcsync.model.identity import FernetKeys
from dcsync.settings import load
from tests.processes import wait_until


def run(script: str, *, deadline: float = 60) -> None:
    rotate_command(f"{sys.executable} -c '{script}'", deadline_seconds=deadline)()


def test_keys_are_good_and_never_the_same() -> None:
    keys = [new_key() for _ in range(50)]
    assert len(set(keys)) == 50
    assert FernetKeys(dict(enumerate(keys))).problems() == []


def test_a_command_runs_without_a_shell_and_sees_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DCSYNC_PASSWORD", "s3cret")
    seen = tmp_path / "seen"
    script = f'import os, sys; open("{seen}", "w").write(sys.argv[1] + str("DCSYNC_PASSWORD" in os.environ))'
    rotate_command(f"{sys.executable} -c '{script}' '$HOME;false'", deadline_seconds=60)()
    assert seen.read_text() == "$HOME;falseFalse"


def test_a_failure_tells_the_exit_code_and_nothing_that_was_printed(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyRotationFailed) as told:
        run('import sys; print("canary"); print("canary", file=sys.stderr); sys.exit(3)')
    assert "exit code 3" in str(told.value)
    assert "canary" not in str(told.value) + "".join(capfd.readouterr())


def test_a_command_that_hangs_is_ended_with_all_it_started(tmp_path: Path) -> None:
    told = tmp_path / "child"
    file = tmp_path / "hang.sh"
    file.write_text(f"sleep 600 & echo $! > {told}.new && mv {told}.new {told}; wait\n")
    for seconds in (0.5, 5, 50):  # more where the machine is too busy to get so far
        with pytest.raises(KeyRotationFailed, match=f"longer than {seconds} s"):
            rotate_command(f"sh {file}", deadline_seconds=seconds)()
        if told.exists():
            break
    wait_until(lambda: not _lives(int(told.read_text())), seconds=60, what="its child is gone")


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_command_that_is_not_there_is_named() -> None:
    with pytest.raises(KeyRotationFailed, match="/nowhere/rotate cannot be run"):
        rotate_command("/nowhere/rotate --now", deadline_seconds=1)()


@pytest.mark.parametrize("text", ["'", "   "])
def test_a_command_that_cannot_be_taken_apart_is_a_wrong_setting(text: str) -> None:
    with pytest.raises(MisconfiguredError, match="DCSYNC_KEY_ROTATE_COMMAND"):
        load({"DCSYNC_KEY_ROTATE_COMMAND": text})
