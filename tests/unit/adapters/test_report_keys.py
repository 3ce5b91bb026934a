"""The file of report keys: what it must contain, and that it is read again without a gap."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dcsync.adapters.host.report_keys import ReportKeys
from dcsync.model.errors import MisconfiguredError
from dcsync.settings import load

OLD, NEW = "o" * 64, "n" * 64


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "report.key"
    file.write_text(f"{OLD}\n")
    return file


def replace(path: Path, text: str) -> None:
    fresh = path.with_name("fresh")
    fresh.write_text(text)
    os.replace(fresh, path)


def test_a_file_is_read_again_when_it_changes(path: Path) -> None:
    keys = ReportKeys(path)
    assert keys() == (OLD.encode(),)
    replace(path, f"{NEW}\r\n\n  {OLD}\n")
    assert keys() == (NEW.encode(), OLD.encode())


@pytest.mark.parametrize("text", [None, "", "short\n", f"{OLD}\n{OLD}\n{OLD}\n"])
def test_the_last_valid_keys_stay_in_use_while_the_file_is_not_valid(path: Path, text: str | None) -> None:
    keys = ReportKeys(path)
    path.unlink() if text is None else replace(path, text)
    assert keys() == (OLD.encode(),)
    replace(path, NEW)
    assert keys() == (NEW.encode(),)


def test_without_a_file_there_are_no_keys() -> None:
    assert ReportKeys(None)() == ()


@pytest.mark.parametrize("text", [None, "", "\n", "secret-but-short\n", f"{OLD}\n{NEW}\n{OLD}\n"])
def test_a_file_that_is_not_valid_is_named_at_the_start_without_its_keys(path: Path, text: str | None) -> None:
    path.unlink() if text is None else path.write_text(text)
    for start in (lambda: load({"DCSYNC_REPORT_KEY_FILE": str(path)}), lambda: ReportKeys(path)):
        with pytest.raises(MisconfiguredError, match=r"^DCSYNC_REPORT_KEY_FILE: .*report\.key") as refused:
            start()
        assert not [key for key in ("secret-but-short", OLD, NEW) if key in str(refused.value)]
