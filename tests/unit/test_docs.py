"""The documentation is what the code is: generated pages are current, and what they name exists."""

from __future__ import annotations

import re
import runpy
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))


@pytest.mark.parametrize("name", ["settings.md", "reasons.md", "endpoint-types.md"])
def test_generated_pages_are_current(name: str) -> None:
    pages = runpy.run_path(str(DOCS / "make_settings.py"))["PAGES"]

    assert (DOCS / name).read_text(encoding="utf-8") == pages[name](), "run: python docs/make_settings.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.name))
def test_files_that_are_named_exist(page: Path) -> None:
    """`dcsync/...` and the like in backquotes: a file, a folder, or a module with a name in it."""
    named = re.findall(r"`((?:dcsync|docs|deploy|tests|tools)/[\w./@-]+)`", page.read_text(encoding="utf-8"))

    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.name))
def test_settings_that_are_named_exist(page: Path) -> None:
    from dcsync.settings import PREFIX, SECRETS, Settings

    known = {PREFIX + name.upper() for name in Settings.model_fields}
    known |= {f"{PREFIX}{name.upper()}_FILE" for name in SECRETS}
    named = set(re.findall(r"\bDCSYNC_[A-Z_]*[A-Z]\b(?!\*)", page.read_text(encoding="utf-8")))

    assert {name for name in named - known if not any(each.startswith(f"{name}_") for each in known)} == set()


def test_the_layers_that_are_drawn_are_those_that_are_held() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    (layers,) = [contract["layers"] for contract in contracts if contract.get("containers") == ["dcsync"]]
    drawn = re.findall(r"^ dcsync\.([\w.| ]*\w)", (DOCS / "architecture.md").read_text(encoding="utf-8"), re.MULTILINE)

    assert [re.split(r"\s{2,}", line)[0].replace("dcsync.", "") for line in drawn] == layers, (
        "draw them in docs/architecture.md, too"
    )
