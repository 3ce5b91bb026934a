"""The closed list of reasons an operator may see, each with what to do about it."""

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
        """Whether waiting alone is unlikely to help; the run is retried after its hold-off all the same."""
        return self in _NEEDS_A_PERSON

    @property
    def advice(self) -> str:
        """What the operator should do next, in one sentence."""
        return _ADVICE.get(self, "a reason of another release of dcsync: see its documentation, or upgrade this one")


class Unproven(StrEnum):
    """Why a status is shown as `unknown` where no run failed with a reason of its own."""

    ASKED = "asked"
    IN_PROGRESS = "in-progress"
    NOT_COMPLETED = "not-completed"
    OFFLINE = "offline"
    UNMANAGED = "unmanaged"
    STALE = "stale"
    NOT_VERIFIED = "not-verified"
    """Not since something made it unknown, for example an outage."""
    NEVER_VERIFIED = "never-verified"


def known_reason(word: str | None) -> str | None:
    """Returns the member of `Reason` or `Unproven` that a row names, and a word of another release as it is."""
    for words in (Reason, Unproven):
        if word in set(words):
            return words(word)
    return word


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
    Reason.AUTH_FAILED: "check DCSYNC_USERNAME and its password on the subcloud (`dcsync login list`); "
    "after a change of the password set DCSYNC_PREVIOUS_PASSWORD",
    Reason.REFUSED: "the subcloud rejected a request as invalid or forbidden; see its dcdbsync and sysinv logs",
    Reason.TOO_MANY_REQUESTS: "the subcloud is rate limiting; the next attempt is made after the pause it requested",
    Reason.SERVER_ERROR: "see the subcloud's own logs for the request id req-<run id>",
    Reason.BAD_REPLY: "the reply is not from the expected service; check what listens at this address",
    Reason.REPLY_TOO_LARGE: "the replies exceed DCSYNC_MAX_REPLY_* or _RUN_*; check what listens at this address",
    Reason.ADDRESS_REFUSED: "correct the management IP (dcsync subcloud update) or DCSYNC_ALLOWED_NETWORKS",
    Reason.SUBCLOUD_EMPTY: "the subcloud lists no users, projects or roles; check its Keystone database",
    Reason.IDS_NOT_ALIGNED: "redeploy or align the service users' and projects' ids on the subcloud first",
    Reason.IDENTITY_NOT_VERIFIED: "the subcloud did not store what it was sent; see its dcdbsync log",
    Reason.KEYS_NOT_VERIFIED: "the subcloud did not store the keys it was sent; see its sysinv log",
    Reason.CENTRAL_UNREACHABLE: "check that the central Keystone, dcdbsync and sysinv are up",
    Reason.CENTRAL_AUTH_FAILED: "check DCSYNC_USERNAME, its password and DCSYNC_CENTRAL_AUTH_URL; `dcsync login list` "
    "shows when it is tried again",
    Reason.CENTRAL_BAD_REPLY: "check DCSYNC_CENTRAL_*_URL: the reply is not from the expected service",
    Reason.CENTRAL_EMPTY: "the central cloud lists no users, projects, roles or keys; nothing is sent until it does",
    Reason.CENTRAL_KEYS_INVALID: "check the central fernet repository: a key is not 32 bytes of url-safe base64",
    Reason.GUARD_REFUSED: "the detail names what would do harm; review it with `dcsync diff`, and audit with "
    "--allow-deletes if deletions are intended",
    Reason.NOT_CONVERGING: "the same difference returned after three repairs; check the named fields on the subcloud",
    Reason.QUARANTINED: "the worker died three times while running it; see the worker's log",
    Reason.INTERNAL_ERROR: "a fault in dcsync: report it with the worker's log",
}
