"""docker-compose.yml against the compose specification, against what dcsync reads, and against our own rules."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from dcsync.model.messages import Queue
from dcsync.settings import PREFIX, SECRETS, Settings
from tests.unit.deploy.commands import parsed

ROOT = Path(__file__).resolve().parents[3]
SCHEMA = ROOT / "tests/data/compose-spec/compose-spec.json"
TEXT = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]

SERVERS = {"postgres", "redis"}
ONE_SHOT = {"migrate"}
WORKERS = {"sync-worker", "state-worker"}
OURS = set(SERVICES) - SERVERS
LASTING = set(SERVICES) - ONE_SHOT

each_service = pytest.mark.parametrize("name", sorted(SERVICES))
each_lasting_service = pytest.mark.parametrize("name", sorted(LASTING))
each_service_of_ours = pytest.mark.parametrize("name", sorted(OURS))
each_worker = pytest.mark.parametrize("name", sorted(WORKERS))


def seconds(text: str) -> float:
    """A duration as compose writes it: 40s, 1m30s."""
    parts = re.findall(r"(\d+)(ms|s|m|h)", text)
    assert "".join(number + unit for number, unit in parts) == text, text
    return sum(int(number) * {"ms": 0.001, "s": 1, "m": 60, "h": 3600}[unit] for number, unit in parts)


def queues_of(name: str) -> list[str]:
    return list(parsed(SERVICES[name]["command"])["queues"])


# --- the specification -------------------------------------------------------------------------------------------


def test_the_file_is_valid_by_the_compose_specification() -> None:
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)

    errors = sorted(jsonschema.Draft202012Validator(schema).iter_errors(COMPOSE), key=str)

    assert [f"{error.json_path}: {error.message}" for error in errors] == []


def test_the_schema_would_find_a_misspelt_key() -> None:
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    broken = {"services": {"beat": {"image": "dcsync", "depend_on": ["redis"]}}}

    assert not jsonschema.Draft202012Validator(schema).is_valid(broken)


def test_there_is_no_version_key() -> None:
    assert "version" not in COMPOSE


def test_the_services_are_those_of_the_design() -> None:
    assert set(SERVICES) == {"postgres", "redis", "migrate", "sync-worker", "state-worker", "beat", "flower"}


# --- what dcsync reads -------------------------------------------------------------------------------------------


@each_service_of_ours
def test_each_setting_is_one_that_dcsync_reads(name: str) -> None:
    for variable in SERVICES[name]["environment"]:
        field = variable.removeprefix(PREFIX).lower()
        assert variable.startswith(PREFIX), variable
        assert field in Settings.model_fields or field.removesuffix("_file") in SECRETS, variable


@each_service_of_ours
def test_secrets_are_given_as_files_that_the_service_is_handed(name: str) -> None:
    service = SERVICES[name]
    for variable, value in service["environment"].items():
        field = variable.removeprefix(PREFIX).lower()
        assert field not in SECRETS, f"{variable} would show in `docker inspect`"
        if field.removesuffix("_file") in SECRETS or field == "report_key_file":
            assert value.removeprefix("/run/secrets/") in service["secrets"], f"{variable} names {value}"


@pytest.mark.parametrize(
    ("name", "needed"),
    [
        ("migrate", {"database_url"}),  # that of the owner role
        ("sync-worker", {"database_url", "redis_url", "password", "report_key"}),
        ("state-worker", {"database_url", "redis_url", "report_key"}),
        ("beat", {"redis_url"}),
        ("flower", {"redis_url"}),
    ],
)
def test_each_service_is_given_the_secrets_it_needs_and_no_other(name: str, needed: set[str]) -> None:
    files = {variable for variable in SERVICES[name]["environment"] if variable.endswith("_FILE")}

    assert files - {"DCSYNC_ALIVE_FILE"} == {f"{PREFIX}{secret.upper()}_FILE" for secret in needed}


@each_service_of_ours
def test_plaintext_is_allowed_to_the_database_on_the_internal_network_only(name: str) -> None:
    environment = SERVICES[name]["environment"]

    assert ("DCSYNC_ALLOW_PLAINTEXT" in environment) is ("DCSYNC_DATABASE_URL_FILE" in environment)
    assert SERVICES["postgres"]["networks"] == ["backend"]


@each_service_of_ours
def test_each_command_is_one_that_its_program_takes(name: str) -> None:
    parsed(SERVICES[name]["command"])


def test_each_queue_is_consumed_by_the_right_service_and_by_no_other() -> None:
    assert {name: set(queues_of(name)) for name in WORKERS} == {
        "sync-worker": {Queue.CONTROL, Queue.SYNC, Queue.AUDIT},
        "state-worker": {Queue.STATE},
    }
    consumed = sorted(queue for name in WORKERS for queue in queues_of(name))
    assert consumed == sorted(Queue)


def test_two_sync_workers_with_a_hundred_threads_tell_flower_what_they_do() -> None:
    given = parsed(SERVICES["sync-worker"]["command"])

    assert SERVICES["sync-worker"]["deploy"]["replicas"] == 2
    assert (given["pool"].__module__, given["concurrency"], given["task_events"]) == (
        "celery.concurrency.thread", 100, True,
    )  # fmt: skip


def test_state_workers_send_no_events() -> None:
    """They cost a third of the throughput, and Flower would switch them on. Source: docs/upstream/platform-facts.md
    section 4.3."""
    assert not parsed(SERVICES["state-worker"]["command"]).get("task_events")
    assert parsed(SERVICES["flower"]["command"])["enable_events"] == "False"


@each_worker
def test_workers_take_no_remote_control(name: str) -> None:
    assert SERVICES[name]["environment"]["DCSYNC_REMOTE_CONTROL"] == "0"


@each_worker
def test_workers_may_be_several_on_one_host(name: str) -> None:
    assert "container_name" not in SERVICES[name]
    assert "%h" in " ".join(SERVICES[name]["command"])


def test_flower_asks_for_a_password_changes_nothing_and_is_seen_on_this_host_only() -> None:
    flower = SERVICES["flower"]
    options = parsed(flower["command"])

    assert flower["profiles"] == ["ui"]
    assert options["read_only"] == "True"
    assert options["conf"].removeprefix("/run/secrets/") in flower["secrets"]
    assert all(port.startswith("127.0.0.1:") for port in flower["ports"])
    assert flower["ports"][0].endswith(f":{options['port']}")


# --- images ------------------------------------------------------------------------------------------------------

IMAGES = {"postgres": "POSTGRES_IMAGE", "redis": "REDIS_IMAGE", **dict.fromkeys(OURS, "APP_IMAGE")}


def default_image(name: str) -> str:
    """What is used where the variable is not set."""
    found = re.fullmatch(r"\$\{(\w+):-(.+)\}", SERVICES[name]["image"])
    assert found is not None, name
    assert found.group(1) == IMAGES[name]
    return found.group(2)


@pytest.mark.parametrize("name", sorted(SERVERS))
def test_images_of_servers_are_pinned_to_a_minor_version(name: str) -> None:
    assert re.fullmatch(r"\w+:\d+\.\d+(\.\d+)?-bookworm", default_image(name))


@each_service
def test_each_image_can_be_replaced_by_one_with_a_digest(name: str) -> None:
    digest = f"registry.example/{name}@sha256:{'0' * 64}"

    assert re.sub(r"\$\{(\w+):-[^}]+\}", digest, SERVICES[name]["image"]) == digest
    assert "@" not in default_image(name)


@each_service_of_ours
def test_the_base_of_our_image_is_that_of_the_dockerfile(name: str) -> None:
    (default,) = re.findall(r"^ARG PYTHON_IMAGE=(\S+)$", (ROOT / "Dockerfile").read_text("utf-8"), re.MULTILINE)

    assert SERVICES[name]["build"]["args"] == {"PYTHON_IMAGE": f"${{PYTHON_IMAGE:-{default}}}"}
    assert re.fullmatch(r"python:\d+\.\d+-slim-bookworm", default)


# --- start, health, stop -----------------------------------------------------------------------------------------


@each_lasting_service
def test_each_lasting_service_has_a_health_check_with_all_its_times(name: str) -> None:
    check = SERVICES[name]["healthcheck"]

    assert check["test"][0] in {"CMD", "CMD-SHELL"}
    assert len(check["test"]) > 1
    assert seconds(check["timeout"]) <= seconds(check["interval"])
    assert check["retries"] >= 2
    assert seconds(check["start_period"]) >= 30


@pytest.mark.parametrize("name", ["sync-worker", "state-worker", "beat"])
def test_the_health_check_looks_at_the_file_that_the_process_touches(name: str) -> None:
    file = SERVICES[name]["environment"]["DCSYNC_ALIVE_FILE"]

    assert file in SERVICES[name]["healthcheck"]["test"][1].split()
    assert any(file.startswith(f"{mount.split(':')[0]}/") for mount in SERVICES[name]["tmpfs"]), "not writable"


@each_service
def test_whoever_is_waited_for_can_be_waited_for(name: str) -> None:
    for other, how in SERVICES[name].get("depends_on", {}).items():
        condition = "service_completed_successfully" if other in ONE_SHOT else "service_healthy"
        assert how["condition"] == condition, other
        assert other in ONE_SHOT or "profiles" not in SERVICES[other], f"{other} may not be started at all"


@pytest.mark.parametrize("name", ["sync-worker", "state-worker", "beat"])
def test_workers_and_beat_wait_for_both_servers_and_the_schema(name: str) -> None:
    assert set(SERVICES[name]["depends_on"]) == {"postgres", "redis", "migrate"}


def test_the_schema_waits_for_its_database() -> None:
    assert set(SERVICES["migrate"]["depends_on"]) == {"postgres"}
    assert SERVICES["migrate"]["command"] == ["dcsync", "db", "upgrade"]


@each_lasting_service
def test_each_lasting_service_starts_again_after_it_ended(name: str) -> None:
    assert SERVICES[name]["restart"] == "unless-stopped"


def test_only_the_migration_is_the_owner_of_the_schema() -> None:
    owners = {name for name, service in SERVICES.items() if "owner_database_url" in service.get("secrets", [])}

    assert owners == {"migrate"}
    assert "database_url" not in SERVICES["migrate"]["secrets"]
    assert SERVICES["migrate"]["environment"]["DCSYNC_DATABASE_URL_FILE"] == "/run/secrets/owner_database_url"


def test_postgresql_makes_the_roles_with_the_passwords_it_is_handed() -> None:
    mounts = dict(mount.split(":")[:2] for mount in SERVICES["postgres"]["volumes"])
    (script,) = [source for source, target in mounts.items() if target.startswith("/docker-entrypoint-initdb.d/")]
    text = (ROOT / script).read_text(encoding="utf-8")

    assert set(re.findall(r"/run/secrets/(\w+)", text)) == set(SERVICES["postgres"]["secrets"]) - {"postgres_password"}
    (included,) = re.findall(r"^\\i (\S+)$", text, re.MULTILINE)
    (roles,) = [source for source, target in mounts.items() if target == included]
    variables = set(re.findall(r":'(\w+)'", (ROOT / roles).read_text(encoding="utf-8")))
    assert variables == set(re.findall(r"^\\set (\w+_password)", text, re.MULTILINE))


def test_a_failed_migration_is_not_repeated_for_ever() -> None:
    assert SERVICES["migrate"]["restart"] == "no"


@each_worker
def test_a_worker_is_given_more_time_to_stop_than_it_gives_its_runs(name: str) -> None:
    grace = float(SERVICES[name]["environment"]["DCSYNC_STOP_GRACE"])

    assert seconds(SERVICES[name]["stop_grace_period"]) >= grace + 15


@each_service
def test_no_shell_stands_between_a_signal_and_its_process(name: str) -> None:
    command = SERVICES[name]["command"]

    assert isinstance(command, list)
    assert command[0] not in {"sh", "bash", "/bin/sh", "/bin/bash"}
    assert "entrypoint" not in SERVICES[name]


# --- what a service may do ---------------------------------------------------------------------------------------


@each_service
def test_nobody_is_root(name: str) -> None:
    user, _, group = SERVICES[name]["user"].partition(":")

    assert int(user) > 0
    assert int(group) > 0


@each_service
def test_each_service_is_locked_down(name: str) -> None:
    service = SERVICES[name]

    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert not service.get("privileged")
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert any(mount.split(":")[0] == "/tmp" for mount in service["tmpfs"])


@each_service
def test_each_service_has_limits(name: str) -> None:
    limits = SERVICES[name]["deploy"]["resources"]["limits"]

    assert limits.keys() == {"cpus", "memory", "pids"}


@each_service
def test_each_service_keeps_its_log_within_bounds(name: str) -> None:
    assert SERVICES[name]["logging"]["options"].keys() >= {"max-size", "max-file"}


@pytest.mark.parametrize("name", sorted(SERVERS))
def test_servers_are_reached_by_dcsync_only(name: str) -> None:
    assert "ports" not in SERVICES[name]
    assert SERVICES[name]["networks"] == ["backend"]
    assert COMPOSE["networks"]["backend"]["internal"] is True


def test_only_workers_and_flower_reach_beyond_the_host() -> None:
    assert {name for name, service in SERVICES.items() if "uplink" in service["networks"]} == {
        "sync-worker", "state-worker", "flower",
    }  # fmt: skip


def test_nothing_is_mounted_for_writing_but_the_servers_data() -> None:
    mounts = {(name, mount) for name, service in SERVICES.items() for mount in service.get("volumes", [])}
    writable = {(name, mount.split(":")[0]) for name, mount in mounts if not mount.endswith(":ro")}

    assert writable == {("postgres", "postgres-data"), ("redis", "redis-data")}


# --- servers -----------------------------------------------------------------------------------------------------


def test_postgresql_takes_its_password_from_a_file_and_is_16_or_newer() -> None:
    postgres = SERVICES["postgres"]

    assert float(default_image("postgres").removeprefix("postgres:").partition("-")[0]) >= 16
    assert not {"POSTGRES_PASSWORD", "POSTGRES_HOST_AUTH_METHOD"} & postgres["environment"].keys()
    assert postgres["environment"]["POSTGRES_PASSWORD_FILE"].removeprefix("/run/secrets/") in postgres["secrets"]


def test_redis_keeps_what_it_was_given_evicts_nothing_and_asks_for_a_password() -> None:
    redis = SERVICES["redis"]
    program, conf, *words = redis["command"]
    options = dict(zip(words[::2], words[1::2], strict=True))

    assert float(default_image("redis").removeprefix("redis:").partition("-")[0]) >= 7
    assert program == "redis-server"
    assert conf.removeprefix("/run/secrets/") in redis["secrets"]
    assert options["--appendonly"] == "yes"
    assert options["--maxmemory-policy"] == "noeviction"
    assert "--maxmemory" in options
    assert "--requirepass" not in options, "it would show in the process list"


# --- secrets -----------------------------------------------------------------------------------------------------


def test_every_secret_is_a_file_in_the_secrets_folder() -> None:
    assert all(
        secret.keys() == {"file"} and secret["file"].startswith("./secrets/") for secret in COMPOSE["secrets"].values()
    )


def test_every_secret_is_declared_and_used() -> None:
    used = {secret for service in SERVICES.values() for secret in service.get("secrets", [])}

    assert used == set(COMPOSE["secrets"])


def environment_of(name: str) -> dict[str, str]:
    return dict(SERVICES[name].get("environment", {}))


@each_service
def test_no_password_stands_in_the_file(name: str) -> None:
    words = [*SERVICES[name]["command"], *SERVICES[name].get("healthcheck", {}).get("test", [])]

    assert not re.search(r"://[^/\s]*:[^/\s]*@", TEXT), "an address with a password"
    for variable, value in environment_of(name).items():
        if re.search(r"PASS|SECRET|TOKEN|AUTH|_URL", variable):
            assert variable.endswith("_FILE") or variable == "POSTGRES_INITDB_ARGS", variable
            assert value.startswith("/run/secrets/"), variable
    assert not [word for word in words if re.search(r"(?i)--?(pass|requirepass|basic.?auth|a)\b", word)]
    assert set(re.findall(r"\$\{(\w+)", TEXT)) == set(IMAGES.values()) | {"PYTHON_IMAGE"}, (
        "another value taken from the shell of whoever starts it"
    )
