"""The addresses of the central cloud and of dcsync's own servers, none of which may be a subcloud's management IP.

Names are resolved when they are first needed, and again after a while. Which addresses are refused for what they are,
such as loopback, is in `dcsync.model.addresses`.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from urllib.parse import parse_qs, urlsplit

from dcsync.model.addresses import Address, parse_address
from dcsync.model.errors import BadAddress

RESOLVED_SECONDS = 300.0
"""How long the addresses of a name are used before it is resolved again."""


class OwnServers:
    """Thread-safe. `hosts`: names or addresses, each with the server that runs there, as operators call it."""

    def __init__(
        self,
        hosts: Iterable[tuple[str, str]] = (),
        *,
        resolve: Callable[[str], Sequence[str]] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._hosts = dict(hosts)
        self._resolve = resolve or _resolve
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._by_host: dict[str, tuple[Address, ...]] = {}
        self._at: Mapping[Address, str] = {}
        self._resolved_at: float | None = None

    def refuse(self, management_ip: str) -> None:
        """Raises BadAddress when one of these servers has this address. May wait for a name server."""
        self._look_up()
        address = parse_address(management_ip)
        server = self._at.get(address)
        if server is not None:
            raise BadAddress(f"{address} is the address of {server}, which is no subcloud")

    async def refuse_soon(self, management_ip: str) -> None:
        """The same on an event loop, which goes on while a name server is asked."""
        if self._is_old():
            await asyncio.to_thread(self._look_up)
        self.refuse(management_ip)

    def _is_old(self) -> bool:
        return self._resolved_at is None or self._monotonic() - self._resolved_at >= RESOLVED_SECONDS

    def _look_up(self) -> None:
        """Resolves the names again where that is due; a name that is not resolved keeps the addresses it had."""
        with self._lock:
            if not self._is_old():
                return
            for host in self._hosts:
                if found := tuple(_addresses(self._resolve(host))):
                    self._by_host[host] = found
            self._at = {
                address: server for host, server in self._hosts.items() for address in self._by_host.get(host, ())
            }
            self._resolved_at = self._monotonic()


def hosts_of(url: str) -> list[str]:
    """Returns the hosts of a URL, of which databases and brokers may have several; none for a local socket.

    PostgreSQL's may be parameters, and sentinels are separated by semicolons.
    """
    found: list[str] = []
    for part in url.split(";"):
        split = urlsplit(part)
        found += [_without_port(each) for each in split.netloc.rpartition("@")[2].split(",")]
        query = parse_qs(split.query)
        found += [each for name in ("host", "hostaddr") for given in query.get(name, ()) for each in given.split(",")]
    return [host for host in found if host and not host.startswith("/")]


def _without_port(text: str) -> str:
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0]


def _resolve(host: str) -> list[str]:
    """Returns the addresses of a name; none where it cannot be resolved."""
    try:
        return [str(found[4][0]) for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
    except (OSError, UnicodeError):
        return []


def _addresses(texts: Iterable[str]) -> Iterator[Address]:
    for text in texts:
        try:
            yield parse_address(text)
        except BadAddress:  # a link-local address with its interface
            continue
