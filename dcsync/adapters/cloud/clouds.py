"""Sessions with the central cloud and with subclouds over HTTP; implements `Clouds`.

It opens, logs in, shares and closes. What is read and written is decided by the services.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from dcsync.adapters.cloud.dbsync import Dbsync
from dcsync.adapters.cloud.endpoints import (
    CentralEndpoints,
    ServiceUrls,
    look_up_central,
    refuse_other_clouds,
    subcloud_urls,
)
from dcsync.adapters.cloud.http import Limits, of_central, open_http
from dcsync.adapters.cloud.keystone import Authenticated, Credentials, PasswordLogin, Token
from dcsync.adapters.cloud.keystone_api import KeystoneApi
from dcsync.adapters.cloud.services import Service, services_of
from dcsync.adapters.cloud.sysinv import SysinvFernetRepo
from dcsync.adapters.cloud.tls import Trust
from dcsync.adapters.host.own_servers import OwnServers
from dcsync.adapters.host.refused_logins import ProcessRefusedLogins
from dcsync.model.addresses import Network
from dcsync.model.errors import CloudError
from dcsync.model.identity import CentralData, FernetKeys, Record, Records, ResourceType, fingerprint
from dcsync.model.reasons import Reason
from dcsync.model.subcloud import EndpointType, Subcloud
from dcsync.planner.match import MANDATORY
from dcsync.runs.clouds import Seen
from dcsync.runs.logins import RefusedLogins

T = TypeVar("T")

URLS_MAX_AGE_SECONDS = 3600.0
"""The central services' URLs are looked up again after this time, and at once when they do not serve."""


class HttpSubcloudSession:
    """A `SubcloudSession`: one subcloud, logged in."""

    def __init__(self, session: Authenticated, *, urls: ServiceUrls) -> None:
        self._session = session
        self.identity = Dbsync(session, url=urls.dbsync)
        self.keystone = KeystoneApi(session, url=urls.auth)
        self.fernet_repo = SysinvFernetRepo(session, url=urls.sysinv)
        self._services = services_of(session, urls)
        self.seen = Seen()

    def service(self, endpoint_type: EndpointType) -> Service:
        """Returns the adapter registered for this endpoint type (`services.SERVICES`); raises KeyError without one."""
        return self._services[endpoint_type]

    async def login(self) -> None:
        """Logs in again and drops the previous token."""
        await self._session.login()


class _Central:
    """The central cloud, logged in, for reading only."""

    def __init__(self, session: Authenticated, *, urls: ServiceUrls) -> None:
        self.dbsync = Dbsync(session, url=urls.dbsync)
        self.keystone = KeystoneApi(session, url=urls.auth)
        self.fernet_repo = SysinvFernetRepo(session, url=urls.sysinv)
        self.others = services_of(session, urls)
        self.urls = urls

    def basics(self) -> list[Coroutine[Any, Any, Any]]:
        """Returns coroutines that read the keys, then the records of each type."""
        return [self.fernet_repo.read(), *(self.dbsync.list(type_) for type_ in ResourceType)]


class _Shared(Generic[T]):
    """Data of the central cloud, fetched once for concurrent callers and cached up to `max_age` seconds."""

    def __init__(
        self, fetch: Callable[[], Coroutine[Any, Any, T]], *, max_age: float, monotonic: Callable[[], float], name: str
    ) -> None:
        self._fetch = fetch
        self._max_age = max_age
        self._monotonic = monotonic
        self._name = name
        self._fetched: tuple[T, float] | None = None
        self._fetching: asyncio.Task[T] | None = None
        self._started = 0.0

    def held(self, *, max_age: float | None = None) -> T | None:
        """Returns the cached data; None when it is older than `max_age`."""
        if self._fetched is None:
            return None
        found, at = self._fetched
        return found if self._monotonic() - at < self._limit(max_age) else None

    def _limit(self, max_age: float | None) -> float:
        return self._max_age if max_age is None else min(self._max_age, max_age)

    async def get(self, *, max_age: float | None = None) -> T:
        """Returns data at most `max_age` seconds old (never older than the configured age), fetching it if needed.

        A cancelled caller does not cancel the fetch for the others; a failed fetch is not cached. Raises CloudError
        with a central-* reason.
        """
        held = self.held(max_age=max_age)
        if held is not None:
            return held
        is_too_old = self._monotonic() - self._started >= self._limit(max_age)
        if self._fetching is None or self._fetching.done() or is_too_old:
            self._started = self._monotonic()
            self._fetching = asyncio.create_task(self._fetch_one(), name=self._name)
            self._fetching.add_done_callback(_retrieve_failure)
        return await asyncio.shield(self._fetching)

    async def _fetch_one(self) -> T:
        started = self._monotonic()
        try:
            found = await self._fetch()
        except CloudError as exc:
            failure = of_central(exc)
        else:
            if self._fetched is None or self._fetched[1] <= started:
                self._fetched = found, started
            return found
        raise failure


class HttpClouds:
    """Used by one process and one event loop.

    `max_age` is how old central data may be, in seconds. `password` returns the current password, by default that of
    the credentials, `previous_password` the one before the last change. Without `refused_logins` this object remembers
    its own.
    """

    def __init__(
        self,
        *,
        credentials: Credentials,
        password: Callable[[], str] | None = None,
        previous_password: Callable[[], str] | None = None,
        refused_logins: RefusedLogins | None = None,
        central: CentralEndpoints,
        subcloud_templates: ServiceUrls,
        allowed_networks: Sequence[Network] = (),
        own_servers: OwnServers | None = None,
        ca_file: Path | None = None,
        limits: Limits | None = None,
        max_age: float = 5,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits = limits or Limits()
        refused = refused_logins or ProcessRefusedLogins()

        def login(password: Callable[[], str] | None, *, is_last_resort: bool = False) -> PasswordLogin:
            return PasswordLogin(
                credentials,
                refused=refused,
                password=password,
                is_last_resort=is_last_resort,
                patience_seconds=self._limits.request_timeout,
                monotonic=monotonic,
            )

        self._login = login(password)
        self._previous = login(previous_password, is_last_resort=True) if previous_password else None
        self._own_user = credentials.username
        self._central = central
        self._templates = subcloud_templates
        self._allowed_networks = tuple(allowed_networks)
        self._own_servers = own_servers or OwnServers()
        self._trust = Trust(ca_file)
        self._monotonic = monotonic
        self._central_token: Token | None = None
        self._central_urls: tuple[ServiceUrls, float] | None = None
        self._for_syncs = _Shared(self._read_for_syncs, max_age=max_age, monotonic=monotonic, name="central data")
        self._for_audits = _Shared(
            self._read_for_audits, max_age=max_age, monotonic=monotonic, name="central data with grants and events"
        )

    @property
    def own_user(self) -> str:
        return self._own_user

    # --- the central cloud --------------------------------------------------------------------------------------------

    async def central_data(self) -> CentralData:
        """Returns central records and keys, also from the cache of audits; see `_Shared.get`."""
        return self._for_audits.held() or await self._for_syncs.get()

    async def central_audit_data(self, *, max_age: float | None = None) -> CentralData:
        """Returns central records and keys with role assignments and revocation events; see `_Shared.get`."""
        return await self._for_audits.get(max_age=max_age)

    async def _read_for_syncs(self) -> CentralData:
        async def read(central: _Central) -> CentralData:
            keys, *lists = await _gather(*central.basics())
            return _checked(lists, keys)

        return await self._read(read)

    async def _read_for_audits(self) -> CentralData:
        async def read(central: _Central) -> CentralData:
            basics = central.basics()
            grants, events, *found = await _gather(
                central.keystone.assignments(),
                central.dbsync.revocation_events(),
                *basics,
                *(service.read() for service in central.others.values()),
            )
            keys, *lists = found[: len(basics)]
            others = dict(zip(central.others, found[len(basics) :], strict=True))
            return replace(_checked(lists, keys), assignments=grants, revocation_events=events, others=others)

        return await self._read(read)

    async def _read(self, read: Callable[[_Central], Awaitable[T]]) -> T:
        """Reads from the central cloud. If that fails at URLs that were looked up a while ago, looks them up anew, and
        reads once more if they have moved. Raises CloudError."""
        known = self._known_urls()
        try:
            async with self._central_cloud() as central:
                return await read(central)
        except CloudError as exc:
            if known is None or exc.reason is Reason.AUTH_FAILED:
                raise
            failure = exc
        async with self._central_cloud() as central:
            if central.urls != known:
                return await read(central)
        raise failure

    async def central_keys(self) -> FernetKeys:
        """Returns the current keys of the central cloud, without caching; raises CloudError with a central-* reason."""
        try:
            return await self._read(lambda central: central.fernet_repo.read())
        except CloudError as exc:
            raise of_central(exc) from exc

    async def replace_central_keys(self, keys: FernetKeys) -> None:
        """Writes the whole set to the central cloud's repository; raises CloudError with a central-* reason.

        The cached token is dropped: it is valid only as long as the key that signed it is kept.
        """
        try:
            async with self._central_cloud() as central:
                await central.fernet_repo.put(keys)
        except CloudError as exc:
            raise of_central(exc) from exc
        finally:
            self._central_token = None

    @asynccontextmanager
    async def _central_cloud(self) -> AsyncIterator[_Central]:
        """Yields the central cloud's services, with the cached token and URLs if they are still valid."""
        async with open_http(limits=self._limits, trust=self._trust, request_id=f"req-{uuid.uuid4()}") as http:
            session = Authenticated(
                http,
                auth_url=self._central.auth,
                login=self._login,
                monotonic=self._monotonic,
                token=self._central_token,
            )
            try:
                await session.token()
                yield _Central(session, urls=await self._urls_of_central(session))
            except CloudError:
                self._central_urls = None
                raise
            finally:
                self._central_token = session.held

    async def _urls_of_central(self, session: Authenticated) -> ServiceUrls:
        known = self._known_urls()
        if known is not None:
            return known
        started = self._monotonic()
        urls = await look_up_central(session, self._central)
        self._central_urls = urls, started
        return urls

    def _known_urls(self) -> ServiceUrls | None:
        """Returns the URLs that were looked up, None if that was too long ago."""
        if self._central_urls is None:
            return None
        urls, looked_up_at = self._central_urls
        return urls if self._monotonic() - looked_up_at < URLS_MAX_AGE_SECONDS else None

    # --- subclouds ---------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def subcloud(self, subcloud: Subcloud, *, request_id: str) -> AsyncIterator[HttpSubcloudSession]:
        """Yields a session, logged in, and closes its sockets. Raises CloudError, as address-refused before any I/O."""
        async with self._session(self._login, await self._urls_of(subcloud), request_id) as session:
            yield session

    @asynccontextmanager
    async def with_previous_password(
        self, subcloud: Subcloud, *, request_id: str
    ) -> AsyncIterator[HttpSubcloudSession | None]:
        """Yields a session logged in with the password before the last change; None if none is known.

        When the block ends without an error the subcloud has the current password, so it is tried there at once.
        """
        if self._previous is None:
            yield None
            return
        urls = await self._urls_of(subcloud)
        async with self._session(self._previous, urls, request_id) as session:
            yield session
        await self._login.forget_refusal(urls.auth)

    async def _urls_of(self, subcloud: Subcloud) -> ServiceUrls:
        urls = subcloud_urls(
            self._templates, management_ip=subcloud.management_ip, allowed_networks=self._allowed_networks
        )
        await refuse_other_clouds(subcloud.management_ip, own=self._own_servers, shared_with=subcloud.shares_ip_with)
        return urls

    @asynccontextmanager
    async def _session(
        self, login: PasswordLogin, urls: ServiceUrls, request_id: str
    ) -> AsyncIterator[HttpSubcloudSession]:
        async with open_http(limits=self._limits, trust=self._trust, request_id=request_id) as http:
            authenticated = Authenticated(http, auth_url=urls.auth, login=login, monotonic=self._monotonic)
            session = HttpSubcloudSession(authenticated, urls=urls)
            await session.login()
            yield session


def _checked(lists: Sequence[tuple[Record, ...]], keys: FernetKeys) -> CentralData:
    """Returns the central data; raises CloudError when a mandatory list is empty or a key is invalid."""
    records = Records(**{type_.value: found for type_, found in zip(ResourceType, lists, strict=True)})
    empty = [type_.value for type_ in MANDATORY if not records.of(type_)]
    empty += [] if keys.keys else ["fernet keys"]
    if empty:
        raise CloudError(Reason.CENTRAL_EMPTY, f"the central cloud lists no {', no '.join(empty)}")
    if problems := keys.problems():
        raise CloudError(Reason.CENTRAL_KEYS_INVALID, "; ".join(problems))
    return CentralData(records=records, keys=keys, identity_fingerprint=fingerprint(records))


async def _gather(*reads: Coroutine[Any, Any, Any]) -> list[Any]:
    """Returns the results of all, in order; when one fails the others are cancelled, and its error is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(read) for read in reads]
    except BaseExceptionGroup as failures:
        first = failures.exceptions[0]
    else:
        return [task.result() for task in tasks]
    raise first


def _retrieve_failure(task: asyncio.Task[Any]) -> None:
    """Retrieves the exception, so that asyncio does not log it when every caller was cancelled."""
    if not task.cancelled():
        task.exception()
