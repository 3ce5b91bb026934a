"""Certificates: verified always, by the CA file as it is on disk now."""

from __future__ import annotations

import asyncio
import os
import shutil
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from dcsync.adapters.cloud.clouds import HttpClouds
from dcsync.adapters.cloud.tls import Trust
from dcsync.model.errors import CloudError
from dcsync.model.reasons import Reason
from tests.certificates import Authority
from tests.integration.adapters.scripted_site import ADDRESS, Site, a_subcloud, answer, assert_no_secret_in, texts_of

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="makes certificates with the openssl command")
MakeClouds = Callable[..., HttpClouds]


@pytest.fixture(scope="module")
def authorities(tmp_path_factory: pytest.TempPathFactory) -> tuple[Authority, Authority]:
    folder = tmp_path_factory.mktemp("authorities")
    return Authority(folder, "old"), Authority(folder, "new")


@pytest.fixture
async def certified(site: Site) -> AsyncIterator[Callable[..., None]]:
    """Puts TLS before `site`: `certified(authority)`, or with the address the certificate is for."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server = None
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        await site.serve(reader, writer)

    def certify(authority: Authority, address: str = ADDRESS) -> None:
        context.load_cert_chain(authority.sign(address))

    server = await asyncio.start_server(serve, ADDRESS, 0, ssl=context)
    site.port, site.scheme = server.sockets[0].getsockname()[1], "https"
    yield certify
    server.close()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def log_in(clouds: HttpClouds) -> None:
    async with clouds.subcloud(a_subcloud(), request_id="req-1"):
        pass


async def refusal(clouds: HttpClouds) -> CloudError:
    with pytest.raises(CloudError) as caught:
        await log_in(clouds)
    assert_no_secret_in(*texts_of(caught.value))
    return caught.value


async def test_a_certificate_of_our_authority_is_trusted(
    certified: Callable[..., None], authorities: tuple[Authority, Authority], make_clouds: MakeClouds, site: Site
) -> None:
    certified(authorities[0])
    await log_in(make_clouds(ca_file=authorities[0].certificate))
    assert site.logins == 1


async def test_an_unknown_authority_is_refused_before_the_password_is_sent(
    certified: Callable[..., None], authorities: tuple[Authority, Authority], make_clouds: MakeClouds, site: Site
) -> None:
    certified(authorities[1])
    error = await refusal(make_clouds(ca_file=authorities[0].certificate))
    assert error.reason is Reason.TLS_FAILED
    assert "not trusted" in error.detail
    assert not site.requests


async def test_the_systems_authorities_count_where_no_file_is_named(
    certified: Callable[..., None], authorities: tuple[Authority, Authority], make_clouds: MakeClouds
) -> None:
    certified(authorities[0])
    assert (await refusal(make_clouds())).reason is Reason.TLS_FAILED


async def test_a_certificate_for_another_address_is_refused(
    certified: Callable[..., None], authorities: tuple[Authority, Authority], make_clouds: MakeClouds
) -> None:
    certified(authorities[0], "127.18.0.99")
    error = await refusal(make_clouds(ca_file=authorities[0].certificate))
    assert error.reason is Reason.TLS_FAILED
    assert "mismatch" in error.detail


async def test_a_renewed_authority_is_trusted_without_a_restart(
    certified: Callable[..., None], authorities: tuple[Authority, Authority], make_clouds: MakeClouds, tmp_path: Path
) -> None:
    ca_file = tmp_path / "ca.pem"
    shutil.copy(authorities[0].certificate, ca_file)
    clouds = make_clouds(ca_file=ca_file)
    certified(authorities[1])
    assert (await refusal(clouds)).reason is Reason.TLS_FAILED
    shutil.copy(authorities[1].certificate, tmp_path / "next.pem")
    os.replace(tmp_path / "next.pem", ca_file)
    await log_in(clouds)
    certified(authorities[0])
    assert (await refusal(clouds)).reason is Reason.TLS_FAILED, "the old authority is trusted no more"


async def test_a_site_that_speaks_no_tls_fails_as_tls(
    site: Site, authorities: tuple[Authority, Authority], make_clouds: MakeClouds
) -> None:
    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(answer(400))
        await reader.read()
        writer.close()

    async with await asyncio.start_server(plain, ADDRESS, 0) as server:
        site.port, site.scheme = server.sockets[0].getsockname()[1], "https"
        assert (await refusal(make_clouds(ca_file=authorities[0].certificate))).reason is Reason.TLS_FAILED


async def test_a_central_cloud_that_is_not_trusted_is_unreachable(
    certified: Callable[..., None], authorities: tuple[Authority, Authority], make_clouds: MakeClouds
) -> None:
    certified(authorities[1])
    with pytest.raises(CloudError) as caught:
        await make_clouds(ca_file=authorities[0].certificate).central_data()
    assert caught.value.reason is Reason.CENTRAL_UNREACHABLE
    assert "not trusted" in caught.value.detail


def test_the_context_is_the_same_until_the_file_changes(
    authorities: tuple[Authority, Authority], tmp_path: Path
) -> None:
    ca_file = tmp_path / "ca.pem"
    shutil.copy(authorities[0].certificate, ca_file)
    trust = Trust(ca_file)
    first = trust.context()
    assert trust.context() is first
    assert first.verify_mode is ssl.CERT_REQUIRED
    assert first.check_hostname
    ca_file.write_bytes(authorities[0].certificate.read_bytes() + authorities[1].certificate.read_bytes())
    assert trust.context() is not first
    assert len(trust.context().get_ca_certs()) == 2


@pytest.mark.parametrize("content", [None, b"", b"-----BEGIN CERTIFICATE-----\nhalf"])
def test_a_file_broken_while_it_is_renewed_leaves_the_last_good_one_in_use(
    authorities: tuple[Authority, Authority], tmp_path: Path, content: bytes | None
) -> None:
    ca_file = tmp_path / "ca.pem"
    shutil.copy(authorities[0].certificate, ca_file)
    trust = Trust(ca_file)
    first = trust.context()
    if content is None:
        ca_file.unlink()
    else:
        ca_file.write_bytes(content)
    assert trust.context() is first
    ca_file.write_bytes(authorities[0].certificate.read_bytes() + authorities[1].certificate.read_bytes())
    assert trust.context() is not first


@pytest.mark.parametrize("content", [None, b"", b"no certificate"])
def test_a_file_that_never_was_good_is_tls_failed(tmp_path: Path, content: bytes | None) -> None:
    ca_file = tmp_path / "ca.pem"
    if content is not None:
        ca_file.write_bytes(content)
    with pytest.raises(CloudError) as caught:
        Trust(ca_file).context()
    assert caught.value.reason is Reason.TLS_FAILED
    assert "ca.pem" in caught.value.detail
