"""Which URLs of dcsync's own servers verify the server: TLS to Redis always, to PostgreSQL unless it is on this host.

A URL that says nothing is completed with verification and the CA file; one that would weaken it is refused. Clients
get complete URLs, so that the rule holds for Celery, Flower, SQLAlchemy and redis-py alike. Webhooks and clouds use
`Trust`.
"""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

VERIFIED = "verify-full"
"""The only sslmode of libpq that verifies both the certificate's issuer and its host name."""

REDIS_OPTIONS = {"ssl_cert_reqs", "ssl_check_hostname", "ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile"}
"""TLS parameters of a Redis URL that redis-py and kombu read alike."""

SYSTEM_BUNDLES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt")


def verified_broker_url(url: str, *, ca_file: Path | None) -> str:
    """Returns the URL of Redis with its TLS parameters complete; raises ValueError for one that does not verify."""
    given = _parameters(url)
    options = {name for name in given if name.startswith("ssl")}
    if options and not _is_tls(url):
        raise ValueError(f"{', '.join(sorted(options))} needs rediss://")
    if any(each != "required" for each in given.get("ssl_cert_reqs", ())):
        raise ValueError("ssl_cert_reqs must be required: certificates are always verified")
    if any(each.lower() != "true" for each in given.get("ssl_check_hostname", ())):
        raise ValueError("ssl_check_hostname must be true: certificates are always verified")
    if unknown := sorted(options - REDIS_OPTIONS):
        raise ValueError(f"{', '.join(unknown)} is not supported")
    if not _is_tls(url):
        return url
    missing = {} if "ssl_cert_reqs" in given else {"ssl_cert_reqs": "required"}
    if ca_file is not None and not {"ssl_ca_certs", "ssl_ca_path"} & given.keys():
        missing["ssl_ca_certs"] = str(ca_file)
    return _with_parameters(url, missing)


def broker_tls(url: str) -> dict[str, object] | None:
    """Returns the TLS options of a complete Redis URL for `broker_use_ssl`, which Flower needs; None without TLS."""
    if not _is_tls(url):
        return None
    given = {name: values[-1] for name, values in _parameters(url).items() if name in REDIS_OPTIONS}
    return {**given, "ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_check_hostname": True}


def verified_database_url(url: str, *, ca_file: Path | None, allow_plaintext: bool) -> str:
    """Returns the URL of PostgreSQL with its TLS parameters complete.

    Raises ValueError for a connection to another host whose sslmode is weaker than verify-full, unless
    `allow_plaintext`. URLs of other databases are returned unchanged; `database` refuses them.
    """
    if urlsplit(url).scheme.partition("+")[0] not in {"postgresql", "postgres"}:
        return url
    modes = _sslmodes(url)
    if modes - {VERIFIED} and is_remote_database(url) and not allow_plaintext:
        raise ValueError(
            f"sslmode must be {VERIFIED} for a server on another host; DCSYNC_ALLOW_PLAINTEXT=1 allows "
            "connections that anybody on the way can read and change"
        )
    missing = {}
    if not modes and is_remote_database(url) and not allow_plaintext:
        missing["sslmode"] = VERIFIED
    if (missing or modes == {VERIFIED}) and "sslrootcert" not in _parameters(url):
        missing["sslrootcert"] = str(ca_file) if ca_file is not None else system_bundle()
    return _with_parameters(url, missing)


def is_unverified_database(url: str) -> bool:
    """Returns whether it connects to another host without verifying it."""
    return is_remote_database(url) and _sslmodes(url) != {VERIFIED}


def is_remote_database(url: str) -> bool:
    """Returns whether any host of the URL is neither a Unix socket nor a loopback address."""
    parameters = _parameters(url)
    authority = urlsplit(url).netloc.rpartition("@")[2]
    hosts = [*authority.split(","), *(host for name in ("host", "hostaddr") for host in parameters.get(name, ()))]
    named = [_without_port(unquote(host)) for each in hosts for host in each.split(",")]
    return "service" in parameters or not all(map(_is_here, named))


def system_bundle() -> str:
    """Returns the file of the system's CA certificates, which libpq before 16 cannot find; "system" if none is."""
    for path in (ssl.get_default_verify_paths().cafile, *SYSTEM_BUNDLES):
        if path and Path(path).exists():
            return path
    return "system"


def _is_tls(url: str) -> bool:
    """`rediss://`, and that of Sentinels."""
    return urlsplit(url).scheme.partition("+")[0] == "rediss"


def _is_here(host: str) -> bool:
    if host in {"", "localhost"} or host.startswith(("/", "@")):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _without_port(host: str) -> str:
    """`[::1]:5432` -> `::1`, `db:5432` -> `db`, `::1` unchanged."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    name, _, port = host.rpartition(":")
    return name if port.isdecimal() and ":" not in name and not host.startswith("/") else host


def _sslmodes(url: str) -> set[str]:
    """Returns every sslmode the URL gives; `ssl=true` and `requiressl=1` are aliases of require."""
    parameters = _parameters(url)
    return {*parameters.get("sslmode", ()), *(name for name in ("ssl", "requiressl") if name in parameters)}


def _parameters(url: str) -> Mapping[str, list[str]]:
    return parse_qs(urlsplit(url).query, keep_blank_values=True)


def _with_parameters(url: str, missing: Mapping[str, str]) -> str:
    """Appends to the URL, so that what it says already stays as it is written."""
    added = "&".join(f"{name}={quote(value, safe='/')}" for name, value in missing.items())
    if not added:
        return url
    return f"{url}{'&' if urlsplit(url).query else '' if url.endswith('?') else '?'}{added}"
