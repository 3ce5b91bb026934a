"""The ports that commands use in addition to those of the services."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Protocol

from dcsync.audit.ports import AuditRow, CentralState
from dcsync.model.history import Life
from dcsync.model.operation import Intent, Operation
from dcsync.model.states.initial_sync import Transition
from dcsync.model.subcloud import EndpointType, ManagementState, NewSubcloud, Subcloud, SubcloudUpdate, Updated
from dcsync.rotation.ports import KeyHolding, KeyRotationRow, Spread
from dcsync.state.ports import AlarmNotice, CentralFacts, RefusedNotices


class Inventory(Protocol):
    """The subclouds and operators' changes to them, by `Subcloud.name`; each call is one transaction.

    A change with an `intent` is recorded as an operation in the same transaction.
    """

    def add(self, subclouds: Sequence[NewSubcloud], *, now: datetime, intent: Intent | None = None) -> None:
        """Stores all of them or none; raises DuplicateSubcloud naming every name or region name in use, and
        RefusedByGuard for a management IP that another subcloud has, or that is given twice."""

    def update(
        self,
        updates: Sequence[SubcloudUpdate],
        *,
        new: Sequence[NewSubcloud] = (),
        now: datetime,
        by: str,
        intent: Intent | None = None,
    ) -> list[Updated]:
        """Changes these and adds the new ones, all or none; raises UnknownSubcloud, and the errors of `add`.

        With a new management IP nothing counts as proven, a run in progress ends before its next write, and a subcloud
        that is managed and online is synced from the first step. What dcsync placed there, and history, are kept.
        """

    def find(self, names: Sequence[str]) -> list[Subcloud]:
        """Returns them in the given order; raises UnknownSubcloud naming all that are missing."""

    def all(self) -> list[Subcloud]:
        """Returns every subcloud, in the natural order of names."""

    def names_starting_with(self, prefix: str, *, limit: int) -> list[str]:
        """Returns up to `limit` names in order, for shell completion."""

    def delete(self, names: Sequence[str], *, now: datetime, intent: Intent | None = None) -> list[Subcloud]:
        """Deletes these subclouds with all their rows but their history, also during a run, and returns them as they
        were; raises UnknownSubcloud (nothing deleted)."""

    def set_management(
        self,
        names: Sequence[str] | None,
        state: ManagementState,
        *,
        now: datetime,
        by: str,
        online_only: bool = False,
        intent: Intent | None = None,
    ) -> list[Transition]:
        """Manages or unmanages these (None: all), with the resulting initial sync transition, in one transaction.

        With `online_only` raises RefusedByGuard (nothing stored) when one that would change is offline.
        """

    def request(
        self, names: Sequence[str] | None, *, now: datetime, by: str, intent: Intent | None = None
    ) -> list[Transition]:
        """Requests an initial sync from the first step; raises RefusedByGuard (nothing stored) unless all named
        subclouds are managed and online. None means every managed and online subcloud."""

    def history(self, name: str) -> list[Life]:
        """Returns the subclouds of this name with what happened to them, newest first, deleted ones included; raises
        UnknownSubcloud where nothing is known of one."""


class Operations(Protocol):
    """What operators did, as an append-only record."""

    def record(self, done: Operation, names: Sequence[str]) -> None:
        """Adds an operation that no other call recorded: one that was refused or failed, or changed no row of ours.
        `names` are all the subclouds concerned, as far as they are known by name."""

    def newest(self, *, limit: int, name: str | None = None) -> list[Operation]:
        """Returns the newest first; with `name` those that concern a subcloud of this name, deleted or not."""


class Triggers(Protocol):
    """Sends now what beat would send later. Raises BrokerUnreachable; beat's next message has the same effect."""

    def send_sweep(self) -> None:
        """Triggers a sweep of the initial syncs."""

    def send_audit_sweep(self) -> None:
        """Triggers a sweep of the audits."""

    def send_key_rotation(self) -> None:
        """Triggers the key rotation."""


class AuditRequests(Protocol):
    """Operators' requests for audits, and the rows they read."""

    def request(
        self,
        names: Sequence[str] | None,
        endpoint_types: Collection[EndpointType],
        *,
        now: datetime,
        by: str,
        allow_deletes: bool = False,
        resource_types: Collection[str] | None = None,
        intent: Intent | None = None,
    ) -> list[str]:
        """Requests an audit of these (None: all), without hold-off, in which every difference is repaired again;
        returns the region names. Subclouds that are not eligible are audited once they are. Raises UnknownSubcloud.
        With `resource_types` only these are repaired, and those of earlier requests that are still open.

        With `allow_deletes` for all, a central list that shrank is accepted as well."""

    def audits(self, names: Sequence[str] | None) -> list[AuditRow]:
        """Returns the rows, sorted by name and endpoint type; raises UnknownSubcloud."""

    def central_state(self, endpoint_type: EndpointType) -> CentralState | None:
        """Returns the last accepted central state; None before the watch first read it."""


class RotationRequests(Protocol):
    """Operators' requests for key rotations, and the row they read."""

    def row(self) -> KeyRotationRow: ...

    def ask(
        self, *, now: datetime, by: str, forced: bool, max_in_flight: int | None, intent: Intent | None = None
    ) -> None:
        """Requests a rotation; replaces a request that is still open."""

    def spread(self, fingerprint: str) -> Spread:
        """Returns how many subclouds have the keys with this fingerprint, and how many do not, and why."""

    def without_keys(self, fingerprint: str, *, limit: int) -> list[tuple[str, KeyHolding]]:
        """Returns up to `limit` managed subclouds, by name, that are not known to have these keys, and why."""

    def oldest_reading(self, fingerprint: str) -> datetime | None:
        """Returns when keys were last read of the one, of those that have them, of which that is longest ago."""


class Alarms(Protocol):
    """Alarms as listed for operators."""

    def alarms(self, *, history: bool, limit: int) -> list[AlarmNotice]:
        """Returns active alarms: those that report silence, then by id, oldest first; with `history` cleared ones as
        well, newest first."""

    def checked_at(self) -> datetime | None:
        """Returns when a worker process last checked for silence; None: never."""

    def refused_notices(self, *, limit: int) -> RefusedNotices:
        """Returns the newest notices that a sink refused, and how many are kept."""


class CentralChecks(Protocol):
    """What the watch recorded of the central cloud."""

    def central_facts(self) -> CentralFacts: ...
