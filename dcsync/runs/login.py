"""The login of one run at its subcloud, shared by all the work that the run does one after another."""

from __future__ import annotations

from contextlib import AsyncExitStack

from dcsync.runs.clouds import Clouds, SubcloudSession
from dcsync.runs.ports import Owner


class Login:
    """Made when it is first needed, so that a run that fails before sends no password; closed by the runner."""

    def __init__(self, clouds: Clouds, run: Owner) -> None:
        self._clouds = clouds
        self._run = run
        self._open = AsyncExitStack()
        self._session: SubcloudSession | None = None

    async def session(self) -> SubcloudSession:
        """Returns the run's session, logged in. Raises CloudError; a second call tries again then."""
        if self._session is None:
            visit = self._clouds.subcloud(self._run.subcloud, request_id=f"req-{self._run.run_id}")
            self._session = await self._open.enter_async_context(visit)
        return self._session

    async def close(self) -> None:
        """Closes the session's sockets, if there is a session."""
        self._session = None
        await self._open.aclose()
