"""deploy/systemd/: what systemd says of the units, what dcsync reads, and our own rules."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest
import yaml

from dcsync.model.messages import Queue
from dcsync.settings import PREFIX, SECRETS, Settings
from tests.unit.deploy.commands import parsed

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "deploy/systemd"
SYNC, STATE, BEAT, FLOWER = (
    "dcsync-sync@.service",
    "dcsync-state.service",
    "dcsync-beat.service",
    "dcsync-flower.service",
)
SERVICES = (SYNC, STATE, BEAT, FLOWER)
WORKERS = (SYNC, STATE)

Unit = dict[str, list[str]]
each_service = pytest.mark.parametrize("name", SERVICES)


def unit(name: str) -> Unit:
    """Key -> its values in order, of all sections; the keys of these units are unique to their section."""
    found: Unit = defaultdict(list)
    for line in (FOLDER / name).read_text(encoding="utf-8").splitlines():
        if line and not line.startswith(("#", "[")):
            key, _, value = line.partition("=")
            found[key].append(value)
    return found


def environment(name: str) -> dict[str, str]:
    words = [word for line in unit(name)["Environment"] for word in shlex.split(line)]
    return dict(word.split("=", 1) for word in words)


def command(name: str) -> list[str]:
    (line,) = unit(name)["ExecStart"]
    program, *arguments = shlex.split(line)
    assert program == "/opt/dcsync/bin/celery"
    return ["celery", *(argument.replace("%%", "%") for argument in arguments)]


def test_there_is_a_unit_for_each_role_and_a_target_for_all() -> None:
    assert {path.name for path in FOLDER.iterdir()} == {*SERVICES, "dcsync.target"}


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_finds_no_fault_with_them(tmp_path: Path) -> None:
    """With a program that exists here: whether /opt/dcsync is installed is not the units' fault."""
    for path in FOLDER.iterdir():
        text = path.read_text(encoding="utf-8").replace("/opt/dcsync/bin/celery", "/bin/true")
        (tmp_path / path.name.replace("@.", "@1.")).write_text(text, encoding="utf-8")

    done = subprocess.run(
        ["systemd-analyze", "verify", *sorted(str(path) for path in tmp_path.iterdir())],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )

    said_of_ours = [line for line in done.stderr.splitlines() if "dcsync" in line]
    assert (said_of_ours, done.returncode) == ([], 0), done.stderr


@each_service
def test_each_command_is_one_that_celery_takes(name: str) -> None:
    parsed(command(name))


def test_the_roles_do_what_they_do_under_compose() -> None:
    """But for names of hosts and files."""
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
    own = {"hostname", "schedule", "conf", "address"}
    for name, service in ((SYNC, "sync-worker"), (STATE, "state-worker"), (BEAT, "beat"), (FLOWER, "flower")):
        here, there = parsed(command(name)), parsed(compose[service]["command"])
        assert {k: v for k, v in here.items() if k not in own} == {k: v for k, v in there.items() if k not in own}, name


def test_each_queue_is_consumed_once() -> None:
    assert sorted(queue for name in WORKERS for queue in parsed(command(name))["queues"]) == sorted(Queue)


def test_sync_workers_of_one_host_have_names_of_their_own() -> None:
    assert "--hostname=sync-%i@%h" in command(SYNC)


@each_service
def test_each_setting_is_one_that_dcsync_reads(name: str) -> None:
    for variable in environment(name):
        field = variable.removeprefix(PREFIX).lower()
        known = field in Settings.model_fields or field.removesuffix("_file") in SECRETS
        assert known or not variable.startswith(PREFIX), variable


@pytest.mark.parametrize(
    ("name", "needed"),
    [
        (SYNC, {"database_url", "redis_url", "password", "report_key"}),
        (STATE, {"database_url", "redis_url", "report_key"}),
        (BEAT, {"redis_url"}),
        (FLOWER, {"redis_url"}),
    ],
)
def test_each_role_is_given_the_secrets_it_needs_as_credentials_and_no_other(name: str, needed: set[str]) -> None:
    handed = {line.split(":")[0] for line in unit(name)["LoadCredential"]}
    files = {key: value for key, value in environment(name).items() if key.endswith("_FILE")}

    assert set(files) == {f"{PREFIX}{secret.upper()}_FILE" for secret in needed}
    assert {value.removeprefix("%d/") for value in files.values()} <= handed
    assert not {f"{PREFIX}{secret.upper()}" for secret in SECRETS} & set(environment(name))


@pytest.mark.parametrize("name", WORKERS)
def test_workers_take_no_remote_control(name: str) -> None:
    assert environment(name)["DCSYNC_REMOTE_CONTROL"] == "0"


@each_service
def test_credentials_have_the_names_that_make_secrets_gives_them(name: str) -> None:
    script = (ROOT / "deploy/make-secrets.sh").read_text(encoding="utf-8")
    for line in unit(name)["LoadCredential"]:
        assert f"write {Path(line.split(':')[1]).name}" in script, line


@each_service
def test_whatever_ends_starts_again_for_ever_and_not_at_once(name: str) -> None:
    assert unit(name)["Restart"] == ["always"]
    assert float(unit(name)["RestartSec"][0]) >= 5
    assert unit(name)["StartLimitIntervalSec"] == ["0"]


@pytest.mark.parametrize("name", WORKERS)
def test_a_worker_is_given_more_time_to_stop_than_it_gives_its_runs(name: str) -> None:
    grace = float(environment(name)["DCSYNC_STOP_GRACE"])

    assert float(unit(name)["TimeoutStopSec"][0]) >= grace + 15


@each_service
def test_only_those_who_tell_systemd_that_they_live_are_waited_for(name: str) -> None:
    """Flower knows nothing of it, and would be killed."""
    tells = name != FLOWER

    assert unit(name)["Type"] == ["notify" if tells else "exec"]
    assert ("WatchdogSec" in unit(name)) is tells
    assert unit(name).get("TimeoutStartSec", ["infinity"]) == ["infinity"]


@each_service
def test_flower_listens_on_this_host_only_and_nobody_else_listens(name: str) -> None:
    listens = [word for word in command(name) if word.startswith("--address")]

    assert listens == (["--address=127.0.0.1"] if name == FLOWER else [])


@each_service
def test_each_role_is_confined(name: str) -> None:
    found = unit(name)

    assert found["DynamicUser"] == ["yes"]
    assert found["ProtectSystem"] == ["strict"]
    assert found["CapabilityBoundingSet"] == [""]
    assert found["UMask"] == ["0077"]
    for key in ("NoNewPrivileges", "PrivateTmp", "PrivateDevices", "ProtectHome", "RestrictNamespaces"):
        assert found[key] == ["yes"], key


@each_service
def test_each_role_has_limits(name: str) -> None:
    assert unit(name)["MemoryMax"]
    assert unit(name)["TasksMax"]
    assert int(unit(name)["LimitNOFILE"][0]) >= (65536 if name in WORKERS else 1024)


@each_service
def test_each_role_belongs_to_the_target(name: str) -> None:
    assert unit(name)["PartOf"] == ["dcsync.target"]
    assert unit(name)["WantedBy"] == ["dcsync.target"]
