"""The way to the centre and to each subcloud over HTTP: `ports.Clouds` filled in.

It opens, logs in, shares and closes. What is asked and written there is the business of the steps.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcsync.adapters.dbsync import Dbsync
from dcsync.adapters.endpoints import CentralEndpoints, ServiceUrls, central_urls, subcloud_urls
from dcsync.adapters.http import Limits, of_the_centre, open_http
from dcsync.adapters.keystone import Authenticated, Credentials, Token
from dcsync.adapters.sysinv import SysinvFernetRepo
from dcsync.adapters.tls import Trust
from dcsync.errors import CloudError, Reason
from dcsync.identity import CentralData, FernetKeys, Records, ResourceType, fingerprint
from dcsync.subcloud import Network, Subcloud

MAY_BE_EMPTY = frozenset({ResourceType.GROUPS})


class HttpSubcloudSession:
    """One subcloud, logged in: a `SubcloudSession`."""

    def __init__(self, session: Authenticated, *, urls: ServiceUrls) -> None:
        self._session = session
        self.identity = Dbsync(session, url=urls.dbsync)
        self.fernet_repo = SysinvFernetRepo(session, url=urls.sysinv)

    async def login(self) -> None:
        """Log in anew and drop the token held so far."""
        await self._session.login()


@dataclass(frozen=True)
class _Fetched:
    data: CentralData
    at: float


class HttpClouds:
    """Belongs to one process and one event loop. `max_age` is how old central data may be, in seconds."""

    def __init__(
        self,
        *,
        credentials: Credentials,
        central: CentralEndpoints,
        subcloud_templates: ServiceUrls,
        allowed_networks: Sequence[Network] = (),
        ca_file: Path | None = None,
        limits: Limits | None = None,
        max_age: float = 5,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._credentials = credentials
        self._central = central
        self._templates = subcloud_templates
        self._allowed_networks = tuple(allowed_networks)
        self._trust = Trust(ca_file)
        self._limits = limits or Limits()
        self._max_age = max_age
        self._monotonic = monotonic
        self._central_token: Token | None = None
        self._fetched: _Fetched | None = None
        self._fetching: asyncio.Task[CentralData] | None = None

    # --- the centre --------------------------------------------------------------------------------------------

    async def central_data(self) -> CentralData:
        """Central records and keys, at most `max_age` old when handed out, or being fetched when asked for.

        Callers at the same time share one fetch; a caller that goes away leaves it to the others, and a fetch that
        failed is not remembered. Raises CloudError with a central-* reason.
        """
        fetched = self._fetched
        if fetched is not None and self._monotonic() - fetched.at < self._max_age:
            return fetched.data
        if self._fetching is None or self._fetching.done():
            self._fetching = asyncio.create_task(self._fetch_central(), name="central data")
            self._fetching.add_done_callback(_note_failure)
        return await asyncio.shield(self._fetching)

    async def _fetch_central(self) -> CentralData:
        started = self._monotonic()
        try:
            data = await self._read_central()
        except CloudError as exc:
            failure = of_the_centre(exc)
        else:
            self._fetched = _Fetched(data, started)
            return data
        raise failure

    async def _read_central(self) -> CentralData:
        async with open_http(limits=self._limits, trust=self._trust, request_id=f"req-{uuid.uuid4()}") as http:
            session = Authenticated(
                http,
                auth_url=self._central.auth,
                credentials=self._credentials,
                monotonic=self._monotonic,
                token=self._central_token,
            )
            try:
                urls = central_urls(self._central, catalog=(await session.token()).catalog)
                dbsync = Dbsync(session, url=urls.dbsync)
                keys, *lists = await _together(
                    SysinvFernetRepo(session, url=urls.sysinv).read(), *(dbsync.list(type_) for type_ in ResourceType)
                )
            finally:
                self._central_token = session.held
        records = Records(**{type_.value: found for type_, found in zip(ResourceType, lists, strict=True)})
        return _checked(records, keys)

    # --- subclouds ---------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def subcloud(self, subcloud: Subcloud, *, request_id: str) -> AsyncIterator[HttpSubcloudSession]:
        """A session, logged in; leaving closes its sockets. Raises CloudError, as address-refused before any I/O."""
        urls = subcloud_urls(
            self._templates, management_ip=subcloud.management_ip, allowed_networks=self._allowed_networks
        )
        async with open_http(limits=self._limits, trust=self._trust, request_id=request_id) as http:
            login = Authenticated(http, auth_url=urls.auth, credentials=self._credentials, monotonic=self._monotonic)
            session = HttpSubcloudSession(login, urls=urls)
            await session.login()
            yield session


def _checked(records: Records, keys: FernetKeys) -> CentralData:
    """What a subcloud may be given: nothing that must be there is missing, and every key is a key."""
    empty = [type_.value for type_ in ResourceType if type_ not in MAY_BE_EMPTY and not records.of(type_)]
    empty += [] if keys.keys else ["fernet keys"]
    if empty:
        raise CloudError(Reason.CENTRAL_EMPTY, f"the centre lists no {', no '.join(empty)}")
    if problems := keys.problems():
        raise CloudError(Reason.CENTRAL_KEYS_INVALID, "; ".join(problems))
    return CentralData(records=records, keys=keys, identity_fingerprint=fingerprint(records))


async def _together(*reads: Coroutine[Any, Any, Any]) -> list[Any]:
    """The results of all, in order; when one fails the others are ended, and its error is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(read) for read in reads]
    except BaseExceptionGroup as failures:
        first = failures.exceptions[0]
    else:
        return [task.result() for task in tasks]
    raise first


def _note_failure(task: asyncio.Task[CentralData]) -> None:
    """Take note of a failure nobody may be left to hear of, so that asyncio does not complain of it."""
    if not task.cancelled():
        task.exception()
