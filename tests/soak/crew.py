"""The processes of one dcsync in a storm: each at its post, up, down or asleep, and who ended without being told to."""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass, field

from tests.processes import Running
from tests.system import System

SYNC_POSTS = ("sync1", "sync2")
STATE_POSTS = ("state1", "state2")
BEAT_POSTS = ("beat1", "beat2")
WORKER_POSTS = (*SYNC_POSTS, *STATE_POSTS)
LONG_LIVED = ("sync1", "state1")
"""Once the crew has settled these are put to sleep at times, but never killed: their memory is what is measured."""
LEAVING_SECONDS = 60.0
"""Far more than one that was asked to end lets its runs go on (3 s)."""
LAST_LINES = 15


@dataclass
class Nap:
    """From SIGSTOP to SIGCONT of one process, by the clock the fake cloud goes by."""

    running: Running
    began: float
    ended: float | None = None


@dataclass
class Crew:
    """Starts, kills, stops and wakes. Everything by its own process id."""

    system: System
    at_post: dict[str, Running] = field(default_factory=dict)
    naps: list[Nap] = field(default_factory=list)
    leaving: list[tuple[str, Running, float]] = field(default_factory=list)
    """Post, and since when: those that were asked to end."""

    def start_all(self) -> None:
        for post in (*WORKER_POSTS, *BEAT_POSTS):
            self.start(post)
        for post in WORKER_POSTS:
            self.at_post[post].wait_for("ready.")

    def start(self, post: str) -> None:
        """Whoever was there before is gone."""
        if post in SYNC_POSTS:
            self.at_post[post] = self.system.start_sync_worker(post, ready=False)
        elif post in STATE_POSTS:
            self.at_post[post] = self.system.start_state_worker(post, ready=False)
        else:
            self.at_post[post] = self.system.start_beat(post)

    def kill(self, post: str) -> None:
        self.at_post.pop(post).kill()

    def dismiss(self, post: str) -> None:
        """Ask it to end; `late_leavers` tells whether it does."""
        running = self.at_post.pop(post)
        running.signal(signal.SIGTERM)
        self.leaving.append((post, running, time.monotonic()))

    def late_leavers(self) -> list[str]:
        """Those that took too long to end, or ended badly, each named once; who took too long is killed.

        Before it has begun to say anything a process knows no manners yet: a signal simply ends it.
        """
        wrong, still = [], []
        for post, running, since in self.leaving:
            if not running.alive:
                had_begun = bool(running.output())
                if running.process.returncode != 0 and had_begun:
                    wrong.append(f"{post} (pid {running.pid}) was asked to end and did so with {_last_words(running)}")
            elif time.monotonic() - since > LEAVING_SECONDS:
                running.kill()
                wrong.append(f"{post} (pid {running.pid}) was asked to end and did not: {_last_words(running)}")
            else:
                still.append((post, running, since))
        self.leaving = still
        return wrong

    def sleep(self, post: str) -> None:
        running = self.at_post[post]
        running.signal(signal.SIGSTOP)
        self.naps.append(Nap(running, began=time.time()))

    def wake(self, post: str) -> None:
        running = self.at_post[post]
        (nap,) = [nap for nap in self.naps if nap.running is running and nap.ended is None]
        nap.ended = time.time()
        running.signal(signal.SIGCONT)

    def is_up(self, post: str) -> bool:
        """At its post and awake."""
        return post in self.at_post and not self.is_asleep(post)

    def is_asleep(self, post: str) -> bool:
        return any(nap.running is self.at_post.get(post) and nap.ended is None for nap in self.naps)

    def deserters(self) -> list[str]:
        """Those that ended although nobody ended them, each named once."""
        gone = [post for post, running in self.at_post.items() if not running.alive]
        told = []
        for post in gone:
            running = self.at_post.pop(post)
            told.append(f"{post} (pid {running.pid}) ended by itself with {_last_words(running)}")
        return told


def _last_words(running: Running) -> str:
    return f"{running.process.returncode}:\n" + "\n".join(running.output().splitlines()[-LAST_LINES:])
