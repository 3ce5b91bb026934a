"""How the processes of one role on this host are, as an OCF resource agent reports it: running, failed, or not running.

`status` checks only that there is a process and that it is responsive; `monitor` also that it does its work.
Decides from what processes record of themselves (`dcsync.adapters.host.process_records`) and from what the kernel says.
Source: docs/upstream/state-service.md section 11, whose `monitor` sees nothing but a process id.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

from dcsync.adapters.host.process_records import Found, Life, Phase, ProcessRecord, Role
from dcsync.model.messages import Queue


class Code(IntEnum):
    """Exit codes of OCF resource agents."""

    RUNNING = 0
    FAILED = 1
    NOT_RUNNING = 7


HUNG_SECONDS = {Role.SYNC: 15.0, Role.STATE: 15.0, Role.BEAT: 60.0}
"""A process that has not written its record for so long hangs. Workers write one every second, beat at each tick: every
5 s at most, but it may have to give up on a broker that is away first."""
LOOP_SECONDS = 20.0
"""A worker whose loop has not come round for so long hangs; it comes round every 5 s."""
SENT_SECONDS = 60.0
"""Beat that has sent nothing for so long does not do its work; it has something to send every few seconds."""
START_SECONDS = 30.0
"""A worker that is not up so long after its start has failed; before that it does not run yet, as a supervisor
that starts it and polls until it runs expects."""
TAKEN_WITHIN_SECONDS = 3.0
"""With messages waiting and threads free, a worker takes one within this time."""


@dataclass(frozen=True)
class Health:
    """The exit code, and one line that says why."""

    code: Code
    text: str


def status(found: Sequence[Found], *, role: Role, now: float) -> Health:
    """Is there a process of this role that moves? One that hangs counts, also beside others that do not."""
    there = [each for each in found if each.life is not Life.ENDED]
    if not there:
        dead = f": {_names(found)} died without a word" if found else ""
        return Health(Code.NOT_RUNNING, f"no {role} process runs on this host{dead}")
    for each in there:
        if each.life is Life.STOPPED:
            return Health(Code.FAILED, f"{_name(each.record)} is stopped by a signal")
        if (silent := now - each.record.shown_at) > HUNG_SECONDS[role]:
            return Health(Code.FAILED, f"{_name(each.record)} hangs: no sign of life for {silent:.0f} s")
    return Health(Code.RUNNING, f"{role}: {_names(there)}")


@dataclass(frozen=True)
class World:
    """What `monitor` looks at beyond records; each call is bounded by a few seconds."""

    find: Callable[[], Sequence[Found]]
    check_database: Callable[[], None]
    """Raises DcsyncError when it does not answer."""
    waiting: Callable[[Sequence[Queue]], Mapping[Queue, int]]
    """Messages that nobody has taken, by queue; raises DcsyncError when the broker does not answer."""
    monotonic: Callable[[], float]
    sleep: Callable[[float], None]


def monitor(world: World, *, role: Role, busy_seconds: float) -> Health:
    """As `status`, and: loop turning, broker and database there, every queue consumed, waiting work taken.

    `busy_seconds`: a worker is unhealthy when none of its threads has come free for so long. Raises DcsyncError when
    database or broker do not answer.
    """
    found = world.find()
    health = status(found, role=role, now=world.monotonic())
    if health.code is not Code.RUNNING:
        return health
    working = _working(found, now=world.monotonic())
    if not working and any(record.phase is Phase.STARTING for record in _alive(found)):
        return Health(Code.NOT_RUNNING, f"{_names(found)} is coming up")
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
    """Those of which work is expected: not those that stop, nor those that are just coming up."""
    return [
        record
        for record in _alive(found)
        if record.phase is Phase.RUNNING
        or (record.phase is Phase.STARTING and now - record.progressed_at >= START_SECONDS)
    ]


def _problem(record: ProcessRecord, *, role: Role, now: float) -> str | None:
    """What keeps this process from its work, as far as its own record shows."""
    if record.phase is Phase.STARTING:
        return "has not come up yet"
    if role is Role.BEAT:
        silent = now - record.progressed_at
        return f"has sent nothing for {silent:.0f} s" if silent > SENT_SECONDS else None
    if not record.is_connected:
        return "is not connected to the broker"
    if (silent := now - record.turned_at) > LOOP_SECONDS:
        return f"hangs: its loop has not come round for {silent:.0f} s"
    missing = [queue for queue in record.queues if queue not in record.consumed]
    return f"does not consume {', '.join(missing)}" if missing else None


def _queues(records: Sequence[ProcessRecord]) -> list[Queue]:
    """Those that these are there for; of a worker for both roles all of them."""
    return [queue for queue in Queue if any(queue in record.queues for record in records)]


def _stalled(
    world: World,
    waiting: Mapping[Queue, int],
    before: Sequence[ProcessRecord],
    *,
    busy_seconds: float,
) -> str | None:
    """Watch for a while whether waiting messages are taken; None as soon as that is seen, or nothing waits."""
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
        return f"messages wait ({counts}), and {_name(idle[0])} takes none though it has threads free"
    stuck = [record for record in records if now - record.progressed_at > busy_seconds]
    if stuck and len(stuck) == len(records):
        return f"messages wait ({counts}), and nothing has ended for {now - stuck[0].progressed_at:.0f} s"
    return None


def _alive(found: Sequence[Found]) -> list[ProcessRecord]:
    return [each.record for each in found if each.life is not Life.ENDED]


def _names(found: Sequence[Found]) -> str:
    return ", ".join(_name(each.record) for each in found)


def _name(record: ProcessRecord) -> str:
    return f"{record.name} (process {record.pid})"
