"""Subclouds: their names, their states and the closed sets of values.

Values are spelled as operators know them from StarlingX, in tables, JSON and messages alike.
Transitions between states are in `states/`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from dcsync.model.addresses import parse_address
from dcsync.model.errors import BadRecord
from dcsync.model.reasons import Reason
from dcsync.model.states.initial_sync import InitialSyncEvent, InitialSyncState


class ManagementState(StrEnum):
    MANAGED = "managed"
    UNMANAGED = "unmanaged"


class AvailabilityStatus(StrEnum):
    ONLINE = "online"
    OFFLINE = "offline"


class SyncStatus(StrEnum):
    UNKNOWN = "unknown"
    IN_SYNC = "in-sync"
    OUT_OF_SYNC = "out-of-sync"


class EndpointType(StrEnum):
    """Source: docs/upstream/state-service.md section 2; `identity_openstack` is optional."""

    PLATFORM = "platform"
    IDENTITY = "identity"
    DC_CERT = "dc-cert"
    FIRMWARE = "firmware"
    KUBERNETES = "kubernetes"
    KUBE_ROOTCA = "kube-rootca"
    SOFTWARE = "software"
    IDENTITY_OPENSTACK = "identity_openstack"


DEFAULT_ENDPOINT_TYPES = (EndpointType.PLATFORM, EndpointType.IDENTITY)
"""The endpoint types an installation has unless DCSYNC_ENDPOINT_TYPES adds others: a subcloud gets a status row for
each when it is added. A row for any other type is created by the first report about it."""


class Step(StrEnum):
    """The steps of an initial sync, in the order in which they are run. Source: docs/upstream/initial-sync.md section
    1."""

    IDENTITY = "identity"
    FERNET_KEYS = "fernet-keys"
    AUDIT_INIT = "audit-init"


@dataclass(frozen=True, kw_only=True)
class NewSubcloud:
    """The input of an operator who adds a subcloud."""

    name: str
    management_ip: str
    region_name: str
    software_version: str = ""


@dataclass(frozen=True, kw_only=True)
class SubcloudUpdate:
    """What an operator changes of a subcloud that exists; None leaves it as it is."""

    name: str
    management_ip: str | None = None
    software_version: str | None = None


@dataclass(frozen=True, kw_only=True)
class Updated:
    """What became of one `SubcloudUpdate`."""

    name: str
    changes: tuple[str, ...]
    """For people; empty where everything was so already."""
    event: InitialSyncEvent | None = None
    """What followed for its initial sync."""


@dataclass(frozen=True, kw_only=True)
class EndpointStatus:
    """The sync status of one endpoint type of one subcloud as its row says, with what is known of its proof.

    `dcsync.model.shown` decides what of it may be shown.
    """

    sync_status: SyncStatus = SyncStatus.UNKNOWN
    reason: str | None = None
    """Why it is unknown: a `Reason` or `Unproven`, or a word that another release wrote."""
    verified_at: datetime | None = None
    """When a complete comparison, or an observer, last confirmed a status."""
    last_good_at: datetime | None = None
    """When it was last confirmed as in-sync."""
    is_audited: bool = False
    """Whether dcsync audits it itself; of others it knows what is reported."""
    requested_at: datetime | None = None
    """When an audit of it, or an initial sync, was last requested."""
    is_pending: bool = False
    """Whether an audit was requested, or the central cloud changed, since the last one, or no state worker has written
    yet what that one found."""


@dataclass(frozen=True, kw_only=True)
class Subcloud:
    """One subcloud as its row says. `region_name` is the key everywhere; `name` is for people."""

    id: int
    name: str
    region_name: str
    management_ip: str
    software_version: str
    management_state: ManagementState
    availability_status: AvailabilityStatus
    initial_sync_state: InitialSyncState
    subsequent_sync: bool
    generation: int
    attempt: int
    requested_at: datetime | None = None
    retry_at: datetime | None = None
    claimed_at: datetime | None = None
    run_id: str | None = None
    step: Step | None = None
    reason: Reason | None = None
    detail: str = ""
    updated_at: datetime | None = None
    last_seen_at: datetime | None = None
    """When an observer last found it online."""
    shares_ip_with: str | None = None
    """The name of another subcloud with the same management IP; such rows are older than the rule against them."""
    endpoints: Mapping[EndpointType, EndpointStatus] = field(default_factory=dict)

    @property
    def sync_status(self) -> dict[EndpointType, SyncStatus]:
        """The statuses as the rows say, whatever their age."""
        return {type_: status.sync_status for type_, status in self.endpoints.items()}


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")


def new_subcloud(
    *, name: str, management_ip: str, region_name: str | None, software_version: str | None
) -> NewSubcloud:
    """Returns a validated NewSubcloud; the region name defaults to the name, the address is put in its canonical form.

    Raises BadRecord for a name that is not letters, digits, dots, dashes and underscores (255 at most), and
    BadAddress for a management IP that is not an IP address. `check_address` checks whether the address is allowed.
    """
    region_name = region_name or name
    for what, value in (("name", name), ("region name", region_name)):
        if not _NAME.fullmatch(value):
            raise BadRecord(
                f"{what} {value!r} is invalid: use letters, digits, '.', '-' and '_', "
                "starting with a letter or digit, 255 at most"
            )
    return NewSubcloud(
        name=name,
        management_ip=str(parse_address(management_ip)),
        region_name=region_name,
        software_version=_version(software_version or ""),
    )


def subcloud_update(*, name: str, management_ip: str | None, software_version: str | None) -> SubcloudUpdate:
    """Returns a validated SubcloudUpdate; raises BadRecord and BadAddress like `new_subcloud`."""
    return SubcloudUpdate(
        name=name,
        management_ip=None if management_ip is None else str(parse_address(management_ip)),
        software_version=None if software_version is None else _version(software_version),
    )


def changed_fields(given: SubcloudUpdate, *, management_ip: str, software_version: str) -> tuple[str, ...]:
    """Returns what the update changes of a subcloud with these values, in words."""
    wanted = (
        ("management IP", management_ip, given.management_ip),
        ("software version", software_version, given.software_version),
    )
    return tuple(f"{what} {old or '-'} -> {new or '-'}" for what, old, new in wanted if new not in (None, old))


def _version(text: str) -> str:
    if len(text) > 255 or not text.isprintable():
        raise BadRecord(f"software version {text!r} is invalid: use at most 255 printable characters")
    return text
