"""`python -m tests.soak --minutes 20 --seed 7`: storms and calms in turn until the time is up, then the verdict.

Exit code 0 when everything held. What the processes printed is kept in a folder, which is named, when it did not.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import sqlalchemy as sa

from dcsync.adapters.postgres.tables import sync_attempt
from tests.acceptance.test_no_secrets import database_dump, with_what_is_encoded
from tests.soak import traces
from tests.soak.calm import Calm, few
from tests.soak.crew import LONG_LIVED, Crew
from tests.soak.storm import Storm
from tests.system import FAST, System, open_system

SUBCLOUDS = 150
STRANGERS = 3
LATENCY_SECONDS = 0.01
LOCK_TTL = 5
RUN_DEADLINE = 20
AUDIT_INTERVAL = 20
STORM_SECONDS = 100.0
CONVERGED_WITHIN = 150.0
"""After the last fault: the longest hold-off (15 s), two probes, an audit's interval and its run, and for keys that
somebody rotated the minute in which the watch leaves them to the rotation. Twice that, for a busy machine."""
REDELIVERED_WITHIN = 130.0
"""A message whose worker was killed is handed out again after the visibility timeout (100 s), when it is looked for."""
SETTINGS = FAST | {
    "DCSYNC_HOLD_OFF_MAX": "15",
    "DCSYNC_LOGIN_HOLD_OFF": "1",
    "DCSYNC_LOCK_TTL": str(LOCK_TTL),
    "DCSYNC_CONNECT_TIMEOUT": "3",
    "DCSYNC_READ_TIMEOUT": "4",
    "DCSYNC_REQUEST_TIMEOUT": "6",
    "DCSYNC_RUN_DEADLINE": str(RUN_DEADLINE),
    "DCSYNC_CENTRAL_MAX_AGE": "2",
    "DCSYNC_CENTRAL_WATCH_INTERVAL": "2",
    "DCSYNC_AUDIT_INTERVAL": str(AUDIT_INTERVAL),
    "DCSYNC_PROBE_INTERVAL": "5",
    "DCSYNC_PROBE_TIMEOUT": "3",
    "DCSYNC_KEY_MAX_IN_FLIGHT": "40",
    "DCSYNC_KEY_ROTATION_WINDOW": "120",
    "DCSYNC_TOKEN_LIFETIME": "86400",
    "DCSYNC_MAX_DELETES": "1000",
}
"""Many deletions wait for an operator's yes by design; here nobody would say it."""


def main() -> int:
    options = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    options.add_argument("--minutes", type=float, default=20, help="storms begin for so long; default: 20")
    options.add_argument("--seed", type=int, default=None, help="of the dice; default: a new one, which is told")
    options.add_argument("--subclouds", type=int, default=SUBCLOUDS)
    options.add_argument("--keep", action="store_true", help="keep the logs also when all went well")
    given = options.parse_args()
    seed = random.randrange(10**6) if given.seed is None else given.seed
    folder = Path(tempfile.mkdtemp(prefix="dcsync-soak-"))
    folder.chmod(0o711)
    say(f"seed {seed}, {given.minutes:g} minutes, {given.subclouds} subclouds; logs in {folder}")
    with open_system(folder, subclouds=given.subclouds + STRANGERS, settings=SETTINGS) as system:
        soak = Soak(system, random.Random(seed))
        try:
            soak.run(minutes=given.minutes)
        except Exception:
            (folder / "rows.txt").write_text(database_dump(system), encoding="utf-8")
            raise
        soak.tell()
        if soak.wrong:
            (folder / "rows.txt").write_text(database_dump(system), encoding="utf-8")
    if soak.wrong:
        say(f"verdict: FAILED, seed {seed}; logs and rows are in {folder}\n{few(soak.wrong)}")
        return 1
    say("verdict: OK")
    if not given.keep:
        shutil.rmtree(folder)
    return 0


class Soak:
    """Storms and calms in turn."""

    def __init__(self, system: System, dice: random.Random) -> None:
        self.system = system
        self.crew = Crew(system)
        self.wrong: list[str] = []
        self._convergence: list[float] = []
        self._secrets = traces.Secrets(system)
        everybody = [place["name"] for place in system.cloud.subclouds()]
        self._names, self._strangers = everybody[:-STRANGERS], everybody[-STRANGERS:]
        self.storm = Storm(
            system, self.crew, dice, names=self._names, nap_seconds=LOCK_TTL + 1, latency=LATENCY_SECONDS
        )
        self.calm = Calm(system, self.crew, names=self._names, strangers=self._strangers, run_deadline=RUN_DEADLINE)
        self._before: dict[str, traces.Footprint] = {}
        self._after: dict[str, traces.Footprint] = {}
        self._idle: tuple[dict[str, float], dict[str, float]] = ({}, {})
        self._connections: Counter[str] = Counter()
        self._keys = 0
        self._told = traces.Told([], Counter())

    def run(self, *, minutes: float) -> None:
        """Ends early when something is wrong that will not become right."""
        ends = time.monotonic() + minutes * 60
        self._begin()
        while not self.wrong and (time.monotonic() < ends or not self._before):
            self.storm.rage(min(STORM_SECONDS, max(20.0, ends - time.monotonic())))
            self.storm.subside()
            self._be_calm()
            if not self._before:
                self._warmed_up()
        self._look_at_what_is_left()

    def _begin(self) -> None:
        self.crew.start_all()
        began = time.monotonic()
        self.system.add_online(count=len(self._names) + STRANGERS)
        self.system.cloud.set_latency(LATENCY_SECONDS)
        self.system.manage(*self._names)
        self._be_calm()
        say(f"all are in sync after {time.monotonic() - began:.0f} s")

    def _be_calm(self) -> None:
        seconds, wrong = self.calm.wait(seconds=CONVERGED_WITHIN)
        self._convergence.append(seconds)
        told = "not all converged in" if wrong else "all converged after"
        sizes = ", ".join(f"{post} {traces.footprint(self.crew.at_post[post])}" for post in LONG_LIVED)
        say(f"calm: {told} {seconds:.0f} s; {len(self.storm.wrong)} complaints of the storm; {sizes}")
        self.wrong += [*self.storm.wrong, *wrong, *(self.calm.verdict() if not wrong else ())]
        self.storm.wrong.clear()
        if not wrong:
            self._secrets.collect(self._names)

    def _warmed_up(self) -> None:
        """Memory, files and threads are measured from here on."""
        self.storm.is_settled = True
        self._before = traces.footprints(self.crew)
        self._idle = (traces.idle_cpu(self.crew), {})

    def _look_at_what_is_left(self) -> None:
        if not self.wrong:
            self._keys, wrong = traces.redis_remains(self.system, seconds=REDELIVERED_WITHIN)
            self.wrong += wrong
            self._be_calm()
        self._idle = (self._idle[0], traces.idle_cpu(self.crew))
        self._after = traces.footprints(self.crew)
        self._connections, wrong = traces.connections(self.system)
        self.wrong += [*wrong, *traces.grown(self._before, self._after)]
        texts = traces.printed(self.system)
        self._told = traces.Told.of(texts)
        self.wrong += [f"traceback in {each}" for each in self._told.tracebacks]
        texts = [(where, with_what_is_encoded(text)) for where, text in texts]
        self.wrong += self._secrets.leaked([*texts, ("the database", database_dump(self.system))])

    def tell(self) -> None:
        """The short report."""
        with self.system.engine.connect() as connection:
            endings = connection.execute(
                sa.select(sync_attempt.c.ending, sa.func.count()).group_by(sync_attempt.c.ending)
            )
            attempts = {str(ending): count for ending, count in endings}
            done = sa.text("SELECT sum(dispatches), sum(observed_generation) FROM subcloud_sync")
            audits = connection.execute(done).one()
        report = self.system.cloud.report()
        naps = len(self.crew.naps)
        say("")
        for what, count in sorted(self.storm.counts.items()):
            say(f"  {what:<40} {count:>7}")
        say(f"commands by exit code: {_listed(self.storm.answers)}")
        say(f"attempts of subclouds that are there now: {_listed(attempts)}; hints for audits {audits[0]}; naps {naps}")
        say(f"requests to the clouds: {report['request_count']:,}; secrets looked for: {len(self._secrets):,}")
        say(f"convergence, s: {', '.join(f'{seconds:.0f}' for seconds in self._convergence)}")
        say(f"excused: {_listed(self.calm.excused)}")
        say(f"warnings: {_listed(self._told.warnings, apart=chr(10) + '    ')}")
        say(f"PostgreSQL connections: {_listed(self._connections)}; Redis keys: {self._keys}")
        for who, now in sorted(self._after.items()):
            then = self._before.get(who)
            say(f"  {who:<22} {then if then else '(younger)'} -> {now}")
        for told, shares in zip(("before", "after"), self._idle, strict=True):
            say(f"  CPU while calm, {told}: {', '.join(f'{who} {share:.0%}' for who, share in sorted(shares.items()))}")


def _listed(counts: dict[str, int] | Counter[str], *, apart: str = ", ") -> str:
    return apart.join(f"{what} {count}" for what, count in sorted(counts.items())) or "none"


def say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}" if line else "", flush=True)


if __name__ == "__main__":
    sys.exit(main())
