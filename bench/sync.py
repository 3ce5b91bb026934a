"""What an initial sync costs: `make bench-sync`. Numbers, not a timed test.

A fake cloud of 500 subclouds, a real PostgreSQL and Valkey, two sync workers, a state worker and beat; no audits and
no probes. All subclouds are managed at once and brought to completed, then synced anew at an operator's request, which
does the same again but finds identity in line. Beside it, on the same machine and at the same concurrency, a bare
aiohttp client sends every subcloud as many requests as a run did: one login for each of a run's, else reads.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Callable

import aiohttp

from bench.fleet import Fleet, for_each, log_in, now, open_fleet, run_bare, say
from dcsync.model.messages import Queue, TaskName
from dcsync.model.subcloud import ManagementState

SETTINGS = {"DCSYNC_AUDIT_INTERVAL": "0"}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--subclouds", type=int, default=500)
    options.add_argument("--rounds", type=int, default=2)
    given = options.parse_args()
    with open_fleet(subclouds=given.subclouds, settings=SETTINGS) as fleet:
        fleet.add_online()
        fleet.tidy()
        _measure(fleet, "first sync", lambda: _manage_all(fleet))
        logins, others = _seen_in_a_run(fleet)
        for number in range(1, given.rounds + 1):
            _measure(fleet, f"sync anew, {number}", lambda: _request_all(fleet))
        _bare_client(fleet, logins=logins, reads=others)


def _manage_all(fleet: Fleet) -> None:
    fleet.inventory.set_management(None, ManagementState.MANAGED, now=now(), by="bench")


def _request_all(fleet: Fleet) -> None:
    fleet.inventory.request(None, now=now(), by="bench")


def _measure(fleet: Fleet, label: str, ask: Callable[[], object]) -> None:
    """From the request until the last subcloud is completed and verified."""
    before = fleet.spent()
    ask()
    fleet.app.send_task(TaskName.SWEEP.value, kwargs={"hinted": True}, queue=Queue.CONTROL.value)
    fleet.until(lambda: fleet.completed() == fleet.count, "all are completed")
    spent = fleet.spent() - before
    report = fleet.cloud.report()
    if report["good"] != fleet.count or report["violation_count"]:
        raise SystemExit(f"not as it must be: {report['differences']} {report['violations']}")
    say(f"{label + ':':<22} {fleet.count / spent.at:>8.1f}   subclouds per second")
    say(f"  requests per run     {spent.requests / fleet.count:>8.2f}")
    say(f"  worker CPU per run   {spent.cpu / fleet.count * 1000:>8.2f} ms")
    say(f"  (fake cloud's CPU)   {spent.cloud_cpu / fleet.count * 1000:>8.2f} ms")


def _seen_in_a_run(fleet: Fleet) -> tuple[int, int]:
    """How many logins and how many other requests the first run sent to a subcloud."""
    requests = fleet.cloud.state(fleet.places[0]["region_name"])["requests"]
    logins = requests["POST keystone auth"]
    return logins, sum(requests.values()) - logins


def _bare_client(fleet: Fleet, *, logins: int, reads: int) -> None:
    before, began = time.process_time(), time.time()
    served = run_bare(
        for_each(fleet.places, lambda url: _talk_to(url, logins=logins, reads=reads), port=fleet.cloud.port)
    )
    cpu, seconds = time.process_time() - before, time.time() - began
    say(f"{'bare client:':<22} {fleet.count / seconds:>8.1f}   subclouds per second")
    say(f"  requests each        {served / fleet.count:>8.2f}")
    say(f"  CPU each             {cpu / fleet.count * 1000:>8.2f} ms")


async def _talk_to(url: str, *, logins: int, reads: int) -> int:
    async with aiohttp.ClientSession() as http:
        tokens = [await log_in(http, url) for _ in range(logins)]

        async def read() -> None:
            async with http.get(f"{url}/v1.0/identity/users/", headers={"X-Auth-Token": tokens[-1]}) as answer:
                assert answer.status == 200, answer.status
                await answer.json(content_type=None)

        await asyncio.gather(*(read() for _ in range(reads)))
    return logins + reads


if __name__ == "__main__":
    main()
