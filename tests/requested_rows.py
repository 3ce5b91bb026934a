"""Rows in PostgreSQL that are managed, online and requested, as operators and observers leave them."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Engine, update

from dcsync.adapters.postgres.inventory import SqlInventory
from dcsync.adapters.postgres.tables import subcloud
from dcsync.model.subcloud import AvailabilityStatus, ManagementState, NewSubcloud
from tests.builders import NOON


def requested_rows(engine: Engine, subclouds: Sequence[NewSubcloud]) -> None:
    """Add these and request each of them once, at NOON."""
    inventory = SqlInventory(engine)
    inventory.add(subclouds, now=NOON)
    with engine.begin() as connection:
        connection.execute(update(subcloud).values(availability_status=AvailabilityStatus.ONLINE))
    inventory.set_management([new.name for new in subclouds], ManagementState.MANAGED, now=NOON, by="test")


def request(engine: Engine, name: str) -> None:
    SqlInventory(engine).request([name], now=NOON, by="test")


def leave(engine: Engine, name: str) -> None:
    SqlInventory(engine).set_management([name], ManagementState.UNMANAGED, now=NOON, by="test")
