"""Every command that changes something leaves one record of who did what, refused and failed ones too."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import click
import pytest

from dcsync.adapters.host.refused_logins import ProcessRefusedLogins
from dcsync.cli import root
from dcsync.model.errors import DatabaseUnreachable
from dcsync.model.history import AuditHistory, Life, Named
from dcsync.model.operation import Intent, Operation, OperationOutcome
from dcsync.model.subcloud import AvailabilityStatus, EndpointType, ManagementState, SyncStatus
from tests.builders import NOON, a_subcloud
from tests.fake_rotation import FakeRotationRequests
from tests.fakes_audit import MemoryAuditStore
from tests.unit.cli.conftest import Shell

ONLINE, UNMANAGED = AvailabilityStatus.ONLINE, ManagementState.UNMANAGED
DONE, REFUSED, FAILED = OperationOutcome.DONE, OperationOutcome.REFUSED, OperationOutcome.FAILED

RECORDED = {
    "subcloud add": ("subcloud", "add", "new", "--management-ip", "10.10.0.5", "--software-version", "24.09"),
    "subcloud import": ("subcloud", "import", "fleet.csv"),
    "subcloud update": ("subcloud", "update", "a", "--management-ip", "10.10.0.7"),
    "subcloud delete": ("subcloud", "delete", "a", "--yes"),
    "subcloud manage": ("subcloud", "manage", "a", "--force"),
    "subcloud unmanage": ("subcloud", "unmanage", "--all", "--yes"),
    "sync": ("sync", "a", "--timeout", "0"),
    "audit": ("audit", "a", "--allow-deletes", "--resource-type", "users", "--resource-type", "roles"),
    "sync-request": ("sync-request", "identity", "a"),
    "state availability": ("state", "availability", "offline", "a", "--no-wait"),
    "state endpoint": ("state", "endpoint", "a", "firmware", "in-sync", "--no-wait"),
    "keys rotate": ("keys", "rotate", "--force", "--max-in-flight", "7", "--yes"),
    "login forget": ("login", "forget", "--cloud", "http://192.0.2.1/v3"),
    "wait": ("wait", "--for", "in-sync", "a", "--fresh", "--timeout", "0"),
}
AS_KEPT = {
    "subcloud add": "subcloud add --management-ip 10.10.0.5 --software-version 24.09",
    "subcloud import": "subcloud import",
    "subcloud update": "subcloud update --management-ip 10.10.0.7",
    "subcloud delete": "subcloud delete --yes",
    "subcloud manage": "subcloud manage --force",
    "subcloud unmanage": "subcloud unmanage --all --yes",
    "sync": "sync --timeout 0.0",
    "audit": "audit --resource-type users --resource-type roles --allow-deletes",
    "sync-request": "sync-request identity",
    "state availability": "state availability offline --no-wait",
    "state endpoint": "state endpoint firmware in-sync --no-wait",
    "keys rotate": "keys rotate --force --max-in-flight 7 --yes",
    "login forget": "login forget --cloud http://192.0.2.1/v3",
    "wait": "wait --for in-sync --fresh --timeout 0.0",
}
NOT_RECORDED = {
    "central",
    "login list",
    *("up", "demo", "version", "config show", "service status", "service monitor"),
    *("subcloud list", "subcloud show", "state rejected", "keys show", "alarm list", "operations", "history"),
    "diff",
    "db upgrade",  # recorded where it changed something: tests/acceptance/test_cli.py
}


@pytest.fixture
def fleet(dcsync: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    """One managed and online subcloud, and an audit store that knows it."""
    known = a_subcloud("a")
    dcsync.inventory.subclouds["a"] = known
    dcsync.inventory.requests["a"] = []
    dcsync.operator.audit_store = MemoryAuditStore().add(known)
    dcsync.operator.refused_logins = ProcessRefusedLogins()
    dcsync.operator.key_rotation_store = FakeRotationRequests()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fleet.csv").write_text("name,management_ip\nb,10.0.0.1\nc,10.0.0.2\n")
    return dcsync


def recorded(dcsync: Shell) -> list[Operation]:
    """Wherever the fakes keep it."""
    elsewhere = [*dcsync.operator.audit_store.operations, *dcsync.operator.key_rotation_store.operations]  # type: ignore[attr-defined]
    return [*elsewhere, *dcsync.inventory.newest(limit=100)]


def commands(group: click.Group = root, path: str = "") -> Iterator[str]:
    for name, command in group.commands.items():
        full = f"{path} {name}".strip()
        yield from commands(command, full) if isinstance(command, click.Group) else [full]


def test_of_every_command_it_is_decided_whether_it_is_recorded() -> None:
    assert set(commands()) == RECORDED.keys() | NOT_RECORDED


@pytest.mark.parametrize("command", RECORDED)
def test_a_command_that_changes_something_leaves_one_record(fleet: Shell, command: str) -> None:
    fleet(*RECORDED[command])
    (done,) = recorded(fleet)
    assert (done.who, done.host, done.command) == ("eve", "central-1", AS_KEPT[command])
    assert (done.at, done.outcome, done.keep_until) == (NOON, DONE, NOON + timedelta(days=30))
    expected = {"subcloud add": ("new",), "subcloud import": ("b", "c"), "keys rotate": (), "login forget": ()}.get(
        command, ("a",)
    )
    assert (done.names, done.count) == (expected, len(expected))


@pytest.mark.parametrize(
    ("arguments", "outcome", "detail"),
    [
        (("subcloud", "manage", "off"), REFUSED, "offline: off; nothing was changed"),
        (("subcloud", "manage", "--all", "--yes"), REFUSED, "offline: off; nothing was changed"),
        (("sync", "off"), REFUSED, "only managed and online subclouds can be synced, not off"),
        (("subcloud", "add", "x", "--management-ip", "127.0.0.1"), REFUSED, "127.0.0.1"),
        (("subcloud", "add", "a", "--management-ip", "10.0.0.9"), FAILED, "already there: name a"),
        (("subcloud", "delete", "nobody"), FAILED, "there is no subcloud named nobody"),
        (("audit", "nobody"), FAILED, "there is no subcloud named nobody"),
        (("state", "availability", "online", "nobody"), FAILED, "there is no subcloud named nobody"),
    ],
)
def test_what_is_refused_or_fails_is_recorded_with_why(
    fleet: Shell, arguments: tuple[str, ...], outcome: OperationOutcome, detail: str
) -> None:
    off = a_subcloud("off", id=2, availability_status=AvailabilityStatus.OFFLINE, management_state=UNMANAGED)
    fleet.inventory.subclouds["off"], fleet.inventory.requests["off"] = off, []
    assert fleet(*arguments).code != 0
    (done,) = recorded(fleet)
    assert done.outcome is outcome
    assert detail in done.detail


def test_a_report_that_was_not_sent_is_recorded_as_failed(fleet: Shell) -> None:
    fleet.operator.queue.is_away = True
    assert fleet("state", "availability", "offline", "a").code == 4
    (done,) = recorded(fleet)
    assert (done.outcome, done.names) == (FAILED, ("a",))


def test_what_the_operator_decided_against_is_not_recorded(fleet: Shell) -> None:
    fleet.at_a_terminal("n")
    assert fleet("subcloud", "delete", "a").code == 1
    assert recorded(fleet) == []


@pytest.mark.parametrize(
    "arguments", [("sync", "a", "--dry-run"), ("subcloud", "manage"), ("wait", "--for", "online", "a")]
)
def test_what_changes_nothing_is_not_recorded(fleet: Shell, arguments: tuple[str, ...]) -> None:
    fleet(*arguments)
    assert recorded(fleet) == []


def test_an_error_is_shown_though_it_cannot_be_recorded(fleet: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object) -> None:
        raise DatabaseUnreachable("no route")

    monkeypatch.setattr(fleet.inventory, "record", away)
    told = fleet("subcloud", "delete", "nobody")
    assert told.code == 3
    assert told.err.splitlines() == [
        "warning: not recorded among the operations: no route",
        "dcsync: there is no subcloud named nobody",
    ]


def test_arguments_that_may_be_anything_are_not_part_of_the_command_nor_are_settings(fleet: Shell) -> None:
    """A canary: nothing of the environment's secrets, and no word that was typed in the place of a name."""
    fleet("subcloud", "import", "canary.csv")
    fleet("sync", "canary")
    fleet("subcloud", "manage", "a", "--force")
    assert [done.command for done in recorded(fleet) if "canary" in done.command] == []
    assert [done for done in recorded(fleet) if "s3cret" in repr(done)] == []


# --- dcsync operations ---


def test_operations_are_listed_newest_first_within_80_columns(fleet: Shell) -> None:
    fleet("subcloud", "import", "fleet.csv")
    fleet("subcloud", "manage", "--all", "--force", "--yes")
    fleet.operator.slept = 60
    fleet("subcloud", "manage", "--all", "--yes")
    fleet("subcloud", "delete", "nobody")
    told = fleet("operations").out
    assert told.splitlines() == [
        "2026-01-31 12:01:00Z  subcloud delete: failed",
        "    nobody, by eve on central-1",
        "    there is no subcloud named nobody",
        "2026-01-31 12:01:00Z  subcloud manage --all --yes: done",
        "    a, b, c, by eve on central-1",
        "2026-01-31 12:00:00Z  subcloud manage --all --force --yes: done",
        "    a, b, c, by eve on central-1",
        "2026-01-31 12:00:00Z  subcloud import: done",
        "    b, c, by eve on central-1",
    ]
    assert max(map(len, told.splitlines())) <= 80
    assert [each["command"] for each in fleet("operations", "--limit", "1", "-o", "json").json] == ["subcloud delete"]
    (of_nobody,) = fleet("operations", "--name", "nobody", "-o", "json").json
    assert (of_nobody["outcome"], of_nobody["names"], of_nobody["count"]) == ("failed", ["nobody"], 1)


def test_of_many_subclouds_the_first_are_named(fleet: Shell) -> None:
    for number in range(2, 32):
        name = f"b{number:02}"
        fleet.inventory.subclouds[name] = a_subcloud(name, id=number)
        fleet.inventory.requests[name] = []
    fleet("subcloud", "unmanage", "--all", "--yes")
    assert "    a, b02, b03 and 28 more, by eve on central-1" in fleet("operations").out.splitlines()


def test_what_concerns_no_single_subcloud_names_none(fleet: Shell) -> None:
    rotation = Intent(who="eve", host="central-1", command="keys rotate --force", keep=timedelta(days=30))
    fleet.inventory.record(rotation.done((), now=NOON), ())
    assert fleet("operations").out.splitlines() == [
        "2026-01-31 12:00:00Z  keys rotate --force: done",
        "    by eve on central-1",
    ]


def test_that_nothing_is_recorded_is_said(fleet: Shell) -> None:
    told = fleet("operations", "--name", "a")
    assert (told.code, told.out, told.err) == (0, "", "no operation is recorded for a\n")
    assert fleet("operations", "-o", "json").json == []


# --- dcsync history ---


def test_the_history_of_a_name_shows_each_life_and_says_which_was_deleted(fleet: Shell) -> None:
    fleet("subcloud", "add", "new", "--management-ip", "10.10.0.5")
    fleet.operator.slept = 60
    fleet("subcloud", "delete", "new", "--yes")
    assert fleet("history", "new").out.splitlines()[:3] == [
        "--- new, region new, added 2026-01-31 12:00:00Z, deleted 2026-01-31 12:01:00Z",
        "2026-01-31 12:01:00Z  subcloud delete --yes: done",
        "    new, by eve on central-1",
    ]
    fleet.operator.slept = 120
    fleet("subcloud", "add", "new", "--management-ip", "10.10.0.6")
    told = fleet("history", "new")
    assert [line for line in told.out.splitlines() if line.startswith("---")] == [
        "--- new, region new, added 2026-01-31 12:02:00Z, not deleted",
        "--- new, region new, added 2026-01-31 12:00:00Z, deleted 2026-01-31 12:01:00Z",
    ]
    entries = fleet("history", "new", "-o", "json").json
    assert [(each["entry"], each["command"].split()[1], each["deleted_at"]) for each in entries] == [
        ("operation", "add", None),
        ("operation", "delete", "2026-01-31T12:01:00.000Z"),
        ("operation", "add", "2026-01-31T12:01:00.000Z"),
    ]
    assert len({each["subcloud_id"] for each in entries}) == 2


def test_an_audit_is_told_with_what_differed_what_was_written_and_what_was_not(
    fleet: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    repaired = AuditHistory(
        run_id="run-1", endpoint_type=EndpointType.IDENTITY, worker="sync@host", started_at=NOON,
        ended_at=NOON + timedelta(seconds=2), result=SyncStatus.IN_SYNC, reason=None, detail="",
        differences=Named(("users bob: password",), 23), written=Named(("PUT users bob",), 1), not_written=Named(),
    )  # fmt: skip
    refused = AuditHistory(
        run_id="run-2", endpoint_type=EndpointType.IDENTITY, worker="sync@host", started_at=NOON, ended_at=NOON,
        result=SyncStatus.OUT_OF_SYNC, reason="guard-refused", detail="7 records would be deleted",
        differences=Named(("users eve: only here",), 1), written=Named(), not_written=Named(("DELETE users eve",), 1),
    )  # fmt: skip
    life = Life(
        subcloud_id=1, name="a", region_name="a", added_at=NOON, deleted_at=None, entries=(repaired, refused)
    )  # fmt: skip
    monkeypatch.setattr(fleet.inventory, "history", lambda name: [life])
    assert fleet("history", "a").out.splitlines() == [
        "2026-01-31 12:00:02Z  audit of identity: repaired after 2.0 s",
        "    differed: users bob: password",
        "    differed: 22 more",
        "    written: PUT users bob",
        "    run run-1 on sync@host",
        "2026-01-31 12:00:00Z  audit of identity: failed after 0.0 s",
        "    guard-refused: 7 records would be deleted",
        "    differed: users eve: only here",
        "    not written: DELETE users eve",
        "    run run-2 on sync@host",
    ]
