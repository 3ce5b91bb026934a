"""dcdbsync and sysinv of one cloud: our own endpoints behind OpenStack's own token middleware.

The middleware validates every caller's token at the cloud's Keystone, logged in as the service's own user, so what
happens to services whose ids move (docs/upstream/real-keystone.md R1) happens here as well. Its cache of validated
tokens is emptied whenever keys are written, as sysinv does with memcached (docs/upstream/http-contracts.md section 4).
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from time import monotonic
from typing import Any

import sqlalchemy
from keystonemiddleware import auth_token
from oslo_config import cfg

from tests.real_cloud import content
from tests.real_cloud.dbsync_app import DbsyncApp
from tests.real_cloud.fernet_app import FernetRepoApp
from tests.real_cloud.identity_tables import IdentityTables

Wsgi = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
CACHE_KEY = "tests.real_cloud.token_cache"
REQUEST_LOG = "requests.jsonl"
SYSINV_FAILS = "sysinv-fails"
"""While a cloud's directory holds a file of this name, its sysinv answers 500."""


class TokenCache:
    """What the middleware expects of a memcache client, in memory."""

    def __init__(self) -> None:
        self._values: dict[str, tuple[float, Any]] = {}

    def get(self, key: str) -> Any:
        until, value = self._values.get(key, (0.0, None))
        return value if monotonic() < until else None

    def set(self, key: str, value: Any, time: float = 0, **_: object) -> None:
        self._values[key] = (monotonic() + time, value)

    def clear(self) -> None:
        self._values.clear()


def applications(*, directory: Path, cloud: str, auth_url: str) -> list[Wsgi]:
    """dcdbsync and sysinv, in this order."""
    from keystone.conf import CONF

    cache = TokenCache()
    tables = IdentityTables(sqlalchemy.create_engine(CONF.database.connection, pool_size=8))
    dbsync = _authenticated(
        DbsyncApp(tables), user="dcdbsync", cloud=cloud, auth_url=auth_url, cache=cache, delay_auth_decision=True
    )
    repository = FernetRepoApp(directory / "fernet-keys", forget_tokens=cache.clear)
    sysinv = _authenticated(
        repository, user="sysinv", cloud=cloud, auth_url=auth_url, cache=cache, delay_auth_decision=False
    )
    sysinv = _failing_while(directory / SYSINV_FAILS, sysinv)
    return [logged("dbsync", directory, dbsync), logged("sysinv", directory, sysinv)]


def _failing_while(marker: Path, application: Wsgi) -> Wsgi:
    def failing_application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if not marker.exists():
            return application(environ, start_response)
        start_response("500 Internal Server Error", [("Content-Type", "text/plain")])
        return [b"out of order"]

    return failing_application


def _authenticated(
    application: Wsgi, *, user: str, cloud: str, auth_url: str, cache: TokenCache, delay_auth_decision: bool
) -> Wsgi:
    configuration = cfg.ConfigOpts()
    configuration([], default_config_files=[])
    middleware = auth_token.AuthProtocol(
        application,
        {
            "oslo_config_config": configuration,
            "log_name": f"{user}-middleware",
            "auth_type": "password",
            "auth_url": auth_url,
            "www_authenticate_uri": auth_url,
            "username": user,
            "password": content.first_password(cloud, user),
            "project_name": "services",
            "user_domain_name": "Default",
            "project_domain_name": "Default",
            "cache": CACHE_KEY,
            "delay_auth_decision": delay_auth_decision,
        },
    )
    logging.getLogger(f"{user}-middleware").setLevel(logging.ERROR)

    def with_cache(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        environ[CACHE_KEY] = cache
        answer: Iterable[bytes] = middleware(environ, start_response)
        return answer

    return with_cache


def logged(service: str, directory: Path, application: Wsgi) -> Wsgi:
    """Every request and its status as a line in the cloud's `requests.jsonl`: no bodies, no tokens."""
    log = (directory / REQUEST_LOG).open("a", encoding="utf-8")

    def logging_application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        def start(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            seen = {
                "time": time.time(),
                "service": service,
                "method": environ["REQUEST_METHOD"],
                "path": environ.get("SCRIPT_NAME", "") + environ["PATH_INFO"],
                "status": int(status.split()[0]),
                "request_id": environ.get("HTTP_X_OPENSTACK_REQUEST_ID", ""),
            }
            log.write(json.dumps(seen) + "\n")
            log.flush()
            return start_response(status, headers, *rest)

        return application(environ, start)

    return logging_application
