"""No fake of a port without a contract suite, and no two fakes of one port.

A port is a protocol of a service, of the runs or of the commands. What stands for one in the tests is found by the
methods it defines, whatever it is called; a suite in `tests/contract/` names the fakes it runs on in `HELD`. Not
looked for are functions that stand for ports of one call, such as `Progress`, and what extends a fake that is held.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.contract.held import Held

TESTS = Path(__file__).parents[1]
ROOMS = ("runs", "initial_sync", "audit", "rotation", "probe", "state", "cli")

NO_PORTS = {
    "Work": "what the runner carries out; the services fill it in themselves",
    "Job": "one piece of Work",
}
SHARED = {
    "DueRows": "what DueSyncs and DueAudits have in common",
    "Rows": "what RunStore and AuditStore have in common",
}
"""One fake for each of the ports that have it."""

Methods = Mapping[str, frozenset[str] | None]
"""By name the parameters; None where any are taken."""


@dataclass(frozen=True)
class Port:
    name: str
    methods: Methods


@dataclass(frozen=True)
class Double:
    """A class of the tests."""

    name: str
    where: str
    bases: frozenset[str]
    methods: Methods

    def fills_in(self, port: Port) -> int:
        """How many of the port's methods it has, with their parameters."""
        return sum(
            name in self.methods and self.methods[name] in (None, wanted) for name, wanted in port.methods.items()
        )

    def stands_for(self, port: Port) -> bool:
        """With most of its methods; with any of them when it calls itself a fake."""
        filled = self.fills_in(port)
        return 2 * filled > len(port.methods) or (self._is_fake_by_name and filled > 0)

    @property
    def _is_fake_by_name(self) -> bool:
        return self.name.startswith(("Fake", "Memory"))


# --- ports -------------------------------------------------------------------------------------------------------


@cache
def ports() -> tuple[Port, ...]:
    found = [_port(cls) for cls in _protocols() if cls.__name__ not in NO_PORTS]
    return tuple(port for port in found if port.methods)


def _protocols() -> Iterator[type]:
    for room in ROOMS:
        package = importlib.import_module(f"dcsync.{room}")
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                yield from _protocols_of(module.name)


def _protocols_of(module: str) -> Iterator[type]:
    for found in vars(importlib.import_module(module)).values():
        if inspect.isclass(found) and found.__module__ == module and getattr(found, "_is_protocol", False):
            yield found


def _port(protocol: type) -> Port:
    methods = {
        name: frozenset(list(inspect.signature(method).parameters)[1:])
        for name, method in vars(protocol).items()
        if inspect.isfunction(method) and not name.startswith("_")
    }
    return Port(protocol.__name__, methods)


# --- doubles -----------------------------------------------------------------------------------------------------


@cache
def doubles() -> tuple[Double, ...]:
    files = sorted(TESTS.rglob("*.py"))
    return tuple(double for file in files for double in read_doubles(file.read_text(), str(file.relative_to(TESTS))))


def read_doubles(source: str, where: str) -> list[Double]:
    classes = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef))
    return [
        Double(
            name=node.name,
            where=where,
            bases=frozenset(base.id for base in node.bases if isinstance(base, ast.Name)),
            methods={
                each.name: _parameters(each)
                for each in node.body
                if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)
            },
        )
        for node in classes
        if not any(isinstance(base, ast.Name) and base.id == "Protocol" for base in node.bases)
    ]


def _parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> frozenset[str] | None:
    given = function.args
    plain = [each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)][1:]
    names = plain + [each.arg for each in (given.vararg, given.kwarg) if each]
    takes_any = (given.vararg and given.kwarg) or any(name.startswith("_") for name in names)
    return None if takes_any else frozenset(names)


# --- suites ------------------------------------------------------------------------------------------------------


@cache
def suites() -> Mapping[str, tuple[Held, ...]]:
    files = sorted((TESTS / "contract").glob("test_*.py"))
    modules = [importlib.import_module(f"tests.contract.{file.stem}") for file in files]
    return {module.__name__: getattr(module, "HELD", ()) for module in modules}


def held_fakes() -> list[Held]:
    return [held for each in suites().values() for held in each]


def problems(found: tuple[Double, ...]) -> list[str]:
    """A sentence for each fake without a contract suite, and for each port with two fakes."""
    held = {each.fake.__name__ for each in held_fakes()}
    extending = _extending(held, found)
    fakes = [each for each in found if each.name not in extending]
    without_suite = [
        f"{fake.name} in {fake.where} stands for {port.name} and is in no contract suite"
        for port in ports()
        for fake in fakes
        if fake.name not in held and fake.stands_for(port)
    ]
    twice = []
    for port in (port for port in ports() if port.name not in SHARED):
        names = sorted(f"{fake.name} in {fake.where}" for fake in fakes if 2 * fake.fills_in(port) > len(port.methods))
        if len(names) > 1:
            twice.append(f"{port.name} has {len(names)} fakes: {', '.join(names)}")
    return without_suite + twice


def _extending(held: set[str], found: tuple[Double, ...]) -> set[str]:
    """Names of what is derived from these, also in several steps."""
    more = {each.name for each in found if each.bases & held} - held
    return more | _extending(held | more, found) if more else set()


# --- the rules ---------------------------------------------------------------------------------------------------


def test_every_fake_is_held_to_a_contract_and_no_port_has_two() -> None:
    found = problems(doubles())
    assert not found, "\n".join(found)


def test_every_contract_suite_names_what_it_holds_and_runs_on_a_real_adapter_too() -> None:
    assert [name for name, held in suites().items() if not held] == []
    for name in suites():
        modules = {getattr(value, "__module__", "") for value in vars(importlib.import_module(name)).values()}
        assert any(str(module).startswith("dcsync.adapters.") for module in modules), f"{name} runs on fakes alone"


@pytest.mark.parametrize("held", held_fakes(), ids=lambda held: held.fake.__name__)
def test_a_fake_has_every_method_of_the_ports_it_stands_for(held: Held) -> None:
    for protocol in held.ports:
        assert inspect.isclass(protocol)
        for name, member in inspect.getmembers(protocol, inspect.isfunction):
            if not name.startswith("_"):
                given: Any = getattr(held.fake, name, None)
                assert given is not None, f"{held.fake.__name__} lacks {protocol.__name__}.{name}"
                wanted = list(inspect.signature(member).parameters)
                assert set(wanted) <= set(inspect.signature(given).parameters), f"{held.fake.__name__}.{name}"


def test_exceptions_are_protocols_that_are_there() -> None:
    there = {protocol.__name__ for protocol in _protocols()}
    assert NO_PORTS.keys() | SHARED.keys() <= there


# --- the rules at work -------------------------------------------------------------------------------------------

ONE_METHOD = "class Newest:\n    def newest(self, *, limit): ...\n"
ANY_PARAMETERS = "class Nothing:\n    def request(self, *_, **__): ...\n    def audits(self, _): ...\n"
WITHIN_A_TEST = (
    "def test_it():\n    class Blind:\n        async def standing(self, run):\n            raise BrokerUnreachable\n"
    "        def is_recent(self, run):\n            return False\n"
)
PARTLY = "class FakeInventory2:\n    def names_starting_with(self, prefix, *, limit): ...\n"


@pytest.mark.parametrize(
    ("source", "name", "port"),
    [
        (ONE_METHOD, "Newest", "RejectedReports"),
        (ANY_PARAMETERS, "Nothing", "AuditRequests"),
        (WITHIN_A_TEST, "Blind", "Ownership"),
        (PARTLY, "FakeInventory2", "Inventory"),
    ],
)
def test_a_fake_without_a_contract_is_named_with_its_file_and_its_port(source: str, name: str, port: str) -> None:
    assert f"{name} in test_x.py stands for {port} and is in no contract suite" in problems(
        (*doubles(), *read_doubles(source, "test_x.py"))
    )


def test_a_second_fake_of_a_port_is_named_beside_the_first() -> None:
    assert "RejectedReports has 2 fakes: FakeRejectedReports in fake_states.py, Newest in test_x.py" in problems(
        (*doubles(), *read_doubles(ONE_METHOD, "test_x.py"))
    )


@pytest.mark.parametrize(
    "source",
    [
        "class Counting(MemoryRunStore):\n    def standing(self, run_ids): ...\n",
        "class Shelf:\n    def newest(self): ...\n    def run(self, *region_names): ...\n",
    ],
)
def test_what_extends_a_fake_that_is_held_or_only_shares_a_name_is_none(source: str) -> None:
    assert problems((*doubles(), *read_doubles(source, "test_x.py"))) == problems(doubles())
