"""The database layer cuts what is stored, whoever forgot to."""

from __future__ import annotations

from datetime import UTC, datetime

import sqlalchemy as sa
from sqlalchemy import Engine

from dcsync.adapters.postgres.tables import (
    LONGEST_LINE,
    MOST_LINES,
    central_state,
    key_rotation,
    subcloud,
    subcloud_sync,
)
from dcsync.model.outside_text import LONGEST_DETAIL
from dcsync.model.subcloud import EndpointType

NOW = datetime(2026, 1, 1, tzinfo=UTC)
HOSTILE = "\0\ud800\x1b[2J" * 1_000_000


def test_a_detail_is_stored_cut_and_without_what_postgresql_refuses(engine: Engine) -> None:
    with engine.begin() as connection:
        new = sa.insert(subcloud).values(name="a", region_name="a", management_ip="10.0.0.1", detail=HOSTILE)
        id_ = connection.execute(new.returning(subcloud.c.id)).scalar_one()
        connection.execute(
            sa.insert(subcloud_sync).values(
                subcloud_id=id_,
                endpoint_type=EndpointType.IDENTITY,
                detail=HOSTILE,
                difference=HOSTILE,
                difference_detail=[HOSTILE] * 10_000,
            )
        )
        connection.execute(
            sa.insert(central_state).values(
                kind="identity", fingerprint="", counts={}, changed_at=NOW, checked_at=NOW, refused=HOSTILE
            )
        )
        connection.execute(sa.update(key_rotation).values(detail=HOSTILE))
        stored = [
            connection.scalar(sa.select(column))
            for column in (
                subcloud.c.detail,
                subcloud_sync.c.detail,
                subcloud_sync.c.difference,
                central_state.c.refused,
            )
        ]
        lines = connection.scalar(sa.select(subcloud_sync.c.difference_detail))
    assert [len(text) for text in stored] == [LONGEST_DETAIL] * 4
    assert len(lines) == MOST_LINES + 1
    assert lines[-1] == f"and {10_000 - MOST_LINES} more"
    assert all(len(line) <= LONGEST_LINE for line in lines)
