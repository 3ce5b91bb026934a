"""What can be wrong with a cloud: one frozen value per fault, and the list of those in force at one cloud.

How a broken answer looks on the wire is `connection.py`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

BEFORE = frozenset(
    {
        "refuse", "hang", "reset", "status", "unauthorized", "wrong-password", "garbage", "html", "wrong-shape",
        "empty-list", "endless", "swallow", "partial-keys",
    }
)  # fmt: skip
"""Kinds that keep the request from being carried out (partial-keys: from being carried out whole)."""
AFTER = frozenset({"hang-mid-body", "truncated", "lost-answer", "drip"})
"""Kinds that spoil the answer of a request that was carried out."""
KINDS = BEFORE | AFTER | {"latency"}
DRIP_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Fault:
    """One way of going wrong, and for which requests.

    latency         answers after `seconds`
    refuse          nobody listens; open connections are cut (all services of the cloud at once, filters do not count)
    hang            takes the request and never answers
    reset           cuts the connection instead of answering
    status          answers `status`; with `retry_after` seconds in a header
    unauthorized    401 although the token is good (times=1: once; times=None: always)
    wrong-password  logins are refused
    garbage         bytes that are no HTTP
    html            200 with a web page
    wrong-shape     the right status with JSON of another shape
    empty-list      200 with `[]`, for fernet_repo `{"keys": []}`
    endless         an answer that does not end
    swallow         writes are answered as if done, and are not done
    partial-keys    of the keys sent only the first half is stored, then 500
    hang-mid-body, truncated, drip   the answer stops midway, is cut midway, comes a byte every `seconds`
    lost-answer     the request is carried out, the connection cut
    """

    kind: str
    service: str | None = None
    """keystone, dbsync or sysinv; None = any"""
    verb: str | None = None
    """GET, PUT, ...; "write" = any that changes the cloud; None = any"""
    path: str = ""
    """what the path begins with"""
    skip: int = 0
    """so many matching requests pass first: skip=k-1, times=1 fails the k-th"""
    every: int = 1
    """of the matching requests only each so-manieth: 2 = half of them"""
    times: int | None = None
    """applied so often, then never again; None = always"""
    status: int = 500
    retry_after: int | None = None
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown kind of fault {self.kind}; there are: {', '.join(sorted(KINDS))}")

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def concerns(self, *, service: str, verb: str, path: str, is_write: bool) -> bool:
        """Is this a request the fault is about?"""
        if self.kind == "wrong-password" and not (verb == "POST" and path.startswith("/v3/auth/tokens")):
            return False
        if self.kind in ("swallow", "partial-keys") and not is_write:
            return False
        if self.kind == "partial-keys" and service != "sysinv":
            return False
        if self.service not in (None, service) or not path.startswith(self.path):
            return False
        return self.verb is None or self.verb == verb or (self.verb == "write" and is_write)


class Faults:
    """The faults in force at one cloud, with their counts."""

    __slots__ = ("_counts", "_faults")

    def __init__(self, faults: tuple[Fault, ...] = ()) -> None:
        self._faults = faults
        self._counts = [0] * len(faults)

    def __bool__(self) -> bool:
        return bool(self._faults)

    @property
    def refuses(self) -> bool:
        return any(fault.kind == "refuse" for fault in self._faults)

    def pick(self, *, service: str, verb: str, path: str, is_write: bool) -> tuple[float, Fault | None]:
        """(seconds of latency, the first other fault that applies) for this request, which is counted."""
        latency, chosen = 0.0, None
        for index, fault in enumerate(self._faults):
            if chosen is not None and fault.kind != "latency":
                continue
            if fault.concerns(service=service, verb=verb, path=path, is_write=is_write) and self._is_turn_of(index):
                if fault.kind == "latency":
                    latency += fault.seconds
                else:
                    chosen = fault
        return latency, chosen

    def _is_turn_of(self, index: int) -> bool:
        fault = self._faults[index]
        self._counts[index] += 1
        after_skipped = self._counts[index] - fault.skip
        if after_skipped <= 0 or after_skipped % fault.every:
            return False
        return fault.times is None or after_skipped // fault.every <= fault.times
