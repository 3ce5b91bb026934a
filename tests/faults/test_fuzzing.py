"""A short run of the fuzzer over every reader of replies (`fuzz_replies`); `make test` has hypothesis for the same."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SECONDS = 60

pytestmark = pytest.mark.faults


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris has no wheel for this Python")
def test_no_reader_of_replies_fails_for_bytes_guided_by_coverage(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.faults.fuzz_replies", f"-max_total_time={SECONDS}", "-timeout=10"]
    options = [f"-artifact_prefix={tmp_path}/", "-rss_limit_mb=1024"]
    done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True, timeout=SECONDS * 5)
    assert done.returncode == 0, done.stderr[-4000:]
    runs = re.search(r"Done (\d+) runs", done.stderr)
    assert runs is not None
    assert int(runs.group(1)) > 1000
