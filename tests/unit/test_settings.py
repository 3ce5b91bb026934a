"""What is wrong with settings is told before anything is started, all at once, and without their secrets."""

from __future__ import annotations

from pathlib import Path

import pytest

from dcsync.adapters.host.secret_file import SecretFile
from dcsync.model.errors import MisconfiguredError
from dcsync.model.subcloud import EndpointType
from dcsync.settings import SECRETS, load

PLATFORM, IDENTITY = EndpointType.PLATFORM, EndpointType.IDENTITY


def problems(**environ: str) -> list[str]:
    with pytest.raises(MisconfiguredError) as raised:
        load({f"DCSYNC_{name.upper()}": value for name, value in environ.items()})
    return str(raised.value).split("; ")


@pytest.mark.parametrize(
    "url",
    [
        "localhost",
        "http://127.0.0.1:6379/0",
        "amqp://guest@localhost//",
        "redis://127.0.0.1:port/0",
        "redis://127.0.0.1:6379/first",
        "redis://[::1",
        "redis://:pass/word@127.0.0.1:6379/0",
        "redis+sentinel://:password@127.0.0.1:26379",
        "redis+sentinel://:password@127.0.0.1:26379,:26379/primary/0",
        "redis+sentinel://127.0.0.1:0/primary",
        "redis+sentinel://127.0.0.1/primary/first",
    ],
)
def test_a_broker_that_celery_and_our_locks_cannot_both_reach_is_refused(url: str) -> None:
    (problem,) = problems(redis_url=url)
    assert problem.startswith("DCSYNC_REDIS_URL: must be redis://")
    assert url not in problem


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost",
        "redis://:p%2Fw@[::1]:6379/0",
        "rediss://user:p@r.example/3?ssl_cert_reqs=required",
        "redis+sentinel://:p%2Fw@one:26379,[::1]:26380,three/primary/2",
        "rediss+sentinel://user:p@one/primary?sentinel_password=q",
    ],
)
def test_usual_addresses_of_a_broker_are_taken(url: str) -> None:
    loaded = load({"DCSYNC_REDIS_URL": url}).redis_url
    assert loaded is not None
    assert loaded.get_secret_value().removesuffix("&ssl_cert_reqs=required") == url.removesuffix(
        "&ssl_cert_reqs=required"
    )


@pytest.mark.parametrize(
    "url",
    [
        "localhost",
        "mysql://u:canary@h/d",
        "postgresql://u:canary@h:0/d",
        "postgresql://u:canary@h1:5432,/d",
        "postgresql://u:ca nary@h/d",
    ],
)
def test_addresses_of_other_databases_are_refused(url: str) -> None:
    (problem,) = problems(database_url=url)
    assert problem.startswith("DCSYNC_DATABASE_URL: must be postgresql://")
    assert "canary" not in problem


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:p%40@h1:5432,[::1]:5433,h3/d?target_session_attrs=read-write",
        "postgres:///d?host=/run/postgresql",
        "postgresql+psycopg2://u@h/d",
    ],
)
def test_usual_addresses_of_a_database_are_taken(url: str) -> None:
    assert load({"DCSYNC_DATABASE_URL": url}).database_url is not None


@pytest.mark.parametrize("url", ["http://", "https:///token", "http://[::1/token", "https://a b/", "http://a:port/"])
@pytest.mark.parametrize("setting", ["alarm_webhook_url", "central_auth_url"])
def test_addresses_nobody_can_dial_are_refused(setting: str, url: str) -> None:
    assert problems(**{setting: url}) == [f"DCSYNC_{setting.upper()}: must be an http(s) URL"]


@pytest.mark.parametrize("template", ["https://{ip}:port/v3", "https:{ip}", "ftp://{ip}/", "https://host/v3"])
def test_templates_nobody_can_dial_are_refused(template: str) -> None:
    (problem,) = problems(subcloud_auth_url=template)
    assert "{ip}" in problem


@pytest.mark.parametrize("name", SECRETS)
def test_every_secret_may_be_given_as_a_file(tmp_path: Path, name: str) -> None:
    file = tmp_path / "secret"
    schemes = {"redis_url": "redis", "database_url": "postgresql"}
    file.write_text(f"{schemes.get(name, 'https')}://word\n")
    loaded = getattr(load({f"DCSYNC_{name.upper()}_FILE": str(file)}), name)
    assert "://word" in loaded.get_secret_value()
    assert "word" not in str(loaded)


def test_no_secret_is_left_out() -> None:
    masked = {name for name, field in type(load({})).model_fields.items() if "SecretStr" in str(field.annotation)}
    assert masked == set(SECRETS)


def test_a_secret_whose_file_is_empty_is_a_problem_and_not_an_empty_secret(tmp_path: Path) -> None:
    empty = tmp_path / "redis_url"
    empty.write_text("\n")
    assert problems(redis_url_file=str(empty)) == [f"DCSYNC_REDIS_URL_FILE: {empty} is empty"]


def test_endpoint_types_are_platform_and_identity_and_what_is_added() -> None:
    assert load({}).endpoint_types == (PLATFORM, IDENTITY)
    loaded = load({"DCSYNC_ENDPOINT_TYPES": " firmware,identity, platform,firmware"})
    assert loaded.endpoint_types == (PLATFORM, IDENTITY, EndpointType.FIRMWARE)
    assert loaded.shown()["DCSYNC_ENDPOINT_TYPES"] == "platform,identity,firmware"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("platform,identity,cert,Firmware", "unknown endpoint type Firmware, cert, allowed are platform, identity, "),
        ("firmware", "must include platform and identity, allowed are platform, identity, dc-cert, "),
        ("identity", "must include platform, "),
        (",", "must include platform and identity, "),
    ],
)
def test_endpoint_types_that_cannot_be_meant_are_refused(given: str, told: str) -> None:
    (problem,) = problems(endpoint_types=given)
    assert problem.replace("DCSYNC_ENDPOINT_TYPES: ", "").startswith(told)


def test_an_empty_value_counts_as_not_set() -> None:
    loaded = load({"DCSYNC_REDIS_URL": "", "DCSYNC_PASSWORD_FILE": "", "DCSYNC_SWEEP_INTERVAL": ""})
    assert (loaded.redis_url, loaded.password, loaded.sweep_interval) == (None, None, 10)


def test_all_problems_are_told_at_once_unknown_names_and_files_included() -> None:
    told = problems(colour="red", password_file="/nowhere", sweep_interval="soon", max_in_flight="0", log_level="loud")
    assert sorted(problem.partition(":")[0] for problem in told) == [
        "DCSYNC_COLOUR",
        "DCSYNC_LOG_LEVEL",
        "DCSYNC_MAX_IN_FLIGHT",
        "DCSYNC_PASSWORD_FILE",
        "DCSYNC_SWEEP_INTERVAL",
    ]


def test_only_the_environment_that_is_handed_in_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DCSYNC_SWEEP_INTERVAL", "77")
    assert load({}).sweep_interval == 10
    assert load().sweep_interval == 77


# --- secrets that change while a process runs ---


def test_a_secret_knows_the_file_it_was_read_from(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("word")
    loaded = load({"DCSYNC_PASSWORD_FILE": str(file), "DCSYNC_ADMIN_PASSWORD": "word"})
    assert loaded.file_of("password") == file
    assert loaded.file_of("admin_password") is None
    assert load({"DCSYNC_PASSWORD_FILE": str(file), "DCSYNC_PASSWORD": "set"}).file_of("password") is None


def test_a_secret_file_gives_what_it_has_now_and_while_it_is_replaced_what_it_had_last(tmp_path: Path) -> None:
    file = tmp_path / "password"
    secret = SecretFile(file, last="first")
    assert secret() == "first"
    file.write_text("second\n")
    assert secret() == "second"
    file.write_text("")
    assert secret() == "second"
    file.unlink()
    assert secret() == "second"
    file.write_bytes(b"\xff")
    assert secret() == "second"
    file.write_text("third")
    assert secret() == "third"


def test_a_network_of_ipv4_addresses_inside_ipv6_is_refused_because_it_would_never_match() -> None:
    with pytest.raises(MisconfiguredError, match="write it as such"):
        load({"DCSYNC_ALLOWED_NETWORKS": "::ffff:10.0.0.0/104"})


def test_a_run_may_receive_at_least_one_reply() -> None:
    with pytest.raises(MisconfiguredError, match="MAX_RUN_BYTES"):
        load({"DCSYNC_MAX_REPLY_BYTES": "2000000", "DCSYNC_MAX_RUN_BYTES": "1000000"})
