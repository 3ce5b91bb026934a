"""Everything that can go wrong, drawn as one tree, and the closed list of reasons an operator may see.

    DcsyncError
      TemporaryError             worth another try after a hold-off
        CloudError               a cloud (subcloud or centre) did not do its part; carries a Reason
        BrokerUnreachable        Redis does not answer
        DatabaseUnreachable      PostgreSQL does not answer
        WorkerStopping           this worker stops, and what it was doing is given back
        KeyRotationFailed        the centre's keys were not rotated, or nobody can tell whether they were
        LocalProcessFailed       a process of `dcsync up` did not start or did not stop
      PermanentError             another try gives the same answer; a person must look
        UnknownSubcloud  DuplicateSubcloud  BadAddress  BadRecord  BadReport  RefusedByGuard
        MisconfiguredError  SchemaOutOfDate

Expected endings of a run (busy, cancelled, superseded) are not here: they are outcomes, see `initial_sync.engine`.
No error carries a secret: messages are made from names, addresses, status codes and reasons only.
"""

from __future__ import annotations

from dcsync.model.reasons import Reason


class DcsyncError(Exception):
    """The root of the tree. Positional arguments are plain values, so that errors survive pickling and JSON."""


class TemporaryError(DcsyncError):
    """Worth another try, perhaps after a while."""


class PermanentError(DcsyncError):
    """Another try gives the same answer."""


class CloudError(TemporaryError):
    """A subcloud or the centre did not do its part.

    Raised by adapters with the cause chained. `detail` names host, verb, path and status, never a body.
    `retry_after` is how many seconds the cloud itself asked to be left alone, where it did (429, 503).
    """

    def __init__(self, reason: Reason, detail: str, retry_after: float | None = None) -> None:
        super().__init__(reason, detail, retry_after)
        self.reason = reason
        self.detail = detail
        self.retry_after = retry_after

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


class BrokerUnreachable(TemporaryError):
    """Redis does not answer, or refuses us."""


class DatabaseUnreachable(TemporaryError):
    """PostgreSQL does not answer, or refuses us."""


class WorkerStopping(TemporaryError):
    """This worker stops; what was running was cancelled and has ended."""


class KeyRotationFailed(TemporaryError):
    """The centre's keys were not rotated, or it cannot be told whether they were; no key is in the message."""


class LocalProcessFailed(TemporaryError):
    """A server or worker of `dcsync up` did not start in time, or would not stop; its last log ends the message."""


class UnknownSubcloud(PermanentError):
    """No subcloud has this name (or region name)."""


class DuplicateSubcloud(PermanentError):
    """A subcloud with this name or region name exists already; nothing was stored."""


class BadAddress(PermanentError):
    """A management IP that is malformed, or lies outside the allowed networks."""


class BadRecord(PermanentError):
    """Input from a person (a file, an argument) that cannot be used; the message names line and field."""


class BadReport(PermanentError):
    """A report to the state service that cannot be used; it is put aside with this reason and stops nothing else."""


class RefusedByGuard(PermanentError):
    """The request is understood and refused, because carrying it out would do harm or could not work now."""


class MisconfiguredError(PermanentError):
    """A setting is missing, unknown, malformed or contradicts another; the message lists all of them."""


class SchemaOutOfDate(MisconfiguredError):
    """The database lacks a table or column of this release: `dcsync db upgrade` was not run."""
