"""The watchman: sees every write to every subcloud and counts what must never happen.

A run is identified by its X-Openstack-Request-Id; writes without one (a tester's own) are never
violations, except for an empty set of keys. Which writes are seen when: `begins` as a request arrives, `ends` as it is
answered.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from dcsync.fake_cloud.wire import Request

KEYS_BEFORE_IDENTITY = "keys-before-identity"
OVERLAPPING_RUNS = "overlapping-runs"
WRITE_AFTER_COMPLETION = "write-after-completion"
KEYS_RESET = "keys-reset"
SITE_RECORD_WRITTEN = "site-record-written"
WRONGLY_DELETED = "wrongly-deleted"

_REMEMBERED_RUNS = 16
_REMEMBERED_REQUESTS = 20
_DESCRIBED = 200


@dataclass(frozen=True, slots=True)
class Violation:
    """Something that must never happen, seen to happen."""

    at: float
    region_name: str
    kind: str
    request_id: str | None
    what: str


@dataclass(slots=True)
class Ledger:
    """What was seen at one cloud. Runs are remembered in the order of their first write, the newest few only."""

    runs: dict[str, bool] = field(default_factory=dict)
    """request id -> has it read back the central keys after it had delivered them, and not begun an audit since?"""
    delivered: set[str] = field(default_factory=set)
    """runs that have delivered keys"""
    last_writer: str | None = None
    in_flight: Counter[str] = field(default_factory=Counter)
    requests: Counter[str] = field(default_factory=Counter)
    carried_out: Counter[str] = field(default_factory=Counter)
    """writes that were answered with success"""
    recent: deque[tuple[float, str, str, str | None, int]] = field(
        default_factory=lambda: deque(maxlen=_REMEMBERED_REQUESTS)
    )


class Watchman:
    """Counts per kind, describes the first few hundred."""

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self.counts: Counter[str] = Counter()
        self.per_region: dict[str, Counter[str]] = {}
        self.described: list[Violation] = []

    def begins(self, ledger: Ledger, *, region_name: str, request_id: str | None) -> None:
        """A write arrives: is another run writing here, at this moment or in between?"""
        if request_id is None:
            return
        others = [run for run, count in ledger.in_flight.items() if count and run != request_id]
        if others:
            self.saw(region_name, OVERLAPPING_RUNS, request_id, f"while a write of {others[0]} was in flight")
        elif ledger.runs.get(request_id):
            self.saw(region_name, WRITE_AFTER_COMPLETION, request_id, "a write after it had verified the keys")
        elif request_id in ledger.runs and ledger.last_writer != request_id:
            self.saw(region_name, OVERLAPPING_RUNS, request_id, f"went on after {ledger.last_writer} had begun")
        ledger.in_flight[request_id] += 1
        ledger.runs.setdefault(request_id, False)
        ledger.last_writer = request_id
        while len(ledger.runs) > _REMEMBERED_RUNS:
            forgotten = next(iter(ledger.runs))
            del ledger.runs[forgotten]
            ledger.delivered.discard(forgotten)

    def ends(self, ledger: Ledger, *, request_id: str | None) -> None:
        """The write was answered, or never will be."""
        if request_id is not None:
            ledger.in_flight[request_id] -= 1
            if ledger.in_flight[request_id] <= 0:
                del ledger.in_flight[request_id]

    def delivered_keys(self, ledger: Ledger, *, region_name: str, request_id: str | None, in_order: bool) -> None:
        """Keys were replaced; `in_order`: all ids were the central ones by then."""
        if request_id is None:
            return
        if not in_order:
            self.saw(region_name, KEYS_BEFORE_IDENTITY, request_id, "keys replaced while ids still differ")
        ledger.delivered.add(request_id)

    def read_keys(self, ledger: Ledger, *, request_id: str | None, are_central: bool) -> None:
        """Keys were read; after its own delivery this completes a run."""
        if request_id is not None and are_central and request_id in ledger.delivered:
            ledger.runs[request_id] = True

    def began_audit(self, ledger: Ledger, *, request_id: str | None) -> None:
        """Grants were read, as only an audit does: a run may go on with one, and write what it finds."""
        if request_id is not None and ledger.runs.get(request_id):
            ledger.runs[request_id] = False

    def saw(self, region_name: str, kind: str, request_id: str | None, what: str) -> None:
        """Takes down one violation."""
        self.counts[kind] += 1
        self.per_region.setdefault(region_name, Counter())[kind] += 1
        if len(self.described) < _DESCRIBED:
            self.described.append(Violation(self._clock(), region_name, kind, request_id, what))

    def log(self, ledger: Ledger, *, request: Request, status: int) -> None:
        """Takes down one request that was answered (status 0: one that was not)."""
        what = f"{request.verb} {request.subject}"
        ledger.requests[what] += 1
        if request.is_write and 200 <= status < 300:
            ledger.carried_out[what] += 1
        ledger.recent.append((self._clock(), request.verb, request.path, request.request_id, status))

    def violations(self, region_name: str | None = None) -> dict[str, int]:
        """Kind -> count, of one subcloud or of all."""
        return dict(self.counts if region_name is None else self.per_region.get(region_name, Counter()))

    def descriptions(self, region_name: str | None = None) -> list[dict[str, Any]]:
        """The described violations as plain values, of one subcloud or of all."""
        chosen = (item for item in self.described if region_name in (None, item.region_name))
        return [asdict(item) for item in chosen]
