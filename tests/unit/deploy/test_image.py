"""The Dockerfile keeps its promises, as far as its text shows: a plain pip install, no root, nothing secret inside."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
UNBROKEN = re.sub(r"\\\n\s*", " ", (ROOT / "Dockerfile").read_text(encoding="utf-8"))
STEPS = [line.split(maxsplit=1) for line in UNBROKEN.splitlines() if line and not line.startswith("#")]
STAGES = [number for number, (verb, _) in enumerate(STEPS) if verb == "FROM"]
LAST = STEPS[STAGES[-1] :]
NEEDED = [
    "README.md", "constraints-build.txt", "constraints-runtime.txt", "dcsync", "pyproject.toml",
]  # fmt: skip


def of(verb: str, steps: list[list[str]] = STEPS) -> list[str]:
    return [rest for each, rest in steps if each == verb]


def test_everything_that_is_installed_is_checked_against_hashes() -> None:
    steps = " && ".join(of("RUN")).split(" && ")
    fetching = [step for step in steps if re.search(r"pip (install|wheel)", step) and "--no-index" not in step]

    assert [re.findall(r"-r (\S+)", step) for step in fetching] == [
        ["constraints-build.txt"],
        ["constraints-runtime.txt"],
        [],
    ]
    assert all("--require-hashes" in step for step in fetching[:2])
    assert "--no-deps" in fetching[2], "the project itself, which fetches nothing"
    assert all("--no-build-isolation" in step for step in fetching[1:]), "pip checks no hashes of what it builds with"


def test_the_python_it_is_built_for_is_the_oldest_that_is_supported() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    (image,) = of("ARG")
    assert image.startswith(f"PYTHON_IMAGE=python:{project['requires-python'][2:]}-slim")


def test_the_driver_is_built_from_source_of_the_distribution_that_is_a_plain_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    assert any(each.startswith("psycopg2-binary>") for each in project["dependencies"])
    assert any("--no-binary psycopg2-binary" in step and "constraints-runtime.txt" in step for step in of("RUN"))


def test_both_stages_have_the_same_base() -> None:
    assert {image.split()[0] for image in of("FROM")} == {"${PYTHON_IMAGE}"}


def test_the_last_stage_has_no_compiler_and_runs_as_nobody_privileged() -> None:
    installed = " ".join(of("RUN", LAST))

    assert "libpq5" in installed
    assert not re.search(r"\b(gcc|libpq-dev|build-essential)\b", installed)
    assert of("USER", LAST) == ["10001:10001"]
    assert [verb for verb, _ in LAST].index("USER") > max(
        n for n, (verb, _) in enumerate(LAST) if verb in {"RUN", "COPY"}
    )


def test_compose_runs_it_as_the_user_it_was_made_for() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]

    assert {service["user"] for service in services.values() if "build" in service} == of_set("USER")


def of_set(verb: str) -> set[str]:
    return set(of(verb, LAST))


def test_signals_reach_the_process() -> None:
    assert of("STOPSIGNAL", LAST) == ["SIGTERM"]
    assert all(command.startswith("[") for command in of("CMD") + of("ENTRYPOINT"))


def test_no_step_fetches_from_elsewhere_or_holds_a_secret() -> None:
    assert not of("ADD")
    assert not re.search(r"(?i)https?://|curl|wget|password|token", UNBROKEN)


def test_only_what_the_installation_needs_is_sent_to_the_build() -> None:
    lines = [
        line for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line[:1] not in {"", "#"}
    ]
    allowed = {line[1:] for line in lines if line.startswith("!")}

    assert lines[0] == "*"
    assert allowed == set(NEEDED)


@pytest.mark.parametrize("name", NEEDED)
def test_what_the_build_needs_is_there(name: str) -> None:
    assert (ROOT / name).exists()
