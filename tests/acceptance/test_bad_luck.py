"""What can go wrong while a subcloud is brought in line, and what must come of it: the right reason, no harm, and a
retry at the right time that completes by itself once the fault is over. Real processes over the fake cloud.

`Misfortunes` are told together: each of many subclouds has a fault of its own, all are managed at once, and the tests
look at what was seen of each at its first failure and after its fault was over.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest

from dcsync.adapters.broker.messenger import CeleryMessenger
from dcsync.adapters.broker.redis_client import make_client
from dcsync.adapters.broker.reporter import CeleryReports
from dcsync.adapters.host.clock import utc_now
from dcsync.fake_cloud.faults import Fault
from dcsync.model.ending import Ending
from dcsync.model.history import AttemptHistory
from dcsync.model.messages import SyncHint
from dcsync.model.reasons import Reason
from dcsync.model.reports import AvailabilityReport, Mark
from dcsync.model.states.initial_sync import InitialSyncState
from dcsync.model.subcloud import AvailabilityStatus, ManagementState, Subcloud
from tests.acceptance.conftest import Subclouds
from tests.system import FAST, PATIENCE, System, open_system

pytestmark = [pytest.mark.xdist_group("bad-luck"), pytest.mark.timeout(600)]

SETTINGS = FAST | {"DCSYNC_CONNECT_TIMEOUT": "10", "DCSYNC_READ_TIMEOUT": "10", "DCSYNC_REQUEST_TIMEOUT": "20"}
"""So long is waited for those that hang; and so long anybody may get no CPU before it looks as if they did."""
HOLD_OFF = float(FAST["DCSYNC_HOLD_OFF"])
HOLD_OFF_MAX = float(FAST["DCSYNC_HOLD_OFF_MAX"])
KEYS = "POST sysinv fernet_repo"
USERS_AT_ONCE = 4
LATE = timedelta(seconds=45)
"""How much later than due a retry may begin on a busy machine; a sweep comes every second. By default a first hold-off
alone is longer."""


@dataclass(frozen=True)
class Misfortune:
    """What is wrong with a subcloud, and what a run must make of it."""

    faults: tuple[Fault, ...]
    reason: Reason
    writes_nothing: bool = False
    sends_keys: bool = False
    asks_to_wait: float = 0.0
    """Seconds, by a Retry-After header."""


def misfortune(*faults: Fault, reason: Reason, **told: Any) -> Misfortune:
    return Misfortune(faults, reason, **told)


MISFORTUNES = {
    "refuses": misfortune(Fault("refuse"), reason=Reason.UNREACHABLE, writes_nothing=True),
    "hangs": misfortune(Fault("hang"), reason=Reason.TIMEOUT, writes_nothing=True),
    "hangs-at-writes": misfortune(Fault("hang", service="dbsync", verb="write"), reason=Reason.TIMEOUT),
    "cuts-connections": misfortune(Fault("reset"), reason=Reason.UNREACHABLE, writes_nothing=True),
    "500": misfortune(Fault("status", status=500), reason=Reason.SERVER_ERROR, writes_nothing=True),
    "503-at-lists": misfortune(
        Fault("status", status=503, service="dbsync", retry_after=5),
        reason=Reason.SERVER_ERROR,
        writes_nothing=True,
        asks_to_wait=5.0,
    ),
    "401-always": misfortune(Fault("unauthorized", service="dbsync"), reason=Reason.AUTH_FAILED, writes_nothing=True),
    "401-at-keys": misfortune(Fault("unauthorized", service="sysinv"), reason=Reason.AUTH_FAILED),
    "wrong-password": misfortune(Fault("wrong-password"), reason=Reason.AUTH_FAILED, writes_nothing=True),
    "403": misfortune(Fault("status", status=403, service="sysinv"), reason=Reason.REFUSED),
    "garbage": misfortune(Fault("garbage"), reason=Reason.BAD_REPLY, writes_nothing=True),
    "html": misfortune(Fault("html", service="dbsync"), reason=Reason.BAD_REPLY, writes_nothing=True),
    "wrong-shape": misfortune(Fault("wrong-shape", service="dbsync"), reason=Reason.BAD_REPLY, writes_nothing=True),
    "endless": misfortune(Fault("endless", service="dbsync"), reason=Reason.REPLY_TOO_LARGE, writes_nothing=True),
    "cut-midway": misfortune(
        Fault("truncated", service="dbsync", verb="GET"), reason=Reason.BAD_REPLY, writes_nothing=True
    ),
    "stops-midway": misfortune(
        Fault("hang-mid-body", service="dbsync", verb="GET"), reason=Reason.TIMEOUT, writes_nothing=True
    ),
    "trickles": misfortune(
        Fault("drip", service="dbsync", verb="GET", seconds=0.05), reason=Reason.TIMEOUT, writes_nothing=True
    ),
    "empty-lists": misfortune(Fault("empty-list", service="dbsync"), reason=Reason.SUBCLOUD_EMPTY, writes_nothing=True),
    "half-the-writes": misfortune(
        Fault("status", status=500, service="dbsync", verb="write", every=2), reason=Reason.SERVER_ERROR
    ),
    "swallows-identity": misfortune(Fault("swallow", service="dbsync"), reason=Reason.IDENTITY_NOT_VERIFIED),
    "swallows-keys": misfortune(Fault("swallow", service="sysinv"), reason=Reason.KEYS_NOT_VERIFIED, sends_keys=True),
    "half-the-keys": misfortune(Fault("partial-keys"), reason=Reason.SERVER_ERROR),
    "loses-answers": misfortune(Fault("lost-answer", service="dbsync", verb="write"), reason=Reason.UNREACHABLE),
}

UNALIGNED = "subcloud1"
FIRST_FAULTY = 2


@dataclass(frozen=True)
class Told:
    """What was seen of one unlucky subcloud."""

    name: str
    row: Subcloud
    """When it had failed for the first time."""
    carried_out: dict[str, int]
    requests: dict[str, int]
    """By then."""
    later: Subcloud
    """After its fault was over."""
    attempts: list[AttemptHistory]
    problems: list[str]
    violations: dict[str, int]


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    folder = tmp_path_factory.mktemp("system")
    with open_system(folder, subclouds=80, settings=SETTINGS, unaligned=[UNALIGNED]) as system:
        system.start_dcsync()
        system.add_online(count=80)
        system.take(1)  # the unaligned one has a test of its own
        yield system


@pytest.fixture(scope="module")
def told(system: System) -> dict[str, Told]:
    """All misfortunes at once: managed, seen to fail, freed of their faults, seen to complete by themselves."""
    names = dict(zip(MISFORTUNES, system.take(len(MISFORTUNES)), strict=True))
    for kind, name in names.items():
        system.cloud.set_fault(name, *MISFORTUNES[kind].faults)
    system.manage(*names.values())
    failed = {kind: _seen_at_first_failure(system, name) for kind, name in names.items()}
    for name in names.values():
        system.cloud.set_fault(name, None)
    system.until_completed(*names.values())
    told = {
        kind: Told(
            name=name,
            row=failed[kind][0],
            carried_out=failed[kind][1],
            requests=failed[kind][2],
            later=system.row(name),
            attempts=system.attempts(name),
            problems=system.problems(name),
            violations=system.cloud.state(name)["violations"],
        )
        for kind, name in names.items()
    }
    # What happens at the central cloud later is no longer theirs, and leaves the worker's threads to the other tests.
    system.inventory.set_management(list(names.values()), ManagementState.UNMANAGED, now=utc_now(), by="test")
    return told


def _seen_at_first_failure(system: System, name: str) -> tuple[Subcloud, dict[str, int], dict[str, int]]:
    row = system.until_failed(name)
    state = system.cloud.state(name)
    return row, state["carried_out"], state["requests"]


def hold_off_after(attempt: int, what: Misfortune) -> tuple[float, float]:
    """(shortest, longest) wait after this failed attempt, in seconds: doubling, up to a fifth more, capped; and as long
    as the site itself asked for."""
    shortest = min(HOLD_OFF * 2 ** (attempt - 1), HOLD_OFF_MAX)
    longest = min(shortest * 1.2, HOLD_OFF_MAX)
    if shortest == HOLD_OFF_MAX:
        shortest = HOLD_OFF_MAX * 0.8
    return max(shortest, what.asks_to_wait), max(longest, what.asks_to_wait)


# --- a subcloud misbehaves ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MISFORTUNES)
def test_a_subcloud_that_misbehaves_fails_with_the_reason_for_it(told: dict[str, Told], kind: str) -> None:
    row = told[kind].row
    assert (row.initial_sync_state, row.reason) == (InitialSyncState.FAILED, MISFORTUNES[kind].reason), row.detail
    assert row.detail
    assert row.run_id is None


@pytest.mark.parametrize("kind", MISFORTUNES)
def test_no_keys_are_stored_and_nothing_is_written_that_must_not_be(told: dict[str, Told], kind: str) -> None:
    seen, what = told[kind], MISFORTUNES[kind]
    assert seen.carried_out.get(KEYS, 0) == 0 or what.sends_keys
    if what.writes_nothing:
        assert seen.carried_out == {}


@pytest.mark.parametrize("kind", MISFORTUNES)
def test_it_is_retried_when_its_hold_off_is_over_and_not_before(told: dict[str, Told], kind: str) -> None:
    seen = told[kind]
    first = seen.attempts[seen.row.attempt - 1]
    assert first.ended_at is not None
    assert seen.row.retry_at is not None
    shortest, longest = hold_off_after(seen.row.attempt, MISFORTUNES[kind])
    assert shortest <= (seen.row.retry_at - first.ended_at).total_seconds() <= longest
    for before, after in zip(seen.attempts, seen.attempts[1:], strict=False):
        assert before.ended_at is not None
        shortest, longest = hold_off_after(before.attempt, MISFORTUNES[kind])
        waited = after.started_at - before.ended_at
        assert timedelta(seconds=shortest) <= waited <= timedelta(seconds=longest) + LATE


@pytest.mark.parametrize("kind", MISFORTUNES)
def test_when_its_fault_is_over_it_completes_by_itself(told: dict[str, Told], kind: str) -> None:
    seen = told[kind]
    assert (seen.later.initial_sync_state, seen.later.reason, seen.later.retry_at) == ("completed", None, None)
    assert [attempt.attempt for attempt in seen.attempts] == list(range(1, len(seen.attempts) + 1))
    endings = [attempt.ending for attempt in seen.attempts]
    assert endings == [Ending.FAILED] * (len(endings) - 1) + [Ending.COMPLETED]
    assert len(endings) >= 2
    assert seen.problems == []
    assert seen.violations == {}


def test_a_401_that_comes_once_costs_one_fresh_login(system: System, subclouds: Subclouds) -> None:
    names = subclouds(2)
    system.cloud.set_fault(names[0], Fault("unauthorized", service="dbsync", times=1))
    system.cloud.set_fault(names[1], Fault("unauthorized", service="sysinv", times=1))
    system.manage(*names)
    system.until_completed(*names)
    for name in names:
        assert system.endings(name) == [Ending.COMPLETED]
        assert system.requests(name)["POST keystone auth"] >= 3  # two are usual
    system.assert_good(*names)


def test_an_unaligned_subcloud_is_not_touched(system: System) -> None:
    system.manage(UNALIGNED)
    row = system.until_failed(UNALIGNED)
    assert row.reason is Reason.IDS_NOT_ALIGNED
    assert row.reason.needs_a_person
    assert system.carried_out(UNALIGNED) == {}
    assert [what for what in system.requests(UNALIGNED) if what.startswith(("PUT", "POST sysinv"))] == []
    system.unmanage(UNALIGNED)


def test_subclouds_that_hang_do_not_delay_the_others(system: System, subclouds: Subclouds) -> None:
    """Eight hardly answer their login, each until a deadline of 20 s; eight are well. All are asked for at once."""
    names = subclouds(16)
    hanging, healthy = names[:8], names[8:]
    for name in hanging:
        system.cloud.set_fault(name, Fault("drip", seconds=5))
    system.manage(*names)
    system.until_completed(*healthy)
    system.until(
        lambda: all(system.inventory.history(name)[0].requests[0].attempts for name in hanging), "all have begun"
    )
    first_end_of_hanging = min(system.attempts(name)[0].ended_at or utc_now() for name in hanging)
    ends = {name: system.attempts(name)[-1].ended_at for name in healthy}
    assert [name for name, ended_at in ends.items() if ended_at is None or ended_at > first_end_of_hanging] == []
    assert [len(system.attempts(name)) for name in healthy] == [1] * len(healthy)


# --- the central cloud misbehaves
# ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CentralTrouble:
    """What is wrong with the central cloud: its data or its answers."""

    reason: Reason
    faults: tuple[Fault, ...] = ()
    hidden: str | None = None
    keys: dict[str, str] | None = None


CENTRAL_TROUBLES = {
    "no-users": CentralTrouble(Reason.CENTRAL_EMPTY, hidden="users"),
    "no-projects": CentralTrouble(Reason.CENTRAL_EMPTY, hidden="projects"),
    "no-roles": CentralTrouble(Reason.CENTRAL_EMPTY, hidden="roles"),
    "no-keys": CentralTrouble(Reason.CENTRAL_EMPTY, hidden="keys"),
    "bad-keys": CentralTrouble(Reason.CENTRAL_KEYS_INVALID, keys={"0": "c2hvcnQ=", "1": "c2hvcnQ="}),
    "unreachable": CentralTrouble(Reason.CENTRAL_UNREACHABLE, (Fault("reset"),)),
    "hangs": CentralTrouble(Reason.CENTRAL_UNREACHABLE, (Fault("hang", service="dbsync"),)),
    "500": CentralTrouble(Reason.CENTRAL_UNREACHABLE, (Fault("status", status=500),)),
    # A token that was issued before is refused with the password.
    "wrong-password": CentralTrouble(Reason.CENTRAL_AUTH_FAILED, (Fault("wrong-password"), Fault("unauthorized"))),
    "html": CentralTrouble(Reason.CENTRAL_BAD_REPLY, (Fault("html", service="dbsync"),)),
}


@pytest.fixture
def centre(system: System) -> Iterator[System]:
    """A central cloud that is well again after the test."""
    yield system
    system.cloud.set_fault("central", None)
    system.cloud.change_central("show")
    system.cloud.change_central("replace-keys")  # by good ones


@pytest.mark.parametrize("kind", CENTRAL_TROUBLES)
def test_without_a_usable_central_cloud_nothing_is_asked_of_the_subcloud(
    centre: System, subclouds: Subclouds, kind: str
) -> None:
    system, trouble = centre, CENTRAL_TROUBLES[kind]
    (name,) = subclouds(1)
    make_trouble(system, trouble)
    system.inventory.set_management([name], ManagementState.MANAGED, now=utc_now(), by="test")
    row = system.until_failed(name)
    assert row.reason is trouble.reason, row.detail
    assert system.requests(name) == {}


def make_trouble(system: System, trouble: CentralTrouble) -> None:
    system.cloud.set_fault("central", *trouble.faults)
    if trouble.hidden:
        system.cloud.change_central("hide", list=trouble.hidden)
    if trouble.keys:
        system.cloud.change_central("set-keys", keys=trouble.keys)


def test_when_the_central_cloud_is_back_all_that_failed_complete_by_themselves(
    centre: System, subclouds: Subclouds
) -> None:
    system, names = centre, subclouds(3)
    system.cloud.set_fault("central", Fault("reset"))
    system.manage(*names)
    assert {system.until_failed(name).reason for name in names} == {Reason.CENTRAL_UNREACHABLE}
    system.cloud.set_fault("central", None)
    system.until_completed(*names)
    system.assert_good(*names)


# --- somebody changes their mind during a run --------------------------------------------------------------------


def in_the_middle_of_a_run(system: System, name: str) -> None:
    """A run that takes about half a minute is at work on its users.

    What changes somebody's mind is done in this process from here on: on a busy machine the start of a command alone
    takes longer than the run, which then completes before anybody has asked for anything else.
    """
    system.cloud.set_fault(name, Fault("latency", verb="write", seconds=3))
    system.manage(name)
    system.until(lambda: system.carried_out(name).get("PUT dbsync users"), "a user is written")


def assert_no_further_write(system: System, name: str, *, carried_out: int) -> None:
    """`carried_out`: how many writes were, when the command had returned. Users go four at a time, and each of the four
    may have been allowed just before: that one ends, and nothing else begins. Keys would come last."""
    assert system.writes(name) <= carried_out + USERS_AT_ONCE
    assert system.requests(name).get(KEYS, 0) == 0


@pytest.mark.parametrize("command", ["unmanage", "offline"])
def test_who_is_unmanaged_or_gone_during_a_run_is_not_written_to_any_more(
    system: System, subclouds: Subclouds, command: str
) -> None:
    (name,) = subclouds(1)
    in_the_middle_of_a_run(system, name)
    if command == "unmanage":
        system.inventory.set_management([name], ManagementState.UNMANAGED, now=utc_now(), by="test")
    else:
        observe_offline(system, name)
    carried_out = system.writes(name)
    system.until(lambda: system.endings(name)[0] is not None, "the run has ended")
    assert system.endings(name) == [Ending.CANCELLED]
    assert system.row(name).initial_sync_state is InitialSyncState.NONE
    assert_no_further_write(system, name, carried_out=carried_out)


def observe_offline(system: System, name: str) -> None:
    """Reported as an observer does it, and written down."""
    app = system.celery_app()
    mark = Mark(utc_now(), 0)
    report = AvailabilityReport(region_name=name, mark=mark, availability_status=AvailabilityStatus.OFFLINE)
    try:
        CeleryReports(app).send([report])
    finally:
        app.close()
    system.until(lambda: system.row(name).availability_status is AvailabilityStatus.OFFLINE, f"{name} is offline")


def test_who_is_deleted_during_a_run_is_not_written_to_any_more(system: System, subclouds: Subclouds) -> None:
    (name,) = subclouds(1)
    in_the_middle_of_a_run(system, name)
    (attempt,) = system.attempts(name)
    system.inventory.delete([name], now=utc_now())
    carried_out = system.writes(name)
    told = f'"result": "cancelled", "run_id": "{attempt.run_id}"'
    system.until(lambda: told in system.running[0].output(), "the run has ended as cancelled")
    assert_no_further_write(system, name, carried_out=carried_out)
    system.cli("subcloud", "show", name, expect=3)


def test_who_is_asked_for_anew_during_a_run_is_run_anew_alone(system: System, subclouds: Subclouds) -> None:
    (name,) = subclouds(1)
    in_the_middle_of_a_run(system, name)
    system.inventory.request([name], now=utc_now(), by="test")
    system.cloud.set_fault(name, None)
    system.until_completed(name)
    system.until(lambda: all(attempt.ending for attempt in system.all_attempts(name)), "both runs have ended")
    assert [attempt.ending for attempt in system.all_attempts(name)] == [Ending.SUPERSEDED, Ending.COMPLETED]
    system.assert_good(name)


# --- messages that come twice, late, or for nobody ---------------------------------------------------------------


def send(system: System, *hints: SyncHint) -> None:
    app = system.celery_app()
    try:
        with make_client(system.redis.url) as client:
            CeleryMessenger(app, client, hint_seconds=10).send_sync(hints)
    finally:
        app.close()


def results(system: System, hint: SyncHint) -> list[str]:
    """What the worker says became of a hint, each time it came."""
    lines = [line for line in system.running[0].output().splitlines() if f'"task_id": "{hint.task_id}~' in line]
    return [found[1] for line in lines if (found := re.search(r'"result": "([^"]+)"', line))]


def test_a_hint_that_comes_three_times_leads_to_one_run(system: System, subclouds: Subclouds) -> None:
    """And a fourth time, where a sweep finds the row before one of ours is acted on."""
    (name,) = subclouds(1)
    system.cloud.set_fault(name, Fault("latency", seconds=0.1))
    hint = SyncHint(region_name=name, generation=1, attempt=1)
    system.manage(name)
    send(system, hint, hint, hint)
    system.until_completed(name)
    system.until(lambda: len(results(system, hint)) >= 3, "all three hints were acted on")
    system.until(lambda: "completed" in results(system, hint), "the run has told its end")
    assert set(results(system, hint)) <= {"busy", "stale", "completed"}
    assert results(system, hint).count("completed") == 1
    assert system.endings(name) == [Ending.COMPLETED]
    system.assert_good(name)


def test_stale_hints_and_hints_for_nobody_are_harmless(system: System, subclouds: Subclouds) -> None:
    completed, deleted, unmanaged = subclouds(3)
    first = SyncHint(completed, generation=1, attempt=1)
    system.manage(completed)
    system.until_completed(completed)
    system.until(lambda: "completed" in results(system, first), "the first run has told its end")
    system.cli("sync", completed, "--wait", *PATIENCE)
    system.until_at_rest(completed)
    system.inventory.delete([deleted], now=utc_now())
    before = [system.carried_out(completed), system.requests(deleted), system.requests(unmanaged)]
    hints = [
        first,
        SyncHint(completed, generation=2, attempt=7),
        SyncHint(completed, generation=99, attempt=1),
        SyncHint(deleted, generation=0, attempt=1),
        SyncHint(unmanaged, generation=0, attempt=1),
        SyncHint("never-heard-of", generation=1, attempt=1),
    ]
    told = {hint: len(results(system, hint)) for hint in hints}
    send(system, *hints)
    system.until(lambda: all(len(results(system, hint)) > told[hint] for hint in hints), "all were acted on")
    # Busy: hints for one subcloud that were looked at in the same instant.
    assert {result for hint in hints for result in results(system, hint)[told[hint] :]} <= {"stale", "busy"}
    assert [system.carried_out(completed), system.requests(deleted), system.requests(unmanaged)] == before
    assert system.row(completed).initial_sync_state is InitialSyncState.COMPLETED
    assert system.row(unmanaged).initial_sync_state is InitialSyncState.NONE
