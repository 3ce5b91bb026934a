"""The command line as an operator has it: real processes on a real PostgreSQL and a real broker."""

from __future__ import annotations

import getpass
import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import IntegrityError

from dcsync.adapters.host.clock import utc_now
from dcsync.adapters.postgres.database import head_revision
from dcsync.adapters.postgres.states import SqlStateStore
from dcsync.local.servers import EmbeddedRedis
from dcsync.state.service import StateService
from tests.fake_messenger import FakeMessenger
from tests.processes import Processes, clean_environment, wait_until

pytestmark = [pytest.mark.timeout(600)]

DEADLINE = 120.0
Cli = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def cli(processes: Processes, server_urls: dict[str, str]) -> Cli:
    def call(*arguments: str, expect: int | None = 0, **environ: str) -> subprocess.CompletedProcess[str]:
        return processes.cli(*arguments, environ=server_urls | environ, expect=expect)

    return call


def stored(cli: Cli) -> list[str]:
    return [known["name"] for known in json.loads(cli("subcloud", "list", "-o", "json").stdout)]


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """The one clear sentence on stderr, with nothing on stdout."""
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("dcsync: ")
    return line


def test_a_subcloud_from_added_to_deleted(cli: Cli) -> None:
    cli(
        "subcloud",
        "add",
        "edge-1",
        "--management-ip",
        "10.10.0.5",
        "--region-name",
        "r1",
        "--software-version",
        "24.09",
    )
    assert "--force" in refused(cli("subcloud", "manage", "edge-1", expect=5))
    assert "now managed" in cli("subcloud", "manage", "edge-1", "--force").stdout
    assert "managed already" in cli("subcloud", "manage", "edge-1").stdout
    (listed,) = json.loads(cli("subcloud", "list", "-o", "json").stdout)
    assert listed["sync_status"] == {"platform": "unknown", "identity": "unknown"}
    del listed["sync_status"]
    assert listed.items() >= {
        "name": "edge-1", "region_name": "r1", "management_ip": "10.10.0.5", "software_version": "24.09",
        "management_state": "managed", "availability_status": "offline", "initial_sync_state": "none",
        "subsequent_sync": False, "attempt": 0, "retry_at": None, "reason": None,
    }.items()  # fmt: skip
    assert "is offline" in refused(cli("sync", "edge-1", expect=5))
    cli("wait", "--for", "completed", "edge-1", "--timeout", "0.2", expect=1)
    assert "edge-1" in cli("subcloud", "show", "edge-1").stdout
    cli("subcloud", "unmanage", "--all", "--yes")
    cli("subcloud", "delete", "edge-1", "--yes")
    assert stored(cli) == []
    assert "edge-1" in refused(cli("subcloud", "show", "edge-1", expect=3))


def test_who_did_what_to_a_subcloud_is_known_after_it_was_deleted_and_added_again(cli: Cli, engine: Engine) -> None:
    add = ("subcloud", "add", "edge-1", "--management-ip", "10.10.0.5")
    cli(*add)
    cli("subcloud", "manage", "edge-1", expect=5)
    cli("subcloud", "manage", "edge-1", "--force")
    cli("subcloud", "unmanage", "--all", "--yes")
    cli("subcloud", "delete", "edge-1", "--yes")
    with pytest.raises(IntegrityError, match="operation"), engine.begin() as rows:
        rows.execute(text("DELETE FROM operation"))
    heading, *lines = cli("history", "edge-1").stdout.splitlines()
    assert ("--- edge-1" in heading, "deleted 2" in heading) == (True, True)
    assert [line.split("Z  ")[1] for line in lines if "Z  " in line] == [
        "subcloud delete --yes: done",
        "subcloud unmanage --all --yes: done",
        "subcloud manage --force: done",
        "subcloud manage: refused",
        "subcloud add --management-ip 10.10.0.5: done",
    ]
    cli(*add)
    done = json.loads(cli("operations", "--name", "edge-1", "-o", "json").stdout)
    assert [each["outcome"] for each in done] == ["done"] * 4 + ["refused", "done"]
    assert {(each["who"], each["host"], tuple(each["names"])) for each in done} == {
        (getpass.getuser(), socket.gethostname(), ("edge-1",))
    }
    lives = {
        each["subcloud_id"]: each["deleted_at"] for each in json.loads(cli("history", "edge-1", "-o", "json").stdout)
    }
    assert [deleted_at is None for deleted_at in lives.values()] == [True, False]


def test_a_schema_upgrade_is_recorded_once(cli: Cli, empty_database_url: str) -> None:
    for _ in range(2):
        cli("db", "upgrade", DCSYNC_DATABASE_URL=empty_database_url)
    (done,) = json.loads(cli("operations", "-o", "json", DCSYNC_DATABASE_URL=empty_database_url).stdout)
    assert (done["command"], done["detail"]) == ("db upgrade", f"from nothing to {head_revision()}")


@pytest.mark.parametrize(
    ("address", "code"),
    [("10.0.0.999", 2), ("127.0.0.1", 5), ("169.254.169.254", 5), ("::ffff:127.0.0.1", 5), ("::1", 5)],
)
def test_a_bad_address_is_refused_and_nothing_stored(cli: Cli, address: str, code: int) -> None:
    refused(cli("subcloud", "add", "edge-1", "--management-ip", address, expect=code))
    assert stored(cli) == []


def test_an_address_outside_the_allowed_networks_is_refused_and_nothing_stored(cli: Cli) -> None:
    done = cli("subcloud", "add", "a", "--management-ip", "10.9.0.1", expect=5, DCSYNC_ALLOWED_NETWORKS="10.10.0.0/16")
    assert "outside the allowed networks" in refused(done)
    assert stored(cli) == []


@pytest.mark.parametrize("second", [("edge-1",), ("edge-2", "--region-name", "r1")])
def test_a_duplicate_is_refused_and_nothing_stored(cli: Cli, second: tuple[str, ...]) -> None:
    cli("subcloud", "add", "edge-1", "--management-ip", "10.10.0.5", "--region-name", "r1")
    done = cli("subcloud", "add", *second, "--management-ip", "10.10.0.6", expect=1)
    assert "already there" in refused(done)
    assert stored(cli) == ["edge-1"]


def test_a_file_is_imported_whole_or_not_at_all(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "fleet.csv"
    file.write_text("name,management_ip,region_name,software_version\na,10.0.0.1,,\nb,nowhere,,\na,10.0.0.3,,\n")
    told = refused(cli("subcloud", "import", str(file), expect=2))
    assert "line 3: 'nowhere' is not an IP address" in told
    assert "line 4: name a is already in line 2" in told
    assert stored(cli) == []
    file.write_text(
        json.dumps([{"name": f"edge-{n:04}", "management_ip": f"10.1.{n // 250}.{n % 250}"} for n in range(5000)])
    )
    assert cli("subcloud", "import", str(file)).stdout == "5000 subclouds added, unmanaged\n"
    assert "5000 subclouds now managed" in cli("subcloud", "manage", "--all", "--force", "--yes").stdout
    assert "entry 1: name edge-0000 already exists" in refused(cli("subcloud", "import", str(file), expect=1))
    assert len(stored(cli)) == 5000


@pytest.mark.parametrize(
    "arguments",
    [("subcloud", "manage"), ("subcloud", "manage", "a", "--all"), ("wait", "--for", "luck"), ("nonsense",)],
)
def test_a_wrong_command_line_is_exit_code_2(cli: Cli, arguments: tuple[str, ...]) -> None:
    refused(cli(*arguments, expect=2))


def test_an_unreachable_database_is_exit_code_4(cli: Cli) -> None:
    url = "postgresql://operator:s3cret@127.0.0.1:1/dcsync"
    told = refused(cli("subcloud", "list", expect=4, DCSYNC_DATABASE_URL=url))
    assert "s3cret" not in told
    answer = cli("subcloud", "list", "-o", "json", expect=4, DCSYNC_DATABASE_URL=url)
    assert json.loads(answer.stderr)["exit_code"] == 4


def test_a_database_that_was_not_upgraded_says_what_to_run(cli: Cli, empty_database_url: str) -> None:
    told = refused(cli("subcloud", "list", expect=4, DCSYNC_DATABASE_URL=empty_database_url))
    assert "dcsync db upgrade" in told
    cli("db", "upgrade", DCSYNC_DATABASE_URL=empty_database_url)
    cli("subcloud", "list", DCSYNC_DATABASE_URL=empty_database_url)


def test_all_missing_and_unknown_settings_are_named_at_once(processes: Processes, own_data_dir: Path) -> None:
    nowhere = {"DCSYNC_DATA_DIR": str(own_data_dir)}
    told = refused(processes.cli("subcloud", "manage", "a", environ=nowhere, expect=2))
    assert "DCSYNC_DATABASE_URL" in told
    assert "DCSYNC_REDIS_URL" in told
    wrong = nowhere | {"DCSYNC_SWEEP_INTERVAL": "often", "DCSYNC_COLOUR": "red"}
    told = refused(processes.cli("subcloud", "list", environ=wrong, expect=2))
    assert "DCSYNC_SWEEP_INTERVAL" in told
    assert "DCSYNC_COLOUR" in told


def test_rows_can_be_read_and_changed_while_the_broker_is_away(cli: Cli, own_redis: EmbeddedRedis) -> None:
    cli("subcloud", "add", "edge-1", "--management-ip", "10.10.0.5")
    away = {"DCSYNC_REDIS_URL": own_redis.url}
    own_redis.stop()
    cli("subcloud", "manage", "edge-1", "--force", **away)
    cli("subcloud", "show", "edge-1", **away)
    refused(cli("state", "availability", "online", "edge-1", expect=4, **away))


def test_a_report_is_written_down_by_a_state_worker(
    cli: Cli, processes: Processes, server_urls: dict[str, str]
) -> None:
    cli("subcloud", "add", "edge-1", "--management-ip", "10.10.0.5", "--region-name", "r1")
    cli("subcloud", "manage", "edge-1", "--force")
    processes.celery("worker", "-Q", "state", "-P", "threads", "-c", "1", environ=server_urls, ready="ready.")
    told = until_written(cli, "state", "availability", "online", "edge-1")
    assert told.startswith("1 subcloud online after")
    (known,) = json.loads(cli("subcloud", "list", "-o", "json").stdout)
    assert (known["availability_status"], known["initial_sync_state"]) == ("online", "requested")
    until_written(cli, "state", "endpoint", "edge-1", "firmware", "out-of-sync")
    cli("sync", "edge-1")
    history = json.loads(cli("history", "edge-1", "-o", "json").stdout)
    assert [told["generation"] for told in history if told["entry"] == "request"] == [2, 1]
    until_written(cli, "state", "availability", "offline", "--all", "--yes")
    (known,) = json.loads(cli("subcloud", "list", "-o", "json").stdout)
    assert (known["initial_sync_state"], known["sync_status"]["firmware"]) == ("none", "unknown")


def test_rejected_reports_are_listed(cli: Cli, engine: Engine) -> None:
    cli("subcloud", "add", "edge-1", "--management-ip", "10.10.0.5", "--region-name", "r1")
    service = StateService(store=SqlStateStore(engine), messenger=FakeMessenger(), now=utc_now)
    observed = {"kind": "endpoint", "observed_at": utc_now().isoformat(), "endpoint_type": "platform"}
    service.apply_payloads(
        [
            {**observed, "region_name": "r1", "sync_status": "green", "password": "s3cret"},
            {**observed, "region_name": "nowhere", "sync_status": "in-sync"},
        ]
    )
    newest, first = json.loads(cli("state", "rejected", "-o", "json").stdout)
    assert (newest["region_name"], newest["reason"]) == ("nowhere", "there is no subcloud with this region name")
    assert (first["region_name"], first["reason"]) == (
        "r1",
        "sync_status: Input should be 'unknown', 'in-sync' or 'out-of-sync', not 'green'",
    )
    assert json.loads(first["report"])["sync_status"] == "green"
    printed = cli("state", "rejected").stdout
    assert ("nowhere" in printed, "s3cret" in printed + first["report"]) == (True, False)
    assert "nowhere" in cli("state", "rejected", "--limit", "1").stdout


def until_written(cli: Cli, *report: str) -> str:
    """What the command says of a report once that is written down. It waits for ten seconds only; another one of the
    same changes nothing more."""
    said: list[str] = []

    def is_written() -> bool:
        done = cli(*report, expect=None)
        said.append(done.stdout)
        assert done.returncode in (0, 1), done.stderr
        return done.returncode == 0

    wait_until(is_written, seconds=DEADLINE, what=f"{report} is written down")
    return said[-1]


def test_config_shows_no_secret(cli: Cli) -> None:
    shown = cli("config", "show", DCSYNC_PASSWORD="s3cret", DCSYNC_DATABASE_URL="postgresql://u:s3cret@h/d").stdout
    assert "DCSYNC_SWEEP_INTERVAL" in shown
    assert "s3cret" not in shown


def test_interrupting_a_wait_is_130_without_a_traceback(processes: Processes, server_urls: dict[str, str]) -> None:
    processes.cli("subcloud", "add", "edge-1", "--management-ip", "10.10.0.5", environ=server_urls, expect=0)
    processes.cli("subcloud", "manage", "edge-1", "--force", environ=server_urls, expect=0)
    argv = (sys.executable, "-m", "dcsync.cli", "wait", "--for", "completed", "edge-1")
    waiting = processes.start(*argv, name="wait", environ=server_urls, ready="1 none")
    waiting.signal(signal.SIGINT)
    assert waiting.wait() == 130
    assert "Traceback" not in waiting.output()


def test_a_shell_completes_names_and_stays_silent_when_it_cannot(
    processes: Processes, server_urls: dict[str, str]
) -> None:
    processes.cli("subcloud", "add", "edge-1", "--management-ip", "10.10.0.5", environ=server_urls, expect=0)
    asked = {"_DCSYNC_COMPLETE": "bash_complete", "COMP_WORDS": "dcsync subcloud show ed", "COMP_CWORD": "3"}
    assert processes.cli(environ=server_urls | asked).stdout == "plain,edge-1\n"
    away = server_urls | {"DCSYNC_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/x"}
    silent = processes.cli(environ=away | asked)
    assert (silent.stdout.strip(), silent.stderr) == ("", "")


@pytest.mark.parametrize("colour", [True, False])
def test_on_a_terminal_words_are_coloured_unless_told_otherwise(server_urls: dict[str, str], colour: bool) -> None:
    environ = clean_environment(server_urls) | {"TERM": "xterm"} | ({} if colour else {"NO_COLOR": "1"})
    for arguments in (("subcloud", "add", "edge-1", "--management-ip", "10.10.0.5"), ("subcloud", "list")):
        shown = on_a_terminal(arguments, environ)
    assert ("\x1b[31moffline" in shown) is colour
    assert ("\x1b" in shown) is colour


def on_a_terminal(arguments: tuple[str, ...], environ: dict[str, str]) -> str:
    """What the command shows on a terminal of its own."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "dcsync.cli", *arguments], env=environ, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    shown = b""
    while select.select([ours], [], [], DEADLINE)[0]:
        try:
            shown += os.read(ours, 65536)
        except OSError:  # how Linux says that the other end was closed
            break
    os.close(ours)
    assert process.wait(timeout=DEADLINE) == 0, shown
    return shown.decode()


def test_help_loads_nothing_slow(tmp_path: Path) -> None:
    slow = {"sqlalchemy", "psycopg2", "celery", "kombu", "redis", "pydantic", "structlog", "aiohttp", "alembic", "rich"}
    asked = "import sys, dcsync.cli; code = dcsync.cli.run(['--help']); print(code, *sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", asked], env=clean_environment(), cwd=tmp_path, capture_output=True, text=True, check=True
    )
    code, *modules = done.stdout.splitlines()[-1].split()
    assert code == "0"
    assert slow.isdisjoint(modules)
