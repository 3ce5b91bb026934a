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
from dcsync.state.ports import AlarmPosition, AlarmSink, AlarmStore, NoticesRefused, RefusedNotice, SinkTurn

NOTICES_AT_ONCE = 200
TURN = timedelta(seconds=60)
"""How long one process owns the delivery to a sink before another may take over; longer than any sink's timeout."""

REFUSED_IN_A_ROW = 50
"""After so many notices that a sink refused, and none that it accepted, it is held off."""
PATIENT_ATTEMPTS = 3
"""After so many turns in a row without success, what is refused is set aside although nothing was accepted later."""

HOLD_OFF, HOLD_OFF_MAX = timedelta(seconds=5), timedelta(minutes=5)


class SinkRefusesAll(TemporaryError):
    """The sink named refused the last notices, one by one, and accepted none after them."""


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
        delivery = _Delivery(turn.position, sets_all_aside=turn.attempt >= PATIENT_ATTEMPTS)
        try:
            self._send_all(sink, delivery, deadline=now + TURN / 2)
            delivery.end()
        except TemporaryError:
            retry_at, attempt = self._retry_at(turn), turn.attempt + 1
        else:
            retry_at, attempt = self.now(), 0
        self.store.end_turn(
            turn, reached=delivery.reached, next_attempt_at=retry_at, attempt=attempt, refused=delivery.set_aside
        )
        return delivery.sent

    def _send_all(self, sink: AlarmSink, delivery: _Delivery, *, deadline: datetime) -> None:
        """Sends fewer notices at a time while the sink refuses one of them, until that one is alone."""
        limit = NOTICES_AT_ONCE
        while self.now() < deadline:
            notices, reached = self.store.changed_after(delivery.position, limit=limit)
            if not notices:
                return
            try:
                sink.send(notices)
            except NoticesRefused as refusal:
                if len(notices) > 1:
                    limit = len(notices) // 2
                    continue
                refused = RefusedNotice(
                    refused_at=self.now(),
                    sink=sink.name,
                    alarm_id=notices[0].alarm_id,
                    entity=notices[0].entity,
                    why=str(refusal),
                )
                delivery.refused(refused, reached)
            else:
                delivery.accepted(len(notices), reached)
                limit = min(2 * limit, NOTICES_AT_ONCE)

    def _retry_at(self, turn: SinkTurn) -> datetime:
        return self.now() + hold_off(attempt=turn.attempt + 1, base=HOLD_OFF, cap=HOLD_OFF_MAX, jitter=self.jitter())


class _Delivery:
    """The course of one turn. What a sink refuses is set aside once it accepted something later: a sink that refuses
    everything is wrong itself, and is held off as one that is unreachable."""

    def __init__(self, position: AlarmPosition, *, sets_all_aside: bool) -> None:
        self.position = self.reached = position
        """Up to where notices were sent, and up to where they need not be sent again."""
        self.sent = 0
        self.set_aside: list[RefusedNotice] = []
        self._sets_all_aside = sets_all_aside
        self._in_a_row: list[RefusedNotice] = []

    def accepted(self, count: int, reached: AlarmPosition) -> None:
        self.sent += count
        self.position = reached
        self._settle()

    def refused(self, notice: RefusedNotice, reached: AlarmPosition) -> None:
        """Raises SinkRefusesAll after too many in a row."""
        self._in_a_row.append(notice)
        self.position = reached
        if self._sets_all_aside:
            self._settle()
        elif len(self._in_a_row) >= REFUSED_IN_A_ROW:
            raise SinkRefusesAll(notice.sink)

    def end(self) -> None:
        """Raises SinkRefusesAll when nothing was accepted after what was refused last."""
        if self._in_a_row:
            raise SinkRefusesAll(self._in_a_row[-1].sink)

    def _settle(self) -> None:
        self.reached = self.position
        self.set_aside += self._in_a_row
        self._in_a_row = []
