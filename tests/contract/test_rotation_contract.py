"""What commands read and ask of the key rotation (RotationRequests), and the central repository (CentralKeys).

Held against memory, PostgreSQL, and a central cloud over HTTP.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import zip_longest

import pytest
from sqlalchemy import Engine, update

from dcsync.adapters.cloud.clouds import HttpClouds
from dcsync.adapters.cloud.endpoints import CentralEndpoints, ServiceUrls
from dcsync.adapters.cloud.keystone import Credentials
from dcsync.adapters.postgres.key_rotation import SqlKeyRotationStore
from dcsync.adapters.postgres.tables import subcloud, subcloud_sync
from dcsync.audit.endpoints import endpoint_type_of_keys
from dcsync.cli.ports import RotationRequests
from dcsync.fake_cloud.control import FakeCloud
from dcsync.fake_cloud.faults import Fault
from dcsync.model.errors import CloudError
from dcsync.model.identity import FernetKeys
from dcsync.model.reasons import Reason
from dcsync.model.states.initial_sync import InitialSyncState
from dcsync.model.states.rotation import RotationState
from dcsync.model.subcloud import AvailabilityStatus, ManagementState, NewSubcloud, SyncStatus
from dcsync.rotation.ports import CentralKeys, KeyHolding, Spread
from tests.builders import NOON, an_address, some_keys
from tests.contract.held import Held
from tests.fake_rotation import FakeCentralKeys, FakeRotationRequests
from tests.requested_rows import requested_rows

HELD = (Held(FakeRotationRequests, RotationRequests), Held(FakeCentralKeys, CentralKeys))

Make = Callable[..., RotationRequests]


# --- the row ---


OTHERS: dict[KeyHolding, dict[str, object]] = {
    KeyHolding.AWAY: {"availability_status": AvailabilityStatus.OFFLINE, "initial_sync_state": InitialSyncState.NONE},
    KeyHolding.FAILED: {"initial_sync_state": InitialSyncState.FAILED, "reason": Reason.TIMEOUT, "retry_at": NOON},
    KeyHolding.SYNCING: {"initial_sync_state": InitialSyncState.REQUESTED},
    KeyHolding.UNMANAGED: {"management_state": ManagementState.UNMANAGED, "initial_sync_state": InitialSyncState.NONE},
}


@pytest.fixture(params=["memory", "postgresql"])
def make(request: pytest.FixtureRequest) -> Make:
    """A rotation, completed subclouds that were last seen to hold keys with these fingerprints, and others."""
    if request.param == "memory":
        return FakeRotationRequests
    engine: Engine = request.getfixturevalue("engine")

    def in_postgresql(
        holds: Sequence[str | None] = (), others: Sequence[KeyHolding] = (), read_at: Sequence[datetime] = ()
    ) -> RotationRequests:
        names = [f"s{number}" for number in range(len(holds) + len(others))]
        requested_rows(engine, [NewSubcloud(name=n, management_ip=an_address(n), region_name=n) for n in names])
        with engine.begin() as connection:
            connection.execute(update(subcloud).values(initial_sync_state=InitialSyncState.COMPLETED))
            for name, held, at in zip_longest(names[: len(holds)], holds, read_at):
                connection.execute(
                    update(subcloud_sync)
                    .where(
                        subcloud_sync.c.subcloud_id == subcloud.c.id,
                        subcloud.c.name == name,
                        subcloud_sync.c.endpoint_type == endpoint_type_of_keys(),
                    )
                    .values(keys_fingerprint=held, sync_status_report_time=at)
                )
            for name, holding in zip(names[len(holds) :], others, strict=True):
                connection.execute(update(subcloud).where(subcloud.c.name == name).values(OTHERS[holding]))
        return SqlKeyRotationStore(engine)

    return in_postgresql


def test_before_anything_was_asked_the_row_is_idle_and_not_due(make: Make) -> None:
    row = make([]).row()
    assert (row.state, row.detail, row.is_due(NOON), row.is_window_open(NOON)) == (RotationState.IDLE, "", False, False)
    assert (row.requested_at, row.requested_by, row.forced, row.max_in_flight, row.before) == (
        None, "", False, None, None,
    )  # fmt: skip


def test_a_rotation_that_is_asked_for_again_is_asked_for_in_the_new_way(make: Make) -> None:
    rotation = make([])
    rotation.ask(now=NOON, by="eve", forced=True, max_in_flight=5)
    row = rotation.row()
    assert (row.requested_at, row.requested_by, row.forced, row.max_in_flight) == (NOON, "eve", True, 5)
    later = NOON + timedelta(minutes=1)
    rotation.ask(now=later, by="adam", forced=False, max_in_flight=None)
    row = rotation.row()
    assert (row.requested_at, row.requested_by, row.forced, row.max_in_flight) == (later, "adam", False, None)
    assert (row.state, row.is_due(later)) == (RotationState.IDLE, True)


def test_subclouds_not_seen_to_hold_exactly_these_keys_lack_them(make: Make) -> None:
    rotation = make(["new", "old", None])
    assert rotation.spread("new") == Spread(have=1, lack=2)
    assert rotation.spread("newer") == Spread(lack=3)


def test_what_is_known_of_keys_is_as_old_as_the_oldest_reading_of_those_that_have_them(make: Make) -> None:
    rotation = make(["new", "old", "new"], read_at=[NOON, NOON - timedelta(hours=2), NOON - timedelta(hours=1)])
    assert rotation.oldest_reading("new") == NOON - timedelta(hours=1)
    assert rotation.oldest_reading("newer") is None


def test_a_subcloud_whose_keys_could_not_be_read_lately_is_not_known_to_have_them(engine: Engine) -> None:
    """Its sysinv answers 500: what it was once seen to hold proves nothing now. The fake counts what it is given."""
    names = ["s0", "s1"]
    requested_rows(engine, [NewSubcloud(name=n, management_ip=an_address(n), region_name=n) for n in names])
    rotation = SqlKeyRotationStore(engine)
    own = update(subcloud_sync).where(subcloud_sync.c.subcloud_id == subcloud.c.id)
    with engine.begin() as connection:
        connection.execute(update(subcloud).values(initial_sync_state=InitialSyncState.COMPLETED))
        connection.execute(own.values(keys_fingerprint="new", sync_status_reported=SyncStatus.IN_SYNC))
    assert rotation.spread("new") == Spread(have=2)
    with engine.begin() as connection:
        connection.execute(own.where(subcloud.c.name == "s1").values(sync_status_reported=SyncStatus.UNKNOWN))
    assert rotation.spread("new") == Spread(have=1, lack=1)
    assert rotation.without_keys("new", limit=9) == [("s1", KeyHolding.LACK)]


def test_every_subcloud_is_counted_once(make: Make) -> None:
    rotation = make(["new", "old"], [*KeyHolding][2:])
    spread = rotation.spread("new")
    assert spread == Spread(have=1, lack=1, failed=1, syncing=1, away=1, unmanaged=1)
    assert spread.managed == 5


def test_managed_subclouds_without_the_keys_are_named_with_why(make: Make) -> None:
    rotation = make(["new", "old"], [KeyHolding.AWAY, KeyHolding.UNMANAGED, KeyHolding.FAILED])
    assert rotation.without_keys("new", limit=5) == [
        ("s1", KeyHolding.LACK), ("s2", KeyHolding.AWAY), ("s4", KeyHolding.FAILED),
    ]  # fmt: skip
    assert rotation.without_keys("new", limit=1) == [("s1", KeyHolding.LACK)]


def test_without_subclouds_nobody_is_behind(make: Make) -> None:
    assert make([]).spread("new") == Spread()


# --- the central repository ---


@dataclass
class Central:
    """A central cloud's repository, and a way to make its answers to writes fail."""

    keys: CentralKeys
    fail: Callable[[str | None], None]


def _in_memory() -> Central:
    fake = FakeCentralKeys(some_keys())

    def fail(when: str | None) -> None:
        fake.failing = when

    return Central(fake, fail)


def _over_http(cloud: FakeCloud) -> Central:
    environ = cloud.environment()

    def fail(when: str | None) -> None:
        kinds = {"before": "reset", "after": "lost-answer"}
        cloud.set_fault("central", *([Fault(kinds[when], service="sysinv", verb="write")] if when else []))

    clouds = HttpClouds(
        credentials=Credentials(
            username=environ["DCSYNC_USERNAME"],
            password=environ["DCSYNC_PASSWORD"],
            project_name=environ["DCSYNC_PROJECT_NAME"],
            user_domain_name="Default",
            project_domain_name="Default",
        ),
        central=CentralEndpoints(auth=environ["DCSYNC_CENTRAL_AUTH_URL"], region="RegionOne"),
        subcloud_templates=ServiceUrls(
            auth=environ["DCSYNC_SUBCLOUD_AUTH_URL"],
            dbsync=environ["DCSYNC_SUBCLOUD_DBSYNC_URL"],
            sysinv=environ["DCSYNC_SUBCLOUD_SYSINV_URL"],
        ),
        allowed_networks=[ipaddress.ip_network("127.0.0.0/8")],
    )
    return Central(clouds, fail)


@pytest.fixture(params=["memory", "http"])
def central(request: pytest.FixtureRequest) -> Iterator[Central]:
    if request.param == "memory":
        yield _in_memory()
        return
    with FakeCloud.start(subclouds=0) as cloud:
        yield _over_http(cloud)


async def test_what_was_written_is_read_at_once(central: Central) -> None:
    before = await central.keys.central_keys()
    assert before.keys
    new = some_keys("rotated", ids=(0, 2, 3))
    await central.keys.replace_central_keys(new)
    assert await central.keys.central_keys() == new


async def test_an_empty_set_is_refused_and_nothing_is_written(central: Central) -> None:
    before = await central.keys.central_keys()
    with pytest.raises(ValueError, match="empty"):
        await central.keys.replace_central_keys(FernetKeys({}))
    assert await central.keys.central_keys() == before


@pytest.mark.parametrize("when", ["before", "after"])
async def test_an_answer_that_does_not_come_is_an_error_of_the_central_cloud(central: Central, when: str) -> None:
    before, new = await central.keys.central_keys(), some_keys("rotated")
    central.fail(when)
    with pytest.raises(CloudError) as raised:
        await central.keys.replace_central_keys(new)
    assert raised.value.reason.startswith("central-")
    central.fail(None)
    assert await central.keys.central_keys() == (before if when == "before" else new)
