"""Sends changes of alarms to the sinks after they are committed: in order, each at least once.

`rules` decides which alarms are active and `service` writes them; this module only delivers them, in a task of the
`control` queue, so that an unreachable sink never delays a state worker.
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
"""How long one process owns the delivery to a sink before another may take over; longer than any sink's timeout."""

HOLD_OFF, HOLD_OFF_MAX = timedelta(seconds=5), timedelta(minutes=5)


@dataclass(frozen=True)
class AlarmFeed:
    """Delivers alarms to each sink, with a position and a hold-off per sink: an unreachable sink delays no other."""

    store: AlarmStore
    sinks: Sequence[AlarmSink]
    now: Callable[[], datetime]
    jitter: Callable[[], float]

    def deliver(self) -> dict[str, int]:
        """Sends each sink its new notices; returns the number sent per sink. A concurrent call does nothing."""
        return {sink.name: self._deliver_to(sink) for sink in self.sinks}

    def _deliver_to(self, sink: AlarmSink) -> int:
        now = self.now()
        turn = self.store.take_turn(sink.name, now=now, until=now + TURN, longest=max(TURN, HOLD_OFF_MAX))
        if turn is None:
            return 0
        sent, position = 0, turn.position
        deadline = now + TURN / 2
        try:
            while self.now() < deadline:
                notices, reached = self.store.changed_after(position, limit=NOTICES_AT_ONCE)
                if not notices:
                    break
                sink.send(notices)
                sent, position = sent + len(notices), reached
        except TemporaryError:
            self.store.end_turn(turn, reached=position, next_attempt_at=self._retry_at(turn), attempt=turn.attempt + 1)
            return sent
        self.store.end_turn(turn, reached=position, next_attempt_at=self.now(), attempt=0)
        return sent

    def _retry_at(self, turn: SinkTurn) -> datetime:
        return self.now() + hold_off(attempt=turn.attempt + 1, base=HOLD_OFF, cap=HOLD_OFF_MAX, jitter=self.jitter())
