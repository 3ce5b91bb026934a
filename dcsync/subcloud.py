"""What a subcloud is: its names, its states and the closed sets of words they take.

Values are spelled as operators know them from StarlingX, in tables, JSON and messages alike.
How a state follows from another is not here but in `lifecycle.py`.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from dcsync.errors import BadAddress, BadRecord, Reason


class ManagementState(StrEnum):
    MANAGED = "managed"
    UNMANAGED = "unmanaged"


class AvailabilityStatus(StrEnum):
    ONLINE = "online"
    OFFLINE = "offline"


class InitialSyncState(StrEnum):
    """Source: spec/initial-sync.md section 3 (dcorch/common/consts.py INITIAL_SYNC_STATE_*)."""

    NONE = "none"
    REQUESTED = "requested"
    IN_PROGRESS = "in-progress"
    COMPLETED = "completed"
    FAILED = "failed"


class SyncStatus(StrEnum):
    UNKNOWN = "unknown"
    IN_SYNC = "in-sync"
    OUT_OF_SYNC = "out-of-sync"


class EndpointType(StrEnum):
    """Source: spec/state-service.md section 2; `identity_openstack` is optional."""

    PLATFORM = "platform"
    IDENTITY = "identity"
    DC_CERT = "dc-cert"
    FIRMWARE = "firmware"
    KUBERNETES = "kubernetes"
    KUBE_ROOTCA = "kube-rootca"
    SOFTWARE = "software"
    IDENTITY_OPENSTACK = "identity_openstack"


DEFAULT_ENDPOINT_TYPES = tuple(t for t in EndpointType if t is not EndpointType.IDENTITY_OPENSTACK)
"""Every subcloud has a status row for each of these from the moment it is added."""

SYNCED_ENDPOINT_TYPES = (EndpointType.PLATFORM, EndpointType.IDENTITY)
"""The endpoint types dcsync itself audits; audit-init resets exactly these."""


class AuditStatus(StrEnum):
    """How the last audit of one endpoint ended. Source: spec/generic-sync-and-audit.md section 2."""

    NONE = "none"
    IN_PROGRESS = "in-progress"
    COMPLETED = "completed"
    FAILED = "failed"


class Step(StrEnum):
    """The steps of an initial sync, in their only order. Source: spec/initial-sync.md section 1 (why this order)."""

    IDENTITY = "identity"
    FERNET_KEYS = "fernet-keys"
    AUDIT_INIT = "audit-init"


@dataclass(frozen=True, kw_only=True)
class NewSubcloud:
    """What an operator gives when a subcloud is added."""

    name: str
    management_ip: str
    region_name: str
    software_version: str = ""


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
    sync_status: dict[EndpointType, SyncStatus] = field(default_factory=dict)


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")


def new_subcloud(
    *, name: str, management_ip: str, region_name: str | None, software_version: str | None
) -> NewSubcloud:
    """A checked NewSubcloud; the region name defaults to the name, the address is put in its canonical form.

    Raises BadRecord for a name that is not letters, digits, dots, dashes and underscores (255 at most), and
    BadAddress for a management IP that is no IP address. Whether the address is allowed is `check_address`.
    """
    region_name = region_name or name
    for what, value in (("name", name), ("region name", region_name)):
        if not _NAME.fullmatch(value):
            raise BadRecord(
                f"{what} {value!r} is not usable: letters, digits, '.', '-' and '_', "
                "starting with a letter or digit, 255 at most"
            )
    version = software_version or ""
    if len(version) > 255 or not version.isprintable():
        raise BadRecord(f"software version {version!r} is not usable: 255 printable characters at most")
    return NewSubcloud(
        name=name, management_ip=str(parse_address(management_ip)), region_name=region_name, software_version=version
    )


Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def parse_address(text: str) -> Address:
    """An IP address; an IPv4 address written inside IPv6 (::ffff:a.b.c.d) counts as the IPv4 address it is."""
    try:
        address = ipaddress.ip_address(text.strip())
    except ValueError as exc:
        raise BadAddress(f"{text!r} is not an IP address") from exc
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            raise BadAddress(f"{text!r} names an interface; a management IP must mean the same on every machine")
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
    return address


def check_address(text: str, *, allowed_networks: Sequence[Network]) -> Address:
    """The parsed address, or BadAddress when dcsync must not connect to it.

    With no allowed networks, anything is allowed but loopback, link-local, multicast, unspecified and reserved.
    Checked when written and again when dialled, for the rule may have become stricter in between.
    """
    address = parse_address(text)
    if allowed_networks:
        if not any(address in network for network in allowed_networks):
            listed = ", ".join(str(network) for network in allowed_networks)
            raise BadAddress(f"{address} lies outside the allowed networks ({listed})")
        return address
    for kind in ("loopback", "link_local", "multicast", "unspecified", "reserved"):
        if getattr(address, f"is_{kind}"):
            raise BadAddress(
                f"{address} is a {kind.replace('_', '-')} address; set DCSYNC_ALLOWED_NETWORKS if it is meant"
            )
    return address
