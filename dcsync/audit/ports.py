"""What audits and the central watch ask of the world. Store calls block and raise `DatabaseUnreachable`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol, TypedDict

from dcsync.model.ending import Failure
from dcsync.model.identity import Placed
from dcsync.model.messages import AuditHint
from dcsync.model.reasons import Reason
from dcsync.model.states.audit import AuditEvent, AuditStatus
from dcsync.model.subcloud import EndpointType, Subcloud, SyncStatus
from dcsync.runs.dispatch import DueRows


@dataclass(frozen=True, kw_only=True)
class AuditPart:
    """One endpoint type a run looks at: what was asked, and what earlier runs found there."""

    endpoint_type: EndpointType
    generation: int
    attempt: int = 1
    difference: str | None = None
    """A digest of what the last finished comparison found; None when that was nothing."""
    difference_repairs: int = 0
    """How often exactly this was repaired in a row."""
    deletes_allowed: bool = False
    resource_types: frozenset[str] | None = None
    """Repair these only (None: all); compared is everything."""
    requested_at: datetime | None = None
    """When it was asked for, by a central change or a person: what was read of the central cloud earlier will not
    do."""


@dataclass(frozen=True, kw_only=True)
class AuditRun:
    """A claimed audit of one subcloud: the endpoint types that were due, and what their comparison needs."""

    run_id: str
    subcloud: Subcloud
    parts: tuple[AuditPart, ...]
    placed: Placed
    groups_to_refill: Mapping[str, tuple[str, ...]]
    central_counts: Mapping[str, int]
    """How long the central lists were when the watch last accepted them; empty before it did."""
    keys_planned_until: datetime | None = None
    """Until then, differing keys are a planned rotation."""


SETTLED = frozenset({Reason.GUARD_REFUSED, Reason.NOT_CONVERGING})
"""Failures of an audit by which what was asked was done as far as it may be: the next look is at the usual time, or as
soon as something new is asked. All other failures are held off."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one run found out about one endpoint type, as its row keeps it."""

    endpoint_type: EndpointType
    generation: int
    result: SyncStatus | None
    """The state after the run; None when no comparison was finished."""
    reported: SyncStatus | None
    """What the state service is told; None when what it was told before stands."""
    is_observed: bool
    """Whether what was asked for is done with, as far as it may be done."""
    differences: tuple[str, ...] = ()
    difference: str | None = None
    difference_repairs: int = 0
    repaired: bool = False
    failure: Failure | None = None
    due_at: datetime
    keys_fingerprint: str | None = None
    """Of the keys the subcloud was last seen to hold in this run; None where nobody looked."""


class AuditChanges(TypedDict, total=False):
    """New values of a row; what is not in it stays as it is. Named as in AuditRow."""

    attempt: int
    abandoned: int
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
    """What was asked for when the run began; a row with a greater one was asked for more meanwhile."""
    always: AuditChanges
    as_found: AuditChanges
    """Where nothing was asked meanwhile."""
    asked_meanwhile: AuditChanges


@dataclass(frozen=True, kw_only=True)
class AuditRow:
    """What is known about one endpoint type of one subcloud, for operators."""

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
    """What the last comparison that found anything found: names and fields, no values."""
    difference_at: datetime | None
    difference_repairs: int
    repaired_at: datetime | None


@dataclass(frozen=True, kw_only=True)
class CentralState:
    """The central cloud as the watch last accepted it; `kind` is the endpoint type it concerns."""

    kind: EndpointType
    fingerprint: str
    events_fingerprint: str
    """Of the revocation events, which change more often than the rest."""
    counts: Mapping[str, int]
    generation: int = 0
    changed_at: datetime | None = None
    refused: str | None = None
    shrink_allowed: bool = False


class DueAudits(DueRows[AuditHint], Protocol):
    """Rows as the sweep sees them, one per (subcloud, endpoint type). Eligible is managed, online and completed.

    A run whose rows differ in `deaths` is in `in_progress_since_before` once for each.
    """

    def take_follow_ups(self, *, now: datetime) -> int:
        """Turn the state service's requests for audits of ours into due rows; how many requests."""

    def dispatch(
        self, *, room: int, lost: Collection[AuditHint], now: datetime, region_name: str | None = None
    ) -> list[AuditHint]:
        """Mark up to `room` due rows as dispatched, longest due first, and one hint for each subcloud among them:
        those never sent, and those whose hint is `lost`. `region_name`: of this subcloud only."""


class CentralStates(Protocol):
    """The central cloud as the watch last accepted it, and the rows that are due when it changes."""

    def central_state(self, kind: EndpointType) -> CentralState | None:
        """None before the watch first looked."""

    def add_rows(self, endpoint_type: EndpointType, *, now: datetime) -> int:
        """Every subcloud has a row of this audited endpoint type from now on; how many had none."""

    def raise_generation(self, endpoint_type: EndpointType, *, now: datetime, by: str) -> int:
        """The central cloud changed: every row of that type is due, but those held off after a failure (SETTLED ones
        are not), and for everything, whatever it was restricted to; how many rows."""

    def accept_central(
        self, state: CentralState, *, old: CentralState | None, now: datetime, unless_rotating: bool = False
    ) -> int | None:
        """Keep this, where `old` is still kept (with `unless_rotating`: and the central keys are not being rotated),
        and (unless `old` is None) raise the generation of every row of its type in the same transaction; how many rows,
        None when somebody else was faster."""

    def refuse_central(self, kind: EndpointType, *, why: str, now: datetime) -> None:
        """Records that the watch looked and refused what it saw; what is kept stays."""

    def confirm_central(self, kind: EndpointType, *, now: datetime) -> None:
        """Records that the watch looked and saw what is kept. A shrinking that an operator allowed is no longer
        allowed: it was meant for what there was to see at that time."""


class AuditStore(Protocol):
    """Rows as runs see them. Every write of a run is conditional on its run id; `Rows.standing` is beside it."""

    def claim(self, regions: Mapping[str, str], *, now: datetime) -> list[AuditRun]:
        """Run id -> region name: take what is due of each eligible subcloud; those of which nothing is are left out."""

    def look(self, name: str) -> AuditRun:
        """The same for all endpoint types, taking nothing: for a comparison that writes nothing.
        Raises UnknownSubcloud."""

    def remember_placed(self, run: AuditRun, placed: Placed) -> bool:
        """Keep what is on the subcloud from the central cloud; False when the rows are no longer its own."""

    def remember_groups(self, run: AuditRun, groups: Mapping[str, tuple[str, ...]]) -> bool:
        """As RunStore.remember_groups."""

    def settle(self, settlements: Sequence[Settlement]) -> set[str]:
        """End runs and record what they found, where a row is still the run's own. The ids of the runs all of whose
        rows were."""

    def release(self, run: AuditRun, *, now: datetime) -> bool:
        """The run ends without a finding: its rows are due again as if it had not been."""


class AuditReports(Protocol):
    """Tells the state service what audits found; never raises, and keeps nobody waiting."""

    def __call__(
        self, region_name: str, endpoint_type: EndpointType, status: SyncStatus, *, alarmable: bool
    ) -> None: ...


class AuditMessenger(Protocol):
    """Sends hints on the `audit` queue. One that cannot be sent raises BrokerUnreachable; the sweep sends it again."""

    def send_audits(self, hints: Sequence[AuditHint]) -> None:
        """One pipelined batch."""

    def waiting_audit_ids(self) -> set[str]:
        """Task ids of messages that no worker has taken yet."""
