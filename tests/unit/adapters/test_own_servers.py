"""Which addresses are no subcloud's, because the central cloud or a server of dcsync has them."""

from __future__ import annotations

import pytest

from dcsync import settings
from dcsync.adapters.host.own_servers import RESOLVED_SECONDS, OwnServers, hosts_of
from dcsync.bootstrap import own_servers
from dcsync.model.errors import BadAddress


@pytest.mark.parametrize(
    ("url", "hosts"),
    [
        ("https://central.example:5000/v3", ["central.example"]),
        ("http://[fd00::1]:5000/v3", ["fd00::1"]),
        ("postgresql://u:p@db1:5432,[fd00::2]:5432,10.0.0.3/dcsync", ["db1", "fd00::2", "10.0.0.3"]),
        ("postgresql://u:p%40x@/dcsync?host=/run/postgresql", []),
        ("postgresql:///dcsync?host=db1,db2", ["db1", "db2"]),
        ("redis://:p@ss@cache:6379/0", ["cache"]),
        ("sentinel://:p@s1:26379;sentinel://:p@s2:26379/0", ["s1", "s2"]),
        ("unix:///run/redis.sock", []),
    ],
)
def test_the_hosts_of_a_url_are_found(url: str, hosts: list[str]) -> None:
    assert hosts_of(url) == hosts


@pytest.mark.parametrize(
    ("setting", "value", "server"),
    [
        ("CENTRAL_AUTH_URL", "http://10.1.0.1:5000/v3", "the central cloud"),
        ("CENTRAL_DBSYNC_URL", "http://10.1.0.1:8219/v1.0", "the central cloud"),
        ("CENTRAL_SYSINV_URL", "http://10.1.0.1:6385/v1", "the central cloud"),
        ("DATABASE_URL", "postgresql://u:p@10.1.0.1/d", "dcsync's PostgreSQL"),
        ("REDIS_URL", "redis://10.1.0.1", "dcsync's Redis"),
    ],
)
def test_no_server_that_is_set_is_a_subcloud(setting: str, value: str, server: str) -> None:
    own = own_servers(settings.load({f"DCSYNC_{setting}": value}))
    own.refuse("10.1.0.2")
    for same in ("10.1.0.1", "::ffff:10.1.0.1"):
        with pytest.raises(BadAddress, match=f"^10.1.0.1 is the address of {server}, which is no subcloud$"):
            own.refuse(same)


async def test_names_are_resolved_again_after_a_while_and_kept_while_nobody_resolves_them() -> None:
    now, answers = 0.0, ["10.1.0.1", "fe80::1%eth0"]
    asked: list[str] = []

    def resolve(host: str) -> list[str]:
        asked.append(host)
        return answers

    own = OwnServers([("db", "dcsync's PostgreSQL")], resolve=resolve, monotonic=lambda: now)
    with pytest.raises(BadAddress):
        await own.refuse_soon("10.1.0.1")
    with pytest.raises(BadAddress):
        own.refuse("10.1.0.1")
    assert asked == ["db"]
    now, answers = RESOLVED_SECONDS, []
    with pytest.raises(BadAddress):
        await own.refuse_soon("10.1.0.1")
    now, answers = 2 * RESOLVED_SECONDS, ["10.1.0.9"]
    await own.refuse_soon("10.1.0.1")
    with pytest.raises(BadAddress):
        await own.refuse_soon("10.1.0.9")
    assert asked == ["db"] * 3
