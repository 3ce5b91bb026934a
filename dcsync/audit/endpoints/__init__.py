"""The registry of endpoint types that dcsync audits: a room for each, in the order in which a run audits them.

Whoever asks "which ones are there?" or "what about this one?" asks here: engine, watch, guards, stores, command line
and documentation. A new audited endpoint type is a class beside these, an entry here, and, where it speaks to a service
of its own, an adapter in `dcsync.adapters.cloud.services`.
"""

from __future__ import annotations

from typing import Any

from dcsync.audit.endpoints.base import AuditedEndpoint
from dcsync.audit.endpoints.identity import Identity
from dcsync.audit.endpoints.platform import Platform
from dcsync.model.subcloud import EndpointType

REGISTRY: dict[EndpointType, AuditedEndpoint[Any]] = {room.endpoint_type: room for room in (Identity(), Platform())}

REPORTED_ONLY = frozenset(
    {
        EndpointType.DC_CERT,
        EndpointType.FIRMWARE,
        EndpointType.KUBERNETES,
        EndpointType.KUBE_ROOTCA,
        EndpointType.SOFTWARE,
        EndpointType.IDENTITY_OPENSTACK,
    }
)
"""Audited by others, who report what they found; they have no room here."""


def audited_types() -> tuple[EndpointType, ...]:
    """In the order in which a run audits them."""
    return tuple(REGISTRY)


def endpoint_of(endpoint_type: EndpointType) -> AuditedEndpoint[Any]:
    """Raises KeyError for an endpoint type that is not audited."""
    return REGISTRY[endpoint_type]


def resource_types() -> dict[str, EndpointType]:
    """Every name a repair may be restricted to, and the endpoint type it belongs to."""
    return {name: room.endpoint_type for room in REGISTRY.values() for name in room.resource_types}


def carrier_of_keys() -> EndpointType:
    """The endpoint type through which rotated keys reach the subclouds."""
    (found,) = [room.endpoint_type for room in REGISTRY.values() if room.carries_keys]
    return found
