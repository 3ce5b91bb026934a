"""Reads rejected reports for operators (port `RejectedReports`); `states` writes them."""

from __future__ import annotations

from sqlalchemy import Engine, select

from dcsync.adapters.postgres.database import database_errors
from dcsync.adapters.postgres.tables import rejected_report
from dcsync.state.ports import RejectedNotice


class SqlRejectedReports:
    """RejectedReports over PostgreSQL; thread-safe."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @database_errors()
    def newest(self, *, limit: int) -> list[RejectedNotice]:
        wanted = select(rejected_report).order_by(rejected_report.c.id.desc()).limit(limit)
        with self._engine.connect() as connection:
            return [
                RejectedNotice(
                    received_at=row["received_at"],
                    region_name=row["region_name"],
                    reason=row["reason"],
                    report=row["report"],
                )
                for row in connection.execute(wanted).mappings()
            ]
