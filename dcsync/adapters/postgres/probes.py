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

# In the order of ids, so that concurrent sweeps wait for each other; a subcloud is taken by one of them only.
_TAKE_DUE = text("""
    INSERT INTO subcloud_probe AS probe (subcloud_id, next_probe_at, probes)
    SELECT s.id, :now + make_interval(secs => :seconds * (1 - :spread / 2 + :spread * random())), 1
    FROM subcloud AS s LEFT JOIN subcloud_probe AS p ON p.subcloud_id = s.id
    WHERE p.subcloud_id IS NULL OR p.next_probe_at <= :now
    ORDER BY s.id
    ON CONFLICT (subcloud_id) DO UPDATE SET next_probe_at = excluded.next_probe_at, probes = probe.probes + 1
        WHERE probe.next_probe_at <= :now
    RETURNING (SELECT region_name FROM subcloud WHERE id = subcloud_id)
""")
_TARGETS = text("""
    SELECT s.region_name, s.management_ip, s.availability_status, s.audit_fail_count, s.id + coalesce(p.probes, 0)
    FROM subcloud AS s LEFT JOIN subcloud_probe AS p ON p.subcloud_id = s.id
    WHERE s.region_name = ANY(:region_names)
""")


_NOTE_SEEN = text("""
    INSERT INTO subcloud_probe AS probe (subcloud_id, next_probe_at, probes, seen_at)
    SELECT id, :now, 0, :now FROM subcloud WHERE region_name = ANY(:region_names) ORDER BY id
    ON CONFLICT (subcloud_id) DO UPDATE SET seen_at = greatest(probe.seen_at, excluded.seen_at)
""")


class SqlProbeStore:
    """ProbeStore over PostgreSQL; thread-safe."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @database_errors()
    def take_due(self, *, now: datetime, interval: timedelta) -> list[str]:
        values = {"now": now, "seconds": interval.total_seconds(), "spread": SPREAD}
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
