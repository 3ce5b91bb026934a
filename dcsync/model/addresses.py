"""Management IPs: what is an address, and which addresses dcsync must not connect to.

Every request to a subcloud carries the service password or a token, so an address that means this machine, its link or
a cloud's metadata service is refused in each of its spellings.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence

from dcsync.model.errors import BadAddress

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


Network = ipaddress.IPv4Network | ipaddress.IPv6Network

LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))

NEVER: tuple[tuple[Network, str], ...] = tuple(
    (ipaddress.ip_network(network), kind)
    for network, kind in (
        ("0.0.0.0/8", "unspecified"),
        ("100.100.100.200/32", "metadata service"),
        ("168.63.129.16/32", "metadata service"),
        ("169.254.0.0/16", "link-local"),
        ("192.0.0.192/32", "metadata service"),
        ("224.0.0.0/4", "multicast"),
        ("240.0.0.0/4", "reserved"),
        ("::/128", "unspecified"),
        ("fd00:ec2::254/128", "metadata service"),
        ("fd20:ce::254/128", "metadata service"),
        ("fe80::/10", "link-local"),
        ("fec0::/10", "site-local"),
        ("ff00::/8", "multicast"),
    )
)
"""Refused whatever networks are allowed. The metadata services are those of Alibaba, Azure, Oracle, AWS and Google; the
usual one, 169.254.169.254, is link-local. Source: RFC 6890 and the clouds' own documentation."""

NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
NAT64_LOCAL = ipaddress.IPv6Network("64:ff9b:1::/48")
TRANSLATED = ipaddress.IPv6Network("::ffff:0:0:0/96")
COMPATIBLE = ipaddress.IPv6Network("::/96")
SIX_TO_FOUR = ipaddress.IPv6Network("2002::/16")
TEREDO = ipaddress.IPv6Network("2001::/32")
TRANSITIONAL = (NAT64, NAT64_LOCAL, TRANSLATED, COMPATIBLE, SIX_TO_FOUR, TEREDO)
"""IPv6 networks whose packets may end at the IPv4 address written inside. Source: RFC 6052, 8215, 2765, 4291, 3056 and
4380."""


def parse_address(text: str) -> Address:
    """Returns the IP address; an IPv4 address written inside IPv6 (::ffff:a.b.c.d) counts as the IPv4 address it is.

    Raises BadAddress for anything else, including an address with spaces or a line break around it.
    """
    try:
        address = ipaddress.ip_address(text)
    except ValueError as exc:
        raise BadAddress(f"{text[:100]!r} is not an IP address") from exc
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            raise BadAddress(f"{text[:100]!r} names an interface; a management IP must mean the same on every machine")
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
    return address


def check_address(text: str, *, allowed_networks: Sequence[Network]) -> Address:
    """Returns the parsed address; raises BadAddress when dcsync must not connect to it.

    Allowed networks restrict the addresses, they never permit link-local, multicast, reserved, metadata and similar
    ones; loopback needs an allowed network that lies within loopback. An IPv4 address carried inside an IPv6 address
    must be allowed itself. Called when the address is stored and again before each connection, because the setting may
    have changed.
    """
    address = parse_address(text)
    carried = tuple(embedded(address))
    for each in (address, *carried):
        if kind := _forbidden(each):
            raise BadAddress(f"{_named(address, each)} is a {kind} address, which is never allowed")
    if any(_is_loopback(each) for each in carried):
        raise BadAddress(f"{address} contains a loopback address, which is never allowed")
    if _is_loopback(address):
        if not any(address in network and _is_within(network, LOOPBACK) for network in allowed_networks):
            raise BadAddress(f"{address} is a loopback address; name a loopback network in DCSYNC_ALLOWED_NETWORKS")
    elif allowed_networks and not _is_allowed(address, carried, allowed_networks):
        listed = ", ".join(str(network) for network in allowed_networks)
        raise BadAddress(f"{address} lies outside the allowed networks ({listed})")
    return address


def embedded(address: Address) -> Iterator[ipaddress.IPv4Address]:
    """Yields the IPv4 addresses inside an IPv6 address of a transition mechanism: 6to4, Teredo (server and client),
    NAT64 (RFC 6052, also with the local-use prefix), IPv4-translated, IPv4-compatible and ISATAP."""
    if not isinstance(address, ipaddress.IPv6Address) or address in LOOPBACK[1] or int(address) == 0:
        return
    bits = int(address)
    if address in SIX_TO_FOUR:
        yield ipaddress.IPv4Address(bits >> 80 & 0xFFFFFFFF)
    if address in TEREDO:
        yield ipaddress.IPv4Address(bits >> 64 & 0xFFFFFFFF)
        yield ipaddress.IPv4Address(~bits & 0xFFFFFFFF)
    if address in NAT64_LOCAL:
        yield from _in_local_prefix(bits)
    if any(address in network for network in (NAT64, TRANSLATED, COMPATIBLE)) or bits >> 32 & 0xFDFFFFFF == 0x5EFE:
        yield ipaddress.IPv4Address(bits & 0xFFFFFFFF)


def _in_local_prefix(bits: int) -> Iterator[ipaddress.IPv4Address]:
    """Yields the readings for a prefix of 48, 56, 64 and 96 bits, because the address does not show which it is. The
    first three are split around or follow an octet of zeros. A reading in 0.0.0.0/8 is of another prefix length."""
    for reading in (
        (bits >> 64 & 0xFFFF) << 16 | bits >> 40 & 0xFFFF,
        (bits >> 64 & 0xFF) << 24 | bits >> 32 & 0xFFFFFF,
        bits >> 24 & 0xFFFFFFFF,
        bits & 0xFFFFFFFF,
    ):
        if reading >> 24:
            yield ipaddress.IPv4Address(reading)


def _forbidden(address: Address) -> str | None:
    """Returns the kind of an address that is never allowed."""
    for network, kind in NEVER:
        if address in network:
            return kind
    is_usable = _is_loopback(address) or address in NAT64 or address in NAT64_LOCAL
    return "reserved" if address.is_reserved and not is_usable else None


def _is_loopback(address: Address) -> bool:
    return any(address in network for network in LOOPBACK)


def _is_within(network: Network, others: Sequence[Network]) -> bool:
    first, last = network[0], network[-1]
    return any(first in other and last in other for other in others)


def _is_allowed(address: Address, carried: Sequence[Address], networks: Sequence[Network]) -> bool:
    """A network allows an address with another inside only if it is one of the transition mechanism itself, or the
    address inside is allowed as well."""
    if not any(address in network for network in networks):
        return False
    is_meant = any(address in network and _is_within(network, TRANSITIONAL) for network in networks)
    return is_meant or all(any(each in network for network in networks) for each in carried)


def _named(address: Address, found: Address) -> str:
    return str(address) if found == address else f"{found}, inside {address},"
