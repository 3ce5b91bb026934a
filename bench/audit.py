"""What it costs to keep subclouds in line: `make bench-audit`. Numbers, not a timed test.

A fake cloud of 1,000 subclouds, a real PostgreSQL and Valkey, two sync workers, a state worker and beat. First every
unchanged subcloud is audited, round after round: requests and CPU per subcloud; beside it, on the same machine and at
the same concurrency, a bare aiohttp client does exactly the requests an audit was seen to do. Then a password
changes at the central cloud, a user is added, and the keys rotate: how long until every subcloud has it, verified
there.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import aiohttp
from sqlalchemy import func, select

from bench.fleet import Fleet, for_each, log_in, now, open_fleet, run_bare, say
from dcsync.adapters.postgres.audits import SqlAuditStore
from dcsync.adapters.postgres.key_rotation import SqlKeyRotationStore
from dcsync.adapters.postgres.tables import subcloud_sync
from dcsync.audit.endpoints import audited_types
from dcsync.model.states.rotation import RotationState
from dcsync.model.subcloud import EndpointType, ManagementState, SyncStatus

NEW = {"password": "Bench-new-pw-1!"}
SETTINGS = {"DCSYNC_AUDIT_INTERVAL": "604800"}
"""Nothing is audited but when it is asked for or the central cloud changed."""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--subclouds", type=int, default=1_000)
    options.add_argument("--rounds", type=int, default=2)
    given = options.parse_args()
    with open_fleet(subclouds=given.subclouds, settings=SETTINGS) as fleet:
        bench = Bench(fleet)
        bench.bring_into_line()
        bench.steady_state(rounds=given.rounds)
        bench.bare_client()
        bench.change("a changed password", "set-password", user="barbican", **NEW)
        bench.change("a new user", "add-user", user="oncall", **NEW)
        bench.rotation()


class Bench:
    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._count = fleet.count
        self._audits = SqlAuditStore(fleet.engine)

    def bring_into_line(self) -> None:
        """From added to completed and through the first audit, all at once."""
        fleet = self._fleet
        fleet.add_online()
        began = time.time()
        fleet.inventory.set_management(None, ManagementState.MANAGED, now=now(), by="bench")
        fleet.until(lambda: fleet.completed() == self._count, "all are completed")
        fleet.until(lambda: self._in_sync_since(began) == self._count * len(audited_types()), "all were audited")
        self._verify()
        fleet.tidy()
        say(f"subclouds              {self._count:>8,}   completed and audited in {time.time() - began:.1f} s")

    # --- unchanged ---

    def steady_state(self, *, rounds: int) -> None:
        """Every subcloud is audited, and nothing differs."""
        for number in range(1, rounds + 1):
            before = self._fleet.spent()
            self._audits.request(None, audited_types(), now=now(), by="bench")
            self._fleet.until(lambda: self._asked() == 0, "all are audited again")
            spent = self._fleet.spent() - before
            say(f"round {number}: audits per second {self._count / spent.at:>8.1f}   all in {spent.at:.1f} s")
            say(f"  requests per audit   {spent.requests / self._count:>8.2f}   one login, and reads")
            say(f"  worker CPU per audit {spent.cpu / self._count * 1000:>8.2f} ms")
            say(f"  (fake cloud's CPU)   {spent.cloud_cpu / self._count * 1000:>8.2f} ms")

    def bare_client(self) -> None:
        """The same requests, in this process, by aiohttp alone: no rows, no locks, no comparison."""
        paths = [each["path"] for each in self._fleet.seen_last() if each["verb"] == "GET"]
        before, began = time.process_time(), time.time()
        served = run_bare(for_each(self._fleet.places, lambda url: _read_one(url, paths), port=self._fleet.cloud.port))
        cpu, seconds = time.process_time() - before, time.time() - began
        say(f"bare client:           {self._count / seconds:>8.1f}   subclouds per second")
        say(f"  requests per read    {served / self._count:>8.2f}")
        say(f"  CPU per read         {cpu / self._count * 1000:>8.2f} ms")

    # --- changed ---

    def change(self, label: str, action: str, **arguments: Any) -> None:
        """Seconds from a change at the central cloud until every subcloud has it."""
        before = self._fleet.spent()
        began = time.time()
        self._fleet.cloud.change_central(action, **arguments)
        self._fleet.until(
            lambda: self._changed_since(EndpointType.IDENTITY, began) == self._count, f"{label} is everywhere"
        )
        spent = self._fleet.spent() - before
        self._verify()
        last = self._last_good(EndpointType.IDENTITY) - began
        cpu = spent.cpu / self._count * 1000
        say(f"{label:<22} {last:>8.1f} s everywhere, the wait for the watch included; {cpu:.2f} ms of CPU each")

    def rotation(self) -> None:
        """Seconds from the request until every subcloud has the keys."""
        store, began = SqlKeyRotationStore(self._fleet.engine), time.time()
        store.ask(now=now(), by="bench", forced=False, max_in_flight=None)
        self._fleet.until(lambda: _is_distributed(store), "the keys are everywhere")
        self._verify()
        say(f"rotated keys           {self._last_good(EndpointType.PLATFORM) - began:>8.1f} s everywhere, in waves")

    # --- looking ---

    def _asked(self) -> int:
        return self._fleet.counted(
            select(func.count()).where(subcloud_sync.c.observed_generation < subcloud_sync.c.generation)
        )

    def _in_sync_since(self, moment: float) -> int:
        row = subcloud_sync.c
        return self._fleet.counted(
            select(func.count()).where(row.result == SyncStatus.IN_SYNC.value, row.last_good_at > _moment(moment))
        )

    def _changed_since(self, endpoint_type: EndpointType, moment: float) -> int:
        row = subcloud_sync.c
        return self._fleet.counted(
            select(func.count()).where(
                row.endpoint_type == endpoint_type,
                row.repaired_at > _moment(moment),
                row.observed_generation == row.generation,
            )
        )

    def _last_good(self, endpoint_type: EndpointType) -> float:
        row = subcloud_sync.c
        with self._fleet.engine.connect() as rows:
            last = rows.scalar(select(func.max(row.repaired_at)).where(row.endpoint_type == endpoint_type))
        assert last is not None
        moment: float = last.timestamp()
        return moment

    def _verify(self) -> None:
        report = self._fleet.cloud.report()
        if report["audited"] != self._count or report["violation_count"]:
            raise SystemExit(f"not as it must be: {report['differences']} {report['violations']}")


def _is_distributed(store: SqlKeyRotationStore) -> bool:
    row = store.row()
    return row.requested_at is None and row.state is RotationState.IDLE


async def _read_one(url: str, paths: Sequence[str]) -> int:
    async with aiohttp.ClientSession() as http:
        token = await log_in(http, url)

        async def read(path: str) -> None:
            async with http.get(f"{url}{path}", headers={"X-Auth-Token": token}) as answer:
                assert answer.status == 200, (path, answer.status)
                json.loads(await answer.read())

        await asyncio.gather(*(read(path) for path in paths))
    return 1 + len(paths)


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


if __name__ == "__main__":
    main()
