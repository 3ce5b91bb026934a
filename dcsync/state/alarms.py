"""Tells sinks what became of alarms, after the rows say so: at least once, in order, late rather than wrong.

Which alarms there are is decided by `rules` and written by `service`; here they are only passed on, by a task of the
`control` queue, so that a sink that is away never keeps a state worker waiting.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from dcsync.model.errors import TemporaryError
from dcsync.model.hold_off import hold_off
from dcsync.state.ports import AlarmSink, AlarmStore, SinkTurn

NOTICES_AT_ONCE = 200
TURN = timedelta(seconds=60)
"""How long one process may be telling a sink before another takes over; longer than any sink's deadline."""

HOLD_OFF, HOLD_OFF_MAX = timedelta(seconds=5), timedelta(minutes=5)


@dataclass(frozen=True)
class AlarmFeed:
    """Every sink has its own position and its own hold-off, so that one that is away delays no other."""

    store: AlarmStore
    sinks: Sequence[AlarmSink]
    now: Callable[[], datetime]
    jitter: Callable[[], float]

    def deliver(self) -> dict[str, int]:
        """Tell each sink what it has not been told; how many notices each took. A second call at once does nothing."""
        return {sink.name: self._deliver_to(sink) for sink in self.sinks}

    def _deliver_to(self, sink: AlarmSink) -> int:
        now = self.now()
        turn = self.store.take_turn(sink.name, now=now, until=now + TURN)
        if turn is None:
            return 0
        told, position = 0, turn.position
        deadline = now + TURN / 2
        try:
            while self.now() < deadline:
                notices, reached = self.store.changed_after(position, limit=NOTICES_AT_ONCE)
                if not notices:
                    break
                sink.tell(notices)
                told, position = told + len(notices), reached
        except TemporaryError:
            self.store.end_turn(turn, reached=position, next_attempt_at=self._later(turn), attempt=turn.attempt + 1)
            return told
        self.store.end_turn(turn, reached=position, next_attempt_at=self.now(), attempt=0)
        return told

    def _later(self, turn: SinkTurn) -> datetime:
        return self.now() + hold_off(attempt=turn.attempt + 1, base=HOLD_OFF, cap=HOLD_OFF_MAX, jitter=self.jitter())
