"""All clouds on sockets: one address each, one port for all, distinguished by address, their services by path.

A request is taken when it arrives and answered after the cloud's latency; in between it is in flight, which is what the
watchman and the tied roles (R7) look at.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ipaddress
import resource
import socket
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime

from dcsync.fake_cloud import dbsync, keystone, sysinv
from dcsync.fake_cloud.cloud import Cloud
from dcsync.fake_cloud.connection import Connection
from dcsync.fake_cloud.deployment import Deployment
from dcsync.fake_cloud.faults import Fault, Faults
from dcsync.fake_cloud.inspection import (
    TYPES,
    Standing,
    ids_aligned,
    inspect,
    is_subcloud_only,
    may_be_deleted,
    may_be_revoked,
)
from dcsync.fake_cloud.watchman import KEYS_RESET, SITE_RECORD_WRITTEN, WRONGLY_DELETED, Ledger, Watchman
from dcsync.fake_cloud.wire import Request, Response, json_response

CENTRAL_IP = "127.0.10.1"
FIRST_SUBCLOUD_IP = ipaddress.ip_address("127.1.0.0")
ROLE_WRITE_SECONDS = 0.003
"""How long the write of a role is under way: long enough for a client's other connections to be seen meanwhile."""
_PORT_TRIES = 50
_BACKLOG = 128
_NEVER = Response(0)


Control = Callable[["World", Request], Awaitable[Response]]
"""Whoever answers the control API."""


class Site:
    """One cloud as it is seen from outside."""

    __slots__ = ("_standing", "_standing_of", "cloud", "connections", "faults", "ledger", "listener", "world")

    def __init__(self, cloud: Cloud, world: World) -> None:
        self.cloud = cloud
        self.world = world
        self.connections: set[Connection] = set()
        self.faults = Faults()
        self.ledger = Ledger()
        self.listener: asyncio.Server | None = None
        self._standing: Standing | None = None
        self._standing_of = (-1, -1)

    @property
    def is_central(self) -> bool:
        return self.cloud.deployment.is_central

    def standing(self) -> Standing:
        """The state of this subcloud now; compared again only after a change."""
        versions = (self.cloud.version, self.world.central.version)
        if self._standing is None or self._standing_of != versions:
            self._standing, self._standing_of = inspect(self.cloud, self.world.central), versions
        return self._standing

    def take(self, request: Request, connection: Connection) -> None:
        """A request has arrived."""
        if self.is_central and request.service == "control":
            self.world.control(request, connection)
            return
        seconds, fault = 0.0, None
        if self.faults:
            seconds, fault = self.faults.pick(
                service=request.service, verb=request.verb, path=request.path, is_write=request.is_write
            )
        if not self.is_central:
            seconds += self.world.latency
        role_id = _role_written(request)
        collides = role_id is not None and self._collides(role_id)
        if role_id is not None:
            in_flight = self.cloud.roles_in_flight
            in_flight[role_id] = in_flight.get(role_id, 0) + 1
            seconds += ROLE_WRITE_SECONDS
        if request.is_write and not self.is_central:
            self.world.watchman.begins(
                self.ledger, region_name=self.cloud.region_name, request_id=request.request_id
            )  # fmt: skip
        if seconds > 0:
            connection.loop.call_later(seconds, self._answer, request, connection, fault, collides)
        else:
            self._answer(request, connection, fault, collides)

    def _collides(self, role_id: str) -> bool:
        return not dbsync.tied_roles(self.cloud, role_id).isdisjoint(self.cloud.roles_in_flight)

    def _answer(self, request: Request, connection: Connection, fault: Fault | None, collides: bool) -> None:
        response = self._faulty(request, fault) if fault else None
        if response is None:
            response = self._watched(request, collides=collides)
        role_id = _role_written(request)
        if role_id is not None:
            self._role_done(role_id)
        watchman = self.world.watchman
        if request.is_write and not self.is_central:
            watchman.ends(self.ledger, request_id=request.request_id)
        self.world.served += 1
        watchman.log(self.ledger, request=request, status=response.status)
        connection.deliver(response, fault)

    def _role_done(self, role_id: str) -> None:
        in_flight = self.cloud.roles_in_flight
        in_flight[role_id] -= 1
        if not in_flight[role_id]:
            del in_flight[role_id]

    def _watched(self, request: Request, *, collides: bool) -> Response:
        """The cloud's own answer, and what the watchman makes of it."""
        subcloud_only = self._writes_subcloud_only(request)
        wrongly = self._deletes_wrongly(request)
        keys_before = self.cloud.tables.keys if request.service == "sysinv" else {}
        response = self._own_answer(request, collides=collides)
        if self.is_central:
            return response
        if subcloud_only and response.status == 200:
            what = f"PUT {request.subject}: filtered, or not known at the central cloud"
            self.world.watchman.saw(self.cloud.region_name, SITE_RECORD_WRITTEN, request.request_id, what)
        if wrongly and response.status == 204:
            what = f"DELETE {request.subject}: not, or still, the central cloud's"
            self.world.watchman.saw(self.cloud.region_name, WRONGLY_DELETED, request.request_id, what)
        if request.service == "sysinv" and response.status in (200, 201, 202):
            self._watch_keys(request, keys_before)
        if request.verb == "GET" and request.subject == "keystone role_assignments" and response.status == 200:
            self.world.watchman.began_audit(self.ledger, request_id=request.request_id)
        return response

    def _own_answer(self, request: Request, *, collides: bool) -> Response:
        if request.service == "dbsync":
            return dbsync.answer(self.cloud, request, collides=collides)
        if request.service == "sysinv":
            return sysinv.answer(self.cloud, request)
        return keystone.answer(self.cloud, request)

    def _writes_subcloud_only(self, request: Request) -> bool:
        """Is this a run's PUT to a record no run may write? Groups are not asked: a subcloud's own group may have to be
        emptied and filled again when the id of a member changes (R2); the inspection looks at its members."""
        if request.verb != "PUT" or request.service != "dbsync" or self.is_central or request.request_id is None:
            return False
        type_, _, id_ = request.path[len(dbsync.PREFIX) :].partition("/")
        if type_ not in ("users", "projects", "roles"):
            return False
        return is_subcloud_only(self.cloud, self.world.central, type_, id_.rstrip("/"))

    def _deletes_wrongly(self, request: Request) -> bool:
        """Would a run take away a record or grant that did not come from the central cloud, or that the central cloud
        still has?"""
        if request.verb != "DELETE" or request.service != "keystone" or request.request_id is None or self.is_central:
            return False
        match request.path.rstrip("/").split("/")[2:]:
            case ["projects", project_id, ("users" | "groups") as actors, actor_id, "roles", role_id]:
                grant = (actors.removesuffix("s"), actor_id, project_id, role_id)
                return not may_be_revoked(self.world.central, grant)
            case [type_, id_] if type_ in TYPES:
                return not may_be_deleted(self.cloud, self.world.central, type_, id_)
        return False

    def _watch_keys(self, request: Request, keys_before: dict[int, str]) -> None:
        watchman, region_name, request_id = self.world.watchman, self.cloud.region_name, request.request_id
        keys = self.cloud.tables.keys
        if request.verb == "GET":
            are_central = keys == self.world.central.tables.keys and "keys" not in self.cloud.hidden
            watchman.read_keys(self.ledger, request_id=request_id, are_central=are_central)
            return
        if not sysinv.parse_keys(request.body):
            watchman.saw(region_name, KEYS_RESET, request_id, f"{request.verb} without keys")
        in_order = keys == keys_before or ids_aligned(self.cloud, self.world.central)
        watchman.delivered_keys(self.ledger, region_name=region_name, request_id=request_id, in_order=in_order)

    def _faulty(self, request: Request, fault: Fault) -> Response | None:
        """The answer of a request that is not carried out; None when it is."""
        match fault.kind:
            case "hang" | "reset" | "garbage" | "refuse" | "endless":
                return _NEVER
            case "unauthorized" | "wrong-password":
                return json_response(
                    401, {"error": {"code": 401, "title": "Unauthorized", "message": "Not authorized."}}
                )
            case "status":
                headers = (("Retry-After", str(fault.retry_after)),) if fault.retry_after is not None else ()
                return Response(fault.status, b"out of order", content_type="text/plain", headers=headers)
            case "html":
                page = b"<html><body><h1>It works!</h1></body></html>"
                return Response(200, page, content_type="text/html")
            case "wrong-shape":
                return json_response(201 if request.verb == "POST" else 200, {"cats": [1, 2, 3]})
            case "empty-list":
                return json_response(200, {"keys": []} if request.service == "sysinv" else [])
            case "swallow":
                return self._swallowed(request)
            case "partial-keys":
                return self._partial(request)
        return None

    def _swallowed(self, request: Request) -> Response:
        """A write answered as usual, with the rows as they were."""
        if request.service == "sysinv":
            return Response(201 if request.verb == "POST" else 202)
        if request.service == "dbsync" and request.verb == "PUT":
            seen = Request("GET", request.path, "", request.headers, b"")
            return dbsync.answer(self.cloud, seen)
        if request.verb == "PATCH":
            return json_response(200, {})
        return Response(201, request.body) if request.verb == "POST" else Response(204)

    def _partial(self, request: Request) -> Response:
        """Half of the keys are written, then it fails: the real one writes key by key."""
        with contextlib.suppress(ValueError):
            keys = sysinv.parse_keys(request.body)
            kept = sorted(keys)[: len(keys) // 2]
            self.cloud.tables.keys = self.cloud.tables.keys | {key_id: keys[key_id] for key_id in kept}
            self.cloud.changed()
        return Response(500, b"out of order", content_type="text/plain")

    async def set_faults(self, faults: tuple[Fault, ...]) -> None:
        """From now on these faults, and no others. Raises OSError when the address cannot be had back."""
        self.faults = Faults(faults)
        if self.faults.refuses:
            self.close()
        elif self.listener is None:
            await self.listen(_bound(self.cloud.management_ip, self.cloud.port))

    async def listen(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        factory = functools.partial(Connection, self, loop)
        self.listener = await loop.create_server(factory, sock=sock, backlog=_BACKLOG)

    def close(self) -> None:
        """Nobody listens any more, and who is connected is cut off."""
        if self.listener is not None:
            self.listener.close()
            self.listener = None
        for connection in list(self.connections):
            connection.abort()


def _role_written(request: Request) -> str | None:
    prefix = f"{dbsync.PREFIX}roles/"
    return request.path[len(prefix) :] if request.verb == "PUT" and request.path.startswith(prefix) else None


class World:
    """The central cloud and its subclouds, and the watchman who looks at them."""

    def __init__(
        self, *, subclouds: int, control: Control, seed: int = 0, latency: float = 0.0, unaligned: Iterable[str] = ()
    ) -> None:
        deployed_at = datetime.now(UTC).replace(microsecond=0)
        apart = frozenset(unaligned)
        self.latency = latency
        self._control = control
        self.watchman = Watchman()
        self.served = 0
        self.port = 0
        self.central = Cloud(deployment=Deployment(seed, deployed_at), management_ip=CENTRAL_IP)
        self.central_site = Site(self.central, self)
        self.sites: dict[str, Site] = {}
        for number in range(1, subclouds + 1):
            name = f"subcloud{number}"
            recipe = Deployment(seed, deployed_at, name, aligned=name not in apart)
            self.sites[name] = Site(Cloud(deployment=recipe, management_ip=str(FIRST_SUBCLOUD_IP + number)), self)
        self._tasks: set[asyncio.Task[None]] = set()

    def control(self, request: Request, connection: Connection) -> None:
        """A request to the control API; it may take its time."""

        async def respond() -> None:
            connection.deliver(await self._control(self, request), None)

        task = asyncio.get_running_loop().create_task(respond())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def chosen(self, region_name: str) -> list[Site]:
        """The clouds meant by a region name, "central" or "*" (all subclouds). Raises KeyError for an unknown name."""
        if region_name == "*":
            return list(self.sites.values())
        return [self.central_site if region_name == "central" else self.sites[region_name]]

    async def start(self) -> None:
        """All clouds listen, on a port that was free on all their addresses. Raises OSError when none is."""
        _raise_file_limit()
        sites = [self.central_site, *self.sites.values()]
        sockets = _bind_all([site.cloud.management_ip for site in sites])
        self.port = sockets[0].getsockname()[1]
        for site, sock in zip(sites, sockets, strict=True):
            site.cloud.port = self.port
            await site.listen(sock)

    def stop(self) -> None:
        for site in [self.central_site, *self.sites.values()]:
            site.close()


def _bound(address: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setblocking(False)
        sock.bind((address, port))
    except OSError:
        sock.close()
        raise
    return sock


def _bind_all(addresses: list[str]) -> list[socket.socket]:
    """One socket per address, all on one port that the system chose. Raises OSError after many vain tries."""
    for _ in range(_PORT_TRIES):
        sockets = [_bound(addresses[0], 0)]
        port = sockets[0].getsockname()[1]
        try:
            for address in addresses[1:]:
                sockets.append(_bound(address, port))  # those bound so far are closed on failure
        except OSError as exc:
            failure = exc
            for sock in sockets:
                sock.close()
        else:
            return sockets
    raise failure


def _raise_file_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
