"""CONTRIBUTING.md: what it names exists, and the file lists of its examples are those the code shows."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import click
import pytest

from dcsync.cli import root

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
TITLES = ("a new audited endpoint type", "a new kind of identity resource", "a new command")
ENDPOINT, KIND, COMMAND = (TEXT.split(f"## Example: {title}\n")[1].split("\n## ")[0] for title in TITLES)


def _named(text: str) -> set[str]:
    return set(re.findall(r"`((?:dcsync|docs|tests)/[\w./]+|CHANGELOG\.md)`", text))


def _files_with(*patterns: str, under: str) -> set[str]:
    """Python files in which each of the patterns is found."""
    texts = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in (ROOT / under).rglob("*.py")}
    return {name for name, text in texts.items() if all(re.search(each, text, re.MULTILINE) for each in patterns)}


def test_every_path_that_is_named_exists() -> None:
    linked = set(re.findall(r"\]\(([\w./-]+)\)", TEXT))
    assert [path for path in sorted(_named(TEXT) | linked) if not (ROOT / path).exists()] == []


def test_every_make_target_that_is_named_exists() -> None:
    targets = set(re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"\bmake (venv|lint|test|faults|soak|bench)\b", TEXT)) <= targets
    assert set(re.findall(r"`make (\w+)`", TEXT)) <= targets


def test_the_layers_are_drawn_as_in_the_architecture() -> None:
    architecture = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    drawn = [re.findall(r"^ dcsync\.[\w.| ]*\w", text, re.MULTILINE) for text in (TEXT, architecture)]
    here, there = ([re.split(r"\s{2,}", line)[0] for line in lines] for lines in drawn)
    assert here == there


def test_the_toy_endpoint_type_needs_the_places_that_are_listed_and_no_other() -> None:
    """Of the toy: what its tests fill in, where those tables are, and which modules name its type."""
    users = _files_with(r"^from tests\.toy_endpoint import", under="tests")
    filled = {
        table for name in users for table in re.findall(r"setitem\((\w+), (?:EndpointType\.)?FIRMWARE", _page(name))
    }
    assert filled == {"REGISTRY", "SERVICES"}
    homes = {home for table in filled for home in _files_with(rf"^{table}: dict\[EndpointType, ", under="dcsync")}
    assert homes == {"dcsync/audit/endpoints/__init__.py", "dcsync/adapters/cloud/services.py"}
    assert homes <= _named(ENDPOINT)
    naming = _files_with(r"EndpointType\.FIRMWARE\b", under="dcsync")
    assert naming == {"dcsync/audit/endpoints/__init__.py", "dcsync/state/rules.py"}
    assert naming <= _named(ENDPOINT)


def test_every_file_that_names_a_kind_of_resource_is_listed() -> None:
    of_a_kind = _files_with(r"\bResourceType\.[A-Z]+\b", under="dcsync")
    fake = _files_with('"groups"', '"roles"', under="dcsync/fake_cloud")
    assert {name for name in _named(KIND) if name.startswith("dcsync/")} == of_a_kind | fake


def test_every_test_module_that_lists_all_kinds_is_listed() -> None:
    listing = _files_with('"groups"', '"roles"', under="tests/real_cloud")
    unpacking = _files_with(r"= ResourceType$", under="tests") | _files_with(r"^    return Records\($", under="tests")
    assert listing | unpacking <= _named(KIND)
    assert {name for name in _named(KIND) if name.startswith("tests/real_cloud/")} == listing


def test_every_file_of_the_command_that_is_the_example_is_listed() -> None:
    touched = _files_with(r"\bRejectedReports\b|\brejected_reports\b", under="dcsync")
    touched |= _files_with(r"\bclass FakeRejectedReports\b|import SqlRejectedReports", under="tests/contract")
    touched |= _files_with(r"^class FakeRejectedReports\b", under="tests")
    touched |= _files_with(r'"state", "rejected"', under="tests/unit/cli")
    assert touched <= _named(COMMAND)
    assert touched >= {name for name in _named(COMMAND) if name.startswith("dcsync/")} - {
        "dcsync/cli/__init__.py",
        "dcsync/cli/ports.py",
    }
    pages = {name for name in _named(COMMAND) if name.startswith("docs/")}
    assert {name for name in pages if "dcsync state rejected" not in _page(name)} == set()


@pytest.mark.parametrize("path", sorted((ROOT / "dcsync/cli").glob("[a-z]*.py")), ids=lambda path: str(path.stem))
def test_every_command_is_registered_where_the_page_says(path: Path) -> None:
    module = importlib.import_module(f"dcsync.cli.{path.stem}")
    commands = [each for each in vars(module).values() if isinstance(each, click.Command)]
    assert [each.name for each in commands if each not in _reachable(root)] == [], (
        "import it in dcsync/cli/__init__.py and add it to root"
    )


def _reachable(command: click.Command) -> list[click.Command]:
    under = command.commands.values() if isinstance(command, click.Group) else ()
    return [command, *(each for child in under for each in _reachable(child))]


def _page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")
