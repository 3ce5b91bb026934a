"""The append-only table of operations (port `cli.ports.Operations`), and how other stores add to it.

A trigger refuses to change a row, and to delete one before its `keep_until`; see migration 0009.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from sqlalchemy import BigInteger, Connection, Engine, Row, Text, any_, insert, literal, or_, select
from sqlalchemy.dialects.postgresql import ARRAY

from dcsync.adapters.postgres.database import database_errors
from dcsync.adapters.postgres.tables import deleted_subcloud, operation, subcloud
from dcsync.model.operation import Operation

_COLUMNS = [column for column in operation.c if column.name not in ("id", "subcloud_ids")]


def record(connection: Connection, done: Operation, subcloud_ids: Collection[int]) -> None:
    """Adds a row in the caller's transaction; `subcloud_ids` are all the subclouds concerned."""
    values = {**vars(done), "names": list(done.names), "subcloud_ids": sorted(subcloud_ids)}
    connection.execute(insert(operation).values(values))


def operation_of(row: Row[tuple[object, ...]]) -> Operation:
    """The record of a row that has all columns of the table but its key and ids."""
    values = {column.name: getattr(row, column.name) for column in _COLUMNS}
    return Operation(**values | {"names": tuple(row.names)})


class SqlOperations:
    """`ports.Operations` on an engine that is this process's own."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @database_errors()
    def record(self, done: Operation, names: Sequence[str]) -> None:
        own = select(subcloud.c.id).where(subcloud.c.name == any_(literal(list(names), ARRAY(Text))))
        with self._engine.begin() as connection:
            record(connection, done, list(connection.scalars(own)) if names else ())

    @database_errors()
    def newest(self, *, limit: int, name: str | None = None) -> list[Operation]:
        query = select(*_COLUMNS).order_by(operation.c.at.desc(), operation.c.id.desc()).limit(limit)
        with self._engine.connect() as connection:
            if name is not None:
                ids = select(subcloud.c.id).where(subcloud.c.name == name)
                deleted = select(deleted_subcloud.c.id).where(deleted_subcloud.c.name == name)
                lives = literal(list(connection.scalars(ids.union_all(deleted))), ARRAY(BigInteger))
                named = operation.c.names.contains(literal([name], ARRAY(Text)))
                query = query.where(or_(operation.c.subcloud_ids.overlap(lives), named))
            return [operation_of(row) for row in connection.execute(query)]
