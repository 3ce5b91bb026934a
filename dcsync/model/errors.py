"""The tree of errors. Reasons shown to operators are in `reasons`.

    DcsyncError
      TemporaryError             worth another try after a hold-off
        CloudError               a request to a subcloud or the central cloud failed; carries a Reason
        BrokerUnreachable        Redis does not answer; QueueFull: it does, and nobody takes what is queued
        DatabaseUnreachable      PostgreSQL does not answer
          RowLocked              another session holds a lock on a row for too long
        WorkerStopping           this worker is stopping; its runs are returned to the queue
        KeyRotationFailed        the central cloud's keys were not rotated, or it is unknown whether they were
        LocalProcessFailed       a process of `dcsync up` did not start or did not stop
      PermanentError             a retry gives the same result; a person must act
        UnknownSubcloud  DuplicateSubcloud  BadAddress  BadRecord  BadReport  DamagedMessage  RefusedByGuard
        MisconfiguredError  SchemaOutOfDate

Expected endings of a run (busy, cancelled, superseded) are outcomes, not errors: see `runs.outcome`.
No error carries a secret: messages are made from names, addresses, status codes and reasons only.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Sequence
from typing import NamedTuple, Self

from dcsync.model.outside_text import LONGEST_DETAIL, cut
from dcsync.model.reasons import Reason

NAMED_AT_MOST = 50
"""Subclouds named by an error about a whole command; the others are counted."""


class DcsyncError(Exception):
    """The root of the tree. Positional arguments are plain values, so that errors survive pickling and JSON."""


class TemporaryError(DcsyncError):
    """A retry may succeed, perhaps after a while."""


class PermanentError(DcsyncError):
    """A retry gives the same result."""


class CloudError(TemporaryError):
    """A request to a subcloud or to the central cloud failed.

    Raised by adapters with the cause chained. `detail` names host, verb, path and status, never a body; it is cut.
    `retry_after` is the pause in seconds that the cloud requested, if it did (429, 503).
    """

    def __init__(self, reason: Reason, detail: str, retry_after: float | None = None) -> None:
        detail = cut(detail, at_most=LONGEST_DETAIL)
        super().__init__(reason, detail, retry_after)
        self.reason = reason
        self.detail = detail
        self.retry_after = retry_after

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


class BrokerUnreachable(TemporaryError):
    """Redis does not answer, or rejects the connection."""


class QueueFull(BrokerUnreachable):
    """Redis answers, but so many messages wait in a queue that no more are sent."""


class DatabaseUnreachable(TemporaryError):
    """PostgreSQL does not answer, or rejects the connection."""


class RowLocked(DatabaseUnreachable):
    """Another session holds a lock on a row for longer than statements wait; nothing was changed."""


class WorkerStopping(TemporaryError):
    """This worker is stopping; the running coroutine was cancelled and has ended."""


class KeyRotationFailed(TemporaryError):
    """The central cloud's keys were not rotated, or it is unknown whether they were; the message contains no key."""


class LocalProcessFailed(TemporaryError):
    """A server or worker of `dcsync up` did not start or stop in time; the message ends with its last log lines."""


class UnknownSubcloud(PermanentError):
    """No subcloud has these names, which are its arguments."""

    def __init__(self, *names: str) -> None:
        super().__init__(*names)

    def __str__(self) -> str:
        return f"there is no subcloud named {listed(self.args, at_most=10)}"


class DuplicateSubcloud(PermanentError):
    """A subcloud with this name or region name exists already, or is to be added twice; nothing was stored."""

    @classmethod
    def already_there(cls, names: Collection[str], region_names: Collection[str]) -> Self:
        return cls(f"already there: {_names_and_regions(names, region_names)}; nothing was stored")

    @classmethod
    def given_twice(cls, names: Collection[str], region_names: Collection[str]) -> Self:
        return cls(f"given more than once: {_names_and_regions(names, region_names)}; nothing was stored")


class BadAddress(PermanentError):
    """A management IP that is malformed, or lies outside the allowed networks."""


class BadRecord(PermanentError):
    """Input from a person (a file, an argument) that cannot be used; the message names line and field."""


class BadReport(PermanentError):
    """An invalid report to the state service; it is rejected with this reason, and other reports are applied."""


class DamagedMessage(PermanentError):
    """A message of the queue that no release of dcsync sends; it is dropped."""


class RefusedByGuard(PermanentError):
    """A valid request that is refused because carrying it out would do harm or cannot work now."""


class MisconfiguredError(PermanentError):
    """A setting is missing, unknown, malformed or contradicts another; the message lists all of them."""


class SchemaOutOfDate(MisconfiguredError):
    """The database lacks a table or column of this release: `dcsync db upgrade` was not run."""


class AddressClash(NamedTuple):
    """A subcloud whose management IP is that of another."""

    name: str
    management_ip: str
    other: str

    def __str__(self) -> str:
        return f"{self.name}: {self.management_ip} is the management IP of {self.other}"


def refuse_shared(found: Sequence[AddressClash]) -> RefusedByGuard:
    """Returns the error that names them."""
    return RefusedByGuard(f"{listed([str(each) for each in found])}; nothing was stored")


def refuse_unknown(names: Iterable[str], known: Container[str]) -> None:
    """Raises UnknownSubcloud with all of the names that are not known, each once and in the order given."""
    if missing := [name for name in dict.fromkeys(names) if name not in known]:
        raise UnknownSubcloud(*missing)


def listed(words: Sequence[str], *, at_most: int = NAMED_AT_MOST) -> str:
    """`a, b and 3 more`."""
    more = len(words) - at_most
    return ", ".join(words[:at_most]) + (f" and {more} more" if more > 0 else "")


def _names_and_regions(names: Collection[str], region_names: Collection[str]) -> str:
    """A region name that is a name as well is named once."""
    found = [f"name {name}" for name in sorted(names)]
    return listed(found + [f"region name {region}" for region in sorted(set(region_names) - set(names))])
