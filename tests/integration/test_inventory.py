"""What only PostgreSQL can show of the inventory: what hangs on a row, and two operators at once."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from sqlalchemy import Engine, func, insert, select, text, update

from dcsync.adapters.postgres.database import make_engine
from dcsync.adapters.postgres.inventory import SqlInventory
from dcsync.adapters.postgres.tables import (
    alarm,
    endpoint_status,
    metadata,
    subcloud,
    subcloud_sync,
    sync_attempt,
    sync_step,
)
from dcsync.model.ending import Ending
from dcsync.model.errors import DatabaseUnreachable, DuplicateSubcloud, SchemaOutOfDate
from dcsync.model.states.initial_sync import InitialSyncEvent, InitialSyncState
from dcsync.model.subcloud import (
    DEFAULT_ENDPOINT_TYPES,
    AvailabilityStatus,
    EndpointType,
    ManagementState,
    NewSubcloud,
    Step,
    SyncStatus,
)
from tests.builders import NOON, an_address
from tests.processes import Processes, wait_until

LATER = NOON + timedelta(minutes=5)


@pytest.fixture
def inventory(engine: Engine) -> SqlInventory:
    return SqlInventory(engine)


def add(inventory: SqlInventory, *names: str) -> None:
    inventory.add(
        [NewSubcloud(name=name, management_ip=an_address(name), region_name=name) for name in names], now=NOON
    )


def put(engine: Engine, **columns: object) -> None:
    with engine.begin() as connection:
        connection.execute(update(subcloud).values(columns))


def counted(engine: Engine) -> dict[str, int]:
    """Rows in each table that is not empty."""
    with engine.connect() as connection:
        counts = {t.name: connection.scalar(select(func.count()).select_from(t)) or 0 for t in metadata.sorted_tables}
    return {name: count for name, count in counts.items() if count}


def had_a_run(engine: Engine, inventory: SqlInventory, name: str) -> None:
    (id_,) = (known.id for known in inventory.find([name]))
    with engine.begin() as connection:
        connection.execute(
            insert(sync_attempt).values(
                run_id="run-1", subcloud_id=id_, generation=1, attempt=1, worker="w", started_at=NOON,
                ended_at=LATER, ending=Ending.FAILED, reason="timeout", detail="slow",
            )
        )  # fmt: skip
        for step, after in ((Step.FERNET_KEYS, 2), (Step.IDENTITY, 1)):
            connection.execute(
                insert(sync_step).values(run_id="run-1", step=step, started_at=NOON + timedelta(seconds=after))
            )


def raise_alarms(engine: Engine, inventory: SqlInventory, name: str) -> None:
    (id_,) = (known.id for known in inventory.find([name]))
    with engine.begin() as connection:
        for type_ in (None, EndpointType.IDENTITY, EndpointType.DC_CERT):
            connection.execute(
                insert(alarm).values(
                    alarm_id="280.001" if type_ is None else "280.002", entity=f"subcloud={name}.resource={type_}",
                    subcloud_id=id_, endpoint_type=type_, severity="major", reason_text="", raised_at=NOON,
                    changed_xid=1,
                )
            )  # fmt: skip


def active_alarms(engine: Engine) -> set[EndpointType | None]:
    with engine.connect() as connection:
        return set(connection.scalars(select(alarm.c.endpoint_type).where(alarm.c.cleared_at.is_(None))))


def test_a_subcloud_is_added_with_the_configured_endpoint_types(engine: Engine) -> None:
    configured = SqlInventory(engine, endpoint_types=(*DEFAULT_ENDPOINT_TYPES, EndpointType.FIRMWARE))
    add(configured, "a")
    (added,) = configured.all()
    assert added.sync_status == dict.fromkeys((*DEFAULT_ENDPOINT_TYPES, EndpointType.FIRMWARE), SyncStatus.UNKNOWN)
    assert counted(engine)["subcloud_sync"] == 2


def test_history_tells_attempts_and_their_steps_in_order(engine: Engine, inventory: SqlInventory) -> None:
    add(inventory, "a")
    put(engine, availability_status=AvailabilityStatus.ONLINE)
    inventory.set_management(["a"], ManagementState.MANAGED, now=NOON, by="eve")
    had_a_run(engine, inventory, "a")
    inventory.request(["a"], now=LATER, by="eve")
    newest, first = inventory.history("a")[0].requests
    (attempt,) = first.attempts
    assert newest.attempts == ()
    assert (attempt.run_id, attempt.ending, attempt.reason, attempt.detail) == (
        "run-1",
        Ending.FAILED,
        "timeout",
        "slow",
    )
    assert [step.step for step in attempt.steps] == [Step.IDENTITY, Step.FERNET_KEYS]


def test_deleting_leaves_nothing_behind_but_history_and_cleared_alarms(engine: Engine, inventory: SqlInventory) -> None:
    add(inventory, "a")
    before = counted(engine)
    assert before["endpoint_status"] == 2
    assert before["subcloud_sync"] == 2
    put(engine, availability_status=AvailabilityStatus.ONLINE)
    inventory.set_management(["a"], ManagementState.MANAGED, now=NOON, by="eve")
    had_a_run(engine, inventory, "a")
    raise_alarms(engine, inventory, "a")
    inventory.delete(["a"], now=LATER)
    assert counted(engine) == {"alarm": 3, "deleted_subcloud": 1, "sync_request": 1, "sync_attempt": 1, "sync_step": 2}
    assert active_alarms(engine) == set()


def test_unmanaging_clears_the_alarms_of_what_it_makes_unknown(engine: Engine, inventory: SqlInventory) -> None:
    add(inventory, "a")
    inventory.set_management(["a"], ManagementState.MANAGED, now=NOON, by="eve")
    raise_alarms(engine, inventory, "a")
    inventory.set_management(["a"], ManagementState.UNMANAGED, now=LATER, by="eve")
    assert active_alarms(engine) == {None, EndpointType.DC_CERT}


def test_after_unmanaging_an_earlier_observation_is_an_old_one(engine: Engine, inventory: SqlInventory) -> None:
    add(inventory, "a")
    inventory.set_management(["a"], ManagementState.MANAGED, now=NOON, by="eve")
    with engine.begin() as connection:
        connection.execute(update(endpoint_status).values(observed_at=NOON, sequence=9, sync_status=SyncStatus.IN_SYNC))
    inventory.set_management(["a"], ManagementState.UNMANAGED, now=LATER, by="eve")
    with engine.connect() as connection:
        rows = connection.execute(
            select(endpoint_status.c.observed_at, endpoint_status.c.sequence, endpoint_status.c.changed_at).where(
                endpoint_status.c.endpoint_type != EndpointType.DC_CERT
            )
        )
        assert {tuple(row) for row in rows} == {(LATER, 0, LATER)}


def test_managing_waits_for_who_is_changing_the_row_and_goes_by_what_they_wrote(
    engine: Engine, inventory: SqlInventory
) -> None:
    add(inventory, "a")
    with ThreadPoolExecutor(1) as thread, engine.connect() as other:
        other.execute(update(subcloud).values(availability_status=AvailabilityStatus.ONLINE))
        managing = thread.submit(inventory.set_management, ["a"], ManagementState.MANAGED, now=NOON, by="eve")
        waiting = text(
            "SELECT count(*) FROM pg_locks WHERE NOT granted AND pid IN"
            " (SELECT pid FROM pg_stat_activity WHERE datname = current_database())"
        )

        def waits() -> bool:
            """Asked in a transaction of its own each time: within one PostgreSQL shows the same sessions for ever."""
            with engine.connect() as looking:
                return bool(looking.scalar(waiting))

        wait_until(waits, seconds=60, what="it waits for the other's lock")
        other.commit()
        (transition,) = managing.result(timeout=60)
    assert transition.event is InitialSyncEvent.BECAME_ELIGIBLE


def test_of_two_additions_of_one_name_at_once_one_is_told_of_the_other(inventory: SqlInventory) -> None:
    names = [f"edge-{number}" for number in range(200)]

    def attempt(order: list[str]) -> bool:
        try:
            add(inventory, *order)
        except DuplicateSubcloud:
            return False
        return True

    with ThreadPoolExecutor(4) as threads:
        won = list(threads.map(attempt, [names, names[::-1], names, names[::-1]]))
    assert sorted(won) == [False, False, False, True]
    assert len(inventory.all()) == 200


def test_a_database_without_tables_asks_for_the_upgrade(empty_database_url: str) -> None:
    engine = make_engine(empty_database_url)
    with pytest.raises(SchemaOutOfDate, match="dcsync db upgrade"):
        SqlInventory(engine).all()
    engine.dispose()


def test_a_database_that_does_not_answer_is_told_as_such() -> None:
    with pytest.raises(DatabaseUnreachable):
        SqlInventory(make_engine("postgresql://nobody@127.0.0.1:1/nothing")).find(["a"])


def test_words_of_another_release_are_shown_as_they_are_written(
    engine: Engine, inventory: SqlInventory, server_urls: dict[str, str], processes: Processes
) -> None:
    """After a rollback: one such row hid the whole fleet."""
    add(inventory, "a", "b")
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE subcloud DROP CONSTRAINT ck_subcloud_initial_sync_state"))
        connection.execute(
            text("UPDATE subcloud SET initial_sync_state = 'paused', reason = 'too-cold' WHERE name = 'b'")
        )
    first, second = inventory.find(["a", "b"])
    assert (first.initial_sync_state, first.reason) == (InitialSyncState.NONE, None)
    assert (str(second.initial_sync_state), str(second.reason)) == ("paused", "too-cold")
    assert second.initial_sync_state not in set(InitialSyncState)
    assert second.reason is not None
    assert "another release" in second.reason.advice
    for options in ([], ["--sort-by", "state"]):
        shown = processes.cli("subcloud", "list", *options, environ=server_urls, expect=0).stdout
        assert all(word in shown for word in ("paused", "none")), shown
    listed = json.loads(processes.cli("subcloud", "list", "-o", "json", environ=server_urls, expect=0).stdout)
    assert {row["name"]: (row["initial_sync_state"], row["reason"]) for row in listed} == {
        "a": ("none", None), "b": ("paused", "too-cold"),
    }  # fmt: skip
    assert "too-cold" in processes.cli("subcloud", "show", "b", environ=server_urls, expect=0).stdout


def test_what_an_audit_found_is_pending_until_a_state_worker_has_written_it(
    engine: Engine, inventory: SqlInventory
) -> None:
    add(inventory, "a")

    def pending(**columns: object) -> bool:
        with engine.begin() as connection:
            for table in (endpoint_status, subcloud_sync):
                known = {name: value for name, value in columns.items() if name in table.c}
                if known:
                    connection.execute(update(table).values(known))
        (known,) = inventory.find(["a"])
        return known.endpoints[EndpointType.IDENTITY].is_pending

    assert not pending(generation=1, observed_generation=1)
    assert pending(sync_status_report_time=LATER)
    assert pending(observed_at=NOON)
    assert not pending(observed_at=LATER)
    assert pending(generation=2)
