"""URLs of PostgreSQL and Redis, which may name several hosts: `scheme://user:password@host:port,host:port/path?query`.

`urllib` reads one host only. Nothing here resolves or connects.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote, urlsplit

SENTINEL_PORT = 26379


@dataclass(frozen=True)
class ServerUrl:
    """The parts of a URL, percent signs decoded; never shown whole, because it contains the password."""

    scheme: str
    username: str
    password: str
    hosts: tuple[tuple[str, int | None], ...]
    path: str
    query: tuple[tuple[str, str], ...]

    def __repr__(self) -> str:
        return f"ServerUrl({self.scheme}, {self.hosts})"


def server_url(text: str) -> ServerUrl:
    """Returns the parts; raises ValueError, without the URL, for a blank, an empty host, or an invalid port."""
    if any(char.isspace() for char in text):
        raise ValueError("contains a blank")
    parts = urlsplit(text)
    login, _, hosts = parts.netloc.rpartition("@")
    username, _, password = login.partition(":")
    return ServerUrl(
        scheme=parts.scheme,
        username=unquote(username),
        password=unquote(password),
        hosts=tuple(_host_and_port(each) for each in hosts.split(",")) if hosts else (),
        path=unquote(parts.path.removeprefix("/")),
        query=tuple(parse_qsl(parts.query, keep_blank_values=True)),
    )


def _host_and_port(text: str) -> tuple[str, int | None]:
    bracketed, closing, rest = text.partition("]")
    host, port = (bracketed.removeprefix("["), rest) if closing else _split_port(text)
    if not host or (closing and not text.startswith("[")) or (port and not port.startswith(":")):
        raise ValueError("contains an invalid host")
    digits = port.removeprefix(":")
    if not digits:
        return host, None
    if not (digits.isascii() and digits.isdecimal() and 0 < int(digits) <= 65535):
        raise ValueError("contains an invalid port")
    return host, int(digits)


def _split_port(text: str) -> tuple[str, str]:
    host, colon, digits = text.partition(":")
    return host, f"{colon}{digits}"


@dataclass(frozen=True)
class SentinelUrl:
    """`redis+sentinel://user:password@host:26379,host/name/0?sentinel_password=...`, `rediss+sentinel` for TLS."""

    hosts: tuple[tuple[str, int], ...]
    name: str
    """The name under which the Sentinels watch the primary."""
    database: int
    username: str | None
    password: str | None
    sentinel_username: str | None
    sentinel_password: str | None
    is_tls: bool
    options: tuple[tuple[str, str], ...]
    """What else the query contains: options of the connections to Redis."""

    def __repr__(self) -> str:
        return f"SentinelUrl({self.hosts}, {self.name}/{self.database})"


def is_sentinel(text: str) -> bool:
    return text.startswith(("redis+sentinel://", "rediss+sentinel://"))


def sentinel_url(text: str) -> SentinelUrl:
    """Returns the parts; raises ValueError, without the URL, when it has no host or no name of a primary."""
    url = server_url(text)
    name, _, database = url.path.partition("/")
    if not url.hosts or not name or not (database or "0").isdecimal():
        raise ValueError("must name the Sentinels and the primary they watch")
    query = dict(url.query)
    return SentinelUrl(
        hosts=tuple((host, port or SENTINEL_PORT) for host, port in url.hosts),
        name=name,
        database=int(database or 0),
        username=url.username or None,
        password=url.password or None,
        sentinel_username=query.pop("sentinel_username", None),
        sentinel_password=query.pop("sentinel_password", None),
        is_tls=url.scheme == "rediss+sentinel",
        options=tuple(query.items()),
    )
