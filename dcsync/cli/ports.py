"""What the commands ask of the rows and the broker, beside what the services ask."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Protocol

from dcsync.audit.ports import AuditRow, CentralState
from dcsync.model.history import RequestHistory
from dcsync.model.states.initial_sync import Transition
from dcsync.model.subcloud import EndpointType, ManagementState, NewSubcloud, Subcloud
from dcsync.rotation.ports import KeyRotationRow, Spread
from dcsync.state.ports import AlarmNotice


class Inventory(Protocol):
    """Which subclouds there are, and what operators do to them, by `Subcloud.name`; each call is one transaction."""

    def add(self, subclouds: Sequence[NewSubcloud], *, now: datetime) -> None:
        """Store all of them or none; raises DuplicateSubcloud naming every name or region name that is taken."""

    def find(self, names: Sequence[str]) -> list[Subcloud]:
        """In the order asked for; raises UnknownSubcloud naming all that are missing."""

    def all(self) -> list[Subcloud]:
        """Every subcloud, by name."""

    def names_starting_with(self, prefix: str, *, limit: int) -> list[str]:
        """Up to `limit` names in order: what a shell completes."""

    def delete(self, name: str) -> Subcloud:
        """Remove the row with all that hangs on it, also in the middle of a run; raises UnknownSubcloud."""

    def set_management(
        self,
        names: Sequence[str] | None,
        state: ManagementState,
        *,
        now: datetime,
        by: str,
        online_only: bool = False,
    ) -> list[Transition]:
        """Manage or unmanage these (None: all) with the initial-sync transition that follows, in one transaction.

        With `online_only` raises RefusedByGuard (nothing stored) when one that would change is offline.
        """

    def request(self, names: Sequence[str] | None, *, now: datetime, by: str) -> list[Transition]:
        """Ask for an initial sync from the start; raises RefusedByGuard (nothing stored) unless all named are managed
        and online. None means every managed and online subcloud."""

    def history(self, name: str) -> list[RequestHistory]:
        """What was asked for and tried, newest request first; raises UnknownSubcloud."""


class Triggers(Protocol):
    """Triggers what beat would trigger later. Raises BrokerUnreachable; then the next tick does it."""

    def send_sweep(self) -> None:
        """A sweep of the initial syncs."""

    def send_audit_sweep(self) -> None:
        """A sweep of the audits."""

    def send_key_rotation(self) -> None:
        """A look at the key rotation."""


class AuditRequests(Protocol):
    """What operators ask of audits, and what they read of them."""

    def request(
        self,
        names: Sequence[str] | None,
        endpoint_types: Collection[EndpointType],
        *,
        now: datetime,
        by: str,
        allow_deletes: bool = False,
        resource_types: Collection[str] | None = None,
    ) -> list[str]:
        """An operator asks for an audit of these (None: all), at once also after a failure, and with every difference
        to be repaired anew. Raises UnknownSubcloud. Those not eligible catch up when they are. The region names.
        With `resource_types` these alone are repaired, and what others have asked for and was not done yet.

        With `allow_deletes` for all, a central list that shrank is accepted as well."""

    def audits(self, names: Sequence[str] | None) -> list[AuditRow]:
        """By name and endpoint type; raises UnknownSubcloud."""

    def central_state(self, endpoint_type: EndpointType) -> CentralState | None:
        """None before the watch first looked."""


class RotationRequests(Protocol):
    """What operators ask of the key rotation, and what they read of it."""

    def row(self) -> KeyRotationRow: ...

    def ask(self, *, now: datetime, by: str, forced: bool, max_in_flight: int | None) -> None:
        """An operator wants a rotation; one that is asked for already is asked for in this way now."""

    def spread(self, fingerprint: str) -> Spread:
        """How many subclouds hold the set with this fingerprint."""


class Alarms(Protocol):
    """Alarms as operators read them."""

    def alarms(self, *, history: bool, limit: int) -> list[AlarmNotice]:
        """Active alarms, gravest and oldest first; with `history` cleared ones as well, newest first."""
