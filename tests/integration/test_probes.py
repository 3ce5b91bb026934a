"""Who is due for a probe, on a real PostgreSQL."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from sqlalchemy import Engine, text

from dcsync.adapters.host.clock import utc_now
from dcsync.adapters.postgres.inventory import SqlInventory
from dcsync.adapters.postgres.probes import LEEWAY, SPREAD, SqlProbeStore
from dcsync.model.subcloud import AvailabilityStatus, NewSubcloud
from tests.builders import NOON, an_address

INTERVAL = timedelta(seconds=30)
MOST = 1000
EARLIEST, LATEST = (INTERVAL * (1 - SPREAD / 2), INTERVAL * (1 + SPREAD / 2))


def add(engine: Engine, *names: str) -> None:
    new = [NewSubcloud(name=name, region_name=f"{name}-region", management_ip=an_address(name)) for name in names]
    SqlInventory(engine).add(new, now=NOON)


@pytest.fixture
def store(engine: Engine) -> SqlProbeStore:
    return SqlProbeStore(engine)


def test_a_new_subcloud_is_due_at_once_and_then_after_about_an_interval(engine: Engine, store: SqlProbeStore) -> None:
    add(engine, "a", "b")
    assert sorted(store.take_due(now=NOON, interval=INTERVAL, most=MOST)) == ["a-region", "b-region"]
    assert store.take_due(now=NOON, interval=INTERVAL, most=MOST) == []
    assert store.take_due(now=NOON + EARLIEST - timedelta(milliseconds=1), interval=INTERVAL, most=MOST) == []
    assert len(store.take_due(now=NOON + LATEST, interval=INTERVAL, most=MOST)) == 2


def test_probes_do_not_line_up(engine: Engine, store: SqlProbeStore) -> None:
    add(engine, *(f"s{number}" for number in range(50)))
    store.take_due(now=NOON, interval=INTERVAL, most=MOST)
    with engine.connect() as rows:
        times = set(rows.scalars(text("SELECT next_probe_at FROM subcloud_probe")))
    assert len(times) > 25
    assert NOON + EARLIEST <= min(times) <= max(times) <= NOON + LATEST


def test_two_sweeps_at_once_take_each_subcloud_once(engine: Engine, store: SqlProbeStore) -> None:
    add(engine, *(f"s{number}" for number in range(300)))
    for at in (NOON, NOON + LATEST):  # once where rows are made, once where they are there
        together = threading.Barrier(4)

        def take(at=at, together=together) -> list[str]:  # type: ignore[no-untyped-def]
            together.wait()
            return store.take_due(now=at, interval=INTERVAL, most=MOST)

        with ThreadPoolExecutor(4) as pool:
            taken = [name for each in [pool.submit(take) for _ in range(4)] for name in each.result()]
        assert len(taken) == len(set(taken)) == 300


def test_no_more_are_taken_than_asked_for_and_the_longest_due_first(engine: Engine, store: SqlProbeStore) -> None:
    add(engine, *"abcde")
    assert len(store.take_due(now=NOON, interval=INTERVAL, most=3)) == 3
    assert len(store.take_due(now=NOON, interval=INTERVAL, most=3)) == 2
    with engine.begin() as rows:
        for seconds, name in enumerate("dbeac"):
            due = {"due": NOON + timedelta(seconds=seconds), "name": name}
            rows.execute(
                text(
                    "UPDATE subcloud_probe SET next_probe_at = :due"
                    " FROM subcloud WHERE id = subcloud_id AND name = :name"
                ),
                due,
            )
    later = NOON + timedelta(seconds=10)
    assert sorted(store.take_due(now=later, interval=INTERVAL, most=2)) == ["b-region", "d-region"]
    add(engine, "new")
    assert sorted(store.take_due(now=later, interval=INTERVAL, most=2)) == ["e-region", "new-region"]


def test_those_another_look_holds_are_passed_over(engine: Engine, store: SqlProbeStore) -> None:
    add(engine, *"abc")
    store.take_due(now=NOON, interval=INTERVAL, most=MOST)
    with engine.begin() as rows:
        rows.execute(
            text(
                "SELECT FROM subcloud_probe JOIN subcloud ON id = subcloud_id"
                " WHERE name = 'b' FOR UPDATE OF subcloud_probe"
            )
        )
        taken = store.take_due(now=NOON + LATEST, interval=INTERVAL, most=MOST)
        assert sorted(taken) == ["a-region", "c-region"]
    assert store.take_due(now=NOON + LATEST, interval=INTERVAL, most=MOST) == ["b-region"]


def test_a_next_probe_further_away_than_any_is_due(engine: Engine, store: SqlProbeStore) -> None:
    """Somebody stamped it whose clock was ahead, or the interval was shortened."""
    add(engine, "a", "b")
    store.take_due(now=NOON, interval=INTERVAL, most=MOST)
    longest = LATEST + LEEWAY
    with engine.begin() as rows:
        rows.execute(text("UPDATE subcloud_probe SET next_probe_at = :at"), {"at": NOON + longest})
        rows.execute(
            text("UPDATE subcloud_probe SET next_probe_at = :at FROM subcloud WHERE id = subcloud_id AND name = 'b'"),
            {"at": NOON + timedelta(hours=1)},
        )
    assert store.take_due(now=NOON, interval=INTERVAL, most=MOST) == ["b-region"]


def test_a_target_says_what_its_row_says(engine: Engine, store: SqlProbeStore) -> None:
    add(engine, "a")
    with engine.begin() as rows:
        rows.execute(text("UPDATE subcloud SET availability_status = 'online', audit_fail_count = 1"))
    (before,) = store.targets(["a-region", "gone"])
    assert (before.region_name, before.management_ip) == ("a-region", an_address("a"))
    assert (before.availability_status, before.fail_count) == (AvailabilityStatus.ONLINE, 1)
    store.take_due(now=NOON, interval=INTERVAL, most=MOST)
    (after,) = store.targets(["a-region"])
    assert after.probes == before.probes + 1


def test_a_deleted_subcloud_is_never_due(engine: Engine, store: SqlProbeStore) -> None:
    add(engine, "a")
    store.take_due(now=NOON, interval=INTERVAL, most=MOST)
    SqlInventory(engine).delete(["a"], now=NOON)
    assert store.take_due(now=NOON + LATEST, interval=INTERVAL, most=MOST) == []
    assert store.targets(["a-region"]) == []


def test_being_seen_in_the_future_gives_way_to_being_seen_now(engine: Engine, store: SqlProbeStore) -> None:
    add(engine, "a")
    store.note_seen(["a-region"], now=utc_now() + timedelta(hours=1))
    now = utc_now()
    store.note_seen(["a-region"], now=now)
    with engine.connect() as rows:
        assert rows.execute(text("SELECT seen_at FROM subcloud_probe")).scalar_one() == now
