"""The health of the processes of one role on this host, as in OCF resource agents: running, failed, or not running.

`status` checks only that there is a process and that it is responsive; `monitor` also that it does its work. Both use
the records that processes write (`dcsync.adapters.host.process_records`) and the state reported by the kernel.
Source: docs/upstream/state-service.md section 11, whose `monitor` sees nothing but a process id.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum

from dcsync.adapters.host.process_records import Found, Life, Phase, ProcessRecord, Role
from dcsync.adapters.postgres.clock import TOLERATED_SECONDS
from dcsync.model.messages import Queue


class Code(IntEnum):
    """Exit codes of OCF resource agents."""

    RUNNING = 0
    FAILED = 1
    NOT_RUNNING = 7


HUNG_SECONDS = {Role.SYNC: 15.0, Role.STATE: 15.0, Role.BEAT: 60.0}
"""A process that has not written its record for this long hangs. Workers write it every second, beat at each tick: at
least every 5 s, but later while a send to an unavailable broker times out."""
LOOP_SECONDS = 20.0
"""A worker whose loop has not turned for this long hangs; it normally turns every 5 s."""
SENT_SECONDS = 60.0
"""Beat that has sent nothing for this long does not work; it normally sends something every few seconds."""
START_SECONDS = 30.0
"""A worker that is not up this long after its start has failed; before that it is reported as not running, which a
supervisor that polls after a start expects."""
TAKEN_WITHIN_SECONDS = 3.0
"""With messages waiting and threads free, a worker takes one within this time."""


@dataclass(frozen=True)
class Health:
    """The exit code, and one line that says why.

    `late`: how often each periodic task was late so far, and run by a worker in beat's place. `clocks`: by how many
    seconds this host's clock is ahead of the database's, as each process here and this command measured it. Neither
    makes a process unhealthy, for dcsync works all the same.
    """

    code: Code
    text: str
    late: Mapping[str, int] = field(default_factory=dict)
    clocks: Mapping[str, float] = field(default_factory=dict)

    @property
    def wrong_clocks(self) -> dict[str, float]:
        """Those that differ by more than TOLERATED_SECONDS."""
        return {name: ahead for name, ahead in self.clocks.items() if abs(ahead) > TOLERATED_SECONDS}


def status(found: Sequence[Found], *, role: Role, now: float) -> Health:
    """Returns whether processes of this role run and are responsive; one that hangs makes the result FAILED."""
    there = [each for each in found if each.life is not Life.ENDED]
    if not there:
        dead = f": {_names(found)} ended unexpectedly" if found else ""
        return Health(Code.NOT_RUNNING, f"no {role} process runs on this host{dead}")
    for each in there:
        if each.life is Life.STOPPED:
            return Health(Code.FAILED, f"{_name(each.record)} is stopped by a signal")
        if (silent := now - each.record.shown_at) > HUNG_SECONDS[role]:
            return Health(Code.FAILED, f"{_name(each.record)} hangs: no sign of life for {silent:.0f} s")
    return Health(Code.RUNNING, f"{role}: {_names(there)}")


@dataclass(frozen=True)
class World:
    """What `monitor` checks in addition to records; each call takes a few seconds at most."""

    find: Callable[[], Sequence[Found]]
    check_database: Callable[[], None]
    """Raises DcsyncError when it does not answer."""
    waiting: Callable[[Sequence[Queue]], Mapping[Queue, int]]
    """Returns the number of queued messages by queue; raises DcsyncError when the broker does not answer."""
    late_totals: Callable[[], Mapping[str, int]]
    """How often each periodic task was late; raises DcsyncError when the broker does not answer."""
    clock_ahead: Callable[[], float | None]
    """Seconds by which this host's clock is ahead of the database's; None where that is not known."""
    monotonic: Callable[[], float]
    sleep: Callable[[float], None]


def monitor(world: World, *, role: Role, busy_seconds: float) -> Health:
    """Checks as `status`, and also the loops, the broker, the database, that queues are consumed and messages taken.

    Also returns which tasks were late, and by how much this host's clock is wrong.

    `busy_seconds`: workers are unhealthy when no task has ended for this long. Raises DcsyncError when database or
    broker do not answer.
    """
    found = world.find()
    health = _monitored(world, found, role=role, busy_seconds=busy_seconds)
    if health.code is not Code.RUNNING:
        return health
    return replace(health, late=world.late_totals(), clocks=_clocks(found, ahead=world.clock_ahead()))


def _clocks(found: Sequence[Found], *, ahead: float | None) -> dict[str, float]:
    clocks = {_name(record): record.clock_ahead for record in _alive(found) if record.clock_ahead is not None}
    return clocks if ahead is None else clocks | {"this command": ahead}


def _monitored(world: World, found: Sequence[Found], *, role: Role, busy_seconds: float) -> Health:
    health = status(found, role=role, now=world.monotonic())
    if health.code is not Code.RUNNING:
        return health
    working = _working(found, now=world.monotonic())
    if not working and any(record.phase is Phase.STARTING for record in _alive(found)):
        return Health(Code.NOT_RUNNING, f"{_names(found)} is starting")
    queues = _queues(working)
    waiting = world.waiting(queues)
    if role is not Role.BEAT:
        world.check_database()
    for record in working:
        if problem := _problem(record, role=role, now=world.monotonic()):
            return Health(Code.FAILED, f"{_name(record)} {problem}")
    if problem := _stalled(world, waiting, working, busy_seconds=busy_seconds):
        return Health(Code.FAILED, problem)
    return health


def _working(found: Sequence[Found], *, now: float) -> list[ProcessRecord]:
    """Returns the processes that should be working: not those that are stopping or have just been started."""
    return [
        record
        for record in _alive(found)
        if record.phase is Phase.RUNNING
        or (record.phase is Phase.STARTING and now - record.progressed_at >= START_SECONDS)
    ]


def _problem(record: ProcessRecord, *, role: Role, now: float) -> str | None:
    """Returns the problem that the record of this process shows, if any."""
    if record.phase is Phase.STARTING:
        return "has not started yet"
    if role is Role.BEAT:
        silent = now - record.progressed_at
        return f"has sent nothing for {silent:.0f} s" if silent > SENT_SECONDS else None
    if not record.is_connected:
        return "is not connected to the broker"
    if (silent := now - record.turned_at) > LOOP_SECONDS:
        return f"hangs: its loop has not turned for {silent:.0f} s"
    missing = [queue for queue in record.queues if queue not in record.consumed]
    return f"does not consume {', '.join(missing)}" if missing else None


def _queues(records: Sequence[ProcessRecord]) -> list[Queue]:
    """Returns the queues of these processes; a worker with both roles has all of them."""
    return [queue for queue in Queue if any(queue in record.queues for record in records)]


def _stalled(
    world: World,
    waiting: Mapping[Queue, int],
    before: Sequence[ProcessRecord],
    *,
    busy_seconds: float,
) -> str | None:
    """Checks for a while whether queued messages are taken; returns None once one is taken or the queues are empty."""
    taken = {record.pid: record.taken for record in before}
    deadline = world.monotonic() + TAKEN_WITHIN_SECONDS
    now_at = list(before)
    while any(waiting.values()):
        if any(record.taken > taken.get(record.pid, record.taken) for record in now_at):
            return None
        if world.monotonic() > deadline:
            return _why_nothing_is_taken(waiting, now_at, now=world.monotonic(), busy_seconds=busy_seconds)
        world.sleep(0.3)
        now_at = _working(world.find(), now=world.monotonic())
        waiting = world.waiting(list(waiting))
    return None


def _why_nothing_is_taken(
    waiting: Mapping[Queue, int], records: Sequence[ProcessRecord], *, now: float, busy_seconds: float
) -> str | None:
    counts = ", ".join(f"{count} in {queue}" for queue, count in waiting.items() if count)
    idle = [record for record in records if record.active < record.threads]
    if idle:
        return f"messages are queued ({counts}), and {_name(idle[0])} takes none although it has free threads"
    stuck = [record for record in records if now - record.progressed_at > busy_seconds]
    if stuck and len(stuck) == len(records):
        return f"messages are queued ({counts}), and no task has ended for {now - stuck[0].progressed_at:.0f} s"
    return None


def _alive(found: Sequence[Found]) -> list[ProcessRecord]:
    return [each.record for each in found if each.life is not Life.ENDED]


def _names(found: Sequence[Found]) -> str:
    return ", ".join(_name(each.record) for each in found)


def _name(record: ProcessRecord) -> str:
    return f"{record.name} (process {record.pid})"
