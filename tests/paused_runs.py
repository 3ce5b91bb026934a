"""A process whose runs do nothing but write, as fast as they may: to be stopped and continued by a test.

    python -m tests.paused_runs REDIS_URL SUBCLOUD_URL LOCK_TTL RUN_ID=REGION ...

Prints "writing" once every run has written; ends when none may write any more.
"""

from __future__ import annotations

import asyncio
import sys

from dcsync.adapters.broker.locks import RedisLocks
from dcsync.adapters.broker.redis_client import make_client
from dcsync.adapters.cloud.http import Http, Limits, open_http
from dcsync.adapters.cloud.tls import Trust
from dcsync.adapters.host.clock import elapsed_seconds
from dcsync.initial_sync.ports import Claim, Run
from dcsync.runs.delivery import Stopped, require_ownership
from dcsync.runs.ownership import BatchedOwnership
from dcsync.runs.writing import writing
from tests.builders import NOON
from tests.fakes_sync import a_requested_store

WRITES_AT_ONCE = 4


async def write(run: Run, ownership: BatchedOwnership, http: Http, url: str) -> None:
    """Ends when the run may write no more."""
    while True:
        try:
            await require_ownership(ownership, run)
            with writing():
                await http.send("PUT", f"{url}/{run.run_id}", body={"region": run.subcloud.region_name})
        except Stopped:
            return


async def main(redis_url: str, url: str, ttl: float, claims: list[Claim]) -> None:
    """The rows stay those of the runs: only their locks are lost."""
    rows = a_requested_store(*(claim.region_name for claim in claims))
    runs = rows.claim(claims, worker="paused", now=NOON)
    locks = RedisLocks(make_client(redis_url), ttl_seconds=ttl)
    got = locks.acquire({run.run_id: run.subcloud.region_name for run in runs})
    assert len(got) == len(runs)
    ownership = BatchedOwnership(rows, locks, lock_ttl_seconds=ttl, elapsed=elapsed_seconds)
    async with open_http(limits=Limits(), trust=Trust(None), request_id="req-paused") as http:
        print("writing", flush=True)
        await asyncio.gather(*(write(run, ownership, http, url) for run in runs for _ in range(WRITES_AT_ONCE)))
    locks.close()


if __name__ == "__main__":
    pairs = [argument.split("=") for argument in sys.argv[4:]]
    its_claims = [Claim(run_id, region_name, generation=1) for run_id, region_name in pairs]
    asyncio.run(main(sys.argv[1], sys.argv[2], float(sys.argv[3]), its_claims))
