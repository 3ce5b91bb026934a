"""How dcsync and other programs report to the state service: `CeleryReports` sends, `StateReporter` coalesces.

A message costs a hundred times as much as a row (docs/upstream/platform-facts.md section 4), so the reports of a
process within a short window are sent as one message. Observers report again in their next round: reports that cannot
be sent are dropped and logged, and the caller never waits.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Protocol

import redis
import structlog
from celery import Celery
from kombu.exceptions import KombuError, OperationalError
from redis.exceptions import RedisError

from dcsync.adapters.broker.redis_client import make_client, translated_errors
from dcsync.model.errors import BrokerUnreachable, QueueFull
from dcsync.model.messages import PAYLOAD_VERSION, QUEUE_OF, Queue, TaskName
from dcsync.model.report_payloads import report_payload, signature_of
from dcsync.model.reports import AvailabilityReport, EndpointReport, EndpointTypesReport, Mark, Report, bulk_report
from dcsync.model.subcloud import AvailabilityStatus, EndpointType, SyncStatus

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(__name__)

MESSAGE_REPORTS = 500
"""The most reports in one message: about 100 kB, and one transaction of a few hundred milliseconds at most."""

MOST_WAITING = 2_000
"""The most messages in the queue `state`; further ones are not sent. Without a state worker 20,000 subclouds add 5 MB
every 30 s, and a full Redis rejects sweeps as well. Two state workers process this many within a few minutes."""

_RETRIES = {"max_retries": 2, "interval_start": 0, "interval_step": 0.3, "interval_max": 1}


class Reports(Protocol):
    """Sends reports, or raises BrokerUnreachable."""

    def send(self, reports: Sequence[Report]) -> None: ...


class CeleryReports:
    """Reports as messages on the `state` queue, signed with the first of `keys` if there is one; thread-safe."""

    def __init__(
        self, app: Celery, client: redis.Redis | None = None, *, keys: Callable[[], Sequence[bytes]] = tuple
    ) -> None:
        self._app = app
        self._keys = keys
        self._client = client or make_client(str(app.conf.broker_url))

    def send(self, reports: Sequence[Report]) -> None:
        """Raises BrokerUnreachable when some reports may not have been sent; sending all of them again is harmless."""
        for start in range(0, len(reports), MESSAGE_REPORTS):
            self._refuse_when_full()
            self._send_message(reports[start : start + MESSAGE_REPORTS])

    @translated_errors
    def _refuse_when_full(self) -> None:
        waiting = self._client.llen(Queue.STATE.value)
        if waiting >= MOST_WAITING:
            raise QueueFull(f"{waiting} messages in the queue state: check that a state worker is running")

    def _send_message(self, reports: Sequence[Report]) -> None:
        updates = [report_payload(report) for report in reports]
        payload = {"version": PAYLOAD_VERSION, "updates": updates}
        if keys := self._keys():
            payload["signature"] = signature_of(updates, keys[0])
        task = TaskName.STATE_UPDATES
        try:
            self._app.send_task(
                task.value,
                kwargs=payload,
                queue=QUEUE_OF[task].value,
                retry=True,
                retry_policy=_RETRIES,
                # Shown in Flower instead of the arguments, which are several hundred reports.
                kwargsrepr=f"{{{len(reports)} reports}}",
            )
        except (OperationalError, KombuError, RedisError, OSError) as exc:
            raise BrokerUnreachable(f"the reports were not sent: {type(exc).__name__}") from exc


class Observer:
    """Creates the reports of one observer, with time and sequence number; thread-safe. `now` is the database time."""

    def __init__(self, now: Callable[[], datetime]) -> None:
        self._now = now
        self._sequence = itertools.count(1)

    def mark(self) -> Mark:
        return Mark(self._now(), next(self._sequence))

    def availability(
        self, region_name: str, status: AvailabilityStatus, *, fail_count: int | None = None
    ) -> AvailabilityReport:
        """Returns the report that the subcloud is online or offline now."""
        return AvailabilityReport(
            region_name=region_name, mark=self.mark(), availability_status=status, fail_count=fail_count
        )

    def fail_count(self, region_name: str, fail_count: int) -> AvailabilityReport:
        """Returns the report of how many probes failed in a row; it does not change the availability."""
        return AvailabilityReport(region_name=region_name, mark=self.mark(), fail_count=fail_count)

    def state_only(self, region_name: str) -> AvailabilityReport:
        """Returns the report that makes the state service update the subcloud's alarms from its row."""
        return AvailabilityReport(region_name=region_name, mark=self.mark(), state_only=True)

    def endpoint(
        self,
        region_name: str,
        endpoint_type: EndpointType,
        status: SyncStatus,
        *,
        alarmable: bool = True,
        reason: str | None = None,
        observed_at: datetime | None = None,
    ) -> EndpointReport:
        """Returns the report of one endpoint type of one subcloud."""
        return EndpointReport(
            region_name=region_name,
            mark=self.mark() if observed_at is None else Mark(observed_at, 0),
            endpoint_type=endpoint_type,
            sync_status=status,
            alarmable=alarmable,
            reason=reason,
        )

    def all_endpoints(
        self, region_name: str, status: SyncStatus, *, ignored: frozenset[EndpointType] = frozenset()
    ) -> EndpointReport:
        """Returns the report of all endpoint types of one subcloud except the ignored ones."""
        return EndpointReport(region_name=region_name, mark=self.mark(), sync_status=status, ignored=ignored)

    def all_subclouds(self, endpoint_type: EndpointType | None, status: SyncStatus) -> EndpointReport:
        """Returns the report of this endpoint type (None: all) of every subcloud."""
        return EndpointReport(region_name=None, mark=self.mark(), endpoint_type=endpoint_type, sync_status=status)

    def bulk(
        self,
        region_name: str,
        endpoints: Mapping[EndpointType, SyncStatus],
        *,
        status: AvailabilityStatus | None = None,
        fail_count: int | None = None,
    ) -> Report:
        """Returns the report of several facts observed at the same time about one subcloud."""
        return bulk_report(
            region_name=region_name,
            mark=self.mark(),
            endpoints=endpoints,
            availability_status=status,
            fail_count=fail_count,
        )

    def endpoint_types(
        self, region_name: str, endpoint_types: frozenset[EndpointType], *, present: bool
    ) -> EndpointTypesReport:
        """Returns the report that the subcloud now has, or no longer has, these endpoint types."""
        return EndpointTypesReport(
            region_name=region_name, mark=self.mark(), endpoint_types=endpoint_types, present=present
        )


class StateReporter:
    """Accepts reports from any thread and sends them in the background, coalesced into few messages.

    The thread starts with the first report, so a reporter created before a fork may be used after it. Sending is
    retried up to `attempts` times, then the reports are dropped; above `max_pending` the oldest are dropped.
    """

    def __init__(
        self,
        reports: Reports,
        *,
        window_seconds: float = 0.05,
        message_reports: int = MESSAGE_REPORTS,
        max_pending: int = 100_000,
        attempts: int = 5,
        hold_off_seconds: float = 1.0,
    ) -> None:
        self._reports = reports
        self._window = window_seconds
        self._message_reports = message_reports
        self._max_pending = max_pending
        self._attempts = attempts
        self._hold_off = hold_off_seconds
        self._pending: deque[Report] = deque()
        self._changed = threading.Condition()
        self._flushing = False
        self._closing = False
        self._sending = False
        self._thread: threading.Thread | None = None
        self.dropped = 0
        """The number of reports dropped since the start."""

    def report(self, report: Report) -> None:
        """Returns immediately; the report is sent with others within the window."""
        with self._changed:
            self._pending.append(report)
            if self._closing:
                return self._drop(1, "closed")
            if self._thread is None:
                self._start()
            if len(self._pending) > self._max_pending:
                self._drop(len(self._pending) - self._max_pending, "too many pending")
            if len(self._pending) == 1 or len(self._pending) == self._message_reports:
                self._changed.notify_all()
            return None

    def flush(self, *, timeout_seconds: float = 10.0) -> bool:
        """Sends pending reports without waiting for the window; returns True when none is left (sent or dropped)."""
        with self._changed:
            self._flushing = True
            self._changed.notify_all()
            return self._changed.wait_for(self._is_idle, timeout=timeout_seconds)

    def close(self, *, timeout_seconds: float = 10.0) -> bool:
        """Flushes, ends the thread and drops what is still pending; later reports are dropped and logged."""
        done = self.flush(timeout_seconds=timeout_seconds)
        with self._changed:
            self._closing = True
            self._drop(len(self._pending), "closed")
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join(timeout=timeout_seconds)
        return done

    def _is_idle(self) -> bool:
        return not self._pending and not self._sending

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="state-reporter", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        for reports in self._messages():
            self._send(reports)
            with self._changed:
                self._sending = False
                self._changed.notify_all()

    def _messages(self) -> Iterator[list[Report]]:
        """Yields one list per message until the reporter is closed."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pending or self._closing)
                if not self._closing:
                    self._changed.wait_for(self._is_due, timeout=self._window)
                if not self._pending:
                    if self._closing:
                        return
                    continue
                count = min(len(self._pending), self._message_reports)
                reports = [self._pending.popleft() for _ in range(count)]
                self._sending = True
                self._flushing = self._flushing and bool(self._pending)
            yield reports

    def _is_due(self) -> bool:
        return self._flushing or self._closing or len(self._pending) >= self._message_reports

    def _send(self, reports: list[Report]) -> None:
        """Sends the reports, with a pause between retries that close() ends early."""
        why = ""
        for attempt in range(1, self._attempts + 1):
            try:
                return self._reports.send(reports)
            except BrokerUnreachable as error:
                why = str(error)
                log.warning("reports not sent", reports=len(reports), attempt=attempt, error=why)
            except Exception:  # noqa: BLE001 - an invalid report of another program must not end the thread
                return self._send_halves(reports)
            with self._changed:
                if self._changed.wait_for(lambda: self._closing, timeout=self._hold_off * attempt):
                    break
        self.dropped += len(reports)
        log.error("reports dropped", reports=len(reports), why=why)
        return None

    def _send_halves(self, reports: list[Report]) -> None:
        """Sends the reports in halves until the one that cannot be encoded is found, and drops only that one."""
        if len(reports) > 1:
            middle = len(reports) // 2
            self._send(reports[:middle])
            self._send(reports[middle:])
            return
        self.dropped += 1
        log.exception("reports dropped", reports=1, why="it cannot be sent")

    def _drop(self, count: int, why: str) -> None:
        for _ in range(count):
            self._pending.popleft()
        if count:
            self.dropped += count
            log.error("reports dropped", reports=count, why=why)
