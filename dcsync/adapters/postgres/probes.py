"""When each subcloud is probed, in PostgreSQL (port `ProbeStore`). `dcsync.probe` decides what a result means."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import Engine, text

from dcsync.adapters.postgres.database import database_errors
from dcsync.model.subcloud import AvailabilityStatus
from dcsync.probe.ports import ProbeTarget

SPREAD = 0.2
"""The share of the interval by which the next probe may vary, half of it earlier and half later."""

LEEWAY = timedelta(seconds=2)
"""A next probe further away than one interval and this is not one that was planned; it is due."""

# Concurrent sweeps skip each other's rows. Subclouds without a row are new.
_TAKE_DUE = text("""
    WITH new AS (
        INSERT INTO subcloud_probe (subcloud_id, next_probe_at, probes)
        SELECT s.id, :now + make_interval(secs => :seconds * (1 - :spread / 2 + :spread * random())), 1
        FROM subcloud AS s
        WHERE NOT EXISTS (SELECT FROM subcloud_probe AS p WHERE p.subcloud_id = s.id)
        ORDER BY s.id LIMIT :most FOR KEY SHARE SKIP LOCKED
        ON CONFLICT (subcloud_id) DO NOTHING
        RETURNING subcloud_id
    ), due AS (
        SELECT subcloud_id FROM subcloud_probe
        WHERE next_probe_at <= :now OR next_probe_at > :latest
        ORDER BY next_probe_at LIMIT greatest(:most - (SELECT count(*) FROM new), 0)
        FOR UPDATE SKIP LOCKED
    ), taken AS (
        UPDATE subcloud_probe AS probe SET probes = probe.probes + 1,
            next_probe_at = :now + make_interval(secs => :seconds * (1 - :spread / 2 + :spread * random()))
        FROM due WHERE probe.subcloud_id = due.subcloud_id
        RETURNING probe.subcloud_id
    )
    SELECT s.region_name FROM subcloud AS s
    JOIN (SELECT subcloud_id FROM new UNION ALL SELECT subcloud_id FROM taken) AS found ON found.subcloud_id = s.id
""")
_TARGETS = text("""
    SELECT s.region_name, s.management_ip, s.availability_status, s.audit_fail_count, s.id + coalesce(p.probes, 0)
    FROM subcloud AS s LEFT JOIN subcloud_probe AS p ON p.subcloud_id = s.id
    WHERE s.region_name = ANY(:region_names)
""")


# Rows that another session holds are skipped: a later probe notes the same.
_NOTE_SEEN = text("""
    WITH known AS (
        SELECT p.subcloud_id AS id FROM subcloud_probe AS p JOIN subcloud AS s ON s.id = p.subcloud_id
        WHERE s.region_name = ANY(:region_names)
        ORDER BY p.subcloud_id FOR UPDATE OF p SKIP LOCKED
    ), new AS (
        SELECT s.id FROM subcloud AS s
        WHERE s.region_name = ANY(:region_names)
          AND NOT EXISTS (SELECT FROM subcloud_probe AS p WHERE p.subcloud_id = s.id)
        ORDER BY s.id FOR KEY SHARE SKIP LOCKED
    )
    INSERT INTO subcloud_probe AS probe (subcloud_id, next_probe_at, probes, seen_at)
    SELECT id, :now, 0, :now FROM (SELECT id FROM known UNION ALL SELECT id FROM new) AS found ORDER BY id
    ON CONFLICT (subcloud_id) DO UPDATE SET seen_at = greatest(
        CASE WHEN probe.seen_at <= clock_timestamp() + interval '2 seconds' THEN probe.seen_at END, excluded.seen_at)
""")


class SqlProbeStore:
    """ProbeStore over PostgreSQL; thread-safe."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @database_errors()
    def take_due(self, *, now: datetime, interval: timedelta, most: int) -> list[str]:
        latest = now + interval * (1 + SPREAD / 2) + LEEWAY
        values = {"now": now, "seconds": interval.total_seconds(), "spread": SPREAD, "latest": latest, "most": most}
        with self._engine.begin() as connection:
            return list(connection.scalars(_TAKE_DUE, values))

    @database_errors()
    def targets(self, region_names: Sequence[str]) -> list[ProbeTarget]:
        """Returns the targets, numbered from the subcloud's id, so that their numbers differ at any one time."""
        with self._engine.connect() as connection:
            rows = connection.execute(_TARGETS, {"region_names": list(region_names)})
            return [ProbeTarget(name, ip, AvailabilityStatus(status), fails, n) for name, ip, status, fails, n in rows]

    @database_errors()
    def note_seen(self, region_names: Sequence[str], *, now: datetime) -> None:
        with self._engine.begin() as connection:
            connection.execute(_NOTE_SEEN, {"region_names": list(region_names), "now": now})
