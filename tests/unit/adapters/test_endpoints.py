"""Which addresses are dialled: a subcloud's by template, the central cloud's by its catalog."""

from __future__ import annotations

import ipaddress

import pytest

from dcsync.adapters.cloud.endpoints import CentralEndpoints, ServiceUrls, central_urls, subcloud_urls
from dcsync.model.errors import CloudError
from dcsync.model.reasons import Reason

USUAL = ServiceUrls(auth="https://{ip}:5001/v3", dbsync="https://{ip}:8220/v1.0", sysinv="https://{ip}:6386/v1")
CENTRE = CentralEndpoints(auth="http://centre:5000/v3/", region="RegionOne")


def urls_of(management_ip: str, *networks: str) -> ServiceUrls:
    allowed = [ipaddress.ip_network(network) for network in networks]
    return subcloud_urls(USUAL, management_ip=management_ip, allowed_networks=allowed)


def test_an_ipv4_address_stands_as_it_is() -> None:
    assert urls_of("192.168.101.2") == ServiceUrls(
        auth="https://192.168.101.2:5001/v3",
        dbsync="https://192.168.101.2:8220/v1.0",
        sysinv="https://192.168.101.2:6386/v1",
    )


def test_an_ipv6_address_is_put_in_brackets() -> None:
    assert urls_of("fd01:2:0::2").auth == "https://[fd01:2::2]:5001/v3"


def test_an_ipv4_address_in_ipv6_clothes_is_the_ipv4_address() -> None:
    assert urls_of("::ffff:192.168.101.2").auth == "https://192.168.101.2:5001/v3"


@pytest.mark.parametrize(
    "management_ip",
    ["127.0.0.1", "::1", "::ffff:127.0.0.1", "169.254.169.254", "fe80::1", "224.0.0.1", "0.0.0.0", "not an address"],
)
def test_an_address_we_must_not_dial_is_refused(management_ip: str) -> None:
    with pytest.raises(CloudError) as caught:
        urls_of(management_ip)
    assert caught.value.reason is Reason.ADDRESS_REFUSED


def test_an_address_outside_the_allowed_networks_is_refused() -> None:
    assert urls_of("10.10.0.7", "10.10.0.0/16").auth
    with pytest.raises(CloudError) as caught:
        urls_of("10.11.0.7", "10.10.0.0/16")
    assert caught.value.reason is Reason.ADDRESS_REFUSED


def service(type_: str, **urls: str) -> dict[str, object]:
    endpoints = [{"interface": interface, "region_id": "RegionOne", "url": url} for interface, url in urls.items()]
    return {"type": type_, "endpoints": [{"interface": "admin", "region": "Elsewhere", "url": "http://no"}, *endpoints]}


def test_the_catalog_is_asked_for_admin_dcdbsync_and_internal_sysinv_of_the_region() -> None:
    catalog = [
        service("dcorch-dbsync", public="http://p", internal="http://i:8219/v1.0", admin="http://a:8219/v1.0"),
        service("platform", public="http://p", internal="http://i:6385/v1/", admin="http://a:6385/v1"),
    ]
    assert central_urls(CENTRE, catalog=catalog) == ServiceUrls(
        auth="http://centre:5000/v3", dbsync="http://a:8219/v1.0", sysinv="http://i:6385/v1"
    )


def test_the_other_interface_serves_where_the_preferred_one_is_missing() -> None:
    catalog = [service("dcorch-dbsync", internal="http://i:8219/v1.0"), service("platform", admin="http://a:6385/v1")]
    found = central_urls(CENTRE, catalog=catalog)
    assert (found.dbsync, found.sysinv) == ("http://i:8219/v1.0", "http://a:6385/v1")


def test_what_is_configured_needs_no_catalog() -> None:
    configured = CentralEndpoints(auth="http://a/v3", region="R", dbsync="http://b/v1.0/", sysinv="http://c/v1")
    assert central_urls(configured, catalog=None) == ServiceUrls(
        auth="http://a/v3", dbsync="http://b/v1.0", sysinv="http://c/v1"
    )


@pytest.mark.parametrize(
    "catalog",
    [
        None,
        {},
        "catalog",
        [1],
        [{"type": "dcorch-dbsync"}],
        [{"type": "dcorch-dbsync", "endpoints": [None, {"interface": "admin"}]}],
        [service("dcorch-dbsync", public="http://p")],
        [service("dcorch-dbsync", admin="file:///etc/passwd")],
    ],
)
def test_a_catalog_without_the_service_is_a_bad_central_reply_that_says_what_is_missing(catalog: object) -> None:
    with pytest.raises(CloudError) as caught:
        central_urls(CENTRE, catalog=catalog)
    assert caught.value.reason is Reason.CENTRAL_BAD_REPLY
    assert "dcorch-dbsync in region RegionOne" in caught.value.detail
