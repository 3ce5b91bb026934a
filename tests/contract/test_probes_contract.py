"""What ProbeStore and Prober promise, held against those in memory, PostgreSQL, and probes of subclouds over HTTP."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

import pytest
from sqlalchemy import text, update

from dcsync.adapters.cloud.endpoints import ServiceUrls
from dcsync.adapters.cloud.prober import HttpProber
from dcsync.adapters.cloud.tls import Trust
from dcsync.adapters.postgres.inventory import SqlInventory
from dcsync.adapters.postgres.probes import SqlProbeStore
from dcsync.adapters.postgres.tables import subcloud
from dcsync.fake_cloud.control import FakeCloud
from dcsync.fake_cloud.faults import Fault
from dcsync.model.subcloud import AvailabilityStatus, NewSubcloud
from dcsync.probe.ports import Prober, ProbeStore, ProbeTarget
from tests.builders import NOON
from tests.contract.held import Held
from tests.fake_probes import FakeProber, FakeProbeStore

HELD = (Held(FakeProbeStore, ProbeStore), Held(FakeProber, Prober))

INTERVAL = timedelta(seconds=30)
MOST = 500
ONLINE, OFFLINE = AvailabilityStatus.ONLINE, AvailabilityStatus.OFFLINE


# --- who is due ---


@dataclass
class Probed:
    """Subclouds r1 (online, one bad probe) and r2 (offline), and when each was last seen online."""

    store: ProbeStore
    seen_at: Callable[[], dict[str, datetime]]


@pytest.fixture(params=["memory", "postgresql"])
def probed(request: pytest.FixtureRequest) -> Probed:
    if request.param == "memory":
        fake = FakeProbeStore(
            ProbeTarget("r1", "10.0.0.1", ONLINE, fail_count=1, probes=1),
            ProbeTarget("r2", "10.0.0.2", OFFLINE, fail_count=0, probes=2),
        )
        return Probed(fake, lambda: dict(fake.seen_at))
    engine = request.getfixturevalue("engine")
    new = [NewSubcloud(name=f"edge-{n}", region_name=f"r{n}", management_ip=f"10.0.0.{n}") for n in (1, 2)]
    SqlInventory(engine).add(new, now=NOON)
    online = update(subcloud).where(subcloud.c.region_name == "r1")
    with engine.begin() as rows:
        rows.execute(online.values(availability_status=ONLINE, audit_fail_count=1))

    def seen_at() -> dict[str, datetime]:
        seen = text("SELECT region_name, seen_at FROM subcloud JOIN subcloud_probe ON id = subcloud_id")
        with engine.connect() as rows:
            return {row.region_name: row.seen_at for row in rows.execute(seen) if row.seen_at is not None}

    return Probed(SqlProbeStore(engine), seen_at)


@pytest.fixture
def store(probed: Probed) -> ProbeStore:
    return probed.store


def test_a_subcloud_was_last_seen_when_it_was_noted_latest_and_unknown_ones_are_left_out(probed: Probed) -> None:
    probed.store.note_seen([], now=NOON)
    assert probed.seen_at() == {}
    probed.store.note_seen(["r1", "unknown"], now=NOON + INTERVAL)
    probed.store.note_seen(["r2", "r1"], now=NOON)
    assert probed.seen_at() == {"r1": NOON + INTERVAL, "r2": NOON}


def test_everybody_is_due_at_once_and_again_after_about_an_interval(store: ProbeStore) -> None:
    assert sorted(store.take_due(now=NOON, interval=INTERVAL, most=MOST)) == ["r1", "r2"]
    assert store.take_due(now=NOON, interval=INTERVAL, most=MOST) == []
    assert store.take_due(now=NOON + INTERVAL / 2, interval=INTERVAL, most=MOST) == []
    assert sorted(store.take_due(now=NOON + 2 * INTERVAL, interval=INTERVAL, most=MOST)) == ["r1", "r2"]


def test_no_more_are_taken_than_asked_for_and_the_longest_due_first(store: ProbeStore) -> None:
    (first,) = store.take_due(now=NOON, interval=INTERVAL, most=1)
    (second,) = store.take_due(now=NOON + INTERVAL / 3, interval=INTERVAL, most=1)
    assert {first, second} == {"r1", "r2"}
    assert store.take_due(now=NOON + 3 * INTERVAL, interval=INTERVAL, most=1) == [first]


def test_a_next_probe_further_away_than_any_is_due(store: ProbeStore) -> None:
    """It was stamped by a clock that was ahead, or the interval was shortened."""
    store.take_due(now=NOON + timedelta(hours=1), interval=INTERVAL, most=MOST)
    assert sorted(store.take_due(now=NOON, interval=INTERVAL, most=MOST)) == ["r1", "r2"]


def test_targets_are_those_that_exist_as_their_rows_say(store: ProbeStore) -> None:
    found = {target.region_name: target for target in store.targets(["r2", "unknown", "r1"])}
    assert {name: (t.management_ip, t.availability_status, t.fail_count) for name, t in found.items()} == {
        "r1": ("10.0.0.1", ONLINE, 1),
        "r2": ("10.0.0.2", OFFLINE, 0),
    }
    assert store.targets([]) == []


def test_each_probe_of_a_subcloud_has_the_next_number(store: ProbeStore) -> None:
    (before,) = store.targets(["r1"])
    store.take_due(now=NOON, interval=INTERVAL, most=MOST)
    (after,) = store.targets(["r1"])
    assert after.probes == before.probes + 1


# --- what a look finds ---


@pytest.fixture(params=["memory", "http"])
def prober(request: pytest.FixtureRequest) -> Iterator[tuple[Prober, list[ProbeTarget]]]:
    """A prober, and three subclouds of which the second is dead."""
    if request.param == "memory":
        targets = [ProbeTarget(f"r{n}", f"10.0.0.{n}", OFFLINE, 0, 1) for n in (1, 2, 3)]
        yield FakeProber(dead=["r2"]), targets
        return
    with FakeCloud.start(subclouds=3) as cloud:
        targets = [ProbeTarget(c["region_name"], c["management_ip"], OFFLINE, 0, 1) for c in cloud.subclouds()]
        cloud.set_fault(targets[1].region_name, Fault("reset"))
        yield (
            HttpProber(
                subcloud_templates=ServiceUrls(auth=f"http://{{ip}}:{cloud.port}/v3", dbsync="", sysinv=""),
                allowed_networks=[ipaddress.ip_network("127.0.0.0/8")],
                trust=Trust(None),
                timeout_seconds=60,
            ),
            targets,
        )


async def test_each_target_is_told_once_good_or_why_not(prober: tuple[Prober, list[ProbeTarget]]) -> None:
    looks, targets = prober
    told: list[tuple[ProbeTarget, str | None]] = []
    await looks.probe(targets, on_result=lambda target, problem: told.append((target, problem)))
    assert sorted(target.region_name for target, _ in told) == [target.region_name for target in targets]
    assert {target.region_name for target, problem in told if problem} == {targets[1].region_name}


async def test_without_targets_nothing_is_told(prober: tuple[Prober, list[ProbeTarget]]) -> None:
    looks, _ = prober
    told: list[ProbeTarget] = []
    await looks.probe([], on_result=lambda target, problem: told.append(target))
    assert told == []
