"""URLs of the services: of a subcloud from templates, of the central cloud from its Keystone.

The central catalog may list the endpoints of every subcloud, so only those of one service and region are read of it. A
subcloud's own catalog is not used: a subcloud must not decide where the password and token are sent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from dcsync.adapters.cloud.http import Reply
from dcsync.adapters.cloud.keystone import Authenticated
from dcsync.adapters.host.own_servers import OwnServers
from dcsync.model.addresses import Address, Network, check_address
from dcsync.model.errors import BadAddress, CloudError
from dcsync.model.reasons import Reason

DBSYNC, SYSINV = "dcorch-dbsync", "platform"
INTERFACES = {DBSYNC: ("admin", "internal"), SYSINV: ("internal", "admin")}
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


async def refuse_other_clouds(management_ip: str, *, own: OwnServers, shared_with: str | None = None) -> None:
    """Raises CloudError(address-refused) for an address at which another cloud than this subcloud answers."""
    if shared_with is not None:
        raise CloudError(Reason.ADDRESS_REFUSED, f"{management_ip} is the management IP of {shared_with} as well")
    try:
        await own.refuse_soon(management_ip)
    except BadAddress as exc:
        raise CloudError(Reason.ADDRESS_REFUSED, str(exc)) from exc


def _filled(template: str, address: Address) -> str:
    host = f"[{address}]" if address.version == 6 else str(address)
    return template.replace("{ip}", host).rstrip("/")


async def look_up_central(session: Authenticated, central: CentralEndpoints) -> ServiceUrls:
    """Returns the URLs of the central cloud; asks its Keystone for those that are not configured.

    Raises CloudError, as central-bad-reply for a service without a URL. A user who may not list services and endpoints
    reads the whole catalog instead.
    """
    wanted = [type_ for type_, url in ((DBSYNC, central.dbsync), (SYSINV, central.sysinv)) if url is None]
    try:
        catalog = [await _service(session, type_, central) for type_ in wanted]
    except CloudError as exc:
        if exc.reason is not Reason.REFUSED:
            raise
        catalog = await _whole_catalog(session, central)
    return central_urls(central, catalog=catalog)


async def _service(session: Authenticated, type_: str, central: CentralEndpoints) -> dict[str, Any]:
    """Returns the enabled endpoints of one service type in the central region, in the form of a catalog."""
    services = await _listed(session, central, "services", type=type_)
    ids = [row.get("id") for row in services if row.get("type") == type_ and row.get("enabled", True)]
    endpoints = [
        row
        for id_ in ids
        for row in await _listed(session, central, "endpoints", service_id=str(id_), region_id=central.region)
        if row.get("service_id") == id_ and row.get("enabled", True)
    ]
    if any("(" in str(row.get("url")) for row in endpoints):
        raise CloudError(Reason.REFUSED, f"the URL of {type_} has placeholders, which only a catalog fills in")
    return {"type": type_, "endpoints": endpoints}


async def _listed(session: Authenticated, central: CentralEndpoints, what: str, **query: str) -> list[dict[str, Any]]:
    reply = await session.request("GET", f"{central.auth.rstrip('/')}/{what}?{urlencode(query)}", expected=(200,))
    return list(_objects(_field(reply, what)))


async def _whole_catalog(session: Authenticated, central: CentralEndpoints) -> Any:
    reply = await session.request("GET", f"{central.auth.rstrip('/')}/auth/catalog", expected=(200,))
    return _field(reply, "catalog")


def _field(reply: Reply, name: str) -> Any:
    answer = reply.json()
    if not isinstance(answer, dict) or not isinstance(answer.get(name), list):
        raise reply.bad(f"no {name}")
    return answer[name]


def central_urls(central: CentralEndpoints, *, catalog: object) -> ServiceUrls:
    """Returns the URLs of the central cloud; raises CloudError(central-bad-reply) for a service without a URL."""
    return ServiceUrls(
        auth=central.auth.rstrip("/"),
        dbsync=(central.dbsync or _from_catalog(catalog, DBSYNC, region=central.region)).rstrip("/"),
        sysinv=(central.sysinv or _from_catalog(catalog, SYSINV, region=central.region)).rstrip("/"),
    )


def _from_catalog(catalog: object, service_type: str, *, region: str) -> str:
    found = {
        endpoint.get("interface"): endpoint.get("url")
        for endpoint in _endpoints(catalog, service_type)
        if isinstance(endpoint.get("interface"), str) and region in (endpoint.get("region"), endpoint.get("region_id"))
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
