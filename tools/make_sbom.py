"""Writes the bill of materials of a deployment as CycloneDX 1.6 JSON: `python tools/make_sbom.py > sbom.json`.

What is in it comes from constraints-runtime.txt (names, versions, hashes); licences from the metadata of what is
installed here. It is the same for the same files, so it has neither a time nor a serial number.
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def bill(root: Path = ROOT) -> dict[str, Any]:
    """Returns the bill; every component is required by the project."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    text = re.sub(r"\\\n\s*", " ", (root / "constraints-runtime.txt").read_text(encoding="utf-8"))
    components = [component(line) for line in text.splitlines() if line and not line.startswith("#")]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": project["name"],
                "name": project["name"],
                "version": project["version"],
                "description": project["description"],
                "licenses": [{"expression": project["license"]}],
            }
        },
        "components": components,
        "dependencies": [{"ref": project["name"], "dependsOn": [each["bom-ref"] for each in components]}],
    }


def component(line: str) -> dict[str, Any]:
    """`name==version ; marker --hash=sha256:... --hash=...` as a component. Each hash is of one file of the release."""
    requirement, *hashes = line.split(" --hash=")
    name, _, version = requirement.partition(";")[0].strip().partition("==")
    reference = f"pkg:pypi/{name}@{version}"
    found: dict[str, Any] = {
        "type": "library",
        "bom-ref": reference,
        "name": name,
        "version": version,
        "purl": reference,
        "hashes": [{"alg": "SHA-256", "content": each.strip().removeprefix("sha256:")} for each in hashes],
    }
    if licence := licence_of(name):
        found["licenses"] = [{"license": {"name": licence}}]
    return found


def licence_of(name: str) -> str | None:
    """Returns what the installed package says of its licence, in one line; None if it says nothing or is missing."""
    try:
        about = metadata.metadata(name)
    except metadata.PackageNotFoundError:
        return None
    classified = [each.rpartition(" :: ")[2] for each in about.get_all("Classifier", []) if each.startswith("License")]
    text = about.get("License-Expression") or "; ".join(classified) or about.get("License") or ""
    return text.strip().split("\n")[0][:200] or None


if __name__ == "__main__":
    json.dump(bill(), sys.stdout, indent=2)
    sys.stdout.write("\n")
