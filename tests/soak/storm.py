"""The storm: one misfortune or one order of the operator's every second or so, drawn from dice; each ends by itself.

What is broken has an undo, which is due some seconds later; `subside` brings all of them about at once.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from random import Random

import psutil
import sqlalchemy as sa

from dcsync.fake_cloud.faults import Fault
from dcsync.local.servers import Server
from dcsync.model.errors import DatabaseUnreachable, LocalProcessFailed
from tests.soak.crew import BEAT_POSTS, LONG_LIVED, STATE_POSTS, SYNC_POSTS, Crew
from tests.soak.orders import CENTRAL_FAULTS, OUTAGES, SITE_FAULTS, Central, Drift
from tests.system import System, redis_client

OUTAGE_SHARE = 0.3
GRACE_SECONDS = 4.0
"""After an order to leave a site alone: by then the write that was on its way has arrived."""
USERS_AT_ONCE = 4
"""Writes that one who was stopped after he had asked may still make when he wakes."""
TRIES = 20
LOCKED_SECONDS = 8.0
FAR_SECONDS = 0.2
ORDERS_AT_ONCE = 2
COMMAND_SECONDS = 120.0
NO_SERVER = 4
GOOD_CODES = frozenset({0, 1, 3, NO_SERVER, 5})
"""0 done, 1 the answer is no, 3 just deleted, 4 a server (or for `diff` a site) is away, 5 refused by a guard."""


@dataclass
class LeftAlone:
    """A site nobody may write to: unmanaged, or deleted. `writes`: how many it had seen once the grace was over."""

    since: float
    writes: int | None = None


@dataclass(frozen=True)
class Command:
    """One command of the operator's. `code` None: it did not end in time. `said`: on standard error."""

    arguments: tuple[str, ...]
    code: int | None
    said: str
    began: float


class Storm:
    """All of it happens in the thread that made it, for servers are leashed to the thread that starts them."""

    def __init__(
        self, system: System, crew: Crew, dice: Random, *, names: list[str], nap_seconds: float, latency: float
    ) -> None:
        self.system = system
        self.crew = crew
        self.dice = dice
        self.names = names
        """Of the sites that are to be managed in the end."""
        self.counts: Counter[str] = Counter()
        self.answers: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.is_settled = False
        """From now on those whose memory is measured are not killed."""
        self.last_rotation = 0.0
        self._nap_seconds = nap_seconds
        self._latency = latency
        self._central = Central(dice)
        self._drift = Drift(dice)
        self._undos: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._faulty: set[str] = set()
        self._left_alone: dict[str, LeftAlone] = {}
        self._deleted: set[str] = set()
        self._is_read_only = False
        self._trouble_ended_at = time.monotonic()
        self._hands = ThreadPoolExecutor(ORDERS_AT_ONCE)
        self._given: list[Future[Command]] = []
        self._commands = system.processes.folder / "commands.log"
        self._table: list[tuple[float, Callable[[], None]]] = [
            (12, self._a_site_misbehaves),
            (10, self._a_site_drifts),
            (6, self._the_central_cloud_changes),
            (1, self._the_central_cloud_misbehaves),
            (0.4, self._the_central_cloud_hides_a_list),
            (0.3, self._somebody_rotates_at_the_central_cloud),
            (1, self._many_sites_go_away),
            (3, self._a_sync_worker_is_killed),
            (1, self._somebody_is_asked_to_end),
            (2, self._a_state_worker_is_killed),
            (1, self._a_beat_is_killed),
            (2.5, self._somebody_falls_asleep),
            (1, self._redis_restarts),
            (0.6, self._redis_is_flushed),
            (0.6, self._redis_is_stopped_for_a_while),
            (0.5, self._redis_cuts_connections),
            (0.6, self._redis_is_full),
            (1, self._postgresql_restarts),
            (0.5, self._postgresql_cuts_connections),
            (0.5, self._postgresql_is_stopped_for_a_while),
            (0.6, self._postgresql_takes_no_writes),
            (0.5, self._postgresql_rows_are_locked),
            (0.5, self._all_sites_are_far_away),
            (3, self._unmanage),
            (3, self._sync),
            (0.3, self._sync_all),
            (3, self._audit),
            (0.4, self._audit_all),
            (0.8, self._rotate_keys),
            (1.5, self._delete),
            (1.5, self._look),
        ]

    # --- its course ---

    def rage(self, seconds: float) -> None:
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            self._undo_what_is_due()
            self._look_after_the_crew()
            self._hear_commands(until_all=False)
            (befall,) = self.dice.choices([each for _, each in self._table], [weight for weight, _ in self._table])
            befall()
            time.sleep(self.dice.uniform(0.1, 0.9))

    def subside(self) -> None:
        """Nothing is broken any more, everybody is at his post, and what was left alone is managed again."""
        for server in (self.system.redis, self.system.postgres):
            self._bring_up(server)
        for post in (*SYNC_POSTS, *STATE_POSTS, *BEAT_POSTS):
            self._bring_back(post)
        while self._undos:
            _, _, undo = heapq.heappop(self._undos)
            undo()
        self._hear_commands(until_all=True)
        while self.crew.leaving:
            self._look_after_the_crew()
            time.sleep(0.2)

    def _look_after_the_crew(self) -> None:
        self.wrong += [*self.crew.deserters(), *self.crew.late_leavers()]
        expected = {post for _, _, undo in self._undos if (post := getattr(undo, "post", None))}
        for post in (*SYNC_POSTS, *STATE_POSTS, *BEAT_POSTS):
            if post not in self.crew.at_post and post not in expected:
                self.crew.start(post)

    def _later(self, undo: Callable[[], None], *, seconds: float) -> None:
        heapq.heappush(self._undos, (time.monotonic() + seconds, next(self._numbers), undo))

    def _undo_what_is_due(self) -> None:
        while self._undos and self._undos[0][0] <= time.monotonic():
            _, _, undo = heapq.heappop(self._undos)
            undo()

    # --- sites and the central cloud ---

    def _a_site_misbehaves(self) -> None:
        self._misbehave(self.dice.choice(SITE_FAULTS), [self.dice.choice(self.names)], self.dice.uniform(2, 25))

    def _many_sites_go_away(self) -> None:
        self.counts["mass outages"] += 1
        share = self.dice.sample(self.names, int(len(self.names) * OUTAGE_SHARE))
        self._misbehave(self.dice.choice(OUTAGES), share, self.dice.uniform(10, 40))

    def _misbehave(self, fault: Fault, names: list[str], seconds: float) -> None:
        for name in [name for name in names if name not in self._faulty]:
            self._faulty.add(name)
            self.system.cloud.set_fault(name, fault)
            self.counts[f"site: {fault.kind}"] += 1
            self._later(lambda name=name: self._behave(name), seconds=seconds)  # type: ignore[misc]

    def _behave(self, name: str) -> None:
        self.system.cloud.set_fault(name, None)
        self._faulty.discard(name)

    def _a_site_drifts(self) -> None:
        self._change(self.dice.choice(self.names), *self._drift.next_change(), told="drift")

    def _the_central_cloud_changes(self) -> None:
        self._change("central", *self._central.next_change(), told="centre")

    def _change(self, region_name: str, action: str, arguments: dict[str, object], *, told: str) -> None:
        """A record it is about may be gone already."""
        try:
            self.system.cloud.drift(region_name, action, **arguments)
        except ValueError:
            self.counts[f"{told}: nothing to change"] += 1
        else:
            self.counts[f"{told}: {action}"] += 1

    def _somebody_rotates_at_the_central_cloud(self) -> None:
        self.last_rotation = time.monotonic()
        self._change("central", "rotate-keys", {}, told="centre")

    def _the_central_cloud_misbehaves(self) -> None:
        fault = self.dice.choice(CENTRAL_FAULTS)
        self.counts[f"centre: {fault.kind}"] += 1
        self.system.cloud.set_fault("central", fault)
        self._later(lambda: self.system.cloud.set_fault("central", None), seconds=self.dice.uniform(2, 12))

    def _the_central_cloud_hides_a_list(self) -> None:
        listed = self.dice.choice(["users", "roles", "projects", "assignments", "keys"])
        self._change("central", "hide", {"list": listed}, told="centre")
        self._later(lambda: self.system.cloud.change_central("show"), seconds=self.dice.uniform(2, 10))

    # --- processes ---

    def _a_sync_worker_is_killed(self) -> None:
        self._kill_one_of(SYNC_POSTS)

    def _a_state_worker_is_killed(self) -> None:
        self._kill_one_of(STATE_POSTS)

    def _a_beat_is_killed(self) -> None:
        self._kill_one_of(BEAT_POSTS)

    def _kill_one_of(self, posts: tuple[str, ...]) -> None:
        there = [post for post in posts if self._may_go(post)]
        if there:
            post = self.dice.choice(there)
            self.counts[f"killed: {post}"] += 1
            self.crew.kill(post)
            self._later(_ForPost(post, self._bring_back), seconds=self.dice.uniform(0, 8))

    def _somebody_falls_asleep(self) -> None:
        awake = [post for post in (*SYNC_POSTS, *STATE_POSTS, *BEAT_POSTS) if self.crew.is_up(post)]
        if awake:
            post = self.dice.choice(awake)
            self.counts[f"asleep: {post}"] += 1
            self.crew.sleep(post)
            self._later(_ForPost(post, self._bring_back), seconds=self._nap_seconds + self.dice.uniform(0, 5))

    def _somebody_is_asked_to_end(self) -> None:
        there = [post for post in (*SYNC_POSTS, *STATE_POSTS, *BEAT_POSTS) if self._may_go(post)]
        if there:
            post = self.dice.choice(there)
            self.counts[f"asked to end: {post}"] += 1
            self.crew.dismiss(post)
            self._later(_ForPost(post, self._bring_back), seconds=self.dice.uniform(0, 8))

    def _may_go(self, post: str) -> bool:
        return self.crew.is_up(post) and not (self.is_settled and post in LONG_LIVED)

    def _bring_back(self, post: str) -> None:
        if post not in self.crew.at_post:
            self.crew.start(post)
        elif self.crew.is_asleep(post):
            self.crew.wake(post)

    # --- servers ---

    def _redis_restarts(self) -> None:
        self._take_down(self.system.redis)

    def _postgresql_restarts(self) -> None:
        self._take_down(self.system.postgres)

    def _take_down(self, server: Server) -> None:
        if server.pid is None:
            return
        if self.dice.random() < 0.5:
            self.counts[f"{server.name} killed"] += 1
            server.kill()
        else:
            self.counts[f"{server.name} stopped"] += 1
            server.stop()
        self._later(lambda: self._bring_up(server), seconds=self.dice.uniform(0.5, 7))

    def _bring_up(self, server: Server) -> None:
        for _ in range(TRIES):
            if server.pid is not None:
                return
            try:
                server.start()
            except LocalProcessFailed:
                time.sleep(0.5)
            else:
                self._trouble_ended_at = time.monotonic()
                return
        raise LocalProcessFailed(f"{server.name} did not come back")

    def _redis_is_flushed(self) -> None:
        if self.system.redis.pid is not None:
            self.counts["redis flushed"] += 1
            self._trouble_ended_at = time.monotonic()
            with redis_client(self.system) as client:
                client.flushall()

    def _redis_is_stopped_for_a_while(self) -> None:
        pid = self.system.redis.pid
        if pid is not None:
            self.counts["redis asleep"] += 1
            os.kill(pid, signal.SIGSTOP)
            try:
                time.sleep(self.dice.uniform(1, 7))
            finally:
                os.kill(pid, signal.SIGCONT)
                self._trouble_ended_at = time.monotonic()

    def _redis_cuts_connections(self) -> None:
        if self.system.redis.pid is not None:
            self.counts["redis cut connections"] += 1
            self._trouble_ended_at = time.monotonic()
            with redis_client(self.system) as client:
                client.client_kill_filter(_type="normal", skipme=True)
                client.client_kill_filter(_type="pubsub")

    def _redis_is_full(self) -> None:
        """It refuses whatever would take more memory; restarted, it knows no such limit."""
        if self.system.redis.pid is not None:
            self.counts["redis full"] += 1
            self._limit_redis(1)
            self._later(lambda: self._limit_redis(0), seconds=self.dice.uniform(2, 10))

    def _limit_redis(self, limit: int) -> None:
        if self.system.redis.pid is not None:
            self._trouble_ended_at = time.monotonic()
            with redis_client(self.system) as client:
                client.config_set("maxmemory", limit)

    def _postgresql_is_stopped_for_a_while(self) -> None:
        """With all its sessions, which stay open and say nothing."""
        pid = self.system.postgres.pid
        if pid is None:
            return
        self.counts["postgresql asleep"] += 1
        server = psutil.Process(pid)
        stopped = [server, *server.children(recursive=True)]
        try:
            for process in stopped:
                process.suspend()
            time.sleep(self.dice.uniform(1, 7))
        finally:
            for process in reversed(stopped):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.resume()
            self._trouble_ended_at = time.monotonic()

    def _postgresql_takes_no_writes(self) -> None:
        """As one that stands by after a failover, whose clients were not cut off."""
        if self.system.postgres.pid is not None:
            self.counts["postgresql read-only"] += 1
            self._set_read_only("on")
            self._later(lambda: self._set_read_only("off"), seconds=self.dice.uniform(2, 10))

    def _set_read_only(self, value: str) -> None:
        """What is set lives longer than the server, so where that is away it is set later."""
        self._trouble_ended_at = time.monotonic()
        if self.system.postgres.pid is None:
            self._later(lambda: self._set_read_only(value), seconds=1)
            return
        self._is_read_only = value == "on"
        for statement in (f"ALTER SYSTEM SET default_transaction_read_only = {value}", "SELECT pg_reload_conf()"):
            self._run_alone(statement)

    def _run_alone(self, statement: str) -> None:
        """Outside of any transaction, on a connection that was not there when the server was last away."""
        self.system.engine.dispose()
        with self.system.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(sa.text(statement))

    def _postgresql_rows_are_locked(self) -> None:
        """As by a change of the schema; nobody else can do anything with this table meanwhile."""
        if self.system.postgres.pid is not None and not self._is_read_only:
            table = self.dice.choice(["subcloud", "subcloud_sync", "sync_attempt", "alarm", "endpoint_status"])
            self.counts["postgresql table locked"] += 1
            self._trouble_ended_at = time.monotonic() + LOCKED_SECONDS
            self.system.engine.dispose()
            holder = self.system.engine.connect()
            holder.execute(sa.text(f"LOCK TABLE {table}"))
            self._later(lambda: self._close(holder), seconds=self.dice.uniform(2, LOCKED_SECONDS))

    def _close(self, holder: sa.Connection) -> None:
        """Which may have been cut off by then."""
        with contextlib.suppress(sa.exc.DBAPIError):
            holder.close()

    def _all_sites_are_far_away(self) -> None:
        self.counts["sites: far away"] += 1
        self.system.cloud.set_latency(FAR_SECONDS)
        self._later(lambda: self.system.cloud.set_latency(self._latency), seconds=self.dice.uniform(5, 20))

    def _postgresql_cuts_connections(self) -> None:
        if self.system.postgres.pid is not None:
            self.counts["postgresql cut connections"] += 1
            self._trouble_ended_at = time.monotonic()
            self._run_alone(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'dcsync %'"
            )

    # --- the operator ---

    def order(self, *arguments: str) -> None:
        """Given now and heard of later, so that it meets what befalls us meanwhile; not when some are not done yet."""
        if len(self._given) >= 2 * ORDERS_AT_ONCE:
            return
        self._given.append(self._hands.submit(self._carried_out, arguments))

    def command(self, *arguments: str) -> int | None:
        """Its exit code once it has ended, None where it did not end in time."""
        return self._heard(self._carried_out(arguments))

    def _hear_commands(self, *, until_all: bool) -> None:
        for given in [each for each in self._given if until_all or each.done()]:
            self._given.remove(given)
            self._heard(given.result())

    def _carried_out(self, arguments: tuple[str, ...]) -> Command:
        began = time.monotonic()
        try:
            done = self.system.processes.cli(*arguments, environ=self.system.environ, seconds=COMMAND_SECONDS)
        except subprocess.TimeoutExpired:
            return Command(arguments, None, "", began)
        with self._commands.open("a", encoding="utf-8") as log:
            head = f"{time.time():.3f} $ dcsync {' '.join(arguments)} (exit code {done.returncode})"
            log.write(f"{head}\n{done.stdout}{done.stderr}")
        return Command(arguments, done.returncode, done.stderr, began)

    def _heard(self, command: Command) -> int | None:
        told, code = f"dcsync {' '.join(command.arguments)}", command.code
        self.answers[f"{command.arguments[0]} {code}"] += 1
        if code not in GOOD_CODES or "Traceback" in command.said:
            self.wrong.append(f"{told} ended with {code}: {command.said[-2000:]}")
        is_about_servers = code == NO_SERVER and command.arguments[0] != "diff"
        if is_about_servers and self._trouble_ended_at < command.began - 1 and self._all_servers_are_up():
            self.wrong.append(f"{told} found no server, and all were up: {command.said[-500:]}")
        return code

    def _all_servers_are_up(self) -> bool:
        return all(server.pid is not None for server in (self.system.redis, self.system.postgres))

    def _some(self, most: int) -> list[str]:
        there = [name for name in self.names if name not in self._deleted]
        return self.dice.sample(there, self.dice.randint(1, most))

    def _sync(self) -> None:
        self.counts["order: sync"] += 1
        self.order("sync", *self._some(5))

    def _sync_all(self) -> None:
        self.counts["order: sync --all"] += 1
        self.order("sync", "--all", "--yes")

    def _audit(self) -> None:
        self.counts["order: audit"] += 1
        self.order("audit", *self._some(5))

    def _audit_all(self) -> None:
        self.counts["order: sync-request"] += 1
        self.order("sync-request", self.dice.choice(["identity", "platform"]))

    def _rotate_keys(self) -> None:
        """Forced: within minutes of another one, and while many sites are away, a careful operator would not."""
        self.counts["order: keys rotate"] += 1
        self.last_rotation = time.monotonic()
        self.order("keys", "rotate", "--force", "--yes")

    def _look(self) -> None:
        (name,) = self._some(1)
        questions = (
            ("subcloud", "list"),
            ("subcloud", "show", name),
            ("history", name),
            ("alarm", "list", "--history"),
            ("keys", "show"),
            ("diff", name),
            ("wait", "--for", "in-sync", name, "--timeout", "8"),
            ("audit", name, "--wait", "--timeout", "8"),
            ("sync", name, "--wait", "--timeout", "8"),
        )
        self.counts["order: look"] += 1
        self.order(*self.dice.choice(questions))

    def _unmanage(self) -> None:
        names = [name for name in self._some(4) if name not in self._left_alone]
        if names:
            self.counts["order: unmanage"] += 1
            self._leave_alone(names, self.command("subcloud", "unmanage", *names))
            self._later(lambda: self._manage(names), seconds=self.dice.uniform(5, 25))

    def _manage(self, names: list[str]) -> None:
        self._check_left_alone(names)
        if self.command("subcloud", "manage", "--force", *names) != 0:
            self._later(lambda: self._manage(names), seconds=2)

    def _delete(self) -> None:
        (name,) = self._some(1)
        if name in self._left_alone:
            return
        self.counts["order: delete"] += 1
        self._deleted.add(name)
        self._leave_alone([name], self.command("subcloud", "delete", name, "--yes"))
        self._later(lambda: self._add(name), seconds=self.dice.uniform(5, 20))

    def _add(self, name: str) -> None:
        """Where it was deleted the site is deployed anew first: what an earlier dcsync put there nobody knows."""
        self._check_left_alone([name])
        try:
            is_there = name in {row.name for row in self.system.inventory.all()}
        except DatabaseUnreachable:
            self._later(lambda: self._add(name), seconds=2)
            return
        if not is_there:
            self.system.cloud.drift(name, "redeploy")
            self.command("subcloud", "add", name, "--management-ip", self.system.address(name))
        if self.command("subcloud", "manage", "--force", name) != 0:
            self._later(lambda: self._add(name), seconds=2)
            return
        self._deleted.discard(name)

    # --- who is left alone stays untouched ---

    def _leave_alone(self, names: list[str], code: int | None) -> None:
        if code == 0:
            for name in names:
                self._left_alone[name] = LeftAlone(since=time.time())
            self._later(lambda: self._note_writes(names), seconds=GRACE_SECONDS)

    def _note_writes(self, names: list[str]) -> None:
        for name in names:
            alone = self._left_alone.get(name)
            if alone is not None and time.time() - alone.since >= GRACE_SECONDS:
                alone.writes = self.system.writes(name)

    def _check_left_alone(self, names: list[str]) -> None:
        for name in names:
            alone = self._left_alone.pop(name, None)
            if alone is None or alone.writes is None:
                continue
            more = self.system.writes(name) - alone.writes
            self.counts["left alone, and looked at"] += 1
            if more > (USERS_AT_ONCE if self._somebody_woke_since(alone.since) else 0):
                self.wrong.append(f"{name}: {more} writes after it was unmanaged or deleted at {alone.since:.3f}")

    def _somebody_woke_since(self, moment: float) -> bool:
        """One who fell asleep before may have asked for leave before; he wrote after."""
        return any(nap.began < moment and (nap.ended or moment) >= moment for nap in self.crew.naps)


@dataclass(frozen=True)
class _ForPost:
    """An undo that concerns one post; whoever looks after the crew leaves that post to it."""

    post: str
    undo: Callable[[str], None]

    def __call__(self) -> None:
        self.undo(self.post)
