"""Management IPs: what is an address, and which addresses dcsync must not connect to."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from dcsync.model.errors import BadAddress

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def parse_address(text: str) -> Address:
    """Returns the IP address; an IPv4 address written inside IPv6 (::ffff:a.b.c.d) counts as the IPv4 address it is."""
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
    """Returns the parsed address; raises BadAddress when dcsync must not connect to it.

    With no allowed networks, anything is allowed but loopback, link-local, multicast, unspecified and reserved.
    Called when the address is stored and again before each connection, because the setting may have changed.
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
