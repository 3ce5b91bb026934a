"""The registry of audited endpoint types, one class each, in the order in which a run audits them.

Engine, watch, guards, stores, command line and documentation use it. A new audited endpoint type needs a class beside
these, an entry here, and, if it uses a service of its own, an adapter in `dcsync.adapters.cloud.services`.
"""

from __future__ import annotations

from typing import Any

from dcsync.audit.endpoints.base import AuditedEndpoint
from dcsync.audit.endpoints.identity import Identity
from dcsync.audit.endpoints.platform import Platform
from dcsync.model.subcloud import EndpointType

REGISTRY: dict[EndpointType, AuditedEndpoint[Any]] = {
    endpoint.endpoint_type: endpoint for endpoint in (Identity(), Platform())
}

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
"""Audited by other services, which report their results; they have no class here."""


def audited_types() -> tuple[EndpointType, ...]:
    """Returns the audited types in the order in which a run audits them."""
    return tuple(REGISTRY)


def endpoint_of(endpoint_type: EndpointType) -> AuditedEndpoint[Any]:
    """Returns the class instance of this type; raises KeyError if it is not audited."""
    return REGISTRY[endpoint_type]


def resource_types() -> dict[str, EndpointType]:
    """Returns every name a repair may be restricted to, with its endpoint type."""
    return {name: endpoint.endpoint_type for endpoint in REGISTRY.values() for name in endpoint.resource_types}


def endpoint_type_of_keys() -> EndpointType:
    """Returns the endpoint type whose audit distributes rotated keys to the subclouds."""
    (found,) = [endpoint.endpoint_type for endpoint in REGISTRY.values() if endpoint.distributes_keys]
    return found
