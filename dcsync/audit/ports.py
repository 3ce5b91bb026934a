"""Ports of audits and of the central watch. Store calls block and raise `DatabaseUnreachable`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol, TypedDict

from dcsync.model.ending import Failure
from dcsync.model.history import AuditHistory
from dcsync.model.identity import Placed
from dcsync.model.messages import AuditHint
from dcsync.model.reasons import Reason
from dcsync.model.states.audit import AuditEvent, AuditStatus
from dcsync.model.subcloud import EndpointType, Subcloud, SyncStatus
from dcsync.runs.abandoned import ANY_DEATHS
from dcsync.runs.dispatch import DueRows


@dataclass(frozen=True, kw_only=True)
class AuditPart:
    """One endpoint type of a run: what was requested, and what earlier runs found."""

    endpoint_type: EndpointType
    generation: int
    attempt: int = 1
    difference: str | None = None
    """A digest of the differences the last comparison found; None if there were none."""
    difference_repairs: int = 0
    """How often exactly this difference was repaired in a row."""
    deletes_allowed: bool = False
    resource_types: frozenset[str] | None = None
    """Only these are repaired (None: all); everything is compared."""
    requested_at: datetime | None = None
    """When a central change or a person requested it; central data read earlier must not be used."""
    failing_since: datetime | None = None
    """The first of the failures in a row before this run; None if the last audit did not fail."""
    failures: int = 0
    """How many failures in a row."""


@dataclass(frozen=True, kw_only=True)
class AuditRun:
    """A claimed audit of one subcloud: the endpoint types that are due, and what their comparison needs."""

    run_id: str
    subcloud: Subcloud
    parts: tuple[AuditPart, ...]
    placed: Placed
    groups_to_refill: Mapping[str, tuple[str, ...]]
    central_counts: Mapping[str, int]
    """Lengths of the central lists when the watch last accepted them; empty before that."""
    keys_planned_until: datetime | None = None
    """Until this time, differing keys are expected because of a rotation."""


SETTLED = frozenset({Reason.GUARD_REFUSED, Reason.NOT_CONVERGING})
"""Failures that end a request without a hold-off: the next audit is due at the usual time, or when one is requested.
After any other failure the audit backs off."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one run found for one endpoint type, as stored in its row."""

    endpoint_type: EndpointType
    generation: int
    result: SyncStatus | None
    """The status after the run; None when no comparison was completed."""
    reported: SyncStatus | None
    """The status to report to the state service; None keeps the last report."""
    observed_at: datetime | None = None
    """When what is reported was observed: the reading that was compared began then. None: at the end of the run."""
    is_observed: bool
    """Whether the request is finished, as far as the guards allow."""
    differences: tuple[str, ...] = ()
    difference: str | None = None
    difference_repairs: int = 0
    repaired: bool = False
    failure: Failure | None = None
    due_at: datetime
    keys_fingerprint: str | None = None
    """Fingerprint of the keys the subcloud was last seen to hold in this run; None if they were not read."""
    written: tuple[str, ...] = ()
    """Writes that were carried out, in words."""
    not_written: tuple[str, ...] = ()
    """Writes that were planned and not carried out."""


class AuditChanges(TypedDict, total=False):
    """New values of a row; absent ones stay unchanged. Named as in AuditRow."""

    attempt: int
    abandoned: int
    failing_since: datetime | None
    failures: int
    reason: Reason | None
    detail: str
    due_at: datetime
    result: SyncStatus
    reported: SyncStatus
    reported_at: datetime
    last_audit_time: datetime
    last_good_at: datetime
    difference: str | None
    differences: tuple[str, ...]
    difference_at: datetime
    difference_repairs: int
    repaired_at: datetime
    observed_generation: int
    deletes_allowed: bool
    resource_types: None
    keys_fingerprint: str


@dataclass(frozen=True, kw_only=True)
class Settlement:
    """What the end of a run writes to one of its rows, see `dcsync.audit.settlement`."""

    run: AuditRun
    endpoint_type: EndpointType
    event: AuditEvent
    generation: int
    """The generation when the run started; a row with a greater one was requested again during the run."""
    always: AuditChanges
    unless_requested: AuditChanges
    """Written if no audit was requested during the run."""
    if_requested: AuditChanges
    """Written if one was."""
    history: AuditHistory | None = None
    """What the subcloud's history keeps; None for an audit that found no difference."""


@dataclass(frozen=True, kw_only=True)
class AuditRow:
    """The audit status of one endpoint type of one subcloud, for operators."""

    name: str
    region_name: str
    endpoint_type: EndpointType
    is_eligible: bool
    generation: int
    observed_generation: int
    requested_at: datetime | None
    requested_by: str
    audit_status: AuditStatus
    due_at: datetime
    claimed_at: datetime | None
    attempt: int
    reason: Reason | None
    detail: str
    result: SyncStatus | None
    reported: SyncStatus | None
    last_audit_time: datetime | None
    last_good_at: datetime | None
    differences: tuple[str, ...]
    """The latest differences found: names and fields, no values."""
    difference_at: datetime | None
    difference_repairs: int
    repaired_at: datetime | None


@dataclass(frozen=True, kw_only=True)
class LostReport:
    """A result that an audit reported and the state service never applied."""

    region_name: str
    endpoint_type: EndpointType
    sync_status: SyncStatus
    reason: str | None
    reported_at: datetime
    keys_planned_until: datetime | None
    """As in AuditRun."""


@dataclass(frozen=True, kw_only=True)
class CentralState:
    """The central data of one endpoint type as the watch last accepted it."""

    endpoint_type: EndpointType
    fingerprint: str
    events_fingerprint: str
    """Fingerprint of the revocation events, which change more often than the rest."""
    counts: Mapping[str, int]
    generation: int = 0
    changed_at: datetime | None = None
    refused: str | None = None
    refused_since: datetime | None = None
    shrink_allowed: bool = False


class DueAudits(DueRows[AuditHint], Protocol):
    """Rows for the sweep, one per (subcloud, endpoint type). Eligible means managed, online and completed.

    A run whose rows differ in `deaths` appears in `in_progress_since_before` once per value.
    """

    def lost_reports(self, *, since: datetime | None, before: datetime, now: datetime) -> list[LostReport]:
        """Returns what audits that settled between `since` (None: ever) and `before` reported, where the subcloud is
        eligible and its status row shows nothing observed since. What it observed after `now` is void."""

    def void_deadlines(self, *, now: datetime, longest: timedelta) -> int:
        """Makes audits due that are further away than `longest`, the longest time between two audits; returns how
        many."""

    def take_follow_ups(self, *, now: datetime) -> int:
        """Makes rows due for the audits that the state service requested; returns the number of requests."""

    def dispatch(
        self, *, room: int, lost: Collection[AuditHint], now: datetime, deaths: range = ANY_DEATHS
    ) -> list[AuditHint]:
        """Marks up to `room` due rows with so many `deaths` as dispatched, longest due first: those never sent, and
        those whose hint is `lost`. Returns one hint per subcloud."""


class CentralStates(Protocol):
    """The central data as the watch last accepted it, and the audit rows that a change makes due."""

    def central_state(self, endpoint_type: EndpointType) -> CentralState | None:
        """Returns what was last accepted; None before the first comparison."""

    def add_rows(self, endpoint_type: EndpointType, *, now: datetime) -> int:
        """Adds a row of this audited type for each subcloud that has none; returns the number added."""

    def raise_generation(self, endpoint_type: EndpointType, *, now: datetime, by: str) -> int:
        """Makes every row of that type due without restrictions, unless it backs off after a failure that is not in
        SETTLED; returns the number of rows."""

    def accept_central(
        self, state: CentralState, *, old: CentralState | None, now: datetime, unless_rotating: bool = False
    ) -> int | None:
        """Stores `state` if `old` is still stored (with `unless_rotating`: and no key rotation is in progress); unless
        `old` is None, raises the generation of every row of its type in the same transaction. Returns the number of
        rows, None if another process was faster."""

    def refuse_central(self, endpoint_type: EndpointType, *, why: str, now: datetime) -> None:
        """Records that the watch refused what it read; what was accepted stays stored."""

    def note_central_check(self, *, unreadable: str | None, now: datetime) -> None:
        """Records a try to read the central cloud, and why it could not be read; None if it could. Also before
        anything was ever accepted; the time since when it is unreadable is kept until it is readable again."""

    def confirm_central(self, endpoint_type: EndpointType, *, now: datetime) -> None:
        """Records that the watch found no change. Also ends an operator's permission to shrink, which was given for the
        central data of that time."""


class AuditStore(Protocol):
    """Rows for runs. Every write of a run is conditional on its run id."""

    def claim(self, regions: Mapping[str, str], *, now: datetime) -> list[AuditRun]:
        """Claims what is due of each eligible subcloud (run id -> region name); others are left out."""

    def read_run(self, name: str) -> AuditRun:
        """Returns a run of all endpoint types without claiming it, for a preview. Raises UnknownSubcloud."""

    def remember_placed(self, run: AuditRun, placed: Placed) -> bool:
        """Stores what dcsync placed on the subcloud; False when the run no longer owns its rows."""

    def remember_groups(self, run: AuditRun, groups: Mapping[str, tuple[str, ...]]) -> bool:
        """As RunStore.remember_groups."""

    def settle(self, settlements: Sequence[Settlement]) -> set[str]:
        """Ends runs and stores what they found in the rows they still own. Returns the ids of the runs that still owned
        all their rows."""

    def release(self, run: AuditRun, *, now: datetime) -> bool:
        """Ends the run without a finding: its rows are due again as if it had not run."""


class AuditReports(Protocol):
    """Reports audit results to the state service; never raises and never blocks."""

    def __call__(
        self,
        region_name: str,
        endpoint_type: EndpointType,
        status: SyncStatus,
        *,
        alarmable: bool,
        reason: str | None = None,
        observed_at: datetime | None = None,
    ) -> None:
        """`reason`: why it is unknown. `observed_at`: when that was seen, by default now."""


class AuditMessenger(Protocol):
    """Sends hints on the `audit` queue. One that cannot be sent raises BrokerUnreachable; the sweep sends it again."""

    def send_audits(self, hints: Sequence[AuditHint]) -> None:
        """Sends the hints in one pipelined batch."""

    def waiting_audit_ids(self) -> set[str]:
        """Returns the task ids of messages that no worker has received yet."""
