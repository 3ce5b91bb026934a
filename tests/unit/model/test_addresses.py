"""Which management IPs are addresses, and which of them are never dialled, however they are written."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcsync.model.addresses import check_address, parse_address
from dcsync.model.errors import BadAddress

EVERYTHING = ("0.0.0.0/0", "::/0")


def checked(text: str, *networks: str) -> str:
    return str(check_address(text, allowed_networks=[ipaddress.ip_network(network) for network in networks]))


def nat64(address: str) -> str:
    return str(ipaddress.IPv6Address(int(ipaddress.IPv6Address("64:ff9b::")) | int(ipaddress.IPv4Address(address))))


def six_to_four(address: str) -> str:
    return str(ipaddress.IPv6Address(0x2002 << 112 | int(ipaddress.IPv4Address(address)) << 80 | 1))


def teredo(client: str, server: str = "10.0.0.1") -> str:
    hidden = ~int(ipaddress.IPv4Address(client)) & 0xFFFFFFFF
    return str(ipaddress.IPv6Address(0x20010000 << 96 | int(ipaddress.IPv4Address(server)) << 64 | hidden))


def isatap(address: str) -> str:
    return str(ipaddress.IPv6Address(0xFD01 << 112 | 0x5EFE << 32 | int(ipaddress.IPv4Address(address))))


def nat64_local(address: str) -> str:
    whole = int(ipaddress.IPv4Address(address))
    return str(ipaddress.IPv6Address(0x0064FF9B0001 << 80 | (whole >> 16) << 64 | (whole & 0xFFFF) << 40))


def nat64_local_96(address: str) -> str:
    return str(ipaddress.IPv6Address(0x0064FF9B0001 << 80 | int(ipaddress.IPv4Address(address))))


CARRIERS = (nat64, nat64_local, nat64_local_96, six_to_four, teredo, isatap)
NEVER_V4 = ("169.254.169.254", "100.100.100.200", "168.63.129.16", "224.0.0.1", "255.255.255.255", "240.0.0.1")
NEVER_V6 = ("fe80::1", "fec0::1", "fd00:ec2::254", "fd20:ce::254", "ff02::1", "::", "100::1")


@pytest.mark.parametrize("networks", [(), EVERYTHING], ids=["any", "everything-named"])
@pytest.mark.parametrize("address", ["0.0.0.0", "0.0.0.7", *NEVER_V4, *NEVER_V6])
def test_an_address_that_is_never_a_subcloud_is_refused_whatever_is_allowed(
    address: str, networks: tuple[str, ...]
) -> None:
    with pytest.raises(BadAddress, match="never allowed"):
        checked(address, *networks)


@pytest.mark.parametrize("network", ["169.254.0.0/16", "fe80::/10"])
def test_naming_a_link_local_network_does_not_allow_it(network: str) -> None:
    address = str(ipaddress.ip_network(network)[7])
    with pytest.raises(BadAddress, match="link-local"):
        checked(address, network)


@pytest.mark.parametrize("networks", [(), EVERYTHING, (*EVERYTHING, "127.0.0.0/8", "::1/128")])
@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("address", ["127.0.0.1", *NEVER_V4])
def test_a_forbidden_address_inside_another_is_refused(
    carrier: object, address: str, networks: tuple[str, ...]
) -> None:
    assert callable(carrier)
    with pytest.raises(BadAddress):
        checked(carrier(address), *networks)


@pytest.mark.parametrize("address", ["127.0.0.1", "169.254.169.254", "100.100.100.200", "0.0.0.0"])
@pytest.mark.parametrize("prefix", ["::ffff:", "::ffff:0:", "::"])
def test_mapped_translated_and_compatible_spellings_are_refused(prefix: str, address: str) -> None:
    for networks in ((), EVERYTHING):
        with pytest.raises(BadAddress):
            checked(prefix + address, *networks)


def test_the_server_of_a_teredo_address_counts_as_well() -> None:
    with pytest.raises(BadAddress, match="loopback"):
        checked(teredo("10.1.2.3", server="127.0.0.1"))


@pytest.mark.parametrize("address", ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"])
@pytest.mark.parametrize("networks", [(), ("10.0.0.0/8",), EVERYTHING, ("126.0.0.0/7", "::/64")])
def test_loopback_is_refused_unless_a_loopback_network_is_named(address: str, networks: tuple[str, ...]) -> None:
    with pytest.raises(BadAddress, match="loopback"):
        checked(address, *networks)


def test_loopback_is_allowed_where_a_loopback_network_is_named() -> None:
    assert checked("127.1.0.3", "127.0.0.0/8") == "127.1.0.3"
    assert checked("::ffff:127.1.0.3", "10.0.0.0/8", "127.1.0.0/16") == "127.1.0.3"
    assert checked("::1", "::1/128") == "::1"
    with pytest.raises(BadAddress, match="loopback"):
        checked("127.2.0.1", "127.1.0.0/16")


@pytest.mark.parametrize(
    "address", ["10.1.2.3", "192.168.101.2", "203.0.113.9", "100.100.100.201", "fd01:2::2", "2600::7"]
)
def test_usual_management_addresses_are_allowed(address: str) -> None:
    assert checked(address) == address
    assert checked(address, *EVERYTHING) == address


@pytest.mark.parametrize("carrier", [nat64, six_to_four, teredo, isatap])
def test_an_address_with_an_allowed_address_inside_is_allowed(carrier: object) -> None:
    assert callable(carrier)
    assert checked(carrier("10.1.2.3")) == carrier("10.1.2.3")


def test_a_broad_network_does_not_allow_what_lies_inside_an_address() -> None:
    with pytest.raises(BadAddress, match="outside"):
        checked(six_to_four("10.1.2.3"), "2000::/3")
    assert checked(six_to_four("10.1.2.3"), "2000::/3", "10.0.0.0/8")
    assert checked(nat64("10.1.2.3"), "64:ff9b::/96")
    assert checked(nat64_local_96("10.1.2.3"), "64:ff9b:1::/96")


@pytest.mark.parametrize(
    "text",
    ["1.2.3.4\n", "1.2.3.4\r\n", " 1.2.3.4", "1.2.3.4 ", "\t1.2.3.4", "1.2.3.4\0", "fd01::2\n", "1.2.3", "0x7f000001",
     "2130706433", "127.1", "010.0.0.1", "1.2.3.4/32", "[fd01::2]", "fe80::1%eth0", "fd01::2%1", "１.2.3.4", ""],
)  # fmt: skip
def test_what_is_not_exactly_an_address_is_refused(text: str) -> None:
    with pytest.raises(BadAddress):
        parse_address(text)


def test_a_refusal_shows_only_the_start_of_what_was_given() -> None:
    with pytest.raises(BadAddress) as caught:
        parse_address("9" * 100_000)
    assert len(str(caught.value)) < 200


@given(st.text() | st.ip_addresses().map(str) | st.from_regex(r"[0-9a-f:.%\n]{0,45}"))
def test_any_text_is_an_address_or_refused(text: str) -> None:
    try:
        address = parse_address(text)
    except BadAddress:
        return
    assert parse_address(str(address)) == address


@given(st.ip_addresses(v=4), st.sampled_from(CARRIERS))
def test_what_carries_an_address_is_never_allowed_more_than_the_address_itself(
    address: ipaddress.IPv4Address, carrier: object
) -> None:
    assert callable(carrier)
    try:
        checked(str(address))
    except BadAddress:
        if address in ipaddress.ip_network("0.0.0.0/8") and carrier in (nat64_local, nat64_local_96):
            return  # Not told from another length of the prefix, and not routable.
        with pytest.raises(BadAddress):
            checked(carrier(str(address)))
