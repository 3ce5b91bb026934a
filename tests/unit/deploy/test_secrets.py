"""deploy/make-secrets.sh makes what docker-compose.yml names, and shows none of it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from dcsync.adapters.broker import acl
from dcsync.adapters.host.report_keys import read_keys
from dcsync.settings import PREFIX, Settings, load

ROOT = Path(__file__).resolve().parents[3]
CENTRAL_PASSWORD = 'tell\'nobody $HOME \\ "of it"'


def make(folder: Path, password: str = CENTRAL_PASSWORD + "\n") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", str(ROOT / "deploy/make-secrets.sh"), str(folder)],
        input=password,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("installation") / "secrets"
    done = make(folder)
    assert done.returncode == 0, done.stderr
    return folder


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text(encoding="utf-8") for path in sorted(folder.iterdir())}


def test_it_makes_each_file_that_compose_names_and_no_other(folder: Path) -> None:
    declared = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["secrets"]

    assert set(contents(folder)) == {Path(secret["file"]).name for secret in declared.values()}


def test_only_the_owner_gets_into_the_folder_and_containers_can_read_the_files(folder: Path) -> None:
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o444}


def test_dcsync_reads_them(folder: Path) -> None:
    files = {"DATABASE_URL": "database_url", "REDIS_URL": "redis_url", "PASSWORD": "central_password"}

    as_in_compose = {f"{PREFIX}ALLOW_PLAINTEXT": "1"}
    assert read_keys(folder / "report_key") == (contents(folder)["report_key"].encode(),)
    settings = load(as_in_compose | {f"{PREFIX}{name}_FILE": str(folder / file) for name, file in files.items()})

    made = contents(folder)
    assert isinstance(settings, Settings)
    assert settings.password is not None
    assert settings.password.get_secret_value() == CENTRAL_PASSWORD
    assert settings.database_url is not None
    assert settings.database_url.get_secret_value() == (
        f"postgresql://dcsync_app:{made['postgres_app_password']}@postgres:5432/dcsync"
    )
    assert settings.redis_url is not None
    assert settings.redis_url.get_secret_value() == made["redis_url"]
    assert made["owner_database_url"] == (
        f"postgresql://dcsync_owner:{made['postgres_owner_password']}@postgres:5432/dcsync"
    )


def test_servers_are_told_the_same_passwords(folder: Path) -> None:
    made = contents(folder)

    administrator, ours = made["redis.conf"].splitlines()
    assert administrator == f"requirepass {made['redis_password']}"
    assert ours == f"user {acl.USER} on >{_redis_app_password(made)} {acl.RULES}"


def _redis_app_password(made: dict[str, str]) -> str:
    found = re.fullmatch(r"redis://dcsync:(\w+)@redis:6379/0", made["redis_url"])
    assert found is not None
    return found.group(1)


def test_an_address_of_redis_that_was_there_is_kept_and_no_user_made_for_it(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    folder.mkdir()
    (folder / "redis_url").write_text("rediss://another:pw@redis.example:6379/0")

    make(folder)

    made = contents(folder)
    assert made["redis_url"] == "rediss://another:pw@redis.example:6379/0"
    assert made["redis.conf"] == f"requirepass {made['redis_password']}\n"


def test_passwords_are_long_random_and_different(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    make(other)
    passwords = [
        text
        for made in (contents(folder), contents(other))
        for text in (
            *(made[f"postgres_{role}password"] for role in ("", "owner_", "app_", "reader_")),
            _redis_app_password(made),
            made["redis_password"],
            made["report_key"],
            made["flower.py"].split(":")[1].split('"')[0],
        )
    ]

    assert len(set(passwords)) == 16
    assert all(len(password) == 48 for password in passwords)


def test_it_shows_no_secret(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"

    done = make(folder)

    shown = done.stdout + done.stderr
    assert "made " in shown
    assert not [name for name, text in contents(folder).items() if text.strip() in shown]


def test_a_second_time_it_keeps_what_is_there(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    make(folder)
    before = contents(folder)

    done = make(folder, password="another\n")

    assert (done.returncode, done.stdout) == (0, "")
    assert contents(folder) == before


def test_without_the_central_password_it_says_so_and_makes_nothing(tmp_path: Path) -> None:
    done = make(tmp_path / "secrets", password="")

    assert done.returncode == 1
    assert "no password given" in done.stderr
    assert contents(tmp_path / "secrets") == {}


def test_the_example_of_settings_names_real_settings_and_no_secret() -> None:
    lines = (ROOT / "deploy/dcsync.env.example").read_text(encoding="utf-8").splitlines()
    given = dict(line.removeprefix("#").split("=", 1) for line in lines if line.removeprefix("#").startswith(PREFIX))

    assert "DCSYNC_CENTRAL_AUTH_URL" in given
    load(given)
    assert not {"DCSYNC_PASSWORD", "DCSYNC_DATABASE_URL", "DCSYNC_REDIS_URL"} & given.keys()
