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

from enum import StrEnum


class Reason(StrEnum):
    """Why a run failed, as shown to operators. A closed list: tables, JSON and dashboards rely on the spelling."""

    UNREACHABLE = "unreachable"
    TIMEOUT = "timeout"
    TLS_FAILED = "tls-failed"
    AUTH_FAILED = "auth-failed"
    REFUSED = "refused"
    TOO_MANY_REQUESTS = "too-many-requests"
    SERVER_ERROR = "server-error"
    BAD_REPLY = "bad-reply"
    REPLY_TOO_LARGE = "reply-too-large"
    ADDRESS_REFUSED = "address-refused"
    SUBCLOUD_EMPTY = "subcloud-empty"
    IDS_NOT_ALIGNED = "ids-not-aligned"
    IDENTITY_NOT_VERIFIED = "identity-not-verified"
    KEYS_NOT_VERIFIED = "keys-not-verified"
    CENTRAL_UNREACHABLE = "central-unreachable"
    CENTRAL_AUTH_FAILED = "central-auth-failed"
    CENTRAL_BAD_REPLY = "central-bad-reply"
    CENTRAL_EMPTY = "central-empty"
    CENTRAL_KEYS_INVALID = "central-keys-invalid"
    GUARD_REFUSED = "guard-refused"
    NOT_CONVERGING = "not-converging"
    QUARANTINED = "quarantined"
    INTERNAL_ERROR = "internal-error"

    @property
    def needs_a_person(self) -> bool:
        """True where waiting alone is unlikely to help; the run is still retried, at its hold-off."""
        return self in _NEEDS_A_PERSON

    @property
    def advice(self) -> str:
        """One sentence that says what to do next."""
        return _ADVICE[self]


_NEEDS_A_PERSON = frozenset(
    {
        Reason.TLS_FAILED,
        Reason.AUTH_FAILED,
        Reason.REFUSED,
        Reason.ADDRESS_REFUSED,
        Reason.SUBCLOUD_EMPTY,
        Reason.IDS_NOT_ALIGNED,
        Reason.CENTRAL_AUTH_FAILED,
        Reason.CENTRAL_EMPTY,
        Reason.CENTRAL_KEYS_INVALID,
        Reason.GUARD_REFUSED,
        Reason.NOT_CONVERGING,
        Reason.QUARANTINED,
        Reason.INTERNAL_ERROR,
    }
)

_ADVICE = {
    Reason.UNREACHABLE: "check the management network and that the subcloud's services are up",
    Reason.TIMEOUT: "the subcloud accepts connections but is too slow to answer; look at its load",
    Reason.TLS_FAILED: "check the subcloud's certificate and DCSYNC_CA_FILE",
    Reason.AUTH_FAILED: "check DCSYNC_USERNAME and its password on the subcloud",
    Reason.REFUSED: "the subcloud refused a request as wrong or forbidden; see its dcdbsync and sysinv logs",
    Reason.TOO_MANY_REQUESTS: "the subcloud asked to be left alone for a while; it is tried again when it said",
    Reason.SERVER_ERROR: "see the subcloud's own logs for the request id req-<run id>",
    Reason.BAD_REPLY: "something other than the expected service answers at this address",
    Reason.REPLY_TOO_LARGE: "something other than the expected service answers at this address",
    Reason.ADDRESS_REFUSED: "correct the management IP or DCSYNC_ALLOWED_NETWORKS",
    Reason.SUBCLOUD_EMPTY: "the subcloud lists no users, projects or roles; check its Keystone database",
    Reason.IDS_NOT_ALIGNED: "redeploy or align the service users' and projects' ids on the subcloud first",
    Reason.IDENTITY_NOT_VERIFIED: "the subcloud did not store what it was sent; see its dcdbsync log",
    Reason.KEYS_NOT_VERIFIED: "the subcloud did not take the keys; see its sysinv log",
    Reason.CENTRAL_UNREACHABLE: "check that the central Keystone, dcdbsync and sysinv are up",
    Reason.CENTRAL_AUTH_FAILED: "check DCSYNC_USERNAME, its password and DCSYNC_CENTRAL_AUTH_URL",
    Reason.CENTRAL_BAD_REPLY: "check DCSYNC_CENTRAL_*_URL: something else answers there",
    Reason.CENTRAL_EMPTY: "the centre lists no users, projects, roles or keys; nothing is sent until it does",
    Reason.CENTRAL_KEYS_INVALID: "check the central fernet repository: a key is not 32 bytes of url-safe base64",
    Reason.GUARD_REFUSED: "look at what would be lost with `dcsync diff`; if it is meant, audit with --allow-deletes",
    Reason.NOT_CONVERGING: "three repairs did not last; look at the named fields on the subcloud",
    Reason.QUARANTINED: "its runs ended with the worker's death three times; look at the worker's log",
    Reason.INTERNAL_ERROR: "a fault in dcsync: please report it with the worker's log",
}


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
