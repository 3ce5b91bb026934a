"""What each process of `dcsync up` is given: the secrets it needs, as values or as files, and no other."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from dcsync.local.up import (
    NEEDED_SECRETS,
    STOP_GRACE_SECONDS,
    local_environment,
    make_flower_login,
    with_needed_secrets,
)
from dcsync.settings import PREFIX, SECRETS, load

OTHERS = {"PATH": os.defpath, "DCSYNC_CENTRAL_AUTH_URL": "https://central.example/v3", "DCSYNC_ALIVE_FILE": "/x"}


@pytest.mark.parametrize("suffix", ["", "_FILE"])
@pytest.mark.parametrize(
    ("role", "needed"),
    [
        ("sync-worker", set(SECRETS)),
        ("state-worker", {"database_url", "redis_url", "alarm_webhook_url"}),
        ("beat", {"redis_url"}),
        ("flower", {"redis_url"}),
    ],
)
def test_each_process_gets_the_secrets_it_needs_and_every_other_setting(
    role: str, needed: set[str], suffix: str
) -> None:
    secrets = {f"{PREFIX}{name.upper()}{suffix}": "s3cret" for name in SECRETS}

    given = with_needed_secrets(OTHERS | secrets, role=role)

    assert set(given) - set(OTHERS) == {f"{PREFIX}{name.upper()}{suffix}" for name in needed}
    assert given.items() >= OTHERS.items()


def test_only_sync_workers_log_in_anywhere() -> None:
    assert {role for role, needed in NEEDED_SECRETS.items() if "password" in needed} == {"sync-worker"}


def test_flowers_login_is_private_and_stays_the_same(tmp_path: Path) -> None:
    path, other = tmp_path / "flower_login.py", tmp_path / "other.py"
    make_flower_login(path)
    first = path.read_text()
    make_flower_login(path)
    make_flower_login(other)

    assert path.read_text() == first
    assert other.read_text() != first
    assert first.startswith('basic_auth = ["operator:')
    assert len(first.split(":")[1].split('"')[0]) >= 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_processes_on_one_machine_stop_soon_unless_somebody_says_otherwise() -> None:
    """15 s after Ctrl-C all is over on a quiet machine."""
    assert load(local_environment({})).stop_grace == STOP_GRACE_SECONDS < 10


@pytest.mark.parametrize("seconds", ["0", "40"])
def test_a_grace_that_is_set_is_kept(seconds: str) -> None:
    assert load(local_environment({"DCSYNC_STOP_GRACE": seconds})).stop_grace == float(seconds)
