"""A command line over fakes: what it prints, its exit code, and what became of the rows."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pytest

from dcsync import settings
from dcsync.adapters.host.own_servers import OwnServers
from dcsync.cli import run
from dcsync.cli.operator import Operator
from dcsync.model.errors import BrokerUnreachable
from dcsync.model.reports import Report
from dcsync.state.ports import CentralFacts
from tests.builders import NOON
from tests.fake_inventory import FakeInventory
from tests.fake_messenger import FakeMessenger
from tests.fakes_audit import MemoryAuditStore

ENVIRON = {"DCSYNC_DATABASE_URL": "postgresql://u:s3cret@db.invalid/d", "DCSYNC_REDIS_URL": "redis://:s3cret@r.invalid"}


class FakeOperator(Operator):
    """Time moves only while the command sleeps; `meanwhile` is what others do in each such pause."""

    def __init__(self, inventory: FakeInventory, environ: dict[str, str]) -> None:
        super().__init__()
        self.inventory = self.rows = self.operations = inventory
        self.messenger = self.queue = FakeMessenger()
        self.settings = settings.load(environ)
        self.name, self.host = "eve", "central-1"
        self.own_servers = OwnServers([("central.invalid", "the central cloud")], resolve=lambda host: ["10.99.0.1"])
        self.central_checks = MemoryAuditStore(checked=CentralFacts(checked_at=NOON))
        self.slept = 0.0
        self.answers: list[str] | None = None
        self.meanwhile: Callable[[], None] = lambda: None
        self.reports: list[Report] = []
        self.reported: Callable[[Report], None] = lambda report: None

    def now(self) -> datetime:
        return NOON + timedelta(seconds=self.slept)

    def monotonic(self) -> float:
        return self.slept

    def sleep(self, seconds: float) -> None:
        self.slept += seconds
        self.meanwhile()

    def report(self, reports: Sequence[Report]) -> None:
        if self.queue.is_away:
            raise BrokerUnreachable("Redis: ConnectionError")
        self.reports += reports
        for report in reports:
            self.reported(report)

    @property
    def is_at_terminal(self) -> bool:
        return self.answers is not None


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Shell:
    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys = capsys
        self._monkeypatch = monkeypatch
        self.inventory = FakeInventory()
        self.operator = FakeOperator(self.inventory, ENVIRON)

    def set(self, **variables: str) -> None:
        """Settings of the process."""
        self.operator.settings = settings.load(ENVIRON | variables)

    def at_a_terminal(self, *answers: str) -> None:
        """From now on somebody sits there, and answers this."""
        self.operator.answers = list(answers)
        self._monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{answer}\n" for answer in answers)))

    def __call__(self, *arguments: str) -> Answer:
        code = run(arguments, operator=self.operator)
        printed = self._capsys.readouterr()
        return Answer(code, printed.out, printed.err)


@pytest.fixture
def dcsync(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    return Shell(capsys, monkeypatch)
