"""Probes subclouds over HTTP (port `Prober`): whether Keystone returns a valid version document in time.

The request needs no login: a probe sends no password and cannot lock out the user. It is the cheapest request that
tests network, TLS, web server and Keystone. Logins are tested by syncs and audits.
"""

from __future__ import annotations

import asyncio
import math
import sys
import uuid
from collections.abc import Callable, Sequence

from dcsync.adapters.cloud.endpoints import ServiceUrls, refuse_other_clouds, subcloud_urls
from dcsync.adapters.cloud.http import Http, Limits, Reply, open_http
from dcsync.adapters.cloud.tls import Trust
from dcsync.adapters.host.own_servers import OwnServers
from dcsync.model.addresses import Network
from dcsync.model.errors import CloudError
from dcsync.probe.ports import ProbeTarget

PROBES_AT_ONCE = 1000
"""Per process; with fewer unresponsive subclouds than this a responsive one never waits."""

MAX_REPLY_BYTES = 64 * 1024


class HttpProber:
    """Used by one process and one event loop. `timeout_seconds` is the time limit of one probe."""

    def __init__(
        self,
        *,
        subcloud_templates: ServiceUrls,
        allowed_networks: Sequence[Network],
        trust: Trust,
        timeout_seconds: float,
        own_servers: OwnServers | None = None,
        at_once: int = PROBES_AT_ONCE,
    ) -> None:
        self._templates = subcloud_templates
        self._allowed_networks = tuple(allowed_networks)
        self._own_servers = own_servers or OwnServers()
        self._trust = trust
        self._limits = Limits(
            connect_timeout=timeout_seconds,
            read_timeout=timeout_seconds,
            request_timeout=timeout_seconds,
            max_reply_bytes=MAX_REPLY_BYTES,
            max_run_bytes=sys.maxsize,
            max_run_cpu=math.inf,
        )
        self._room = asyncio.Semaphore(at_once)

    async def probe(
        self, targets: Sequence[ProbeTarget], *, on_result: Callable[[ProbeTarget, str | None], None]
    ) -> None:
        """See `ports.Prober`; every probe opens a new connection, so that connecting is tested as well."""
        http = open_http(limits=self._limits, trust=self._trust, request_id=f"req-{uuid.uuid4()}", reuse=False)
        async with http as connections, asyncio.TaskGroup() as group:
            for target in targets:
                group.create_task(self._probe_one(connections, target, on_result))

    async def _probe_one(
        self, http: Http, target: ProbeTarget, on_result: Callable[[ProbeTarget, str | None], None]
    ) -> None:
        async with self._room:
            problem = await self._problem(http, target)
        on_result(target, problem)

    async def _problem(self, http: Http, target: ProbeTarget) -> str | None:
        try:
            urls = subcloud_urls(
                self._templates, management_ip=target.management_ip, allowed_networks=self._allowed_networks
            )
            await refuse_other_clouds(target.management_ip, own=self._own_servers)
            _expect_keystone(await http.send("GET", urls.auth))
        except CloudError as exc:
            return str(exc)
        return None


def _expect_keystone(reply: Reply) -> None:
    """Raises CloudError unless it is the version document of a Keystone v3: {"version": {"id": "v3.14", ...}}."""
    document = reply.expect(200).json()
    version = document.get("version") if isinstance(document, dict) else None
    id_ = version.get("id") if isinstance(version, dict) else None
    if not (isinstance(id_, str) and id_.startswith("v3")):
        raise reply.bad("not a Keystone version document")
