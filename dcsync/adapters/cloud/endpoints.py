"""URLs of the services: of a subcloud from templates, of the central cloud from its catalog.

A subcloud's own catalog is not used: a subcloud must not decide where the password and token are sent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from dcsync.model.addresses import Address, Network, check_address
from dcsync.model.errors import BadAddress, CloudError
from dcsync.model.reasons import Reason

INTERFACES = {"dcorch-dbsync": ("admin", "internal"), "platform": ("internal", "admin")}
"""Service type -> catalog interfaces, the preferred one first. Source: docs/upstream/http-contracts.md section 1."""


@dataclass(frozen=True, kw_only=True)
class ServiceUrls:
    """Base URLs of one cloud's services, with the version path, without a trailing slash.

    Templates for subclouds contain `{ip}`; see docs/upstream/http-contracts.md section 1 for the usual ports.
    """

    auth: str
    dbsync: str
    sysinv: str


@dataclass(frozen=True, kw_only=True)
class CentralEndpoints:
    """URLs of the central cloud: its Keystone, and the other two, taken from Keystone's catalog where they are None."""

    auth: str
    region: str
    dbsync: str | None = None
    sysinv: str | None = None


def subcloud_urls(templates: ServiceUrls, *, management_ip: str, allowed_networks: Sequence[Network]) -> ServiceUrls:
    """Returns the URLs of one subcloud; raises CloudError(address-refused) for an address that is not allowed."""
    try:
        address = check_address(management_ip, allowed_networks=allowed_networks)
    except BadAddress as exc:
        raise CloudError(Reason.ADDRESS_REFUSED, str(exc)) from exc
    return ServiceUrls(
        auth=_filled(templates.auth, address),
        dbsync=_filled(templates.dbsync, address),
        sysinv=_filled(templates.sysinv, address),
    )


def _filled(template: str, address: Address) -> str:
    host = f"[{address}]" if address.version == 6 else str(address)
    return template.replace("{ip}", host).rstrip("/")


def central_urls(central: CentralEndpoints, *, catalog: object) -> ServiceUrls:
    """Returns the URLs of the central cloud; raises CloudError(central-bad-reply) for a service without a URL."""
    return ServiceUrls(
        auth=central.auth.rstrip("/"),
        dbsync=(central.dbsync or _from_catalog(catalog, "dcorch-dbsync", region=central.region)).rstrip("/"),
        sysinv=(central.sysinv or _from_catalog(catalog, "platform", region=central.region)).rstrip("/"),
    )


def _from_catalog(catalog: object, service_type: str, *, region: str) -> str:
    found = {
        endpoint.get("interface"): endpoint.get("url")
        for endpoint in _endpoints(catalog, service_type)
        if region in (endpoint.get("region"), endpoint.get("region_id"))
    }
    for interface in INTERFACES[service_type]:
        url = found.get(interface)
        if isinstance(url, str) and url.startswith(("http://", "https://")):
            return url
    raise CloudError(
        Reason.CENTRAL_BAD_REPLY,
        f"the catalog has no {' or '.join(INTERFACES[service_type])} endpoint of {service_type} in region {region}",
    )


def _endpoints(catalog: object, service_type: str) -> Iterator[dict[str, Any]]:
    for service in _objects(catalog):
        if service.get("type") == service_type:
            yield from _objects(service.get("endpoints"))


def _objects(value: object) -> Iterator[dict[str, Any]]:
    if isinstance(value, list):
        yield from (item for item in value if isinstance(item, dict))
